from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import BaseModel

from dermalyze.benchmarks.schema import Benchmark
from dermalyze.compared_runs.schema import Comparison, Report
from dermalyze.config import (
    CONF_DIR,
    RUN_TIME_ARGUMENTS,
    check_targets,
    nodes_with_target,
    plain,
    register_resolvers,
    run_folder,
)
from dermalyze.errors import ConfigError
from dermalyze.exporting.schema import Export
from dermalyze.frequency_correction import frequency_corrections
from dermalyze.schema import (
    Evaluation,
    Preparation,
    Run,
    ShownAugmentation,
    checked,
    checked_run,
)
from dermalyze.serving.schema import Serving

# Every file below a folder of conf/ is an option of the group that the folder names.
ALL_OPTIONS = sorted(
    (path.parent.relative_to(CONF_DIR).as_posix(), path.stem)
    for path in CONF_DIR.rglob("*.yaml")
    if path.parent != CONF_DIR
)
OF_EVALUATE = [option for option in ALL_OPTIONS if option[0] in ("tta", "ensemble")]
OPTIONS = [option for option in ALL_OPTIONS if option not in OF_EVALUATE]
DATA = [option for group, option in OPTIONS if group == "data"]
# What an option leaves to the user (`???`).
MANDATORY = {
    ("data", "folder"): ["data.root=data/mine", "data.source.classes=[benign,malignant]"],
    ("model", "timm"): ["model.backbone=resnet10t"],
    ("data/split", "from_files"): ["data.split.directory=outputs/train/earlier"],
    ("data/split", "leak_study"): ["data.split.inject=true"],
    ("data/split", "leave_one_source_out"): ["data.split.source=rosendahl"],
    ("hydra/sweeper/sampler", "tpe_quick"): ["hydra/sweeper=study"],
}
DELETED = object()
# hydra.utils.instantiate's own words.
WORDS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


@pytest.fixture(autouse=True)
def hydra_on_conf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DERMALYZE_HAM10000", raising=False)
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        yield


@cache
def composed(command: str, *overrides: str) -> DictConfig:
    return compose(command, list(overrides))


def train(*overrides: str) -> DictConfig:
    return composed("train", *overrides).copy()


def left_to_user(data: str) -> list[str]:
    return MANDATORY.get(("data", data), [])


def option_config(group: str, option: str) -> DictConfig:
    return train(f"{group}={option}", *MANDATORY.get((group, option), []))


def changed(changes: dict[str, Any]) -> DictConfig:
    """The default run, with values set, added, or taken out (DELETED)."""
    cfg = train()
    for name, value in changes.items():
        if value is DELETED:
            parent, _, last = name.rpartition(".")
            node = OmegaConf.select(cfg, parent) if parent else cfg
            with open_dict(node):
                del node[last]
        else:
            OmegaConf.update(cfg, name, value, force_add=True)
    return cfg


def problems(cfg: DictConfig) -> list[str]:
    """The problems listed in the one error that a config gives."""
    with pytest.raises(ConfigError) as refused:
        checked_run(cfg)
    first, *listed = str(refused.value).split("\n  - ")
    assert first == "the configuration cannot work:"
    return listed


