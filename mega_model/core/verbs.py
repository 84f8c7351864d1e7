"""The verbs of mega_model, see `commands`."""

from mega_model.core.commands import Verb

OPTIONS = "mega_model.options"
VERBS = {
    "train tokenizer": Verb(
        "mega_model.train.tokenizer:main",
        "stage 1: meshes to tokens and back",
        f"{OPTIONS}:TokenizerTraining",
    ),
    "train pretrain": Verb(
        "mega_model.train.pretrain:main",
        "stage 2: masked meshes, without images",
        f"{OPTIONS}:PretrainTraining",
    ),
    "train lift": Verb(
        "mega_model.train.lift:main",
        "before stage 3: BlazePose's landmarks to latents",
        f"{OPTIONS}:ImageTraining",
    ),
    "train recover": Verb(
        "mega_model.train.recover:main",
        "stage 3: images to meshes",
        f"{OPTIONS}:RecoverTraining",
    ),
    "train errors": Verb(
        "mega_model.train.errors:main",
        "after stage 3: the expected error of each vertex",
        f"{OPTIONS}:ErrorTraining",
    ),
    "train default": Verb(
        "mega_model.train.default:main",
        "the default model from scratch, all stages",
        f"{OPTIONS}:Default",
    ),
    "render": Verb(
        "mega_model.data.rendered:render",
        "training data: rendered people, with their meshes",
        f"{OPTIONS}:Render",
    ),
    "features": Verb(
        "mega_model.data.features:extract",
        "training data: a frozen BlazePose's features of rendered people",
        f"{OPTIONS}:Extract",
    ),
    "vertices": Verb(
        "mega_model.body.vertices:main",
        "parameters of SMPL or Anny to vertices, for replay --reference",
    ),
    "shards": Verb(
        "mega_model.data.shards:write",
        "a data set to tar files, also for a server",
        f"{OPTIONS}:Write",
    ),
    "import-reference": Verb(
        "mega_model.reference.command:main",
        "the authors' released checkpoints to one of this project",
        f"{OPTIONS}:ImportReference",
    ),
    "import-backbone": Verb(
        "mega_model.import_backbone:main",
        "BlazePose's published weights, to train from",
        f"{OPTIONS}:ImportBackbone",
    ),
    "import-detector": Verb(
        "mega_model.import_detector:main",
        "MoveNet's published weights, as a bundle's detector",
        f"{OPTIONS}:ImportDetector",
    ),
    "calibrate": Verb(
        "mega_model.evaluate.calibrate:main",
        "the factor from the samples' spread to sigma",
        f"{OPTIONS}:Calibrate",
    ),
    "evaluate": Verb(
        "mega_model.evaluate.held_out:main",
        "score a trained model on held-out clips",
        f"{OPTIONS}:Evaluate",
    ),
    "evaluate deterministic": Verb(
        "mega_model.evaluate.deterministic:main",
        "tables 1 and 3: one mesh per image",
        f"{OPTIONS}:Deterministic",
    ),
    "evaluate stochastic": Verb(
        "mega_model.evaluate.stochastic:main",
        "table 2: the best of Q meshes",
        f"{OPTIONS}:Stochastic",
    ),
    "evaluate mean": Verb(
        "mega_model.evaluate.mean:main",
        "table 4: the mean of Q meshes",
        f"{OPTIONS}:Mean",
    ),
    "evaluate random": Verb(
        "mega_model.evaluate.random:main",
        "random bodies: diversity and plausibility",
        f"{OPTIONS}:Random",
    ),
    "evaluate uncertainty": Verb(
        "mega_model.evaluate.uncertainty:main",
        "how well sigma predicts the error of each vertex",
        f"{OPTIONS}:Uncertainty",
    ),
    "evaluate figures": Verb(
        "mega_model.evaluate.figures:main",
        "figures 4 to 7 and 9",
        f"{OPTIONS}:Figures",
    ),
}
