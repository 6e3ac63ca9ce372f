"""A model without its BatchNorm layers predicts as it did with them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import make_run
from timm.layers import BatchNormAct2d, StdConv2d
from torch import nn
from torch.nn import functional as F

from dermalyze import members
from dermalyze.compute import Precision
from dermalyze.inference.folding import BATCH_NORMS, fold_batch_norm
from dermalyze.inference.loading import best_checkpoint, load_model, read_facts
from dermalyze.inference.views import AS_THEY_ARE
from dermalyze.models.backbone import Backbone
from dermalyze.prediction.panel import Panel

CPU = torch.device("cpu")
FLOAT, HALF = Precision(CPU, None), Precision(CPU, torch.bfloat16)


class Wired(nn.Module):
    """Two convolutions and a BatchNorm layer, joined by `wire(first, second, layer, images)`."""

    def __init__(self, wire: Any, *, make: Any = nn.Conv2d, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second = make(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.layer = nn.BatchNorm2d(3) if layer is None else layer
        self.wire = wire

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.wire(self.first, self.second, self.layer, images_BCHW.float())
        return out


def shaken(model: nn.Module) -> nn.Module:
    """Return the model in eval mode with weights and statistics that are not those of the start."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.add_((noise if "var" in name else noise - 0.5) / 10)
    return model.eval()


def images(size: int, count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, size, size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def layers(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if type(part) in BATCH_NORMS]


class Normalised(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = Backbone(name=name, pretrained=False, weights_file=None, image_size=64)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        features_BCHW: torch.Tensor = self.body(images_BCHW.float() / 128 - 1)
        return features_BCHW


@pytest.mark.parametrize(
    ("backbone", "whole"),
    [
        ("test_efficientnet", True),  # with SiLU in its layers
        ("tf_mobilenetv3_small_minimal_100", True),  # with padding as TensorFlow has it
        ("test_resnet", True),
        ("resnet10t", True),
        ("mobilenetv3_small_050", True),
        ("test_vit", True),  # has none
        ("resnetv2_18", False),  # what one of its convolutions gives is also added further on
    ],
)
def test_features_stay_up_to_rounding(backbone: str, whole: bool) -> None:
    model = shaken(Normalised(backbone))
    had, pictures = len(layers(model)), images(64)
    with torch.inference_mode():
        before = model(pictures)
    done = fold_batch_norm(model, image_size=64, precision=FLOAT)
    with torch.inference_mode():
        after = model(pictures)
    assert len(set(done)) == had - len(layers(model))
    assert (len(layers(model)) == 0) == whole
    assert not any(part.training for part in model.modules())
    scale = float(before.abs().max())
    assert float(before.std()) > 0.01 * scale
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5 * scale)


def test_a_layer_by_hand() -> None:
    """(2 x + 1 - 3) / 2 * 5 + 6 = 5 x + 1, then SiLU."""
    layer: Any = BatchNormAct2d(1, eps=0.0, act_layer=nn.SiLU)
    model: Any = nn.Sequential(nn.Conv2d(1, 1, 1), layer).eval()
    model[0].weight.data.fill_(2)
    model[0].bias.data.fill_(1)
    for tensor, value in zip(
        (layer.running_mean, layer.running_var, layer.weight, layer.bias), (3, 4, 5, 6), strict=True
    ):
        tensor.data.fill_(value)
    model = nn.Sequential(Grey(), *model).eval()
    assert fold_batch_norm(model, image_size=2, precision=FLOAT) == ["2"]
    assert (model[1].weight.item(), model[1].bias.item()) == (5.0, 1.0)
    pixels = torch.full((1, 3, 2, 2), 3, dtype=torch.uint8)
    torch.testing.assert_close(model(pixels), F.silu(torch.full((1, 1, 2, 2), 16.0)))


class Grey(nn.Module):
    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return images_BCHW[:, :1].float()


@pytest.mark.parametrize("wire", [lambda a, b, n, x: b(n(a(x))), lambda a, b, n, x: n(b(a(x)))])
def test_what_one_convolution_gives_to_the_layer_alone_is_folded(wire: Any) -> None:
    check(Wired(wire), ["layer"])


@pytest.mark.parametrize(
    ("wire", "more"),
    [
        (lambda a, b, n, x: n(y := a(x)) + y, {}),
        (lambda a, b, n, x: (y := a(x)).mean((2, 3), keepdim=True) * n(y), {}),
        (lambda a, b, n, x: n(a(x)) + a(x / 2), {}),
        (lambda a, b, n, x: n(a(x)) + n(b(x)), {}),
        (lambda a, b, n, x: n(F.relu(a(x))), {}),
        (lambda a, b, n, x: n(F.relu(a(x), inplace=True)), {}),
        (lambda a, b, n, x: (z := n(y := a(x))) + y.add_(z), {}),
        (lambda a, b, n, x: n(a(x).detach()), {}),
        (lambda a, b, n, x: a(n(x)), {}),
        (lambda a, b, n, x: n(a(x)), {"make": StdConv2d}),
        (lambda a, b, n, x: n(a(x)), {"layer": nn.BatchNorm2d(3, track_running_stats=False)}),
        (lambda a, b, n, x: n(a(x)), {"layer": nn.GroupNorm(3, 3)}),
    ],
    ids=[
        "added further on",
        "read twice",
        "a convolution that runs twice",
        "a layer that runs twice",
        "something between",
        "something between, in place",
        "read once more after it was changed in place",
        "a way that gradients do not go",
        "the layer first",
        "weights that are changed before they are used",
        "statistics of the batch",
        "another layer",
    ],
)
def test_all_else_stays(wire: Any, more: Any) -> None:
    check(Wired(wire, **more), [])


def test_a_layer_without_weights_is_folded() -> None:
    wire = lambda a, b, n, x: n(a(x))  # noqa: E731
    check(Wired(wire, layer=nn.BatchNorm2d(3, affine=False)), ["layer"])


def check(network: nn.Module, expected: list[str]) -> None:
    model = shaken(network)
    before = copy.deepcopy(model)
    assert fold_batch_norm(model, image_size=8, precision=FLOAT) == expected
    with torch.inference_mode():
        torch.testing.assert_close(model(images(8)), before(images(8)), rtol=1e-5, atol=1e-3)
    if not expected:
        for name, tensor in before.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name])