# What is refused, and in which words


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("+training.sed=3", "training.sed: there is no such key. Did you mean 'seed'?"),
        ("training.seed=08", "training.seed='08' (str): Input should be a valid integer"),
        ("training.seed='42'", "training.seed='42' (str): Input should be a valid integer"),
        ("optimizer.lr='1e-5'", "optimizer.lr='1e-5' (str): Input should be a valid number"),
        ("training.threads=all", "training.threads='all' (str): Input should be a valid integer"),
        ("+loss.class_counts=[1]", "loss.class_counts=[1]: set by the run itself; take it out"),
        ("~sampler", "sampler: missing"),
        (
            "data.split=kfold",
            "data.split=kfold: data/split is a group of options; write data/split=kfold",
        ),
        (
            "model.head=gem",
            "model.head=gem: model/head is a group of options; write model/head=gem",
        ),
        (
            "model.metadata=fim",
            "model.metadata=fim: model/metadata is a group of options, and 'fim' is none of them. "
            "Did you mean 'film'? Write model/metadata=OPTION",
        ),
    ],
)
def test_what_people_type_is_refused_with_place_value_and_mend(
    override: str, expected: str
) -> None:
    assert problems(train(override)) == [expected]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("data.imagesize", 64, ": there is no such key. Did you mean 'image_size'?"),
        ("optimiser", "x", ": there is no such key. Did you mean 'optimizer'?"),
        ("training.seed", DELETED, ": missing"),
        ("training.seed", 4.0, "=4.0 (float): Input should be a valid integer"),
        ("training.seed", True, "=True (bool): Input should be a valid integer"),
        ("training.seed", None, "=None (NoneType): Input should be a valid integer"),
        ("training.seed", -1, "=-1 (int): Input should be greater than or equal to 0"),
        ("training.epochs", 0, "=0 (int): Input should be greater than or equal to 1"),
        ("training.grad_clip", 0, "=0 (int): Input should be greater than 0"),
        ("training.deterministic", "no", "='no' (str): Input should be a valid boolean"),
        (
            "training.device",
            "gpu",
            "='gpu' (str): Input should be 'auto', 'cuda', 'mps' or 'cpu'",
        ),
        ("data.image_size", 15, "=15 (int): Input should be greater than or equal to 16"),
        ("loss", None, "=None (NoneType): Input should be an object"),
        (
            "model.head.hidden",
            [512, "many"],
            "=[512, 'many'] (list): Input should be a valid integer",
        ),
        (
            "loss.class_weights",
            "ballanced",
            "='ballanced' (str): Input should be 'balanced' or 'none'",
        ),
        ("augmentation.geometry", "big", "='big' (str): a node with a _target_ is needed here"),
        (
            "scheduler.warmup_fractoin",
            0.1,
            ": dermalyze.optim.schedules.CosineRestarts has no such argument. Did you mean "
            "'warmup_fraction'?",
        ),
        (
            "model.head.droput",
            0.1,
            ": dermalyze.models.heads.simple.SimpleHead has no such argument. Did you mean "
            "'dropout'?",
        ),
        (
            "optimizer.weight_decays",
            0.1,
            ": torch.optim.AdamW has no such argument. Did you mean 'weight_decay'?",
        ),
        ("scheduler.peak_lr", 0.1, "=0.1: set by the run itself; take it out"),
        ("model.input_size", 64, "=64: set by the run itself; take it out"),
        (
            "loss.class_weights",
            DELETED,
            ": missing; dermalyze.losses.cross_entropy.CrossEntropy needs it",
        ),
        (
            "model.head",
            DELETED,
            ": missing; dermalyze.models.classifier.build_classifier needs it",
        ),
        (
            "training.monitor",
            "val/los",
            "=val/los: no epoch has such a metric. Did you mean 'val/loss'?",
        ),
        (
            "training.monitor",
            "macro_auc",
            "=macro_auc: no epoch has such a metric. Did you mean 'val/macro_auc'?",
        ),
    ],
)
def test_a_problem_is_named_with_place_value_and_mend(name: str, value: Any, expected: str) -> None:
    assert problems(changed({name: value})) == [name + expected]


def test_a_part_without_a_target_is_refused() -> None:
    assert problems(changed({"loss._target_": DELETED})) == [
        "loss={'class_weights': 'balanced'} (dict): Value error, its _target_ is missing"
    ]


@pytest.mark.parametrize(
    "target",
    [
        "dermalyze.losses.focal.FocalLos",
        "dermalyze.losses.fokal.FocalLoss",
        "no_such_package.Loss",
        "NoDots",
    ],
)
def test_a_target_that_cannot_be_imported(target: str) -> None:
    (problem,) = problems(changed({"loss._target_": target}))
    assert problem.startswith(f"loss._target_={target}: cannot be imported (")


