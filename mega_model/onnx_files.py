"""Reads ONNX files, and stores weights as float16 where this is lossless."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from mega_model.core.errors import InputError
from mega_model.core.files import must_exist, read_bytes

LARGE = 1024
"""Smallest number of elements of a tensor that counts as weights."""


def read(path: Path) -> onnx.ModelProto:
    """Raises InputError that names the file."""
    must_exist(path)
    try:
        # from its bytes: onnx.load guesses another format from the file's name, and opens files that it points to
        proto = onnx.load_model_from_string(read_bytes(path, 2**31))
    except DecodeError as error:
        raise InputError(f"{path}: not a readable ONNX file ({error})") from error
    if not proto.graph.node:  # to protobuf, no bytes are a message, too
        raise InputError(f"{path}: not a readable ONNX file (there is no graph in it)")
    return proto


def halve(graph: onnx.GraphProto) -> None:
    """Store weights as float16 where this is lossless, followed by a cast, which onnxruntime runs once, at loading."""
    casts = []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < LARGE:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if (half == values).all():
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
