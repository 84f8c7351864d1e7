"""`live:SPLIT`: scenes that processes render while a training stage draws crops from those that are there.

No scene goes to disk. They are kept on the GPU, if there is one, else in memory; the latest replace the oldest.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Condition, Thread
from typing import Any, cast, get_args

import cv2
import numpy as np
import psutil
import torch
from torch import Tensor

from mega_model.backbones import Backbone
from mega_model.core.errors import InputError, first_line
from mega_model.core.regions import Cameras, last_cameras
from mega_model.core.topology import Topology
from mega_model.core.workers import watch_parent
from mega_model.data.chunks import CHUNK
from mega_model.data.meshes import BodySampler
from mega_model.data.rendered import CroppedScenes
from mega_model.data.scenes import LabelledCrops, Renderer, draw_crops
from mega_model.geometry import crop_batch
from mega_model.options import Split

SIDE = 320
"""Of the scenes, pixels."""
SHARES = (0.34, 0.20, 0.19, 0.17, 0.10)
"""Of `scenes.PARTS`. More are difficult than in `options.MIXTURE`."""
PLACED = np.array([0.93, 0.65, 0.75, 0.65, 0.93])
"""For each of `scenes.PARTS`, the share of people whom a detector's keypoints place, if they are in the image."""
TURNED = 0.03
"""Share of the squares around boxes that are rolled by any angle."""
TWICE = 0.8
"""Share of the batches in which BlazePose's landmarks place the others' crops twice, not once."""
FIRST = 2000
"""Scenes with which training begins."""
MOST = 300_000
"""Scenes that are kept, if half of the free memory holds them."""
SPARED = 2
"""Cores that do not render."""


