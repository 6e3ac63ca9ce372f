from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn

from dermalyze.config import CONF_DIR, check_targets
from dermalyze.errors import ConfigError
from dermalyze.optim.ema import average_of
from dermalyze.optim.parameter_groups import LR_SCALE, parameter_groups
from dermalyze.optim.schedules import Constant
from dermalyze.optim.stages import StageOptions, Stages, stages_of_run


class Small(nn.Module):
    """A timm network below `backbone.network`, and a head."""

    def __init__(self, name: str = "test_vit") -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.network = timm.create_model(name, num_classes=0, global_pool="")
        self.head = nn.Linear(8, 3)


def by_parameter(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return each parameter's name with its decay and its scale of the learning rate."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["weight_decay"], group.get(LR_SCALE, 1.0))
        for group in groups
        for parameter in group["params"]
    }


# Groups


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_efficientnet"])
def test_what_decays_is_what_timm_decays(name: str) -> None:
    model = Small(name)
    found = by_parameter(model, parameter_groups(model, weight_decay=0.02, layer_decay=None))
    network: Any = model.backbone.network
    undecayed = [f"backbone.network.{key}" for key in getattr(network, "no_weight_decay", set)()]
    expected = param_groups_weight_decay(model, 0.02, no_weight_decay_list=undecayed)
    assert found == by_parameter(model, expected)
    assert {name for name, _ in model.named_parameters()} == set(found)


def test_biases_norms_and_position_embeddings_do_not_decay() -> None:
    model = Small("test_vit")
    found = by_parameter(model, parameter_groups(model, weight_decay=0.02, layer_decay=None))
    assert found["head.weight"] == (0.02, 1.0)
    assert found["head.bias"] == (0.0, 1.0)
    assert found["backbone.network.norm.weight"] == (0.0, 1.0)
    assert found["backbone.network.pos_embed"] == (0.0, 1.0)
    assert found["backbone.network.blocks.0.mlp.fc1.weight"] == (0.02, 1.0)


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_efficientnet"])
def test_layer_decay_equals_timms_but_for_the_head(name: str) -> None:
    model = Small(name)
    found = by_parameter(model, parameter_groups(model, weight_decay=0.02, layer_decay=0.5))
    network: Any = model.backbone.network
    expected = by_parameter(network, param_groups_layer_decay(network, 0.02, layer_decay=0.5))
    top = max(scale for _, scale in expected.values())
    for parameter, (_, scale) in expected.items():
        # timm's own top layer is the network without a head; here it is one below the head.
        assert found[f"backbone.network.{parameter}"][1] == scale / top * 0.5
    assert found["head.weight"][1] == found["head.bias"][1] == 1.0


def test_frozen_parameters_are_in_no_group() -> None:
    model = Small()
    model.backbone.requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.02, layer_decay=None)
    assert set(by_parameter(model, groups)) == {"head.weight", "head.bias"}


# The moving average


def test_the_decay_warms_up() -> None:
    average = average_of(model=nn.Linear(2, 2), decay=0.9999)
    assert average is not None
    assert average.get_decay(0) == 1 / 10
    assert average.get_decay(90) == 91 / 100
    assert average.get_decay(10**6) == 0.9999
    assert average_of(model=nn.Linear(2, 2), decay=None) is None


def test_the_average_is_not_trained() -> None:
    average = average_of(model=nn.Linear(2, 2), decay=0.5)
    assert average is not None
    assert not any(parameter.requires_grad for parameter in average.module.parameters())


def test_updates_are_those_of_timm_also_after_weights_were_moved_or_loaded() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average, reference = average_of(model=model, decay=0.9), ModelEmaV3(model, decay=0.9)
    assert average is not None
    for step in range(100, 104):  # past the warm-up
        if step == 101:
            for each in (model, average, reference):
                each.half().float()  # every tensor lies elsewhere now
        if step == 102:
            other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()
            model.load_state_dict(other)
            for each in (average, reference):
                each.module.load_state_dict(other)
        model(torch.randn(5, 3, generator=torch.Generator().manual_seed(step)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(step)
        average.update(model, step=step)
        reference.update(model, step=step)
    expected = reference.module.state_dict()
    assert expected.keys() == average.module.state_dict().keys()
    for name, tensor in average.module.state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert average.module.state_dict()["1.num_batches_tracked"] == 2
    assert all("module." in name for name in average.state_dict())  # the model is no part of it


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 2.0])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=f"ema.decay={decay}"):
        average_of(model=nn.Linear(2, 2), decay=decay)


