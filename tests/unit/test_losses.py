from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from dermalyze.config import check_targets
from dermalyze.errors import ConfigError
from dermalyze.losses.class_weights import class_weights
from dermalyze.losses.cross_entropy import CrossEntropy
from dermalyze.losses.focal import FocalLoss
from dermalyze.losses.label_smoothing import LabelSmoothing

CONF = Path(__file__).parents[2] / "conf" / "loss"
HAM10000_COUNTS = [327, 514, 1099, 115, 1113, 6705, 142]
COUNTS = [5, 20, 10, 65]
WEIGHTS_K = torch.tensor([5.0, 1.25, 2.5, 100 / 260])
NAMES = ["cross_entropy", "focal", "label_smoothing"]


def from_yaml(name: str, class_counts: list[int], **change: object) -> nn.Module:
    cfg = OmegaConf.load(CONF / f"{name}.yaml")
    check_targets({"loss": OmegaConf.to_container(cfg)})
    return instantiate(cfg, class_counts=class_counts, **change)


def batch(images: int, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random logits, and soft targets as mixing makes them."""
    chance = torch.Generator().manual_seed(seed)
    logits_BK = 3 * torch.randn(images, classes, generator=chance, dtype=torch.float64)
    target_BK = torch.rand(images, classes, generator=chance, dtype=torch.float64) ** 3
    return logits_BK, target_BK / target_BK.sum(dim=1, keepdim=True)


def one_hot(images: int, classes: int = 4) -> Tensor:
    return F.one_hot(torch.arange(images) % classes, classes).double()


def test_balanced_weights_equal_scikit_learns() -> None:
    weights_K = class_weights("balanced", HAM10000_COUNTS)
    labels = np.repeat(np.arange(7), HAM10000_COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(7), y=labels)
    assert weights_K is not None
    assert weights_K.dtype == torch.float32
    np.testing.assert_allclose(weights_K.numpy(), expected, rtol=1e-6)


def test_balanced_weights_by_hand() -> None:
    weights_K = class_weights("balanced", COUNTS)
    assert weights_K is not None
    torch.testing.assert_close(weights_K, WEIGHTS_K)


def test_no_weights_need_no_counts() -> None:
    assert class_weights("none", [0, 3, 0]) is None


def test_classes_without_images_cannot_be_balanced() -> None:
    with pytest.raises(ConfigError) as error:
        class_weights("balanced", [4, 0, 9, 0])
    message = str(error.value)
    assert "position 1, 3" in message
    assert "class_counts=[4, 0, 9, 0]" in message
    assert "set loss.class_weights=none" in message


@pytest.mark.parametrize("mode", ["balanced", "none"])
def test_one_class_is_no_classification(mode: str) -> None:
    with pytest.raises(ConfigError, match="at least two classes"):
        class_weights(mode, [4])


@pytest.mark.parametrize("mode", ["balanced", "none"])
def test_cross_entropy_equals_torch(mode: str) -> None:
    logits_BK, target_BK = batch(6)
    loss = CrossEntropy(class_weights=mode, class_counts=COUNTS)
    weight = WEIGHTS_K.double() if mode == "balanced" else None
    expected = F.cross_entropy(logits_BK, target_BK, weight=weight)
    torch.testing.assert_close(loss(logits_BK, target_BK), expected, rtol=1e-6, atol=0)


def test_cross_entropy_by_hand() -> None:
    loss = CrossEntropy(class_weights="balanced", class_counts=[1, 3])  # weights 2 and 2/3
    logits_BK = torch.tensor([[0.8, 0.2], [0.5, 0.5]], dtype=torch.float64).log()
    target_BK = torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
    expected = -(2 * math.log(0.8) + (0.25 * 2 + 0.75 * 2 / 3) * math.log(0.5)) / 2
    assert loss(logits_BK, target_BK).item() == pytest.approx(expected, rel=1e-6)


def test_focal_by_hand() -> None:
    # The paper's own example: p_t = 0.9 counts 100 times less at gamma 2, p_t = 0.5 four times.
    loss = FocalLoss(gamma=2.0, class_weights="none", class_counts=[1, 3])
    for p, factor in ((0.9, 0.01), (0.5, 0.25), (0.1, 0.81)):
        logits_BK = torch.tensor([[p, 1 - p]], dtype=torch.float64).log() + 7
        target_BK = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        expected = -factor * math.log(p)
        assert loss(logits_BK, target_BK).item() == pytest.approx(expected, rel=1e-9)


def test_focal_with_soft_target_and_weights_by_hand() -> None:
    loss = FocalLoss(gamma=1.5, class_weights="balanced", class_counts=[1, 3])  # 2 and 2/3
    logits_BK = torch.tensor([[0.2, 0.8]], dtype=torch.float64).log()
    target_BK = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    expected = -0.3 * 2 * 0.8**1.5 * math.log(0.2) - 0.7 * (2 / 3) * 0.2**1.5 * math.log(0.8)
    assert loss(logits_BK, target_BK).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_of_two_classes_equals_torchvisions(gamma: float) -> None:
    # The softmax of two logits is the sigmoid of their difference.
    logits_BK, _ = batch(50, classes=2)
    target_BK = one_hot(50, classes=2)
    loss = FocalLoss(gamma=gamma, class_weights="none", class_counts=[1, 1])
    expected = sigmoid_focal_loss(
        logits_BK[:, 1] - logits_BK[:, 0], target_BK[:, 1], alpha=-1, gamma=gamma, reduction="mean"
    )
    torch.testing.assert_close(loss(logits_BK, target_BK), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("mode", ["balanced", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_focal_without_focus_is_cross_entropy_to_the_last_bit(
    mode: str, dtype: torch.dtype
) -> None:
    values = []
    for loss in (
        FocalLoss(gamma=0.0, class_weights=mode, class_counts=COUNTS),
        CrossEntropy(class_weights=mode, class_counts=COUNTS),
    ):
        logits_BK, target_BK = (tensor.to(dtype) for tensor in batch(9))
        logits_BK.requires_grad_()
        value = loss(logits_BK, target_BK)
        value.backward()
        values.append((value, logits_BK.grad))
    assert torch.equal(values[0][0], values[1][0])
    torch.testing.assert_close(values[0][1], values[1][1])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_gradient_equals_finite_differences(gamma: float) -> None:
    logits_BK, target_BK = batch(3)
    loss = FocalLoss(gamma=gamma, class_weights="balanced", class_counts=COUNTS)
    assert torch.autograd.gradcheck(lambda x: loss(x, target_BK), logits_BK.requires_grad_())


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("size", [20.0, 90.0, 1e4])
def test_focal_stays_finite_where_probabilities_round(gamma: float, size: float) -> None:
    # Certain and right (p_t rounds to 1), then certain and wrong (p_t rounds to 0).
    logits_BK = torch.tensor([[size, 0.0, 0.0], [0.0, size, 0.0]], requires_grad=True)
    target_BK = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    loss = FocalLoss(gamma=gamma, class_weights="none", class_counts=[1, 1, 1])
    value = loss(logits_BK, target_BK)
    value.backward()
    # The wrong image's focus is 1, its loss the margin, and its slope that of cross entropy.
    assert value.item() == pytest.approx(size / 2, rel=1e-6)
    assert logits_BK.grad is not None
    np.testing.assert_allclose(logits_BK.grad.numpy(), [[0, 0, 0], [-0.5, 0.5, 0]], atol=1e-6)


def test_label_smoothing_over_the_others_by_hand() -> None:
    loss = LabelSmoothing(
        epsilon=0.06, convention="others", class_weights="none", class_counts=COUNTS
    )
    probs_BK = torch.tensor([[0.7, 0.1, 0.15, 0.05]], dtype=torch.float64)
    expected = -(0.94 * math.log(0.7) + 0.02 * math.log(0.1 * 0.15 * 0.05))
    value = loss(probs_BK.log(), one_hot(1))
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_label_smoothing_over_the_others_is_least_at_the_smoothed_label() -> None:
    # Also under weights: an image's weight scales its loss and leaves its label as it is.
    loss = LabelSmoothing(
        epsilon=0.06, convention="others", class_weights="balanced", class_counts=COUNTS
    )
    smoothed_BK = 0.94 * one_hot(4) + 0.02 * (1 - one_hot(4))
    logits_BK = smoothed_BK.log().requires_grad_()
    loss(logits_BK, one_hot(4)).backward()
    assert logits_BK.grad is not None
    np.testing.assert_allclose(logits_BK.grad.numpy(), np.zeros((4, 4)), atol=1e-9)


def test_label_smoothing_over_the_others_with_weights_by_hand() -> None:
    loss = LabelSmoothing(
        epsilon=0.06, convention="others", class_weights="balanced", class_counts=COUNTS
    )
    probs_BK = torch.tensor([[0.7, 0.1, 0.15, 0.05]], dtype=torch.float64)
    first = 0.94 * math.log(0.7) + 0.02 * math.log(0.1 * 0.15 * 0.05)
    second = 0.94 * math.log(0.1) + 0.02 * math.log(0.7 * 0.15 * 0.05)
    target_BK = torch.tensor([[0.25, 0.75, 0.0, 0.0]], dtype=torch.float64)
    expected = -0.25 * 5.0 * first - 0.75 * 1.25 * second
    assert loss(probs_BK.log(), target_BK).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mode", ["balanced", "none"])
def test_uniform_label_smoothing_equals_torch(mode: str) -> None:
    logits_BK, target_BK = batch(6)
    loss = LabelSmoothing(
        epsilon=0.05, convention="uniform", class_weights=mode, class_counts=COUNTS
    )
    weight = WEIGHTS_K.double() if mode == "balanced" else None
    labels_B = torch.tensor([0, 1, 2, 3, 0, 1])
    hard = F.cross_entropy(
        logits_BK, labels_B, weight=weight, label_smoothing=0.05, reduction="none"
    ).mean()
    soft = F.cross_entropy(logits_BK, target_BK, weight=weight, label_smoothing=0.05)
    torch.testing.assert_close(loss(logits_BK, one_hot(6)), hard, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss(logits_BK, target_BK), soft, rtol=1e-6, atol=0)


def test_conventions_agree_at_matching_epsilons() -> None:
    # Both take the same part from the true class when eps_others = eps_uniform (K - 1) / K.
    logits_BK, target_BK = batch(6)
    others = LabelSmoothing(
        epsilon=0.075, convention="others", class_weights="none", class_counts=COUNTS
    )
    uniform = LabelSmoothing(
        epsilon=0.1, convention="uniform", class_weights="none", class_counts=COUNTS
    )
    torch.testing.assert_close(others(logits_BK, target_BK), uniform(logits_BK, target_BK))


@pytest.mark.parametrize("convention", ["others", "uniform"])
@pytest.mark.parametrize("mode", ["balanced", "none"])
def test_no_smoothing_is_cross_entropy(convention: str, mode: str) -> None:
    logits_BK, target_BK = batch(6)
    loss = LabelSmoothing(
        epsilon=0.0, convention=convention, class_weights=mode, class_counts=COUNTS
    )
    expected = CrossEntropy(class_weights=mode, class_counts=COUNTS)(logits_BK, target_BK)
    torch.testing.assert_close(loss(logits_BK, target_BK), expected)


@pytest.mark.parametrize("mode", ["balanced", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_mixed_targets_cost_the_mixed_losses(name: str, mode: str) -> None:
    loss = from_yaml(name, COUNTS, class_weights=mode)
    logits_BK, _ = batch(4)
    first_BK, second_BK = one_hot(4), one_hot(4).flip(0)
    mixed = loss(logits_BK, 0.3 * first_BK + 0.7 * second_BK)
    expected = 0.3 * loss(logits_BK, first_BK) + 0.7 * loss(logits_BK, second_BK)
    torch.testing.assert_close(mixed, expected)


def test_yaml_defaults() -> None:
    losses = {name: from_yaml(name, COUNTS) for name in NAMES}
    for loss in losses.values():
        torch.testing.assert_close(dict(loss.named_buffers())["class_weights"], WEIGHTS_K)
    assert losses["focal"].gamma == 2.0
    assert losses["label_smoothing"].epsilon == 0.05
    assert losses["label_smoothing"].convention == "others"


@pytest.mark.parametrize("name", NAMES)
def test_weights_move_with_the_module(name: str) -> None:
    loss = from_yaml(name, COUNTS).to("meta")
    assert loss.class_weights.device.type == "meta"


def focal(gamma: float) -> nn.Module:
    return FocalLoss(gamma=gamma, class_weights="none", class_counts=COUNTS)


def smoothing(epsilon: float) -> nn.Module:
    return LabelSmoothing(
        epsilon=epsilon, convention="others", class_weights="none", class_counts=COUNTS
    )


@pytest.mark.parametrize(
    ("make", "value", "said"),
    [
        (focal, -0.5, "loss.gamma=-0.5"),
        (focal, math.nan, "loss.gamma=nan"),
        (focal, math.inf, "loss.gamma=inf"),
        (smoothing, -0.1, "loss.epsilon=-0.1"),
        (smoothing, 1.0, "loss.epsilon=1.0"),
        (smoothing, 0.75, f"loss.epsilon=0.75: from {1 - 1 / len(COUNTS):.3f} on"),
        (smoothing, math.nan, "loss.epsilon=nan"),
    ],
)
def test_values_out_of_range_are_refused(
    make: Callable[[float], nn.Module], value: float, said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        make(value)
    assert said in str(error.value)
