"""Losses that correct for the class frequencies, each against its paper's formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from dermalyze.errors import ConfigError
from dermalyze.losses.class_balanced import ClassBalancedLoss
from dermalyze.losses.class_weights import effective_number_weights
from dermalyze.losses.cross_entropy import CrossEntropy
from dermalyze.losses.focal import FocalLoss
from dermalyze.losses.ldam import LDAMLoss
from dermalyze.losses.logit_adjusted import LogitAdjustedLoss
from dermalyze.losses.loss import Loss

CONF = Path(__file__).parents[2] / "conf" / "loss"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
COUNTS = [5, 20, 10, 65]
HAM10000_COUNTS = [327, 514, 1099, 115, 1113, 6705, 142]


def from_yaml(name: str, **change: object) -> Loss:
    return instantiate(OmegaConf.load(CONF / f"{name}.yaml"), class_counts=COUNTS, **change)


def ldam(counts: list[int] = COUNTS, **change: object) -> LDAMLoss:
    values = {"max_margin": 0.5, "scale": 1.0, "reweight_from": None, "reweight_beta": 0.9}
    return LDAMLoss(class_counts=counts, **values | change)


def batch(images: int, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random logits, and soft targets as mixing makes them."""
    chance = torch.Generator().manual_seed(seed)
    logits_BK = 3 * torch.randn(images, classes, generator=chance, dtype=torch.float64)
    target_BK = torch.rand(images, classes, generator=chance, dtype=torch.float64) ** 3
    return logits_BK, target_BK / target_BK.sum(dim=1, keepdim=True)


def one_hot(images: int, classes: int = 4) -> Tensor:
    return F.one_hot(torch.arange(images) % classes, classes).double()