# Stages


def options(**changes: Any) -> StageOptions:
    none: dict[str, Any] = dict.fromkeys(("epochs", "lr", "weight_decay", "layer_decay"))
    return StageOptions(**{**none, "scheduler": None, **changes})


def from_yaml(name: str, **changes: Any) -> Stages:
    from hydra import compose, initialize_config_dir

    from dermalyze.config import register_resolvers

    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        cfg = compose("train", [f"stages={name}", *(f"{k}={v}" for k, v in changes.items())])
    check_targets({"stages": OmegaConf.to_container(cfg.stages)})
    stages: Stages = instantiate(cfg.stages, _convert_="all")
    return stages


@pytest.mark.parametrize(
    ("name", "lengths"),
    [("one", {"whole": 40}), ("two", {"head": 5, "whole": 35}), ("frozen", {"head": 40})],
)
def test_the_options_share_out_the_epochs(name: str, lengths: dict[str, int]) -> None:
    assert from_yaml(name).lengths(40) == lengths


@pytest.mark.parametrize(
    ("head", "whole", "epochs"), [(3, 4, 8), (3, 4, 6), (5, None, 5), (None, None, 9), (2, None, 1)]
)
def test_epochs_that_do_not_add_up_are_refused(
    head: int | None, whole: int | None, epochs: int
) -> None:
    stages = Stages(head=options(epochs=head), whole=options(epochs=whole))
    with pytest.raises(ConfigError) as error:
        stages.lengths(epochs)
    assert f"training.epochs={epochs} with stages.head.epochs={head}" in str(error.value)


def test_values_out_of_range_are_refused_together() -> None:
    with pytest.raises(ConfigError) as error:
        Stages(head=options(epochs=0, lr=-1.0), whole=options(weight_decay=-0.1, layer_decay=1.5))
    for said in ("stages.head.epochs=0", "stages.head.lr=-1.0", "stages.whole.weight_decay=-0.1",
                 "stages.whole.layer_decay=1.5"):  # fmt: skip
        assert said in str(error.value)
    with pytest.raises(ConfigError, match="nothing would be trained"):
        Stages(head=None, whole=None)


def test_stages_of_a_run() -> None:
    model = Small("resnet10t")
    make: Callable[..., Constant] = partial(Constant, warmup_fraction=0.0)
    slow: Callable[..., Constant] = partial(Constant, warmup_fraction=0.5)
    head, whole = stages_of_run(
        Stages(
            head=options(epochs=2, lr=0.5, weight_decay=0.0, scheduler=slow),
            whole=options(layer_decay=0.5),
        ),
        model=model,
        make_optimizer=partial(torch.optim.AdamW, lr=0.1, weight_decay=0.02),
        make_schedule=make,
        epochs=6,
        steps_per_epoch=3,
    )
    assert (head.first_epoch, head.epochs, whole.first_epoch, whole.epochs) == (0, 2, 2, 4)
    assert [head.schedule(step) for step in range(4)] == pytest.approx([0.5 / 3, 1 / 3, 0.5, 0.5])
    assert whole.schedule(0) == 0.1
    assert head.frozen is model.backbone
    assert whole.frozen is None

    model.backbone.requires_grad_(False)
    of_head = by_parameter(model, head.make_optimizer().param_groups)
    assert set(of_head) == {"head.weight", "head.bias"}
    assert of_head["head.weight"] == (0.0, 1.0)
    model.backbone.requires_grad_(True)
    of_whole = by_parameter(model, whole.make_optimizer().param_groups)
    assert of_whole["head.weight"] == (0.02, 1.0)
    assert of_whole["backbone.network.conv1.0.weight"][1] < 0.5
