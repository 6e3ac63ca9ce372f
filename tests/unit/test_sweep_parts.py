from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from dermalyze import machine
from dermalyze.checkpoint_file import BEST
from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.errors import CheckpointError, ConfigError, DataError
from dermalyze.evaluation.metrics import summary_metrics
from dermalyze.inference.loading import best_checkpoints
from dermalyze.sweep_folder import (
    Job,
    Status,
    claim,
    forget_requests,
    is_twin,
    jobs_of,
    run_name,
    set_apart,
    write_job,
    write_sweep,
)
from dermalyze.sweeps import conclusion, findings, launchers, tracking
from dermalyze.sweeps.choices import number_of_jobs
from dermalyze.sweeps.ensemble import ensemble_problem, write_ensemble
from dermalyze.sweeps.findings import Finding, components, spread
from dermalyze.sweeps.job import _is_unrecorded, job_name
from dermalyze.sweeps.out_of_fold import write_out_of_fold
from dermalyze.sweeps.sweep import begin_sweep, resumed_words, whole_sweep
from dermalyze.sweeps.table import comparison_table
from dermalyze.tracking.run_identity import RunIdentity, write_identity
from dermalyze.tracking.tracker import NoTracker


@pytest.fixture
def hydra_on_conf() -> Iterator[None]:
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        yield


# A sweep's folder


def a_sweep(folder: Path, overrides: Sequence[str], hydra_overrides: Sequence[str] = ()) -> Path:
    record = {"overrides": [*overrides], "hydra_overrides": [*hydra_overrides], "fixed": []}
    folder.mkdir(exist_ok=True)
    write_sweep(folder, record)
    return folder


def test_a_resumed_sweep_is_started_with_what_it_was_started_with(tmp_path: Path) -> None:
    stored = ["training.seed=7,13", "data.root=old", "sweep=seeds"]
    sweep = a_sweep(tmp_path / "a sweep", stored, ["hydra/launcher=joblib", "hydra.verbose=true"])
    resume = f"sweep.resume='{sweep}'"
    whole = ["--multirun", *stored, "hydra/launcher=joblib", "hydra.verbose=true", resume]
    assert resumed_words(["-m", resume]) == whole
    assert resumed_words([resume]) == whole
    changed = resumed_words(["-m", resume, "data.root=new", "hydra/launcher=basic"])
    assert changed == [
        *("--multirun", "training.seed=7,13", "sweep=seeds", "hydra.verbose=true"),
        *(resume, "data.root=new", "hydra/launcher=basic"),
    ]
    a_sweep(sweep, stored, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])
    assert "hydra.launcher.n_jobs=2" in resumed_words([resume])
    assert "hydra.launcher.n_jobs=2" not in resumed_words([resume, "hydra/launcher=basic"])
    ordinary = ["-m", "training.seed=7,13"]
    assert resumed_words(ordinary) == ordinary


@pytest.mark.parametrize("word", ["training.seed=7,13,21", "sweep=heads", "+loss.gamma=3"])
def test_what_would_be_another_sweep_is_refused(word: str, tmp_path: Path) -> None:
    sweep = a_sweep(tmp_path / "sweep", ["training.seed=7,13"])
    with pytest.raises(ConfigError) as refused:
        resumed_words(["-m", f"sweep.resume={sweep}", word])
    assert f"but {word} would make another" in str(refused.value)


def test_secrets_are_kept_for_resuming_and_not_shown(tmp_path: Path) -> None:
    secret = "tracking.uri=https://me:hunter2@mlflow.example.org"
    sweep = a_sweep(tmp_path / "sweep", [secret, "training.seed=7,13"])
    assert secret in resumed_words([f"sweep.resume={sweep}"])
    shown = (sweep / "sweep_redacted.json").read_text()
    assert "hunter2" not in shown
    assert json.loads(shown)["overrides"][1] == "training.seed=7,13"


def test_of_two_jobs_alike_the_first_that_asks_runs(tmp_path: Path) -> None:
    assert [claim(tmp_path, "a", 4), claim(tmp_path, "a", 2), claim(tmp_path, "b", 2)] == [4, 4, 2]
    assert claim(tmp_path, "a", 4) == 4
    forget_requests(tmp_path)
    assert claim(tmp_path, "a", 2) == 2


