"""Image feature extractors, plain torch: normalised RGB [B, 3, H, W] -> feature map [B, C, h, w].

`BACKBONES` names them; each takes one number, its width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import torch
from torch import Tensor, nn

from mega_model.core.errors import InputError
from mega_model.transformer import Block


class Backbone(nn.Module):
    """Normalised RGB [B, 3, H, W] -> [B, channels, h, w]"""

    channels: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of RGB in 0..1: the input is (RGB - mean) / std. The defaults are ImageNet's."""


class Given(Backbone):
    """No backbone: the inputs are feature maps [B, channels, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, features: Tensor) -> Tensor:
        return features


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, relu: bool = True) -> list[nn.Module]:
    """Convolution, batch norm and, if asked, ReLU."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
    return [*layers, nn.ReLU(inplace=True)] if relu else layers


class _Residual(nn.Module):
    """Convolutions around a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, layers: list[nn.Module]) -> None:
        super().__init__()
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]  # a block starts as the identity
        self.residual = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(*convolution(inputs, outputs, 1, stride, relu=False))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))


class BasicBlock(_Residual):
    """Two 3x3 convolutions: `width` channels out."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        layers = [*convolution(inputs, width, 3, stride), *convolution(width, width, 3, relu=False)]
        super().__init__(inputs, width, stride, layers)


class Bottleneck(_Residual):
    """A 3x3 convolution, which has the stride, between 1x1 ones: `4 * width` channels out."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        layers = [
            *convolution(inputs, width, 1),
            *convolution(width, width, 3, stride),
            *convolution(width, 4 * width, 1, relu=False),
        ]
        super().__init__(inputs, 4 * width, stride, layers)


def _stack(
    block: type[BasicBlock] | type[Bottleneck], depth: int, inputs: int, width: int, stride: int
) -> nn.Sequential:
    """`depth` blocks, the first of which has the stride."""
    rest = (block(block.expansion * width, width, 1) for _ in range(depth - 1))
    return nn.Sequential(block(inputs, width, stride), *rest)


def _initialise(model: nn.Module) -> None:
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


class ResNet(Backbone):
    """ResNet without pooling and classifier (He et al. 2016): stride 32, `8 * width` channels times the expansion."""

    def __init__(
        self, width: int, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, int, int, int]
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolution(3, width, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.ModuleList()
        self.channels = width
        for stage, depth in enumerate(depths):
            self.stages.append(_stack(block, depth, self.channels, width << stage, 1 if stage == 0 else 2))
            self.channels = block.expansion * (width << stage)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        return x


class HRNet(Backbone):
    """HRNet (Sun et al. 2019): four branches of strides 4 to 32, downsampled to stride 32 and concatenated.

    `width` channels in the finest branch and twice as many in each coarser one; the output has 15 times `width`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width << branch for branch in range(4)]
        self.channels = sum(widths)
        self.stem = nn.Sequential(*convolution(3, 64, 3, 2), *convolution(64, 64, 3, 2))
        self.first = _stack(Bottleneck, 4, 64, 64, 1)
        self.start = nn.Sequential(*convolution(256, width, 3))
        # each stage adds a branch, downsampled from the coarsest
        self.grow = nn.ModuleList(
            nn.Sequential(*convolution(inputs, outputs, 3, 2))
            for inputs, outputs in zip([256, *widths[1:]], widths[1:])
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Exchange(widths[: 2 + stage]) for _ in range(count)))
            for stage, count in enumerate((1, 4, 3))
        )
        self.down = nn.ModuleList(
            nn.Sequential(*(layer for _ in range(3 - branch) for layer in convolution(w, w, 3, 2)))
            for branch, w in enumerate(widths[:3])
        )
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(self.stem(images))
        branches = [self.start(x)]
        for grow, stage in zip(self.grow, self.stages):
            branches = stage([*branches, grow(x)])
            x = branches[-1]
        return torch.cat([*(down(branch) for down, branch in zip(self.down, branches)), x], dim=1)


class _Exchange(nn.Module):
    """Four blocks in every branch, then a fusion of all branches into each."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_stack(BasicBlock, 4, w, w, 1) for w in widths)
        self.fuse = nn.ModuleList(
            _Sum(_path(widths, source, target) for source in range(len(widths))) for target in range(len(widths))
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        branches = [blocks(x) for blocks, x in zip(self.branches, branches)]
        return [fuse(branches) for fuse in self.fuse]


class _Sum(nn.ModuleList):
    """Sums the branches, each after its path."""

    def forward(self, branches: list[Tensor]) -> Tensor:
        return reduce(torch.add, [path(x) for path, x in zip(self, branches)]).relu()


def _path(widths: list[int], source: int, target: int) -> nn.Module:
    """From one branch to another: upsampling, identity or repeated halving."""
    if source > target:
        layers = convolution(widths[source], widths[target], 1, relu=False)
        return nn.Sequential(*layers, nn.Upsample(scale_factor=2 ** (source - target)))
    halvings = []
    for left in range(target - source, 0, -1):
        outputs = widths[target] if left == 1 else widths[source]  # only the last one changes the width
        halvings.append(nn.Sequential(*convolution(widths[source], outputs, 3, 2, relu=left > 1)))
    return nn.Sequential(*halvings)


class ViT(Backbone):
    """ViTPose's vision transformer (Xu et al. 2022), huge by default: 256 x 192 pixels to a 16 x 12 map.

    Of a wider image it uses the middle 192 columns, so that crops can be square as for other backbones.
    """

    PATCH, ROWS, COLUMNS = 16, 16, 12

    def __init__(self, width: int, depth: int = 32, heads: int = 16) -> None:
        super().__init__()
        self.channels = width
        self.patches = nn.Conv2d(3, width, self.PATCH, self.PATCH, padding=2)
        # the first one, that of the class token, is added to all patches
        self.position = nn.Parameter(torch.empty(1 + self.ROWS * self.COLUMNS, width))
        self.blocks = nn.ModuleList(Block(width, heads, bias=True, eps=1e-6) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Raises InputError unless the images are 256 pixels high, and 192 or an even number of pixels more wide."""
        height, width = images.shape[2:]
        margin, odd = divmod(width - self.PATCH * self.COLUMNS, 2)
        if height != self.PATCH * self.ROWS or margin < 0 or odd:
            raise InputError(f"the ViT reads images of 256 x 192 or 256 x 256 pixels, not {height} x {width}")
        x = self.patches(images[..., margin : width - margin]).flatten(2).transpose(1, 2)
        x = x + self.position[1:] + self.position[:1]
        for block in self.blocks:
            x = block(x)
        return self.norm(x).transpose(1, 2).unflatten(2, (self.ROWS, self.COLUMNS))


def _blazepose(width: int) -> Backbone:
    from mega_model.blazepose import BlazePose  # imported late, because it imports `Backbone`

    return BlazePose(width)


BACKBONES: dict[str, Callable[[int], Backbone]] = {
    "resnet18": partial(ResNet, block=BasicBlock, depths=(2, 2, 2, 2)),
    "resnet50": partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3)),
    "hrnet": HRNet,
    "vit": ViT,
    "blazepose": _blazepose,
    "given": Given,
}
"""Name -> constructor from the width: the channels of the first stage or finest branch (usually 64, 64 and 48), of the
ViT's tokens (1280), of BlazePose's last stage (see `blazepose.VARIANTS`), or of the given features."""
