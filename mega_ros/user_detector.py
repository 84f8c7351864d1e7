"""The user's own person detector: an ONNX file of a common family, recognised by its outputs.

| layout | outputs | input |
| --- | --- | --- |
| YOLOX | one, [1, N, 5 + C]: centre, size, objectness, classes; decoded or not | BGR, 0 to 255, letterbox |
| YOLOv8, 11, 26 | one, [1, 4 + C, N]: centre, size, classes | RGB, 0 to 1, letterbox |
| YOLOv10, 26 (no suppression); others exported with it | one, [1, N, 6]: corners, score, class | the same |
| RT-DETR | `labels`, `boxes`, `scores`; or `logits`, `pred_boxes`; or one, [1, N, 4 + C] | RGB, 0 to 1, stretched |
| RTMDet | `dets` [1, N, 5], `labels` [1, N] | BGR, normalised, letterbox |

N of YOLOX and YOLOv8 is the number of cells of their grids, which tells them from RT-DETR. YOLO's pose models give 51
further numbers per person: COCO's keypoints. Images are float32 [1, 3, H, W]. A person is class 0, as in COCO.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np

from mega_model.core.detection import KEYPOINTS, THRESHOLD, Detections, detections, letterbox
from mega_model.core.errors import InputError, first_line
from mega_model.core.files import check_file

from .bundle import MOST_BYTES
from .engines import Provider, start_session

Layout: TypeAlias = Literal["YOLOX", "YOLOv8", "YOLO26", "RT-DETR", "RTMDet"]

KNOWN = "YOLOX, YOLOv8/11/26, RT-DETR and RTMDet"
LARGEST = 4096
"""Pixels: the longest side of an input, as for a bundle's detector."""
OTHER_CLASSES = 91, 92
"""Numbers of classes of DETR, Deformable DETR and YOLOS, in which a person is class 1 (and the last may be nobody)."""
SIZE = 640
"""Pixels: height and width where the file leaves them open."""
STRIDES = (8, 16, 32), (8, 16, 32, 64)
"""Pixels per cell of the grids of YOLOX and YOLO."""
MOST = 1000
"""Rows of RT-DETR and YOLO26, whose graphs choose the best; they have 300."""
POSE = len(KEYPOINTS), 3
GREY = 114
"""What YOLO's and RTMDet's letterbox is filled with."""
MEAN, DEVIATION = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
"""Of RTMDet's input: blue, green, red."""