def logits(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# Effective numbers and the class-balanced loss


def test_effective_numbers_by_hand() -> None:
    # beta 0.5: 1 image counts 1, 2 count 1.5, 3 count 1.75; inverses 1, 2/3, 4/7 of sum 47/21.
    weights_K = effective_number_weights(0.5, [1, 2, 3], setting="b", without="w")
    np.testing.assert_allclose(weights_K.numpy(), [63 / 47, 42 / 47, 36 / 47], rtol=1e-6)
    assert weights_K.dtype == torch.float32


@pytest.mark.parametrize("beta", [0.9, 0.99, 0.999, 0.9999])
def test_effective_number_weights_equal_the_papers_formula(beta: float) -> None:
    weights_K = effective_number_weights(beta, HAM10000_COUNTS, setting="b", without="w")
    raw_K = (1 - beta) / (1 - np.power(beta, HAM10000_COUNTS))
    np.testing.assert_allclose(weights_K.numpy(), 7 * raw_K / raw_K.sum(), rtol=1e-6)
    assert weights_K.sum().item() == pytest.approx(7, rel=1e-6)


def test_the_ends_of_beta_are_no_weights_and_inverse_counts() -> None:
    alike_K = effective_number_weights(0.0, HAM10000_COUNTS, setting="b", without="w")
    assert torch.equal(alike_K, torch.ones(7))
    # So close to 1 that float64's beta^n holds 4 digits of 1 - beta^n.
    inverse_K = effective_number_weights(1 - 1e-12, HAM10000_COUNTS, setting="b", without="w")
    expected_K = 1 / np.array(HAM10000_COUNTS)
    np.testing.assert_allclose(inverse_K.numpy(), 7 * expected_K / expected_K.sum(), rtol=1e-6)


def test_class_balanced_softmax_by_hand() -> None:
    loss = ClassBalancedLoss(beta=0.5, gamma=0.0, class_counts=[1, 2, 3])
    logits_BK = logits([0.2, 0.5, 0.3], [0.6, 0.3, 0.1]).log()
    target_BK = logits([0.0, 1.0, 0.0], [0.25, 0.0, 0.75])
    first = 42 / 47 * math.log(0.5)
    second = 0.25 * 63 / 47 * math.log(0.6) + 0.75 * 36 / 47 * math.log(0.1)
    value = loss(logits_BK, target_BK).item()
    assert value == pytest.approx(-(first + second) / 2, rel=1e-6)


def test_class_balanced_focal_by_hand() -> None:
    loss = ClassBalancedLoss(beta=0.5, gamma=2.0, class_counts=[1, 2, 3])
    value = loss(logits([0.2, 0.5, 0.3]).log(), logits([0.3, 0.7, 0.0])).item()
    first = 0.3 * 63 / 47 * 0.8**2 * math.log(0.2)
    second = 0.7 * 42 / 47 * 0.5**2 * math.log(0.5)
    assert value == pytest.approx(-(first + second), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_class_balanced_without_overlap_is_the_unweighted_loss(gamma: float) -> None:
    logits_BK, target_BK = batch(6)
    balanced = ClassBalancedLoss(beta=0.0, gamma=gamma, class_counts=COUNTS)
    plain = FocalLoss(gamma=gamma, class_weights="none", class_counts=COUNTS)
    assert torch.equal(balanced(logits_BK, target_BK), plain(logits_BK, target_BK))


# Logit adjustment and the balanced softmax


def test_logit_adjusted_by_hand() -> None:
    """Shares 1/4 and 3/4 at tau 2: odds of 1 to 1 become 1/16 to 9/16."""
    loss = LogitAdjustedLoss(tau=2.0, class_counts=[1, 3])
    target_BK = logits([0.4, 0.6])
    expected = -0.4 * math.log(0.1) - 0.6 * math.log(0.9)
    assert loss(logits([5.0, 5.0]), target_BK).item() == pytest.approx(expected, rel=1e-6)


def test_balanced_softmax_equals_the_papers_formula() -> None:
    """Ren et al., equation 4, in its own terms: n_k e^z_k over the sum of them."""
    logits_BK, target_BK = batch(6)
    weighted_BK = torch.tensor(COUNTS) * logits_BK.exp()
    probs_BK = weighted_BK / weighted_BK.sum(dim=1, keepdim=True)
    expected = -(target_BK * probs_BK.log()).sum(dim=1).mean()
    value = from_yaml("balanced_softmax")(logits_BK, target_BK)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


def test_logits_that_rank_as_if_classes_were_alike_make_it_least() -> None:
    """Fitted to the training shares, the model itself predicts the same for every class."""
    loss = from_yaml("logit_adjusted")
    logits_BK = torch.full((1, 4), 2.0, dtype=torch.float64, requires_grad=True)
    loss(logits_BK, logits([0.05, 0.2, 0.1, 0.65])).backward()
    np.testing.assert_allclose(logits_BK.grad, np.zeros((1, 4)), atol=1e-7)


def test_no_adjustment_is_cross_entropy() -> None:
    logits_BK, target_BK = batch(6)
    expected = CrossEntropy(class_weights="none", class_counts=COUNTS)(logits_BK, target_BK)
    loss = LogitAdjustedLoss(tau=0.0, class_counts=COUNTS)
    assert torch.equal(loss(logits_BK, target_BK), expected)


# Margins, and re-weighting that is deferred


def test_margins_by_hand() -> None:
    """Fourth roots of 1, 16 and 81 images are 1, 2 and 3; the rarest has the largest margin."""
    loss = ldam([16, 1, 81], max_margin=0.6)
    np.testing.assert_allclose(loss.margins_K.numpy(), [0.3, 0.6, 0.2], rtol=1e-6)


def test_ldam_by_hand() -> None:
    """Margins 0.5 and 0.25 (1 and 16 images) at scale 2, once for each class."""
    loss = ldam([1, 16], max_margin=0.5, scale=2.0)
    first = -math.log(math.exp(2 * 0.5) / (math.exp(2 * 0.5) + math.exp(2 * 0.3)))
    second = -math.log(math.exp(2 * 0.05) / (math.exp(2 * 0.05) + math.exp(2 * 1.0)))
    target_BK = logits([0.4, 0.6])
    value = loss(logits([1.0, 0.3]), target_BK).item()
    assert value == pytest.approx(0.4 * first + 0.6 * second, rel=1e-6)


def test_ldam_equals_cross_entropy_of_lowered_logits() -> None:
    """For hard labels the paper lowers the true class's logit, scales, and takes cross entropy."""
    logits_BK, _ = batch(8)
    labels_B = torch.arange(8) % 4
    loss = ldam(scale=3.0)
    margins_K = 0.5 * (5 / torch.tensor(COUNTS, dtype=torch.float64)) ** 0.25
    expected = F.cross_entropy(3.0 * (logits_BK - one_hot(8) * margins_K), labels_B)
    torch.testing.assert_close(loss(logits_BK, one_hot(8)), expected, rtol=1e-6, atol=0)


def test_deferred_weights_by_hand() -> None:
    """Of 1, 2 and 3 images at beta 0.5, in proportion 21, 14 and 12: 85/6 for an average image."""
    loss = ldam([1, 2, 3], reweight_beta=0.5)
    np.testing.assert_allclose(loss.weights_K.numpy(), np.array([21, 14, 12]) * 6 / 85, rtol=1e-6)


def test_weights_begin_at_their_epoch_and_depend_on_it_alone() -> None:
    logits_BK, target_BK = batch(6)
    loss = ldam(reweight_from=3, reweight_beta=0.9)
    margins = ldam()(logits_BK, target_BK)
    weights_K = effective_number_weights(0.9, COUNTS, setting="b", without="w")
    weights_K *= 100 / (weights_K * torch.tensor(COUNTS)).sum()
    each_K = [ldam()(logits_BK, target_BK * one_hot(1, 4).roll(k)) * weights_K[k] for k in range(4)]
    weighed = torch.stack(each_K).sum()
    assert abs(weighed - margins) > 0.05
    for epoch, expected in ((0, margins), (2, margins), (3, weighed), (40, weighed), (1, margins)):
        loss.begin_epoch(epoch)
        torch.testing.assert_close(loss(logits_BK, target_BK), expected)


def test_weights_may_begin_at_once_or_never() -> None:
    logits_BK, target_BK = batch(6)
    at_once, never = ldam(reweight_from=0), ldam(reweight_from=None)
    begun = ldam(reweight_from=3)
    begun.begin_epoch(3)
    never.begin_epoch(10**6)
    assert torch.equal(at_once(logits_BK, target_BK), begun(logits_BK, target_BK))
    assert torch.equal(never(logits_BK, target_BK), ldam()(logits_BK, target_BK))


# What holds for every loss in conf/


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_is_a_loss(name: str) -> None:
    assert isinstance(from_yaml(name), Loss)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_targets_cost_the_mixed_losses(name: str) -> None:
    loss = from_yaml(name)
    logits_BK, _ = batch(4)
    first_BK, second_BK = one_hot(4), one_hot(4).flip(0)
    mixed = loss(logits_BK, 0.3 * first_BK + 0.7 * second_BK)
    expected = 0.3 * loss(logits_BK, first_BK) + 0.7 * loss(logits_BK, second_BK)
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_add_up(name: str) -> None:
    loss = from_yaml(name)
    logits_BK, target_BK = batch(7)
    parts = [
        len(rows) / 7 * loss(rows, target)
        for rows, target in zip(logits_BK.split(3), target_BK.split(3), strict=True)
    ]
    torch.testing.assert_close(sum(parts), loss(logits_BK, target_BK), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_adding_a_number_to_all_logits_changes_nothing(name: str) -> None:
    loss = from_yaml(name)
    logits_BK, target_BK = batch(5)
    torch.testing.assert_close(loss(logits_BK + 100, target_BK), loss(logits_BK, target_BK))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name: str) -> None:
    loss = from_yaml(name)
    logits_BK, target_BK = batch(3)
    assert torch.autograd.gradcheck(lambda x: loss(x, target_BK), logits_BK.requires_grad_())


@pytest.mark.parametrize("size", [20.0, 90.0, 1e4])
@pytest.mark.parametrize("name", NAMES)
def test_losses_stay_finite_in_float32_where_probabilities_round(name: str, size: float) -> None:
    """Certain and right, then certain and wrong, held against the same in float64."""
    loss = from_yaml(name)
    logits_BK = torch.tensor([[size, 0.0, 0.0, 0.0], [0.0, size, 0.0, 0.0]], requires_grad=True)
    target_BK = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    value = loss(logits_BK, target_BK)
    value.backward()
    exact_BK = logits_BK.detach().double().requires_grad_()
    exact = loss(exact_BK, target_BK.double())
    exact.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    np.testing.assert_allclose(logits_BK.grad, exact_BK.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"cross_entropy_unweighted"}))  # keeps nothing
