"""The authors' released checkpoints as models of this project.

`load_mega` and `load_tokenizer` read the files that the released code of MEGA and Mesh-VQ-VAE writes, and
`mega import-reference` makes of them a checkpoint of this project, to train, evaluate and export. Of a file, the
weights under `model` are read, not the optimizer's state and scores beside them. Every key and shape is checked; keys
that are not used are in `keys.UNUSED`.

Files do not tell everything. Attention has 4 heads. The cameras of a released model are relative to a square crop whose
edges are at -1 and 1; only one that was trained with the released loader of 256 x 192 crops, as mega_vit should be, saw
them at -0.5 and 0.5, so that its scale is half of what this project expects of a camera. Numbers are left as they are.
"""

from mega_model.reference.load import load_mega, load_tokenizer

__all__ = ["load_mega", "load_tokenizer"]