@pytest.mark.parametrize(("ended", "owner"), [("done", 4), ("pruned", 4), ("stopped", 2)])
def test_what_has_run_stays_its_jobs_own_when_the_sweep_is_begun_again(
    ended: Any, owner: int, tmp_path: Path
) -> None:
    (tmp_path / "4").mkdir()
    write_job(tmp_path / "4", Job(4, "", [], ended))
    assert claim(tmp_path, "a", 4) == 4
    forget_requests(tmp_path)
    assert claim(tmp_path, "a", 2) == owner  # the twin comes first


def test_jobs_are_named_by_what_sets_them_apart_and_sorted_by_number(tmp_path: Path) -> None:
    overrides = ["data=synthetic", "model/head=acrnn", "training.seed=7"]
    name = job_name(set_apart(overrides, ["data"]))
    assert name == "model/head=acrnn, training.seed=7"
    assert job_name(set_apart(overrides, ["data", "model/head", "training.seed"])) == "as it stands"
    for number in (10, 9):
        (tmp_path / str(number)).mkdir()
        write_job(tmp_path / str(number), Job(number, name, overrides, "done", value=0.1))
    assert [job.number for job in jobs_of(tmp_path)] == [9, 10]
    assert run_name(tmp_path / "9") == "9: model/head=acrnn, training.seed=7"
    assert run_name(tmp_path) == tmp_path.name
    assert not is_twin(tmp_path / "9")


# Launchers


def test_what_a_machine_has_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5")
    assert [machine.gpu_of(job) for job in range(3)] == ["2", "GPU-5", "2"]
    assert machine.parallel_jobs(4) == 2
    assert [machine.threads_of(jobs) for jobs in (1, 3, 20)] == ["8", "2", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (machine.gpu_of(3), machine.parallel_jobs(4), machine.parallel_jobs(40)) == ("", 4, 8)


def test_each_preset_gives_a_job_its_share(
    hydra_on_conf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    def shares(*words: str) -> dict[str, str]:
        cfg = compose("train", [*words, "+hydra.job.num=3"], return_hydra_config=True)
        return dict(cfg.hydra.job.env_set)

    assert shares() == {}
    assert shares("hydra/launcher=basic") == {}
    assert shares("hydra/launcher=joblib") == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "1"}
    jobs = "hydra.launcher.n_jobs=4"
    assert shares("hydra/launcher=joblib", jobs)["OMP_NUM_THREADS"] == "2"
    cores = "hydra.launcher.cpus_per_task=6"
    for launcher in ("submitit_slurm", "submitit_local"):
        assert shares(f"hydra/launcher={launcher}", cores) == {"OMP_NUM_THREADS": "6"}


def test_a_launcher_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    launchers.check_launcher("hydra._internal.core_plugins.basic_launcher.BasicLauncher")
    with pytest.raises(ConfigError, match=r"SlurmLauncher is not installed\. pip install 'derma"):
        launchers.check_launcher("hydra_plugins.hydra_submitit_launcher.x.SlurmLauncher")


@pytest.mark.parametrize(
    ("name", "runs"), [("seeds", 3), ("heads", 10), ("augmentations", 10), ("folds", 15)]
)
def test_a_sweep_by_name_makes_as_many_runs_as_its_file_says(
    name: str, runs: int, hydra_on_conf: None
) -> None:
    cfg = compose("train", [f"sweep={name}"], return_hydra_config=True)
    words = [f"{key}={value}" for key, value in cfg.hydra.sweeper.params.items()]
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    assert len(jobs) == runs
    assert f"{runs} runs." in (CONF_DIR / "sweep" / f"{name}.yaml").read_text()
    for job in jobs:
        compose("train", [f"sweep={name}", *job])


@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        ("loss=focal", 1),
        ("sweep=seeds training.seed=5", 1),
        ("sweep=seeds model/head=glob(*)", 3 * len([*CONF_DIR.glob("model/head/*.yaml")])),
        ("training.epochs=range(1,4) +ema.decay=0.9,0.99", 6),
        ("sweep=optuna_quick", None),
    ],
)
def test_a_grids_jobs_are_counted_before_it_begins(
    words: str, jobs: int | None, hydra_on_conf: None
) -> None:
    of_the_sweep = [word for word in words.split() if word.startswith("sweep=")]
    cfg = compose("train", of_the_sweep, return_hydra_config=True)
    cfg.hydra.overrides.task = words.split()
    assert number_of_jobs(cfg) == jobs


