from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from dermalyze import run_folder
from dermalyze.config import CONF_DIR, plain, register_resolvers
from dermalyze.errors import CheckpointError, ConfigError
from dermalyze.redaction import redacted
from dermalyze.run_folder import (
    FREE_ON_RESUME,
    flat_parameters,
    git_commit,
    load_config,
    origin,
    refuse_second_run,
    resumed_config,
    save_config,
    software,
    values_of_all_machines,
    values_of_the_run,
    working_directory,
)
from dermalyze.schema import checked_run
from dermalyze.taxonomy import DISCLAIMER

STARTED_WITH = ["loss=focal", "training.seed=7"]


@pytest.fixture(autouse=True)
def hydra_on_conf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DERMALYZE_HAM10000", raising=False)
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        yield


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, as `python -m dermalyze.train loss=focal training.seed=7` begins it."""
    save_config(compose("train", STARTED_WITH), tmp_path)
    return tmp_path


def resumed(run: Path, *overrides: str) -> DictConfig:
    line = [f"training.resume={run}", *overrides]
    return resumed_config(compose("train", line), run, line)


def but_for(cfg: DictConfig, *names: str) -> dict[str, Any]:
    """The config as plain containers, without some dotted keys."""
    container: dict[str, Any] = plain(cfg)
    for name in names:
        *parents, last = name.split(".")
        node = container
        for parent in parents:
            node = node[parent]
        del node[last]
    return container


# Saving


def test_a_saved_config_is_read_back_as_it_was_composed(run: Path) -> None:
    composed = compose("train", STARTED_WITH)
    assert OmegaConf.to_container(load_config(run)) == OmegaConf.to_container(composed)
    assert plain(load_config(run)) == plain(composed)


def test_interpolations_are_saved_unresolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@mlflow.example.org")
    save_config(compose("train"), tmp_path)
    for name in ("config.yaml", "config_redacted.yaml"):
        text = (tmp_path / name).read_text()
        assert "${oc.env:MLFLOW_TRACKING_URI," in text
        assert "hunter2" not in text


def test_the_shared_copy_has_no_secret_that_was_typed_in(tmp_path: Path) -> None:
    uri = "https://me:hunter2@mlflow.example.org"
    save_config(compose("train", [f"tracking.uri='{uri}'"]), tmp_path)
    assert load_config(tmp_path).tracking.uri == uri
    shared = OmegaConf.load(tmp_path / "config_redacted.yaml")
    assert shared.tracking.uri == "https://(redacted)@mlflow.example.org"
    assert "hunter2" not in (tmp_path / "config_redacted.yaml").read_text()


def test_nothing_that_is_not_secret_is_redacted() -> None:
    container = OmegaConf.to_container(compose("train"))
    assert redacted(container) == container


def test_a_folder_with_a_run_is_refused(run: Path) -> None:
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(ConfigError) as refused:
        refuse_second_run(run)
    assert str(refused.value) == (
        f"{run}: holds a run already. Go on with it by training.resume={run}, or name another "
        "folder with hydra.run.dir=FOLDER."
    )
    assert (run / "config.yaml").read_bytes() == before


def test_a_folder_without_a_run_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.yaml: there is no such file"):
        load_config(tmp_path)
    (tmp_path / "config.yaml").write_text("- a\n- list\n")
    with pytest.raises(CheckpointError, match=r"config\.yaml: not the config of a run"):
        load_config(tmp_path)
    for torn in (b"a: [1\n", b"a: \xff\n", b"a: 1\na: 2\n"):
        (tmp_path / "config.yaml").write_bytes(torn)
        with pytest.raises(CheckpointError, match=r"config\.yaml: cannot be read \("):
            load_config(tmp_path)


# Going on


def test_resume_alone_takes_the_runs_own_config(run: Path) -> None:
    cfg = resumed(run)
    assert cfg.training.resume == str(run)
    assert but_for(cfg, "training.resume") == but_for(load_config(run), "training.resume")
    assert cfg.loss._target_.endswith("FocalLoss")
    assert cfg.training.seed == 7


def test_a_free_value_is_taken_from_the_command_line(run: Path) -> None:
    cfg = resumed(run, "training.threads=1", "data.root=/elsewhere", "paths.cache=/fast/cache")
    changed = ("training.resume", "training.threads", "data.root", "paths.cache")
    assert [OmegaConf.select(cfg, name) for name in changed[1:]] == [1, "/elsewhere", "/fast/cache"]
    assert cfg.data.source.root == "/elsewhere"  # it refers to data.root
    changed += ("data.source.root",)
    assert but_for(cfg, *changed) == but_for(load_config(run), *changed)


def test_a_free_group_replaces_its_node(run: Path) -> None:
    cfg = resumed(run, "tracking=none")
    assert cfg.tracking == {"_target_": "dermalyze.tracking.tracker.NoTracker"}
    names = ("tracking", "training.resume")
    assert but_for(cfg, *names) == but_for(load_config(run), *names)
    checked_run(cfg)


def test_a_free_group_refers_to_the_runs_own_values(tmp_path: Path) -> None:
    save_config(compose("train", ["tracking=none", "paths.outputs=here"]), tmp_path)
    cfg = resumed(tmp_path, "tracking=mlflow")
    assert cfg.tracking.uri == "sqlite:///here/mlflow.db"
    checked_run(cfg)


def test_every_free_key_is_a_key_of_a_run() -> None:
    keys = flat_parameters(plain(compose("train")))
    for name in FREE_ON_RESUME:
        assert any(f"{key}.".startswith(f"{name}.") for key in keys), name


def test_a_changed_run_is_refused_with_every_difference(run: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        resumed(run, "loss=label_smoothing", "training.seed=8", "training.threads=2")
    message = str(refused.value)
    differences = re.findall(r"^  - (.*)$", message, flags=re.MULTILINE)
    assert differences == [
        "loss._target_: dermalyze.losses.focal.FocalLoss -> "
        "dermalyze.losses.label_smoothing.LabelSmoothing",
        "loss.convention: (absent) -> others",
        "loss.epsilon: (absent) -> 0.05",
        "loss.gamma: 2.0 -> (absent)",
        "training.seed: 7 -> 8",
    ]
    assert message.startswith(f"training.resume={run}: a resumed run is the same run")
    assert all(name in message for name in FREE_ON_RESUME)


def test_one_override_alone_shows_what_it_leaves_out_too(run: Path) -> None:
    """`loss=focal` is as it was, but without training.seed=7 the command is another one."""
    with pytest.raises(ConfigError) as refused:
        resumed(run, "loss=focal")
    assert re.findall(r"^  - (.*)$", str(refused.value), flags=re.MULTILINE) == [
        "training.seed: 7 -> 42"
    ]


def test_the_same_full_command_is_accepted(run: Path) -> None:
    cfg = resumed(run, *STARTED_WITH, "training.check_every_steps=1")
    assert cfg.training.check_every_steps == 1
    names = ("training.resume", "training.check_every_steps")
    assert but_for(cfg, *names) == but_for(load_config(run), *names)


def test_an_added_or_deleted_key_is_a_change(run: Path) -> None:
    for override, difference in (
        ("+training.note=x", "training.note: (absent) -> x"),
        ("~training.monitor", "training.monitor: val/loss -> (absent)"),
    ):
        with pytest.raises(ConfigError) as refused:
            resumed(run, *STARTED_WITH, override)
        assert difference in str(refused.value)


# Flat names


def test_flat_parameters_name_every_leaf_once() -> None:
    node = {
        "training": {"seed": 7, "patience": None, "deterministic": True},
        "model": {"head": {"hidden": [512, 256], "none": []}},
        "views": [{"flip": True}, [1, [2]]],
        "lr": 1e-5,
    }
    assert flat_parameters(node) == {
        "training.seed": "7",
        "training.patience": "None",
        "training.deterministic": "True",
        "model.head.hidden": "[512, 256]",
        "model.head.none": "[]",
        "views.0.flip": "True",
        "views.1.0": "1",
        "views.1.1": "[2]",
        "lr": "1e-05",
    }


def test_folders_and_tracking_may_differ_between_machines() -> None:
    config = OmegaConf.create(
        {
            "data": {"root": "/here", "root_of": 1, "source": {"root": "${data.root}"}},
            "paths": {"cache": "/tmp"},
            "tracking": {"uri": "sqlite:///here.db"},
            "training": {"seed": 1, "threads": 2},
        }
    )
    one = {"data.root_of": "1", "data.source.root": "", "training.seed": "1"}
    assert values_of_all_machines(config) == {**one, "training.threads": "2"}
    assert values_of_the_run(config) == one


def test_flat_parameters_of_a_real_config_are_found_at_their_names() -> None:
    cfg = compose("train")
    flat = flat_parameters(plain(cfg))
    assert len(flat) > 50
    for name, text in flat.items():
        assert str(OmegaConf.select(cfg, name)) == text, name


# Secrets


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "db_passwd",
        "PASS",
        "hf_token",
        "secret",
        "api_key",
        "apiKey",
        "MLFLOW_TRACKING_PASSWORD",
        "credentials",
    ],
)
def test_a_secret_is_known_by_its_key(key: str) -> None:
    for value in ("hunter2", 1234, ["hunter2"], {"user": "me", "key": "hunter2"}):
        assert redacted({"a": {"b": [{key: value, "lr": 0.1}]}}) == {
            "a": {"b": [{key: "(redacted)", "lr": 0.1}]}
        }


def test_an_empty_secret_and_other_values_stay() -> None:
    node = {"password": None, "token": "", "hidden": [512, 256], "on": False, "x": 0.5}
    assert redacted(node) == node


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:hunter2@mlflow.org/x", "https://(redacted)@mlflow.org/x"),
        ("https://hunter2@mlflow.org", "https://(redacted)@mlflow.org"),
        ("postgresql://me:hun@ter2@db:5432/m", "postgresql://(redacted)@db:5432/m"),
        ("a https://b:hunter2@c d", "a https://(redacted)@c d"),
        ("sql://h/db?user=a&password=hunter2&x=1", "sql://h/db?user=a&password=(redacted)&x=1"),
        ("{uri: x, password: hunter2}", "{uri: x, password: (redacted)}"),
        ("storage={api_key: hunter2, n: 3}", "storage={api_key: (redacted), n: 3}"),
        ("http://mlflow.org/a@b", "http://mlflow.org/a@b"),
        ("sqlite:////home/me@work/m.db", "sqlite:////home/me@work/m.db"),
        ("me@example.org", "me@example.org"),
    ],
)
def test_a_secret_inside_an_address(address: str, shown: str) -> None:
    assert redacted({"tracking": [{"uri": address}]}) == {"tracking": [{"uri": shown}]}
    assert redacted(address) == shown


# Where a run comes from


def test_origin_says_command_folder_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["python", "-m", "dermalyze.train", "loss=focal", "tracking.uri=http://me:hunter2@x:1"]
    monkeypatch.setattr(sys, "orig_argv", [*line, "+token=hunter2"])
    assert origin() == {
        "command": "-m dermalyze.train loss=focal tracking.uri=http://(redacted)@x:1 "
        "+token=(redacted)",
        "working_directory": str(tmp_path),
        "git_commit": git_commit(),
        "disclaimer": DISCLAIMER,
    }


def test_the_folder_that_a_run_was_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "run.json").write_text(json.dumps(origin()))
    monkeypatch.chdir("/")
    assert working_directory(tmp_path / "run") == tmp_path
    for torn in ("{", "[]", "{}", None):
        (tmp_path / "run" / "run.json").unlink()
        if torn is not None:
            (tmp_path / "run" / "run.json").write_text(torn)
        with pytest.raises(CheckpointError, match=r"not found \(.*\)\. Name .*: data\.root=DIR\.$"):
            working_directory(tmp_path / "run")


def test_the_commit_is_unknown_or_forty_digits() -> None:
    commit = git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_checkout_and_says_when_it_is_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*args: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        done = subprocess.run(
            ["git", *identity, *args], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    module = tmp_path / "run_folder.py"
    module.write_text("")
    monkeypatch.setattr(run_folder, "__file__", str(module))
    assert git_commit() is None  # no checkout
    git("init", "--quiet")
    assert git_commit() is None  # a checkout, but not of this code
    git("add", ".")
    git("commit", "--quiet", "--message=one")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    assert git_commit() == commit
    module.write_text("changed = True\n")
    assert git_commit() == f"{commit}-dirty"
    git("rm", "--quiet", "--cached", "run_folder.py")
    assert git_commit() is None  # somebody else's checkout around an installed copy


def test_software_names_the_installed_versions() -> None:
    found = software(device="cpu", threads=1, precision="float32")
    assert found["torch"] == metadata.version("torch")
    assert found["dermalyze"] == metadata.version("dermalyze")
    assert found["python"] == platform.python_version()
    assert (found["device"], found["threads"], found["precision"]) == ("cpu", 1, "float32")
    assert "not installed" not in found.values()