def test_all_problems_come_in_one_error() -> None:
    cfg = changed(
        {
            "training.sed": 3,
            "training.epochs": 0,
            "data.image_size": "big",
            "loss.gama": 2,
            "optimizer.lr": "x",
            "scheduler._target_": "no_such_package.Schedule",
        }
    )
    found = problems(cfg)
    assert sorted(problem.partition(":")[0].partition("=")[0] for problem in found) == [
        "data.image_size",
        "loss.gama",
        "optimizer.lr",
        "scheduler._target_",
        "training.epochs",
        "training.sed",
    ]


def test_numbers_as_people_write_them_are_accepted() -> None:
    container = checked_run(train("optimizer.lr=1e-5", "training.min_delta=0", "training.seed=0"))
    assert container["optimizer"]["lr"] == 1e-5
    assert container["training"]["min_delta"] == 0
    assert container["training"]["seed"] == 0


@pytest.mark.parametrize("monitor", ["val/loss", "val/macro_auc", "val/ece", "train/loss"])
def test_metrics_of_an_epoch_can_be_monitored(monitor: str) -> None:
    assert checked_run(changed({"training.monitor": monitor}))["training"]["monitor"] == monitor


def test_a_mandatory_value_is_asked_for() -> None:
    with pytest.raises(ConfigError) as refused:
        checked_run(train("model=timm", "data/split=from_files"))
    assert str(refused.value) == (
        "missing: data.split.directory, model.backbone. Give each as data.split.directory=VALUE "
        "on the line."
    )


def test_an_interpolation_that_does_not_resolve_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="does not resolve: Interpolation key 'nowhere'"):
        plain(changed({"paths.outputs": "${nowhere}"}))


def test_plain_gives_containers_with_interpolations_resolved() -> None:
    container = plain(changed({"paths.outputs": "here", "data.root": "there"}))
    assert container["paths"] == {"outputs": "here", "cache": "here/cache"}
    assert container["data"]["source"]["root"] == "there"
    assert type(container["model"]["head"]["hidden"]) is list


@pytest.mark.parametrize("sampler", ["sampler=weighted", "sampler.power=0.5"])
@pytest.mark.parametrize(
    ("loss", "setting", "mend"),
    [
        ("cross_entropy", "loss.class_weights=balanced", "loss.class_weights=none"),
        ("focal", "loss.class_weights=balanced", "loss.class_weights=none"),
        ("label_smoothing", "loss.class_weights=balanced", "loss.class_weights=none"),
        ("class_balanced", "loss.beta=0.999", "loss=cross_entropy loss.class_weights=none"),
        ("ldam", "loss.max_margin=0.5", "loss=cross_entropy loss.class_weights=none"),
        ("balanced_softmax", "loss.tau=1.0", "loss=cross_entropy loss.class_weights=none"),
        ("logit_adjusted", "loss.tau=1.0", "loss=cross_entropy loss.class_weights=none"),
    ],
)
def test_correcting_for_class_frequencies_twice_is_refused(
    sampler: str, loss: str, setting: str, mend: str
) -> None:
    option = "weighted" if sampler == "sampler=weighted" else "balanced_power"
    assert problems(train(f"sampler={option}", f"loss={loss}")) == [
        f"{sampler} and {setting} correct the class frequencies twice. Choose one: {mend}, or "
        "sampler=uniform; or say training.allow_double_correction=true"
    ]


def test_correcting_twice_is_told_beside_other_problems() -> None:
    assert len(problems(train("sampler=weighted", "training.monitor=f1"))) == 2


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        (["sampler=weighted", "loss.class_weights=none"], ["sampler=weighted"]),
        (["sampler=uniform"], ["loss.class_weights=balanced"]),
        (["sampler=balanced_power", "sampler.power=1.0"], ["loss.class_weights=balanced"]),
        (["sampler=weighted", "loss=logit_adjusted", "loss.tau=0.0"], ["sampler=weighted"]),
        (["loss=ldam"], ["loss.max_margin=0.5"]),
        (["loss.class_weights=none"], []),
        (
            ["sampler=weighted", "training.allow_double_correction=true"],
            ["sampler=weighted", "loss.class_weights=balanced"],
        ),
    ],
)
def test_correcting_once_or_on_purpose_is_accepted(
    overrides: list[str], settings: list[str]
) -> None:
    assert frequency_corrections(checked_run(train(*overrides))) == settings


