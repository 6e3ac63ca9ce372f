"""The backbones that conf/model names: that they exist, and are what their headers say."""

from __future__ import annotations

import re
from functools import partial

import pytest
import timm
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dermalyze.config import CONF_DIR
from dermalyze.models.backbone import Backbone
from dermalyze.models.classifier import build_classifier
from dermalyze.models.metadata.none import NoMetadata

PRESETS = {path.stem: path for path in sorted((CONF_DIR / "model").glob("*.yaml"))}
del PRESETS["timm"]  # names no backbone of its own
HEADS = sorted(path.stem for path in (CONF_DIR / "model" / "head").glob("*.yaml"))
HEADER = re.compile(
    r"(?P<weights>\d+) million weights, a (?P<height>\d+) x (?P<width>\d+) map of (?P<channels>\d+)"
    r" channels at 224 pixels\."
)


def header(preset: str) -> dict[str, int]:
    """The numbers in the comment that begins a preset's file."""
    lines = PRESETS[preset].read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#") for line in lines if line.startswith("#")]
    found = HEADER.search(re.sub(r"\s+", " ", " ".join(comment)))
    assert found, preset
    return {name: int(number) for name, number in found.groupdict().items()}


def test_presets_were_found() -> None:
    assert PRESETS.keys() >= {
        "convnext_tiny",
        "efficientnet_v2_l",
        "efficientnet_v2_m",
        "efficientnet_v2_s",
        "resnet10t",
        "resnet18",
        "resnet50",
        "swin_tiny",
        "vit_small",
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_its_header_says(preset: str) -> None:
    """On torch's meta device, which knows shapes and computes nothing."""
    node, expected = OmegaConf.load(PRESETS[preset]), header(preset)
    with torch.device("meta"):
        net = Backbone(name=node.backbone, pretrained=False, weights_file=None, image_size=224)
        features = net.eval()(torch.zeros(2, 3, 224, 224))
    assert features.shape == (2, expected["channels"], expected["height"], expected["width"])
    assert net.out_channels == expected["channels"]
    weights = sum(parameter.numel() for parameter in net.parameters())
    assert round(weights / 1e6) == expected["weights"]


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "resnet10t"])
def test_a_preset_names_weights_that_timm_has(preset: str) -> None:
    node = OmegaConf.load(PRESETS[preset])
    assert node.pretrained is True
    assert "." in node.backbone  # a tag: without one, timm may choose other weights next year
    assert node.backbone in timm.list_pretrained(f"{node.backbone.partition('.')[0]}.*")


@pytest.mark.parametrize(
    ("preset", "image_size", "side"),
    [("resnet10t", 64, 2), ("resnet18", 64, 2), ("vit_small", 64, 4), ("swin_tiny", 64, 2)],
)
def test_smaller_presets_learn_at_small_sizes(preset: str, image_size: int, side: int) -> None:
    """Real weights and gradients, of convolutions, tokens and windows; after a first step, as the
    ResNets begin with branches that are zero."""
    torch.manual_seed(0)
    name = OmegaConf.load(PRESETS[preset]).backbone
    net = Backbone(name=name, pretrained=False, weights_file=None, image_size=image_size)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        features = net(torch.randn(2, 3, image_size, image_size))
        assert features.shape == (2, header(preset)["channels"], side, side)
        (features - torch.randn_like(features)).square().mean().backward()
        optimizer.step()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_every_head_learns_on_maps_and_on_tokens(backbone: str, head: str) -> None:
    torch.manual_seed(0)
    model = build_classifier(
        backbone=backbone,
        pretrained=False,
        weights_file=None,
        colour_constancy="none",
        metadata=partial(NoMetadata, columns=()),
        head=instantiate(OmegaConf.load(CONF_DIR / "model" / "head" / f"{head}.yaml")),
        num_classes=5,
        input_size=64,
        unknown_metadata={},
    )
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    logits_BK = model(images)
    assert logits_BK.shape == (4, 5)
    torch.nn.functional.cross_entropy(logits_BK, torch.arange(4)).backward()
    gradients = [parameter.grad for parameter in model.head.parameters()]
    gradients += [next(model.backbone.parameters()).grad]  # the stem's, farthest from the loss
    assert all(torch.isfinite(gradient).all() and gradient.any() for gradient in gradients)
