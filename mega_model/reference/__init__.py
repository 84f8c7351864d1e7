"""The authors' released checkpoints as models of this project.

`load_mega` and `load_tokenizer` read the files of the released code of MEGA and Mesh-VQ-VAE. `mega import-reference`
converts them to a checkpoint of this project, for training, evaluation and export. Only the weights under `model` are
read, not the optimizer's state and the scores. Every key and shape is checked; `keys.UNUSED` lists unused keys.

Some facts are not in the files. Attention has 4 heads. Cameras are relative to a square crop with edges at -1 and 1.
Models that were trained with the released loader of 256 x 192 crops, probably mega_vit, have edges at -0.5 and 0.5, so
their camera's scale is half of what this project expects. Weights are not changed.
"""

from mega_model.reference.load import load_mega, load_tokenizer

__all__ = ["load_mega", "load_tokenizer"]