def test_what_a_loss_keeps_moves_with_it(name: str) -> None:
    buffers = dict(from_yaml(name).to("meta").named_buffers())
    assert buffers
    assert {tensor.device.type for tensor in buffers.values()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("cross_entropy", {}, "loss.class_weights=balanced"),
        ("cross_entropy", {"class_weights": "none"}, None),
        ("focal", {}, "loss.class_weights=balanced"),
        ("focal", {"class_weights": "none"}, None),
        ("label_smoothing", {}, "loss.class_weights=balanced"),
        ("label_smoothing", {"class_weights": "none"}, None),
        ("class_balanced", {}, "loss.beta=0.999"),
        ("class_balanced", {"beta": 0.0}, None),
        ("logit_adjusted", {}, "loss.tau=1.0"),
        ("logit_adjusted", {"tau": 0.0}, None),
        ("balanced_softmax", {}, "loss.tau=1.0"),
        ("ldam", {}, "loss.max_margin=0.5"),
    ],
)
def test_what_corrects_for_frequencies_says_so_truly(
    name: str, change: dict[str, object], said: str | None
) -> None:
    """Without a correction the loss does not depend on the counts, with one it does."""
    node = OmegaConf.load(CONF / f"{name}.yaml")
    assert get_class(node["_target_"]).frequency_correction({**node, **change}) == said
    logits_BK, target_BK = batch(6)
    values = [
        instantiate(node, class_counts=counts, **change)(logits_BK, target_BK)
        for counts in (COUNTS, [50, 1, 2, 3])
    ]
    assert torch.equal(values[0], values[1]) is (said is None)


