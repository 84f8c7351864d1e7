"""The verbs of mega_model, by name only: nothing is imported until one is called. See `commands`."""

VERBS = {
    "train tokenizer": ("mega_model.train.tokenizer:main", "stage 1: meshes to tokens and back"),
    "train pretrain": ("mega_model.train.pretrain:main", "stage 2: masked meshes, without images"),
    "train lift": ("mega_model.train.lift:main", "before stage 3: BlazePose's landmarks to latents"),
    "train recover": ("mega_model.train.recover:main", "stage 3: images to meshes"),
    "train errors": ("mega_model.train.errors:main", "after stage 3: how wrong each vertex is likely to be"),
    "train default": ("mega_model.train.default:main", "the default model from nothing, all stages"),
    "render": ("mega_model.data.rendered:main", "training data: rendered people, with their meshes"),
    "features": ("mega_model.data.features:main", "training data: what a frozen BlazePose says of rendered people"),
    "shards": ("mega_model.data.shards:main", "a data set as tar files, which may lie on a server"),
    "import-reference": (
        "mega_model.reference.command:main",
        "the authors' released checkpoints as one of ours",
    ),
    "import-backbone": ("mega_model.import_backbone:main", "BlazePose's published weights, to train from"),
    "import-detector": ("mega_model.import_detector:main", "MoveNet's published weights, to put into a bundle"),
    "evaluate": ("mega_model.evaluate.held_out:main", "score a trained model on held-out clips"),
    "evaluate deterministic": ("mega_model.evaluate.deterministic:main", "tables 1 and 3: one mesh per image"),
    "evaluate stochastic": ("mega_model.evaluate.stochastic:main", "table 2: the best of Q meshes"),
    "evaluate mean": ("mega_model.evaluate.mean:main", "table 4: the mean of Q meshes"),
    "evaluate random": ("mega_model.evaluate.random:main", "random bodies: diversity and plausibility"),
    "evaluate uncertainty": ("mega_model.evaluate.uncertainty:main", "does sigma say how wrong each vertex is?"),
    "evaluate figures": ("mega_model.evaluate.figures:main", "figures 4 to 7 and 9"),
    "bench": ("mega_model.evaluate.bench:main", "what generation costs, beside a straightforward loop"),
}