def test_half_precision_keeps_its_layers() -> None:
    model = shaken(Normalised("test_resnet"))
    had = len(layers(model))
    assert fold_batch_norm(model, image_size=64, precision=HALF) == []
    assert len(layers(model)) == had > 3


class Aliased(Wired):
    def __init__(self) -> None:
        super().__init__(None)
        self.alias = self.layer

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.alias(self.first(images_BCHW.float()))
        return out


def test_a_layer_with_two_names_is_replaced_under_both() -> None:
    check(Aliased(), ["layer"])


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_within_inference_mode_nothing_is_folded(context: Any) -> None:
    model = Wired(lambda a, b, n, x: n(a(x))).eval()
    with context():
        done = fold_batch_norm(model, image_size=8, precision=FLOAT)
    assert done == ([] if context is torch.inference_mode else ["layer"])


def test_frozen_weights_are_not_folded() -> None:
    model = Wired(lambda a, b, n, x: n(a(x))).eval().requires_grad_(requires_grad=False)
    assert fold_batch_norm(model, image_size=8, precision=FLOAT) == []


@pytest.mark.parametrize(("amp", "kept"), [("off", 0), ("bf16", 15)])
def test_evaluate_and_predict_fold_in_float32(
    amp: str, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = best_checkpoint(str(make_run(tmp_path / "run")))
    assert len(layers(load_model(file, CPU).model)) == 15
    how: Any = {"device": "cpu", "set_method": "aps", "outputs": str(tmp_path)}
    (shown,) = Panel(str(file), amp=amp, **how).models
    assert len(layers(shown.model)) == kept

    judged: list[nn.Module] = []

    def predicted(model: nn.Module, *_: Any, **__: Any) -> np.ndarray:
        judged.append(model)
        return np.full((1, 1, 3), 1 / 3)

    monkeypatch.setattr(members, "open_store", lambda *_, **__: None)
    monkeypatch.setattr(members, "predict_views", predicted)
    config = {"paths": {"cache": ""}, "batch_size": 1, "amp": amp}
    table: Any = None  # no image is read
    together = members.Members(
        config=config,
        facts=[read_facts(file)],
        table=table,
        views=AS_THEY_ARE,
        adjustment=None,
        device=CPU,
    )
    together._look(together.facts[0], np.arange(1))
    assert [len(layers(model)) for model in judged] == [kept]
