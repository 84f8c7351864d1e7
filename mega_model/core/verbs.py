"""The verbs of mega_model. A verb's module is imported only when the verb is called; see `commands`."""

VERBS = {
    "train tokenizer": ("mega_model.train.tokenizer:main", "stage 1: meshes to tokens and back"),
    "train pretrain": ("mega_model.train.pretrain:main", "stage 2: masked meshes, without images"),
    "train lift": ("mega_model.train.lift:main", "before stage 3: BlazePose's landmarks to latents"),
    "train recover": ("mega_model.train.recover:main", "stage 3: images to meshes"),
    "train errors": ("mega_model.train.errors:main", "after stage 3: the expected error of each vertex"),
    "train default": ("mega_model.train.default:main", "the default model from scratch, all stages"),
    "render": ("mega_model.data.rendered:main", "training data: rendered people, with their meshes"),
    "features": ("mega_model.data.features:main", "training data: a frozen BlazePose's features of rendered people"),
    "vertices": ("mega_model.body.vertices:main", "parameters of SMPL or Anny to vertices, for replay --reference"),
    "shards": ("mega_model.data.shards:main", "a data set to tar files, also for a server"),
    "import-reference": (
        "mega_model.reference.command:main",
        "the authors' released checkpoints to one of this project",
    ),
    "import-backbone": ("mega_model.import_backbone:main", "BlazePose's published weights, to train from"),
    "import-detector": ("mega_model.import_detector:main", "MoveNet's published weights, as a bundle's detector"),
    "calibrate": ("mega_model.evaluate.calibrate:main", "the factor from the samples' spread to sigma"),
    "evaluate": ("mega_model.evaluate.held_out:main", "score a trained model on held-out clips"),
    "evaluate deterministic": ("mega_model.evaluate.deterministic:main", "tables 1 and 3: one mesh per image"),
    "evaluate stochastic": ("mega_model.evaluate.stochastic:main", "table 2: the best of Q meshes"),
    "evaluate mean": ("mega_model.evaluate.mean:main", "table 4: the mean of Q meshes"),
    "evaluate random": ("mega_model.evaluate.random:main", "random bodies: diversity and plausibility"),
    "evaluate uncertainty": (
        "mega_model.evaluate.uncertainty:main",
        "how well sigma predicts the error of each vertex",
    ),
    "evaluate figures": ("mega_model.evaluate.figures:main", "figures 4 to 7 and 9"),
    "bench": ("mega_model.evaluate.bench:main", "time of generation, compared with a plain loop"),
}
