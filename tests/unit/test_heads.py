from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from dermalyze.config import check_targets
from dermalyze.errors import ConfigError
from dermalyze.models.heads.acrnn import AcrnnHead
from dermalyze.models.heads.attention import AttentionHead
from dermalyze.models.heads.gem import GemHead
from dermalyze.models.heads.linear import LinearHead
from dermalyze.models.heads.simple import SimpleHead

CONF = Path(__file__).parents[2] / "conf" / "model" / "head"
HEADS = sorted(path.stem for path in CONF.glob("*.yaml"))
SMALL_ACRNN = {
    "in_features": 5,
    "num_classes": 3,
    "channels": 4,
    "kernel_size": 3,
    "lstm_hidden": 6,
    "context": 2,
}


def from_yaml(name: str, in_features: int, num_classes: int) -> nn.Module:
    cfg = OmegaConf.load(CONF / f"{name}.yaml")
    check_targets({"head": OmegaConf.to_container(cfg)})
    return instantiate(cfg)(in_features=in_features, num_classes=num_classes)


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_simple_head_has_the_described_layers() -> None:
    head = from_yaml("simple", in_features=1280, num_classes=7)
    assert isinstance(head, SimpleHead)
    assert [type(layer) for layer in head.layers] == [
        nn.Dropout,
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
        nn.Dropout,
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
        nn.Dropout,
        nn.Linear,
    ]
    assert [layer.p for layer in head.layers if isinstance(layer, nn.Dropout)] == [0.35] * 3
    assert [
        (layer.in_features, layer.out_features)
        for layer in head.layers
        if isinstance(layer, nn.Linear)
    ] == [(1280, 512), (512, 256), (256, 7)]
    assert parameter_count(head) == (
        (1280 * 512 + 512) + 2 * 512 + (512 * 256 + 256) + 2 * 256 + (256 * 7 + 7)
    )