# Beginning and end


def a_beginning(sweep: Path, *words: str) -> DictConfig:
    """What Hydra hands over when the sweep of two seeds begins, or is begun again."""
    task = ["data=synthetic", "tracking=none", "training.seed=7,13", *words]
    own = [word for word in task if "," not in word]
    cfg = compose("train", own, return_hydra_config=True)
    cfg.hydra.overrides.task, cfg.hydra.sweep.dir = task, str(sweep)
    return cfg


def record_of(sweep: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((sweep / "sweep.json").read_text())
    return record


def test_a_launcher_that_breaks_off_leaves_a_sweep_that_can_be_gone_on_with(
    tmp_path: Path, hydra_on_conf: None
) -> None:
    sweep = tmp_path / "sweep"

    def break_off() -> None:
        with whole_sweep():
            begin_sweep(a_beginning(sweep))
            raise RuntimeError("the cluster is gone")

    with pytest.raises(RuntimeError, match="the cluster is gone"):
        break_off()
    record = record_of(sweep)
    assert (record["status"], record["number_of_jobs"]) == ("failed", 2)
    statuses = [(job["number"], job["status"]) for job in record["jobs"]]
    assert statuses == [(0, "waiting"), (1, "waiting")]

    resume = f"sweep.resume={sweep}"
    with pytest.raises(SystemExit) as ended, whole_sweep():  # no launcher comes to any job
        begin_sweep(a_beginning(sweep, resume, "training.threads=1"))
    assert ended.value.code == 1
    record = record_of(sweep)
    assert record["status"] == "failed"
    assert record["fixed"] == ["data", "tracking", "sweep.resume", "training.threads"]

    with pytest.raises(ConfigError) as refused, whole_sweep():
        begin_sweep(a_beginning(sweep, resume, "training.device=cpu,auto"))
    assert f"{resume}: the sweep has 2 jobs, and this command line would make 4." in str(
        refused.value
    )


def test_an_interval_is_refused_where_no_search_takes_it(
    tmp_path: Path, hydra_on_conf: None
) -> None:
    with pytest.raises(ConfigError) as refused, whole_sweep():
        begin_sweep(a_beginning(tmp_path / "sweep", "optimizer.lr=interval(0.001,0.01)"))
    assert str(refused.value) == (
        "optimizer.lr=interval(0.001,0.01): an interval is for a search, which a grid is not. Add "
        "sweep=optuna_quick, or name values: KEY=A,B,C."
    )
    assert not (tmp_path / "sweep").exists()


def test_jobs_are_found_by_their_numbers_so_other_names_are_refused(
    tmp_path: Path, hydra_on_conf: None
) -> None:
    config = a_beginning(tmp_path / "sweep")
    config.hydra.sweep.subdir = "seed_${training.seed}"
    with pytest.raises(ConfigError) as refused, whole_sweep():
        begin_sweep(config)
    assert "hydra.sweep.subdir=seed_${training.seed}: a job's folder is called by" in str(
        refused.value
    )
    assert not (tmp_path / "sweep").exists()


def test_a_sweeps_parameters_are_called_by_their_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []
    monkeypatch.setattr(tracking, "begun", lambda *arguments: begun.append(arguments[3]))
    words = ["++training.min_delta=0.0", "+ema.decay=0.9", "~optimizer.fused", "training.seed=7,13"]
    tracking.begin_tracking(a_sweep(tmp_path, words), OmegaConf.create())
    names = {"training.min_delta": "0.0", "ema.decay": "0.9", "training.seed": "7,13"}
    assert begun == [names]


@pytest.mark.parametrize(
    ("status", "uri", "recorded", "runs"),
    [
        ("done", True, True, False),
        ("done", True, False, True),
        ("done", False, False, False),
        ("pruned", True, False, False),
    ],
)
def test_a_job_that_is_done_runs_again_where_its_store_never_heard_of_it(
    status: Status, uri: bool, recorded: bool, runs: bool, tmp_path: Path
) -> None:
    cfg = OmegaConf.create({"tracking": {"uri": "sqlite:///m.db"} if uri else {}})
    if recorded:
        write_identity(tmp_path, RunIdentity("sqlite:///m.db", "1", "dermalyze"))
    assert _is_unrecorded(Job(0, "0", [], status), tmp_path, cfg) is runs


class Ending:
    """The end of a sweep of seeds whose evaluations are stood in for; says what was asked of it.

    Attributes:
        evaluated: the names of what was evaluated, in order.
        broken: names whose evaluation fails.
        finished: how its runs in MLflow ended.
    """

    def __init__(self, sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sweep = a_sweep(sweep, ["training.seed=5,6,7"])
        self.evaluated: list[str] = []
        self.broken: set[str] = set()
        self.finished: list[str] = []
        monkeypatch.setattr(conclusion, "findings", self.findings)
        monkeypatch.setattr(conclusion, "assess", self.assess)
        monkeypatch.setattr(NoTracker, "finish", lambda _, status: self.finished.append(status))

    def conclude(self, number_of_jobs: int | None, *, broke_off: bool = False) -> dict[str, Any]:
        write_sweep(self.sweep, {**record_of(self.sweep), "number_of_jobs": number_of_jobs})
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
            cfg = compose("train", ["tracking=none"])
        conclusion.conclude(self.sweep, cfg, stopped=False, broke_off=broke_off)
        return record_of(self.sweep)

    def job_is_done(self, number: int) -> None:
        folder = with_test_images(self.sweep / str(number), ["c", "d"])
        write_job(folder, Job(number, f"training.seed={5 + number}", [], "done"))

    def findings(self, sweep: Path, jobs: Sequence[Job], fixed: object) -> list[Finding]:
        found = []
        for job in jobs:
            if job.status == "done":
                folder = sweep / str(job.number)
                test = findings.tested(folder / "evaluation" / "test").get("accuracy")
                found.append(a_finding(job.number, test=test, folder=folder))
        return found

    def assess(self, config: dict[str, Any]) -> SimpleNamespace:
        checkpoint = Path(config["checkpoint"])
        self.evaluated.append(checkpoint.name)
        if checkpoint.name in self.broken:
            raise DataError("image c cannot be read")
        folder = checkpoint / "evaluation" / "test"
        if checkpoint.suffix:
            folder = self.sweep / "evaluation" / "test_weighted_mean"
        folder.mkdir(parents=True)
        (folder / "evaluation_metrics.json").write_text('{"metrics": {"accuracy": 0.75}}')
        return SimpleNamespace(folder=folder)


@pytest.fixture
def ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ending:
    register_resolvers()
    return Ending(tmp_path / "sweep", monkeypatch)


def test_the_test_split_is_closed_while_a_job_is_missing(
    ending: Ending, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dermalyze")
    ending.job_is_done(0)
    ending.job_is_done(2)
    record = ending.conclude(3)
    assert (record["status"], ending.finished, ending.evaluated) == ("failed", ["FAILED"], [])
    assert [job["status"] for job in record["jobs"]] == ["done", "waiting", "done"]
    assert "3 jobs: 2 done, 1 waiting" in caplog.text
    assert f"Next: python -m dermalyze.train -m sweep.resume={ending.sweep}" in caplog.text
    assert "1: 'waiting: never begun'" in (ending.sweep / "ensemble.yaml").read_text()

    ending.job_is_done(1)
    assert ending.conclude(3, broke_off=True)["status"] == "failed"
    assert ending.evaluated == []
    assert ending.conclude(3)["status"] == "done"
    assert ending.evaluated == ["0", "1", "2", "ensemble.yaml"]
    assert ending.finished == ["FAILED", "FAILED", "FINISHED", "FINISHED"]


def test_a_search_has_as_many_jobs_as_it_made(ending: Ending) -> None:
    ending.job_is_done(0)
    ending.job_is_done(2)
    assert ending.conclude(None)["status"] == "done"


def test_a_job_that_cannot_be_evaluated_hides_nothing_of_the_others(
    ending: Ending, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dermalyze")
    for number in range(3):
        ending.job_is_done(number)
    ending.broken = {"1"}
    record = ending.conclude(3)
    assert ending.evaluated == ["0", "1", "2", "ensemble.yaml"]
    assert (record["status"], ending.finished[-1]) == ("done", "FINISHED")
    problems = [job["test_problem"] for job in record["jobs"]]
    assert problems == [None, "image c cannot be read", None]
    tests = [job["test"] for job in record["jobs"]]
    assert tests == [{"accuracy": 0.75}, None, {"accuracy": 0.75}]
    assert record["ensemble"]["test"] == {"accuracy": 0.75}
    assert record["recipes"][0]["test"]["accuracy"] is None  # not the mean of what is left
    assert "job 1 could not be evaluated on its test split: image c cannot be read" in caplog.text
    assert "all of them as an ensemble" in caplog.text


# Findings


def a_finding(
    number: int,
    recipe: tuple[str, ...] = (),
    chance: dict[str, str] | None = None,
    accuracy: float = 0.5,
    test: float | None = None,
    folder: Path = Path(),
    classes: tuple[str, ...] = ("mel", "nv"),
) -> Finding:
    words = [*recipe, *(f"{key}={value}" for key, value in (chance or {}).items())]
    return Finding(
        job=Job(number, ", ".join(words), words, "done"),
        folder=folder,
        recipe=recipe,
        chance=chance or {},
        facts=SimpleNamespace(classes=classes, header={"epoch": 1, "seed": number}),  # type: ignore[arg-type]
        validation={"accuracy": accuracy, "ece": None},
        test={} if test is None else {"accuracy": test},
    )


def test_mean_and_spread() -> None:
    found = spread([{"a": 0.5}, {"a": 0.75}, {"a": 1.0}], "a")
    assert found is not None
    assert (found.mean, found.deviation, found.runs) == (0.75, 0.25, 3)
    assert spread([{"a": 0.5}, {"a": None}], "a") is None  # not the mean of what is left
    one = spread([{"a": 0.5}], "a")
    assert one is not None
    assert one.deviation is None


def test_components_need_each_fold_with_each_seed() -> None:
    values = {("0", "7"): 1.0, ("0", "9"): 3.0, ("1", "7"): 4.0, ("1", "9"): 4.0}
    runs = [
        a_finding(n, chance={"data.split.fold": fold, "training.seed": seed}, test=value)
        for n, ((fold, seed), value) in enumerate(values.items())
    ]
    # Mean squares 4 between folds, 1 between seeds, 1 of the rest, with 2 of either.
    assert components(runs, "accuracy") == {"mean": 3.0, "data": 1.5, "seed": 0.0, "rest": 1.0}
    assert components(runs[:3], "accuracy") is None
    assert components(runs, "ece") is None


def test_the_table_compares_recipes_by_validation() -> None:
    seeds = [{"training.seed": "7"}, {"training.seed": "9"}]
    found = [
        a_finding(0, ("loss=focal",), seeds[0], accuracy=0.5),
        a_finding(1, ("loss=focal",), seeds[1], accuracy=0.75),
        a_finding(2, ("loss=ldam",), seeds[0], accuracy=0.25),
    ]
    columns = [
        line.split("  ") for line in comparison_table(found, {"accuracy": 0.875}).split("\n")
    ]
    shown = [[cell.strip() for cell in line if cell.strip()][:2] for line in columns]
    assert shown == [
        ["accuracy", "balanced accuracy"],
        ["validation, at the best epoch"],
        ["loss=focal, training.seed=7", "0.5000"],
        ["loss=focal, training.seed=9", "0.7500"],
        ["mean ± sd of loss=focal, 2 runs", "0.6250 ± 0.1768"],
        ["loss=ldam, training.seed=7", "0.2500"],
        ["test"],
        ["all of them as an ensemble", "0.8750"],
    ]


def test_each_image_is_predicted_by_the_models_that_were_not_trained_on_its_fold(
    tmp_path: Path,
) -> None:
    """Two folds with two seeds each: the mean over seeds, in the fold that tests the image."""
    probs = {("0", "7"): 0.25, ("0", "9"): 0.5, ("1", "7"): 0.75, ("1", "9"): 1.0}
    found = []
    for number, ((fold, seed), mel) in enumerate(probs.items()):
        folder = tmp_path / str(number)
        (folder / "evaluation" / "test").mkdir(parents=True)
        image, dx, label = (("a", "mel", 0), ("b", "nv", 1))[int(fold)]
        rows = [image, f"lesion_{image}", dx, mel, 1 - mel]
        columns = "image_id,lesion_id,dx,probability_mel,probability_nv"
        text = f"{columns}\n{','.join(map(str, rows))}\n"
        (folder / "evaluation" / "test" / "predictions.csv").write_text(text)
        metrics = summary_metrics(np.array([label]), np.array([[mel, 1 - mel]]))
        report = {"confusion_matrix": {"classes": ["mel", "nv"]}, "metrics": metrics}
        (folder / "evaluation" / "test" / "evaluation_metrics.json").write_text(json.dumps(report))
        chance = {"data.split.fold": fold, "training.seed": seed}
        found.append(a_finding(number, chance=chance, test=0.5, folder=folder))
    path = write_out_of_fold(tmp_path, found)
    assert path is not None
    table = pd.read_csv(path, dtype={"fold": str})
    columns_shown = ["image_id", "dx", "fold", "runs", "predicted", "probability_mel"]
    assert table[columns_shown].to_numpy().tolist() == [
        ["a", "mel", "0", 2, "nv", 0.375],
        ["b", "nv", "1", 2, "mel", 0.875],
    ]
    assert write_out_of_fold(tmp_path, [a_finding(9, test=0.5)]) is None


# The ensemble


def with_test_images(folder: Path, images: Sequence[str]) -> Path:
    folder.mkdir()
    for part, listed in (("train", ["a"]), ("val", ["b"]), ("test", images)):
        rows = "".join(f"{image},lesion_{image},nv\n" for image in listed)
        (folder / f"{part}_split.csv").write_text(f"image_id,lesion_id,dx\n{rows}")
    (folder / BEST).touch()
    return folder


def test_only_what_was_judged_alike_becomes_an_ensemble(tmp_path: Path) -> None:
    one = a_finding(0, folder=with_test_images(tmp_path / "0", ["c", "d"]))
    two = a_finding(1, folder=with_test_images(tmp_path / "1", ["d", "c"]))
    other = a_finding(2, folder=with_test_images(tmp_path / "2", ["c", "e"]))
    turned = a_finding(
        3, folder=with_test_images(tmp_path / "3", ["c", "d"]), classes=("nv", "mel")
    )
    assert ensemble_problem([one, two]) is None
    assert ensemble_problem([one]) == "an ensemble needs two jobs that are done, and 1 is"
    assert ensemble_problem([one, two, other]) == (
        "jobs 0 and 2 have other test splits: 2 images are in only one of them (d, e)"
    )
    assert ensemble_problem([one, turned]) == (
        "jobs 0 and 3 have other classes: mel, nv and nv, mel"
    )

    failed = Job(7, "training.seed=5", [], "failed", reason="no room")
    file = write_ensemble(tmp_path, [one, two], [failed])
    assert best_checkpoints(str(file)) == [tmp_path / "0" / BEST, tmp_path / "1" / BEST]
    assert "7: 'failed: no room'" in file.read_text()
    # The folder means the same, but for jobs that are only the same as another.
    for folder in ("2", "3"):
        write_job(tmp_path / folder, Job(2, "", [], "twin", same_as=0))
    assert best_checkpoints(str(tmp_path)) == best_checkpoints(str(file))


@pytest.mark.parametrize("content", ["", "checkpoints: []", "checkpoints: [1]", "[a", "a: b"])
def test_a_file_that_lists_no_models_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "ensemble.yaml"
    file.write_text(content)
    with pytest.raises(CheckpointError, match="lists no checkpoints"):
        best_checkpoints(str(file))


def test_a_sweep_starts_without_the_heavy_libraries() -> None:
    """Its process waits for days, and every job's is forked from it."""
    script = (
        "import sys; import dermalyze.sweeps.callback, dermalyze.sweeps.job, dermalyze.command;"
        "print(sorted({'torch', 'mlflow', 'pandas', 'sklearn'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_components_are_those_of_the_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    runs: list[Any] = []
    for fold in range(3):
        for seed in (1, 2):
            chance = {"data.split.fold": str(fold), "training.seed": str(seed)}
            runs.append(a_finding(len(runs), chance=chance, test=float(rng.random())))
    found = components(runs, "accuracy")
    assert found is not None
    line = next(
        line for line in comparison_table(runs, None).split("\n") if "from the data" in line
    )
    assert f"{found['data'] ** 0.5:.4f}" in line