def class_balanced(**change: float) -> nn.Module:
    return ClassBalancedLoss(class_counts=COUNTS, **{"beta": 0.9, "gamma": 0.0} | change)


def logit_adjusted(**change: float) -> nn.Module:
    return LogitAdjustedLoss(class_counts=COUNTS, **change)


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (class_balanced, "beta", -0.1),
        (class_balanced, "beta", 1.0),
        (class_balanced, "beta", math.nan),
        (class_balanced, "gamma", -1.0),
        (logit_adjusted, "tau", -0.5),
        (logit_adjusted, "tau", math.inf),
        (logit_adjusted, "tau", math.nan),
        (ldam, "max_margin", 0.0),
        (ldam, "max_margin", math.inf),
        (ldam, "scale", 0.0),
        (ldam, "scale", math.nan),
        (ldam, "reweight_from", -1),
        (ldam, "reweight_beta", 1.0),
    ],
)
def test_values_out_of_range_are_refused(
    make: Callable[..., nn.Module], name: str, value: float
) -> None:
    with pytest.raises(ConfigError) as error:
        make(**{name: value})
    assert f"loss.{name}={value}" in str(error.value)


@pytest.mark.parametrize("name", ["class_balanced", "logit_adjusted", "balanced_softmax", "ldam"])
def test_classes_without_images_have_no_frequency_to_correct(name: str) -> None:
    node = OmegaConf.load(CONF / f"{name}.yaml")
    make = get_class(node.pop("_target_"))
    with pytest.raises(ConfigError) as error:
        make(**node, class_counts=[4, 0, 9, 0])
    assert "class_counts=[4, 0, 9, 0]" in str(error.value)
    assert "position 1, 3" in str(error.value)
    assert "loss.class_weights=none" in str(error.value)
