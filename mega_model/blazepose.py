"""BlazePose GHUM's landmark network (Bazarevsky et al. 2020): a square RGB crop -> 2D and 3D landmarks of one person.

A trunk of inverted residuals (Sandler et al. 2018) computes an 8x8 map. From it, a branch of separable convolutions
computes 4x4 and 2x2 maps and the landmarks. In the largest size, the output of a U-net over the trunk's finer maps is
added to the 8x8 map. The published network's heatmaps and segmentation are omitted, as landmarks do not depend on them.
There are no batch norms. `mega import-backbone` imports the published weights.

The import relies on the order in which modules are defined: that of a depth-first search from the published graph's
outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_model.backbones import Backbone
from mega_model.core.errors import InputError

LANDMARKS = (
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
    "mouth_left mouth_right left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist "
    "left_pinky right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee right_knee "
    "left_ankle right_ankle left_heel right_heel left_foot_index right_foot_index "
    "body_centre body_circle left_palm left_hand_base right_palm right_hand_base"
).split()
"""The 33 published landmarks and 6 auxiliary ones. Left and right are the person's."""


@dataclass(frozen=True)
class Variant:
    """Sizes of a network. A stage is (channels, blocks)."""

    name: str
    stem: int
    """Channels of the 128x128 map."""
    trunk: tuple[tuple[int, int], ...]
    """Stages to maps of 64x64, 32x32, 16x16, 16x16 and 8x8."""
    channels: int
    """Of the branch."""
    branch: tuple[int, int]
    """Blocks that end in the 4x4 map and in the 2x2 map."""
    slim: int = 1
    """Number of blocks in the first stage with an expansion of 4; all others have 6."""
    up: int = 0
    """Channels of the U-net's upsampling path; 0 for no U-net."""
    down: tuple[tuple[int, int], ...] = ()
    """Stages of its downsampling path to 32x32, 16x16 and 8x8."""


VARIANTS = {
    96: Variant("lite", 8, ((16, 2), (24, 2), (40, 3), (56, 3), (96, 4)), 192, (3, 4)),
    144: Variant("full", 16, ((24, 2), (32, 2), (64, 3), (88, 3), (144, 4)), 288, (5, 6)),
    272: Variant(
        "heavy",
        24,
        ((32, 4), (56, 4), (112, 6), (160, 6), (272, 8)),
        288,
        (8, 8),
        slim=2,
        up=48,
        down=((96, 7), (192, 8), (288, 8)),
    ),
    16: Variant(
        "tiny",
        4,
        ((4, 2), (6, 1), (8, 2), (10, 1), (16, 1)),
        16,
        (2, 1),
        slim=2,
        up=4,
        down=((8, 2), (12, 1), (16, 1)),
    ),
}
"""Width (channels of the trunk's last stage) -> sizes: the three published ones, and one for tests."""


class PoseFeatures(NamedTuple):
    maps: Tensor
    """[B, channels, 16, 16]: of the trunk's second-last stage"""
    landmarks: Tensor
    """[B, 39, 5]: x and y, where -1 and 1 are the edges of the square crop, and z in the same unit, away from the
    camera, 0 between the hips; the probabilities that it is visible, and that it lies within the crop"""
    world: Tensor
    """[B, 39, 3], metres: x right, y down, z away from the camera, from between the hips"""
    presence: Tensor
    """[B]: probability that there is a person in the crop"""