class LiveSet(CroppedScenes):
    """An `images.ImageSet` of the scenes that have been rendered so far, inside of `rendering`.

    Its length grows, and what an index stands for changes. Which scenes are there depends on the speed of the machine,
    and their random numbers are new in each run. So a resumed run does not equal an uninterrupted one here, nor are two
    runs of the same command equal.

    Crops are whole images, not features: these would be of colours that `train.images.augment` has not changed.
    """

    def __init__(self, split: str, topology: Topology, size: tuple[int, int] | None = None) -> None:
        """Raises InputError unless there is such a split."""
        super().__init__(size)
        if split not in get_args(Split):
            raise InputError(f"live:{split}: must be one of {', '.join(f'live:{name}' for name in get_args(Split))}")
        self.split, self._topology = cast(Split, split), topology
        self.fields: dict[str, Any] = {}
        """Of the scenes that are kept; images are a tensor."""
        self.rendered = 0
        """Scenes so far."""
        self._failure: Exception | None = None
        self._changed = Condition()

    @property
    def topology(self) -> Topology:
        return self._topology

    def __len__(self) -> int:
        """Raises InputError before anything is rendered."""
        if not self.rendered:
            raise InputError(f"live:{self.split}: only training renders it; use a set of mega render here")
        return min(self.rendered, len(self.fields["images"]))

    @contextmanager
    def rendering(self, backbone: Backbone, examples: int, device: torch.device) -> Iterator[None]:
        """Render in processes inside of the context, which begins when the first scenes are there.

        backbone: a BlazePose, whose landmarks place crops, as it is now. examples: how many are drawn in all; it does
        not wait for more scenes. device: where images are kept. If a process fails, `rows` raises its error.
        """
        self._device, self._backbone = device, deepcopy(backbone).eval().to(device)
        context = multiprocessing.get_context("spawn")  # forked processes may hang, as torch and OpenCV have threads
        renderers: dict[Any, BaseProcess] = {}
        collector = Thread(target=self._collect, args=(renderers,))
        try:
            for _ in range(max(1, (len(os.sched_getaffinity(0)) - SPARED) // _sharing())):
                pipe, its = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(target=_render, args=(its, self.split, self._topology, SIDE))
                process.start()
                renderers[pipe] = process
                its.close()  # so that the pipe ends with the process
            collector.start()
            with self._changed:
                self._changed.wait_for(lambda: self._failure or self.rendered >= min(FIRST, examples))
                if self._failure:
                    raise self._failure
            yield
        finally:
            for process in renderers.values():
                process.kill()
                process.join()
            if collector.ident:
                collector.join()
            print(f"live:{self.split}: {self.rendered} scenes rendered", file=sys.stderr)

    def rows(self, index: np.ndarray) -> dict[str, Any]:
        """See `CroppedScenes.rows`; images are a tensor. Raises the error of a process that failed."""
        at = torch.from_numpy(index).to(self._device)  # waits for the GPU, so before the lock
        with self._changed:
            if self._failure:
                raise self._failure
            return {name: array[at if name == "images" else index] for name, array in self.fields.items()}

    def cameras(self, rng: np.random.Generator, rows: Mapping[str, Any], intrinsics: np.ndarray) -> Cameras:
        """As at run time: the regions of keypoints where a detector finds them, else those of landmarks."""
        (centre, side, roll), keypoints = self.guesses(rng, rows, intrinsics)
        turned = rng.random(len(roll)) < TURNED
        roll = np.where(turned, rng.uniform(-np.pi, np.pi, len(roll)), roll)
        keypoints[rng.random(len(roll)) > PLACED[rows["kind"]], :, 2] = 0
        passes = 3 if rng.random() < TWICE else 2
        size = self.size[0]

        @torch.no_grad()
        def landmarks(people: np.ndarray, cameras: Cameras) -> np.ndarray:
            crops = crop_batch(rows["images"][people], intrinsics[people], *cameras, size)
            return self._backbone(crops.float() / 255).landmarks.cpu().numpy()

        return last_cameras((centre, side, roll), keypoints, intrinsics, size, passes, landmarks)

    def crops(self, images: Tensor, intrinsics: np.ndarray, cameras: Cameras, flip: np.ndarray) -> Tensor:
        crop_intrinsics = cameras[0].copy()
        crop_intrinsics[flip, 0, 0] *= -1
        return crop_batch(images, intrinsics, crop_intrinsics, cameras[1], self.size[0])

    def _collect(self, renderers: Mapping[Any, BaseProcess]) -> None:
        """Keep what arrives, until a process fails or ends."""
        try:
            while True:
                ready: list[Any] = wait([*renderers])
                for pipe in ready:
                    try:
                        made = pipe.recv()
                    except (EOFError, OSError):
                        renderers[pipe].join()
                        made = f"it ended with code {renderers[pipe].exitcode}"
                    if isinstance(made, str):
                        raise InputError(f"live:{self.split}: a renderer failed: {made}")
                    self._keep(made)
        except Exception as error:  # for the threads that draw batches
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _keep(self, scenes: LabelledCrops) -> None:
        """In the place of the oldest scenes."""
        new: dict[str, Any] = {**vars(scenes), "images": torch.from_numpy(scenes.images)}
        gpu = self._device.type == "cuda"
        if gpu:
            new["images"] = new["images"].pin_memory()  # so that the copy below does not wait for the GPU
        if not self.fields:
            free = torch.cuda.mem_get_info(self._device)[0] if gpu else psutil.virtual_memory().available // _sharing()
            most = min(MOST, free // 2 * CHUNK // sum(part.nbytes for part in new.values())) // CHUNK * CHUNK
            self.fields = {name: np.empty((most, *part.shape[1:]), part.dtype) for name, part in vars(scenes).items()}
            self.fields["images"] = torch.empty(
                (most, *scenes.images.shape[1:]), dtype=torch.uint8, device=self._device
            )
        first = self.rendered % len(self.fields["images"])
        with self._changed:
            for name, part in new.items():
                kept = self.fields[name][first : first + CHUNK]
                kept.copy_(part, non_blocking=True) if name == "images" else np.copyto(kept, part)
            self.rendered += CHUNK
            self._changed.notify_all()


def _sharing() -> int:
    """Training processes of torchrun that share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _render(pipe: Connection, split: Split, topology: Topology, side: int) -> None:
    """Send `LabelledCrops` for ever, or what fails in one line."""
    watch_parent()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the GPU's memory is for training
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they may go to all processes; training ends this one
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        rng, bodies = np.random.default_rng(), BodySampler(split)
        has, wanted = bodies.body.faces.max() + 1, len(topology.template)
        if has != wanted:
            raise InputError(f"its bodies have {has} vertices, the model's {wanted}")
        renderer = Renderer(topology, side, side)
        while True:
            pipe.send(draw_crops(rng, bodies, renderer, CHUNK, SHARES))
    except Exception as error:
        pipe.send(first_line(error))
        raise