def test_simple_head_without_hidden_layers_classifies_the_averages() -> None:
    head = SimpleHead(in_features=2, num_classes=2, dropout=0.5, hidden=()).eval()
    linear = head.layers[-1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        linear.bias.copy_(torch.tensor([0.5, 0.0]))
    features_BCHW = torch.tensor([[[[1.0, 3.0]], [[10.0, 20.0]]]])  # averages 2 and 15
    assert head(features_BCHW).tolist() == [[2 + 30 + 0.5, -15.0]]


def test_simple_head_equals_its_layers_written_out() -> None:
    head = SimpleHead(in_features=5, num_classes=3, dropout=0.35, hidden=(6, 4)).double()
    features_BCHW = features(8, 5, 2, 3).double()
    with torch.no_grad():
        head(3 * features_BCHW + 1)  # so that the running statistics are not the initial ones
    head.eval()
    weights = {name: value.numpy() for name, value in head.state_dict().items()}
    hidden = features_BCHW.numpy().mean(axis=(2, 3))
    for linear, norm in (("1", "2"), ("5", "6")):
        hidden = hidden @ weights[f"layers.{linear}.weight"].T + weights[f"layers.{linear}.bias"]
        scale = np.sqrt(weights[f"layers.{norm}.running_var"] + 1e-5)
        hidden = (hidden - weights[f"layers.{norm}.running_mean"]) / scale
        hidden = hidden * weights[f"layers.{norm}.weight"] + weights[f"layers.{norm}.bias"]
        hidden = np.maximum(hidden, 0)
    expected = hidden @ weights["layers.9.weight"].T + weights["layers.9.bias"]
    np.testing.assert_allclose(head(features_BCHW).detach().numpy(), expected, rtol=1e-12)


def test_acrnn_head_has_the_described_parameters() -> None:
    head = from_yaml("acrnn", in_features=1280, num_classes=7)
    assert isinstance(head, AcrnnHead)
    convolution = 1280 * 128 * 3 + 128
    lstm = 4 * (128 * 64 + 64 * 64 + 64 + 64)  # four gates, two bias vectors each
    attention = (64 * 16 + 16) + 16
    classifier = 16 * 7 + 7
    assert parameter_count(head) == convolution + lstm + attention + classifier
    logits_BK, attention_BHW = head.attend(features(2, 1280, 7, 7))
    assert logits_BK.shape == (2, 7)
    assert attention_BHW.shape == (2, 7, 7)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def acrnn_by_hand(head: AcrnnHead, features_CHW: Tensor) -> tuple[list[float], list[list[float]]]:
    """One image through the head, number by number, in plain Python."""
    weights = {name: value.tolist() for name, value in head.state_dict().items()}
    channels_in, height, width = features_CHW.shape
    positions = [(row, column) for row in range(height) for column in range(width)]
    kernel = weights["convolution.weight"]
    middle = len(kernel[0][0]) // 2

    steps = []
    for t in range(len(positions)):
        step = []
        for out, bias in enumerate(weights["convolution.bias"]):
            total = bias
            for channel in range(channels_in):
                for k, weight in enumerate(kernel[out][channel]):
                    if 0 <= t + k - middle < len(positions):
                        row, column = positions[t + k - middle]
                        total += weight * features_CHW[channel, row, column].item()
            step.append(max(total, 0.0))
        steps.append(step)

    size = len(weights["lstm.weight_hh_l0"]) // 4
    hidden, cell, states = [0.0] * size, [0.0] * size, []
    for step in steps:
        gates = [
            sum(w * x for w, x in zip(weights["lstm.weight_ih_l0"][row], step, strict=True))
            + weights["lstm.bias_ih_l0"][row]
            + sum(w * h for w, h in zip(weights["lstm.weight_hh_l0"][row], hidden, strict=True))
            + weights["lstm.bias_hh_l0"][row]
            for row in range(4 * size)
        ]
        for unit in range(size):
            keep = sigmoid(gates[size + unit]) * cell[unit]
            cell[unit] = keep + sigmoid(gates[unit]) * math.tanh(gates[2 * size + unit])
        hidden = [sigmoid(gates[3 * size + unit]) * math.tanh(cell[unit]) for unit in range(size)]
        states.append(hidden)

    projected = [
        [
            math.tanh(sum(w * h for w, h in zip(row, state, strict=True)) + bias)
            for row, bias in zip(
                weights["projection.weight"], weights["projection.bias"], strict=True
            )
        ]
        for state in states
    ]
    scores = [
        math.exp(sum(v * u for v, u in zip(weights["score.weight"][0], vector, strict=True)))
        for vector in projected
    ]
    attention = [score / sum(scores) for score in scores]
    context = [
        sum(a * vector[unit] for a, vector in zip(attention, projected, strict=True))
        for unit in range(len(projected[0]))
    ]
    logits = [
        sum(w * c for w, c in zip(row, context, strict=True)) + bias
        for row, bias in zip(weights["classifier.weight"], weights["classifier.bias"], strict=True)
    ]
    return logits, [attention[row * width : (row + 1) * width] for row in range(height)]


def test_acrnn_head_equals_loops_in_plain_python() -> None:
    torch.manual_seed(3)
    head = AcrnnHead(**SMALL_ACRNN).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(3)  # far enough from linear that each nonlinearity shows
    features_BCHW = features(2, 5, 3, 4).double()
    logits_BK, attention_BHW = head.attend(features_BCHW)
    for image in range(2):
        logits, attention = acrnn_by_hand(head, features_BCHW[image])
        assert logits_BK[image].tolist() == pytest.approx(logits, rel=1e-10)
        np.testing.assert_allclose(attention_BHW[image].tolist(), attention, rtol=1e-10)
    assert torch.equal(head(features_BCHW), logits_BK)


def test_acrnn_attention_sums_to_one_and_is_not_flat() -> None:
    torch.manual_seed(0)
    head = AcrnnHead(**SMALL_ACRNN)
    _, attention_BHW = head.attend(10 * features(4, 5, 7, 7))
    torch.testing.assert_close(attention_BHW.sum(dim=(1, 2)), torch.ones(4))
    assert attention_BHW.min() >= 0
    assert (attention_BHW.amax(dim=(1, 2)) > attention_BHW.amin(dim=(1, 2))).all()


def linear(**changes: object) -> LinearHead:
    arguments = {
        "in_features": 2,
        "num_classes": 2,
        "dropout": 0.0,
        "normalized": False,
        "scale": 30.0,
        "learnable_scale": False,
    }
    return LinearHead(**{**arguments, **changes})


# Averages (3, 4) over two positions.
THREE_AND_FOUR = torch.tensor([[[[1.0, 5.0]], [[4.0, 4.0]]]])


def test_linear_head_classifies_the_averages() -> None:
    head = linear()
    with torch.no_grad():
        head.classifier.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        head.classifier.bias.copy_(torch.tensor([0.5, 0.0]))
    assert head(THREE_AND_FOUR).tolist() == [[3 + 8 + 0.5, -4.0]]
    assert parameter_count(head) == 2 * 2 + 2


def test_linear_head_gives_scaled_cosines() -> None:
    """(3, 4) has length 5; its cosine with (1, 0) is 3/5, with (-8, -6) it is -48/50."""
    head = linear(normalized=True)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.tensor([[0.1, 0.0], [-8.0, -6.0]]))
    expected = torch.tensor([[30 * 0.6, 30 * -0.96]])
    torch.testing.assert_close(head(THREE_AND_FOUR), expected)
    torch.testing.assert_close(head(1000 * THREE_AND_FOUR), expected)
    reference = 30 * nn.functional.cosine_similarity(
        torch.tensor([[3.0, 4.0]]), head.classifier.weight, dim=1
    )
    torch.testing.assert_close(head(THREE_AND_FOUR)[0], reference)
    assert head.classifier.bias is None


