"""Image backbones: what goes in and comes out, and what they share with MEGA."""

from __future__ import annotations

import pytest
import torch

from mega_model import generate
from mega_model.backbones import BACKBONES, HRNet, ViT
from mega_model.core.errors import InputError
from mega_model.mega import PRESETS, Mega, MegaConfig
from mega_model.transformer import Block


@pytest.mark.parametrize(
    ("name", "shape"),
    [("default", (88, 16, 16)), ("hrnet", (720, 7, 7)), ("resnet", (2048, 7, 7)), ("vit", (1280, 16, 12))],
)
def test_presets_run_on_their_crops(name: str, shape: tuple[int, int, int]) -> None:
    config = PRESETS[name]
    with torch.device("meta"):  # shapes alone cost nothing
        model = Mega(config).eval()
        features = model.backbone(torch.zeros(1, 3, config.image_size, config.image_size))
        maps = features.maps if name == "default" else features
        assert maps.shape == (1, *shape) and model.backbone.channels == shape[0]
        seen = model.encode_image(features)
        assert generate.first_logits(model, seen.image).shape == (1, 54, 512)
    assert seen.rot6d.shape == (1, 6) and seen.camera.shape == (1, 3)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_has_stride_32(name: str) -> None:
    backbone = BACKBONES[name](4).eval()
    with torch.no_grad():
        assert backbone(torch.randn(1, 3, 64, 64)).shape == (1, backbone.channels, 2, 2)


@torch.no_grad()
def test_the_vit_reads_the_middle_columns_of_a_square() -> None:
    """Of 16 x 12 = 192 patches. The released configuration has 196, of 224 x 224: more than the weights have places."""
    vit = ViT(32, depth=2, heads=2).eval()
    square = torch.randn(1, 3, 256, 256)
    torch.testing.assert_close(vit(square), vit(square[..., 32:224]))
    assert vit(square).flatten(2).shape[2] == len(vit.position) - 1 == 192
    other = square.clone()
    other[..., :32] = 0
    assert torch.equal(vit(other), vit(square))
    for height, width in ((224, 224), (256, 255), (256, 128)):
        with pytest.raises(InputError, match=f"not {height} x {width}"):
            vit(torch.zeros(1, 3, height, width))


@torch.no_grad()
def test_every_branch_of_an_hrnet_uses_the_whole_image() -> None:
    torch.manual_seed(0)
    backbone = HRNet(4).eval()
    for norm in (m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.ones_(norm.weight)  # a fresh block is the identity
    images = torch.randn(1, 3, 64, 64)
    change = (backbone(images) - backbone(images.flip(3))).abs().amax(dim=(0, 2, 3))
    assert (change > 0).sum() > 0.8 * backbone.channels
    assert all((part > 0).any() for part in change.split([4, 8, 16, 32]))


def test_given_features_pass() -> None:
    model = Mega(MegaConfig(backbone="given", backbone_width=5, width=16, codes=8))
    features = torch.randn(2, 5, 3, 3)
    assert model.backbone(features) is features
    assert model(features, torch.zeros(2, 54, dtype=torch.long), torch.zeros(2, 54).bool()).logits.shape == (2, 54, 8)


@torch.no_grad()
def test_a_block_computes_only_the_outputs_that_are_asked_for() -> None:
    block = Block(16, 4).eval()
    x = torch.randn(2, 7, 16)
    keep = torch.rand(2, 7) < 0.7
    torch.testing.assert_close(block(x, first=5), block(x)[:, 5:])
    torch.testing.assert_close(block(x, keep, first=3), block(x, keep)[:, 3:])