def test_a_loss_that_does_not_say_whether_it_corrects_is_refused() -> None:
    node = {"_target_": "torch.nn.CrossEntropyLoss"}
    cfg = train()
    OmegaConf.update(cfg, "loss", node, merge=False)
    with pytest.raises(ConfigError, match=r"loss._target_=torch.nn.CrossEntropyLoss: has no freq"):
        checked_run(cfg)


def test_class_weights_that_would_begin_after_the_last_epoch_are_refused() -> None:
    begins = ["loss=ldam", "training.epochs=10"]
    checked_run(train(*begins, "loss.reweight_from=9"))
    assert problems(train(*begins, "loss.reweight_from=10")) == [
        "loss.reweight_from=10: epochs are counted from 0, so none of training.epochs=10 would be "
        "weighted. Give an earlier one, or null"
    ]


def test_what_gives_the_class_away_is_no_metadata() -> None:
    (problem,) = problems(train("model/metadata=concat", "model.metadata.columns=[age,dx_type]"))
    assert problem.startswith("model.metadata.columns=['age', 'dx_type']: dx_type is refused: how")
    (problem,) = problems(train("model/metadata=film", "model.metadata.columns=[age,sexe]"))
    assert problem.endswith("no column 'sexe'. Did you mean 'sex'?")


def test_a_model_of_pixels_alone_is_told_no_column() -> None:
    (problem,) = problems(train("model.metadata.columns=[age]"))
    assert problem.startswith("model.metadata.columns=['age'] (list): ")


def test_nodes_with_a_target_are_found_at_any_depth() -> None:
    inner = {"_target_": "b"}
    tree = {"x": {"_target_": "a", "y": [{"z": inner}, inner]}, "w": 3}
    assert list(nodes_with_target(tree)) == [
        ("x", tree["x"]),
        ("x.y[0].z", inner),
        ("x.y[1]", inner),
    ]


# Contracts of everything in conf/


def test_every_group_of_the_design_has_options() -> None:
    groups = {group for group, _ in OPTIONS}
    assert groups >= {
        "augmentation",
        "data",
        "data/split",
        "experiment",
        "loss",
        "model",
        "model/head",
        "model/metadata",
        "optimizer",
        "sampler",
        "scheduler",
        "tracking",
    }


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_fits_its_target(group: str, option: str) -> None:
    """Schema, signatures, types, and that no run-time argument stands in a yaml."""
    container = checked(option_config(group, option), Run)
    for path, node in nodes_with_target(container):
        target = get_object(node["_target_"])
        arguments = inspect.signature(target).parameters
        assert not RUN_TIME_ARGUMENTS & node.keys(), path
        assert node.keys() - WORDS <= arguments.keys(), path


@pytest.mark.parametrize(("group", "option"), OF_EVALUATE)
def test_every_option_of_evaluate_composes_and_has_its_values_in_conf(
    group: str, option: str
) -> None:
    cfg = compose("evaluate", ["checkpoint=run", f"{group}={option}"])
    node = checked(cfg, Evaluation)[group]
    for argument in inspect.signature(get_object(node["_target_"])).parameters.values():
        assert argument.kind is argument.KEYWORD_ONLY, argument.name
        assert argument.default is argument.empty, argument.name


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_values_live_in_conf_only(group: str, option: str) -> None:
    """This project's own targets take keywords only and have no default for any of them."""
    container = OmegaConf.to_container(option_config(group, option))
    targets = [node["_target_"] for _, node in nodes_with_target(container)]
    own = [name for name in targets if name.startswith("dermalyze.")]
    assert len(own) >= 8  # table, split, model, head, loss, augmentation, sampler, schedule
    for name in own:
        for argument in inspect.signature(get_object(name)).parameters.values():
            assert argument.kind is argument.KEYWORD_ONLY, (name, argument.name)
            assert argument.default is argument.empty, (name, argument.name)