def test_a_map_of_zeros_has_no_direction_and_no_logit() -> None:
    head = linear(normalized=True, learnable_scale=True)
    logits_BK = head(torch.zeros(1, 2, 3, 3, requires_grad=True))
    assert logits_BK.tolist() == [[0.0, 0.0]]
    logits_BK.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("normalized", "learnable", "parameters", "saved"),
    [
        (False, True, {"classifier.weight", "classifier.bias"}, set()),
        (True, False, {"classifier.weight"}, {"scale"}),
        (True, True, {"classifier.weight", "scale"}, {"scale"}),
    ],
)
def test_the_scale_is_learnt_or_stays(
    normalized: bool, learnable: bool, parameters: set[str], saved: set[str]
) -> None:
    head = linear(normalized=normalized, learnable_scale=learnable)
    assert {name for name, _ in head.named_parameters()} == parameters
    assert {name for name in head.state_dict() if name == "scale"} == saved
    head(THREE_AND_FOUR).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def gem(**changes: object) -> GemHead:
    arguments = {"in_features": 2, "num_classes": 3, "power": 3.0, "eps": 1e-6, "dropout": 0.0}
    return GemHead(**{**arguments, **changes})


def test_generalised_mean_by_hand() -> None:
    """((1 + 27 + 0 + 64) / 4)^(1/3), where the negative value counts as nearly zero."""
    features_BCHW = torch.tensor([[[[1.0, 3.0], [-5.0, 4.0]], [[2.0, 2.0], [2.0, 2.0]]]])
    torch.testing.assert_close(
        gem().pool(features_BCHW), torch.tensor([[(92 / 4) ** (1 / 3), 2.0]])
    )


@pytest.mark.parametrize("power", [1.0, 2.5, 3.0, 6.0])
def test_generalised_mean_equals_torchs_norm_pooling(power: float) -> None:
    """`lp_pool2d` is the same sum without the division by the number of positions."""
    features_BCHW = features(3, 2, 4, 5).abs().double() + 0.01
    sums = nn.functional.lp_pool2d(features_BCHW, norm_type=power, kernel_size=(4, 5))
    expected = sums[:, :, 0, 0] / 20 ** (1 / power)
    pooled = gem(power=power).double().pool(features_BCHW)
    torch.testing.assert_close(pooled, expected, rtol=1e-6, atol=0)


def test_generalised_mean_goes_from_the_average_to_the_maximum() -> None:
    features_BCHW = features(3, 2, 4, 5).abs()
    average, maximum = features_BCHW.mean(dim=(2, 3)), features_BCHW.amax(dim=(2, 3))
    torch.testing.assert_close(gem(power=1.0).pool(features_BCHW), average)
    torch.testing.assert_close(gem(power=1000.0).pool(features_BCHW), maximum, rtol=5e-3, atol=0)


@pytest.mark.parametrize("power", [3.0, 8.0, 50.0])
def test_a_map_of_zeros_has_a_finite_mean_and_gradient(power: float) -> None:
    """1e-6 to the power of 8 is zero in float32; the mean is 1e-6 all the same."""
    head = gem(power=power)
    features_BCHW = torch.zeros(1, 2, 3, 3, requires_grad=True)
    pooled_BF = head.pool(features_BCHW)
    torch.testing.assert_close(pooled_BF, torch.full((1, 2), 1e-6), rtol=1e-4, atol=0)
    pooled_BF.sum().backward()
    assert features_BCHW.grad is not None
    assert torch.isfinite(features_BCHW.grad).all()
    assert head.log_power.grad is not None
    assert torch.isfinite(head.log_power.grad)


def test_generalised_mean_takes_half_precision() -> None:
    features_BCHW = features(2, 2, 3, 3).half()
    pooled_BF = gem().pool(features_BCHW)
    assert pooled_BF.dtype == torch.float32
    torch.testing.assert_close(pooled_BF, gem().pool(features_BCHW.float()))


def attention_by_hand(head: AttentionHead, features_CHW: Tensor) -> tuple[list[float], list[float]]:
    """One image, position by position, in plain Python: Ilse et al. 2018, eq. 9 and 7."""
    weights = {name: value.tolist() for name, value in head.state_dict().items()}
    positions = features_CHW.flatten(1).T.tolist()

    def times(matrix: list[list[float]], vector: list[float]) -> list[float]:
        return [sum(w * x for w, x in zip(row, vector, strict=True)) for row in matrix]

    scores = []
    for vector in positions:
        values = [math.tanh(v) for v in times(weights["values.weight"], vector)]
        gates = [sigmoid(u) for u in times(weights["gates.weight"], vector)]
        gated = [v * g for v, g in zip(values, gates, strict=True)]
        scores.append(math.exp(times(weights["score.weight"], gated)[0]))
    attention = [score / sum(scores) for score in scores]
    pooled = [
        sum(a * vector[channel] for a, vector in zip(attention, positions, strict=True))
        for channel in range(len(positions[0]))
    ]
    logits = times(weights["classifier.weight"], pooled)
    biases = weights["classifier.bias"]
    return [z + b for z, b in zip(logits, biases, strict=True)], attention