class BlazePose(Backbone):
    """RGB [B, 3, 256, 256] in 0..1 -> `PoseFeatures`."""

    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    SIDE = 256
    """Side of the crops, pixels: the last map must be 2x2."""

    def __init__(self, width: int) -> None:
        """Raises InputError if there is no variant of this width."""
        super().__init__()
        if width not in VARIANTS:
            known = ", ".join(f"{width} ({variant.name})" for width, variant in VARIANTS.items())
            raise InputError(f"backbone_width {width}: BlazePose has the widths {known}")
        v = VARIANTS[width]
        self.channels, self.branch_channels = v.trunk[-2][0], v.channels
        self.stem = nn.Sequential(Convolution(3, 24, 3, 2), *separable(24, v.stem, relu=False))
        inputs, self.stages = v.stem, nn.ModuleList()
        for stage, ((outputs, count), kernel, stride) in enumerate(zip(v.trunk, (3, 5, 3, 5, 5), (2, 2, 2, 1, 2))):
            blocks = []
            for block in range(count):
                widen = 4 if stage == 0 and block < v.slim else 6
                blocks.append(InvertedResidual(inputs, outputs, kernel, stride, widen))
                inputs, stride = outputs, 1
            self.stages.append(nn.Sequential(*blocks))
        wide = 6 * inputs
        self.widen = nn.Sequential(Convolution(inputs, wide, 1), Convolution(wide, wide, 3, groups=wide))
        finer = [v.trunk[i][0] for i in (0, 1, 3)]
        self.unet = UNet([*finer, wide], v.up, v.down) if v.up else None
        self.narrow = nn.Sequential(*separable(wide, v.channels))
        self.to4, self.to2 = (residuals(v.channels, v.channels, blocks) for blocks in v.branch)
        self.landmarks, self.world, self.presence = (
            Convolution(v.channels, outputs, 2, padding=0, relu=False)
            for outputs in (5 * len(LANDMARKS), 3 * len(LANDMARKS), 1)
        )

    def forward(self, images: Tensor) -> PoseFeatures:
        """Raises InputError for images of another size."""
        height, width = images.shape[2:]
        if (height, width) != (self.SIDE, self.SIDE):
            raise InputError(f"BlazePose reads images of {self.SIDE} x {self.SIDE} pixels, not {height} x {width}")
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        wide = self.widen(maps[-1])
        x = self.narrow(wide)
        if self.unet is not None:
            x = x + self.unet([maps[1], maps[2], maps[4], wide])
        x = self.to2(self.to4(x))
        # x, y, z in pixels of the crop, then logits
        raw = self.landmarks(x).flatten(1).unflatten(1, (len(LANDMARKS), 5))
        place, depth, sure = raw.split([2, 1, 2], dim=2)
        half = self.SIDE / 2
        landmarks = torch.cat([place / half - 1, depth / half, sure.clamp(-8, 8).sigmoid()], dim=2)
        world = self.world(x).flatten(1).unflatten(1, (len(LANDMARKS), 3))
        return PoseFeatures(maps[4], landmarks, world, self.presence(x).flatten().sigmoid())

    def later_layers(self) -> nn.Sequential:
        """From `PoseFeatures.maps` to the 4x4 map, without the U-net."""
        return nn.Sequential(self.stages[-1], self.widen, self.narrow, self.to4)


class Convolution(nn.Conv2d):
    """Convolution that keeps the size or halves it, and ReLU6."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
        relu: bool = True,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 if padding is None else padding, groups=groups)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return F.relu6(x) if self.relu else x


def separable(inputs: int, outputs: int, relu: bool = True) -> tuple[Convolution, Convolution]:
    """A 3x3 convolution per channel, then a 1x1 one; `relu`: whether the second one has a ReLU6."""
    return Convolution(inputs, inputs, 3, groups=inputs), Convolution(inputs, outputs, 1, relu=relu)


class InvertedResidual(nn.Module):
    """A 1x1 convolution to `widen` times the channels, a depthwise one, and a 1x1 one, with a shortcut if the shape
    does not change."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, widen: int) -> None:
        super().__init__()
        wide = widen * inputs
        self.residual = nn.Sequential(
            Convolution(inputs, wide, 1),
            Convolution(wide, wide, kernel, stride, groups=wide),
            Convolution(wide, outputs, 1, relu=False),
        )
        self.keeps_shape = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x) if self.keeps_shape else self.residual(x)


class SeparableResidual(nn.Module):
    """A separable convolution with a shortcut, then ReLU6. With stride 2, the shortcut is a max pooling; additional
    channels are zero."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.halves = stride == 2
        self.more = outputs - inputs
        # TensorFlow's SAME padding: with stride 2, one pixel at the end
        self.depthwise = Convolution(inputs, inputs, 3, stride, groups=inputs, padding=0 if self.halves else 1)
        self.pointwise = Convolution(inputs, outputs, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut, padded = x, x
        if self.halves:
            shortcut, padded = F.max_pool2d(x, 2), F.pad(x, (0, 1, 0, 1))
        if self.more:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.more))
        return F.relu6(shortcut + self.pointwise(self.depthwise(padded)))


def residuals(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """`blocks` blocks, the first of which halves the map."""
    rest = (SeparableResidual(outputs, outputs, 1) for _ in range(blocks - 1))
    return nn.Sequential(SeparableResidual(inputs, outputs, 2), *rest)


class UNet(nn.Module):
    """Maps of 64x64, 32x32, 16x16 and 8x8 with `inputs` channels -> one of 8x8: upsampling from the coarsest to the
    finest, then downsampling with skip connections of the two in between."""

    def __init__(self, inputs: list[int], up: int, down: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        (at32, blocks32), (at16, blocks16), (at8, blocks8) = down
        self.lateral = nn.ModuleList(nn.Sequential(*separable(channels, up)) for channels in reversed(inputs))
        self.to32 = residuals(up, at32, blocks32)
        self.past32 = nn.Sequential(*separable(inputs[1], at32))
        self.to16 = residuals(at32, at16, blocks16)
        self.past16 = nn.Sequential(*separable(inputs[2], at16))
        self.to8 = residuals(at16, at8, blocks8)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x, *finer = (lateral(x) for lateral, x in zip(self.lateral, reversed(maps)))
        for lateral in finer:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear") + lateral
        x = self.to32(x) + self.past32(maps[1])
        x = self.to16(x) + self.past16(maps[2])
        return self.to8(x)