def test_run_time_arguments_are_arguments_of_something() -> None:
    """A name that nothing takes any more would refuse nothing, or the wrong thing."""
    taken: set[str] = set()
    for group, option in OPTIONS:
        for _, node in nodes_with_target(OmegaConf.to_container(option_config(group, option))):
            taken |= inspect.signature(get_object(node["_target_"])).parameters.keys()
    assert taken >= RUN_TIME_ARGUMENTS


@pytest.mark.parametrize(
    ("command", "schema", "overrides"),
    [
        *[("prepare", Preparation, [f"data={name}", *left_to_user(name)]) for name in DATA],
        ("evaluate", Evaluation, ["checkpoint=run"]),
        *[
            ("evaluate", Evaluation, ["checkpoint=run", f"data={name}", *left_to_user(name)])
            for name in DATA
        ],
        *[
            ("show_augmentation", ShownAugmentation, [f"data={name}", *left_to_user(name)])
            for name in DATA
        ],
        ("benchmark", Benchmark, []),
        ("compare", Comparison, ["runs=[one,other]"]),
        ("report", Report, ["runs=one"]),
        ("export", Export, ["checkpoint=outputs/train/one"]),
        ("serve", Serving, ["checkpoint=outputs/train/one"]),
    ],
)
def test_the_other_commands_compose_with_every_data_option(
    command: str, schema: type[BaseModel], overrides: list[str]
) -> None:
    cfg = compose(command, overrides)
    checked(cfg, schema)
    OmegaConf.update(cfg, "nonsense", 1, force_add=True)
    with pytest.raises(ConfigError, match="nonsense: there is no such key"):
        checked(cfg, schema)


def test_an_empty_host_is_not_taken_for_every_address() -> None:
    with pytest.raises(ConfigError, match=r"host=.* at least 1 character"):
        checked(compose("serve", ["checkpoint=run", "host=''"]), Serving)


def test_a_yaml_with_a_stray_key_fails_the_contract() -> None:
    """The walk above can fail: an option with a misspelt key is noticed."""
    container = plain(changed({"augmentation.geometry.rotations": 5.0}))
    with pytest.raises(ConfigError, match=r"rotations: .* Did you mean 'rotation'"):
        check_targets(container)


# Where a run goes


def a_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("training: {}\n")
    return folder


def absent(folder: Path) -> Path:
    return folder


def a_file(folder: Path) -> Path:
    folder.write_text("")
    return folder


def an_empty_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_fresh_run_gets_the_fresh_folder() -> None:
    assert run_folder(None, "outputs/train/now") == "outputs/train/now"


def test_a_resumed_run_stays_in_its_folder(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    assert run_folder(str(run), "outputs/train/now") == str(run)
    assert run_folder(f"{run}/", "outputs/train/now") == str(run)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (absent, "it does not exist"),
        (a_file, "it is a file"),
        (an_empty_folder, "it holds no config.yaml of a run"),
    ],
)
def test_resuming_from_what_is_no_run_is_refused(
    make: Callable[[Path], Path], why: str, tmp_path: Path
) -> None:
    path = make(tmp_path / "run")
    with pytest.raises(ConfigError, match=re.escape(f"resume={path}: not a run folder, {why}. ")):
        run_folder(str(path), "outputs/train/now")


def hydra_node(*overrides: str) -> Any:
    return compose("train", list(overrides), return_hydra_config=True)


def test_the_resolvers_place_hydras_files(tmp_path: Path) -> None:
    fresh = hydra_node("paths.outputs=here")
    assert re.fullmatch(r"here/train/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", fresh.hydra.run.dir)
    assert fresh.hydra.output_subdir == ".hydra"
    run = a_run(tmp_path / "run")
    resumed = hydra_node(f"training.resume={run}")
    assert resumed.hydra.run.dir == str(run)
    assert resumed.hydra.output_subdir == ".hydra_resumed"