def test_attention_head_equals_loops_in_plain_python() -> None:
    torch.manual_seed(3)
    head = AttentionHead(in_features=5, num_classes=3, hidden=4, dropout=0.0).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(3)  # far enough from linear that each nonlinearity shows
    features_BCHW = features(2, 5, 3, 4).double()
    logits_BK, attention_BHW = head.attend(features_BCHW)
    assert attention_BHW.shape == (2, 3, 4)
    for image in range(2):
        logits, attention = attention_by_hand(head, features_BCHW[image])
        assert logits_BK[image].tolist() == pytest.approx(logits, rel=1e-10)
        assert attention_BHW[image].flatten().tolist() == pytest.approx(attention, rel=1e-10)
    assert torch.equal(head(features_BCHW), logits_BK)
    torch.testing.assert_close(attention_BHW.sum(dim=(1, 2)), torch.ones(2).double())
    assert (attention_BHW.amax(dim=(1, 2)) > 1.5 * attention_BHW.amin(dim=(1, 2))).all()


def test_without_scores_attention_is_the_average() -> None:
    head = AttentionHead(in_features=5, num_classes=3, hidden=4, dropout=0.0)
    with torch.no_grad():
        head.score.weight.zero_()
    features_BCHW = features(2, 5, 3, 4)
    logits_BK, attention_BHW = head.attend(features_BCHW)
    torch.testing.assert_close(attention_BHW, torch.full((2, 3, 4), 1 / 12))
    torch.testing.assert_close(logits_BK, head.classifier(features_BCHW.mean(dim=(2, 3))))


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_learns(name: str) -> None:
    torch.manual_seed(0)
    head = from_yaml(name, in_features=24, num_classes=7)
    features_BCHW = features(6, 24, 7, 7).requires_grad_()
    logits_BK = head(features_BCHW)
    assert logits_BK.shape == (6, 7)
    nn.functional.cross_entropy(logits_BK, torch.arange(6)).backward()
    for parameter_name, parameter in [*head.named_parameters(), ("features", features_BCHW)]:
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", HEADS)
def test_an_image_does_not_see_its_batch_in_evaluation(name: str) -> None:
    torch.manual_seed(0)
    head = from_yaml(name, in_features=8, num_classes=3).eval()
    features_BCHW = features(5, 8, 4, 6)
    alone_BK = torch.cat([head(features_BCHW[image : image + 1]) for image in range(5)])
    torch.testing.assert_close(head(features_BCHW), alone_BK, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dropout": 1.0}, "model.head.dropout=1.0"),
        ({"dropout": -0.1}, "model.head.dropout=-0.1"),
        ({"dropout": math.nan}, "model.head.dropout=nan"),
        ({"hidden": (8, 0)}, "model.head.hidden=[8, 0]"),
    ],
)
def test_simple_head_refuses_values_out_of_range(change: dict[str, object], said: str) -> None:
    arguments = {"in_features": 4, "num_classes": 3, "dropout": 0.35, "hidden": (8,), **change}
    with pytest.raises(ConfigError) as error:
        SimpleHead(**arguments)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("channels", 0), ("lstm_hidden", 0), ("context", -1), ("kernel_size", 4), ("kernel_size", -1)],
)
def test_acrnn_head_refuses_values_out_of_range(name: str, value: int) -> None:
    with pytest.raises(ConfigError) as error:
        AcrnnHead(**{**SMALL_ACRNN, name: value})
    assert f"model.head.{name}={value}:" in str(error.value)


@pytest.mark.parametrize(
    ("head", "name", "value"),
    [
        (linear, "dropout", 1.0),
        (linear, "scale", 0.0),
        (linear, "scale", math.inf),
        (gem, "power", 0.0),
        (gem, "power", math.nan),
        (gem, "eps", -1e-6),
        (gem, "dropout", -0.5),
        (partial(AttentionHead, in_features=4, num_classes=3, dropout=0.0), "hidden", 0),
        (partial(AttentionHead, in_features=4, num_classes=3, hidden=8), "dropout", 2.0),
    ],
)
def test_the_other_heads_refuse_values_out_of_range(
    head: Callable[..., nn.Module], name: str, value: float
) -> None:
    with pytest.raises(ConfigError) as error:
        head(**{name: value})
    assert f"model.head.{name}={value}:" in str(error.value)