class UserDetector:
    """A detector in an ONNX file, with the same `find` as the bundle's."""

    def __init__(self, path: str | Path, provider: Provider = "auto") -> None:
        """provider: "auto" takes CUDA if it works, tensorrt is CUDA. Raises InputError if the file cannot be used."""
        if not Path(path).is_file():
            raise InputError(f"detector_model: there is no file {path}")
        check_file(Path(path), MOST_BYTES["graph"])
        self._path, self.threshold = Path(path), THRESHOLD
        self.seconds = self.cpu_seconds = 0.0
        """What all runs so far took."""
        self.layout: Layout | None = None
        """Of the outputs: the family of the detector."""
        try:
            self._session = self._started(provider)
            # names are decoded here, and need not be UTF-8
            inputs = {value.name: value for value in self._session.get_inputs()}
            self._outputs = [value.name for value in self._session.get_outputs()]
            # which Ultralytics writes
            self._poses = self._session.get_modelmeta().custom_metadata_map.get("kpt_shape") == str([*POSE])
        except Exception as error:  # onnxruntime's exceptions have no base class of their own
            raise self._fault(f"onnxruntime cannot load it ({first_line(error)})") from None
        self._sizes = inputs.pop("orig_target_sizes", None)
        self._input, *others = inputs
        shape = inputs[self._input].shape
        if others or len(shape) != 4 or shape[1] != 3 or inputs[self._input].type != "tensor(float)":
            found = ", ".join(f"{value.name} {value.shape} {value.type}" for value in self._session.get_inputs())
            raise self._fault(f"its inputs are {found}; known is one of float [1, 3, H, W]")
        self._height, self._width = (size if isinstance(size, int) else SIZE for size in shape[2:])
        if not (0 < self._height <= LARGEST and 0 < self._width <= LARGEST):
            raise self._fault(f"its input has {self._width} x {self._height} pixels; a side has 1 to {LARGEST}")
        # a black image tells the shapes, which files often leave open
        self.layout = self._recognised(self._run(np.zeros((self._height, self._width, 3), np.uint8)))

    @property
    def name(self) -> str:
        """For display."""
        return f"{self._path} (outputs of {self.layout}, {self._session.get_providers()[0]})"

    def find(self, image: np.ndarray, threshold: float | None = None) -> Detections:
        """The people in an image uint8 [H, W, 3] BGR. threshold: lowest score, 0 to 1; None takes the detector's."""
        threshold = self.threshold if threshold is None else threshold
        height, width = image.shape[:2]
        if self.layout == "RT-DETR":
            boxed = cv2.resize(image, (self._width, self._height), interpolation=cv2.INTER_AREA)
            factors = np.array([width / self._width, height / self._height, 1], np.float32)
        else:
            rgb, factors = letterbox(image, self._height, self._width, GREY)
            boxed = rgb[0, ..., ::-1]
        return detections(self._people(self._run(boxed)), factors, width, height, threshold)

    def _started(self, provider: Provider) -> Any:
        if provider != "cpu":
            try:
                return start_session(self._path, "cuda")
            except Exception:
                if provider != "auto":
                    raise
        return start_session(self._path, "cpu")

    def _run(self, bgr: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for an image uint8 [H, W, 3] of the input's size."""
        pixels: np.ndarray = bgr
        if self.layout == "RTMDet":
            pixels = (bgr - np.array(MEAN)) / np.array(DEVIATION)
        elif self.layout != "YOLOX":
            pixels = bgr[..., ::-1] / 255
        given = {self._input: np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)}
        if self._sizes is not None:
            given[self._sizes.name] = np.array([[self._width, self._height]], np.int64)
        start, cpu = time.perf_counter(), time.process_time()
        try:
            out = self._session.run(self._outputs, given)
        except Exception as error:
            raise self._fault(f"onnxruntime cannot run it ({first_line(error)})") from None
        self.seconds += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - cpu
        return dict(zip(self._outputs, out))

    def _recognised(self, out: dict[str, np.ndarray]) -> Layout:
        shapes = {name: array.shape for name, array in out.items()}
        count = shapes.get("labels", ())[1:]  # of the rows, for the families that name their outputs
        if shapes.items() >= {"dets": (1, *count, 5), "labels": (1, *count)}.items():
            return "RTMDet"
        if shapes.items() >= {"labels": (1, *count), "boxes": (1, *count, 4), "scores": (1, *count)}.items():
            return "RT-DETR"
        if "logits" in shapes and shapes.get("pred_boxes") == (1, *shapes["logits"][1:-1], 4):
            if out["logits"].shape[-1] in OTHER_CLASSES:
                raise self._fault(
                    f"its logits have {out['logits'].shape[-1]} classes, as those of DETR and YOLOS, whose class 0 is "
                    f"nobody; known are {KNOWN}"
                )
            return "RT-DETR"
        if len(shapes) == 1 and len(next(iter(shapes.values()))) == 3:
            ((_, rows, columns),) = shapes.values()
            cells = [len(self._grid(strides)) for strides in STRIDES]
            if rows in cells and columns >= 6:
                return "YOLOX"
            if columns in cells and rows >= 5:
                return "YOLOv8"
            if rows <= MOST and columns >= 5:
                (only,) = out.values()
                # numbers of classes are whole, their probabilities are not
                return "YOLO26" if columns >= 6 and (only[..., 5] % 1 == 0).all() else "RT-DETR"
        found = ", ".join(f"{name} {list(array.shape)}" for name, array in out.items())
        raise self._fault(f"its outputs are {found}; known are those of {KNOWN}")

    def _fault(self, what: str) -> InputError:
        return InputError(f"detector_model {self._path}: {what}")

    def _grid(self, strides: tuple[int, ...]) -> np.ndarray:
        """[N, 3]: x and y of each cell in its grid, and its stride."""
        grids = []
        for stride in strides:
            y, x = np.mgrid[: self._height // stride, : self._width // stride]
            grids.append(np.stack([x.ravel(), y.ravel(), np.full(x.size, stride)], axis=1))
        return np.concatenate(grids)

    def _people(self, out: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Boxes [N, 4], scores [N] and, of pose models, keypoints [N, 17, 3]; places in pixels of the input."""
        size = np.array([self._width, self._height] * 2, np.float32)
        if self.layout == "RTMDet":
            people = out["labels"][0] == 0
            return {"boxes": out["dets"][0][people, :4], "scores": out["dets"][0][people, 4]}
        if "boxes" in out:
            people = out["labels"][0] == 0
            return {"boxes": out["boxes"][0][people], "scores": out["scores"][0][people]}
        if "logits" in out:
            return {"boxes": _corners(out["pred_boxes"][0]) * size, "scores": 1 / (1 + np.exp(-out["logits"][0, :, 0]))}
        rows = next(iter(out.values()))[0]
        if self.layout == "RT-DETR":
            return {"boxes": _corners(rows[:, :4]) * size, "scores": rows[:, 4]}
        if self.layout == "YOLO26":
            rows = rows[rows[:, 5] == 0]
            return {"boxes": rows[:, :4], "scores": rows[:, 4], **self._keypoints(rows)}
        if self.layout == "YOLOv8":
            rows = rows.T
            return {"boxes": _corners(rows[:, :4]), "scores": rows[:, 4], **self._keypoints(rows)}
        boxes, scores = rows[:, :4].copy(), rows[:, 4] * rows[:, 5]
        # sizes that are all below 16 are no pixels, but logarithms of the stride's multiples: not decoded yet
        if boxes[:, 2:].max() < 16:
            (grid,) = (g for g in map(self._grid, STRIDES) if len(g) == len(boxes))
            boxes[:, :2] = (boxes[:, :2] + grid[:, :2]) * grid[:, 2:]
            boxes[:, 2:] = np.exp(boxes[:, 2:]) * grid[:, 2:]
        return {"boxes": _corners(boxes), "scores": scores}

    def _keypoints(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Of a pose model, the last numbers of each row; else nothing."""
        count = POSE[0] * POSE[1]
        return {"keypoints": rows[:, -count:].reshape(-1, *POSE)} if self._poses else {}


def _corners(boxes: np.ndarray) -> np.ndarray:
    """Centre x, y, width, height [N, 4] -> x0, y0, x1, y1."""
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
