"""A renderer for tests that begins soon. It imports little, because every new process imports it."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from unittest.mock import Mock, patch

import numpy as np

from mega_model.core.topology import Topology
from mega_model.data import live
from mega_model.data.scenes import LabelledCrops
from mega_model.options import Split

RENDER = live._render


def render_noise(pipe: Connection, split: Split, topology: Topology, side: int) -> None:
    """In the place of `live._render`: the same, but for what it draws."""
    bodies = Mock(body=Mock(faces=np.array([[0, 1, 1228]])))
    with patch.object(live, "BodySampler", lambda _: bodies), patch.object(live, "draw_crops", noise):
        RENDER(pipe, split, topology, side)


def noise(rng: np.random.Generator, bodies: object, renderer: object, number: int, shares: object) -> LabelledCrops:
    """In the place of `scenes.draw_crops`."""
    time.sleep(0.1)
    return LabelledCrops(
        images=rng.integers(256, size=(number, 96, 96, 3), dtype=np.uint8),
        vertices=rng.normal(0, 0.5, (number, 1229, 3)).astype(np.float16),
        rotation=np.tile(np.diag(np.array([1, -1, -1], np.float32)), (number, 1, 1)),
        translation=rng.normal([0, 0, 5], 0.1, (number, 3)).astype(np.float32),
        focal=np.full(number, 2, np.float32),
        visible=np.ones((number, 1229), bool),
        box=np.tile(np.array([20, 10, 70, 90], np.float32), (number, 1)),
        kind=np.zeros(number, np.int8),
    )
