"""The search on toy objectives whose best is known: proposing, sharing, resuming, pruning."""

from __future__ import annotations

import csv
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution, LogUniformDistribution
from optuna.trial import TrialState

from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.errors import ConfigError
from dermalyze.search.options import Condition, SearchOptions, search_options
from dermalyze.search.results import importances, results_text, write_results
from dermalyze.search.space import Space
from dermalyze.search.study import Proposal, Study
from dermalyze.search.trial import SearchTrial
from dermalyze.search.trial_file import trial_number
from dermalyze.search.worker import Worker
from dermalyze.sweep_folder import Job, write_job
from dermalyze.tracking.run_lock import run_lock

PARAMS = {"optimizer.lr": "tag(log, interval(1e-4, 1e-2))", "loss": "choice(cross_entropy,focal)"}
CONDITIONS = [Condition(when={"loss": "focal"}, params={"loss.gamma": "interval(0.5, 4.0)"})]


@pytest.fixture(autouse=True, scope="module")
def unsafe_but_fast() -> Iterator[None]:
    """No test survives a power cut; SQLite need not wait for the disk at each of its commits."""

    def hurry(connection: Any, record: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", hurry)
    yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", hurry)


def a_space(*arguments: str, params: dict[str, Any] = PARAMS) -> Space:
    return Space(params=params, conditions=CONDITIONS, arguments=arguments)


def options(folder: Path, **change: Any) -> SearchOptions:
    given = {
        "study": "toy",
        "folder": str(folder),
        "storage": f"sqlite:///{folder}/study.db",
        "seed": 7,
        "n_trials": 8,
        "n_jobs": 1,
        "max_failures": 3,
        "sampler": {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 3},
        "pruner": {
            "_target_": "optuna.pruners.MedianPruner",
            "n_startup_trials": 4,
            "n_warmup_steps": 2,
        },
        "params": PARAMS,
        "conditions": [],
    }
    return SearchOptions.model_validate({**given, **change})


def a_study(folder: Path, monitor: str = "val/loss", **change: Any) -> Study:
    return Study(options=options(folder, **change), monitor=monitor)


def values_of(proposal: Proposal) -> dict[str, str]:
    return dict(word.split("=", 1) for word in proposal.overrides)


def loss_of(proposal: Proposal) -> float:
    """The toy: best at lr 1e-3, with focal and gamma 2."""
    values = values_of(proposal)
    lr = float(values["optimizer.lr"])
    return abs(lr - 1e-3) + abs(float(values.get("loss.gamma", 12.0)) - 2.0) / 10


def run_to_the_end(study: Study, sweep: Path, most: int = 100) -> list[Proposal]:
    done = []
    while len(done) < most and (batch := study.propose(a_space(), sweep)):
        for proposal in batch:
            study.end(proposal.number, "done", value=loss_of(proposal), reason=None)
            done.append(proposal)
    return done


# What may be tried


def test_ranges_are_read_in_hydras_words() -> None:
    space = a_space("sweep=quick", params={**PARAMS, "a": "range(1,5)", "b": "[64],null", "c": 3})
    texts = space.described()
    assert texts["optimizer.lr"] == str(LogUniformDistribution(1e-4, 1e-2))
    assert texts["a"] == str(CategoricalDistribution(("1", "2", "3", "4")))
    assert texts["b"] == str(CategoricalDistribution(("[64]", "null")))
    assert texts["loss.gamma"].endswith(" where loss is focal")
    assert space.fixed == ["c=3", "sweep=quick"]


def test_what_is_typed_takes_the_place_of_a_range() -> None:
    space = a_space("optimizer.lr=interval(0.1,0.2)", "loss=focal")
    assert a_space("loss=focal", "optimizer.lr=1", "optimizer.lr=0.5").fixed == [
        "loss=focal",
        "optimizer.lr=0.5",
    ]
    (base, conditional) = space.examples()
    assert base == conditional == ["loss=focal", "optimizer.lr=0.1", "loss.gamma=0.5"]
    assert "loss.gamma" not in a_space("loss=focal", "loss.gamma=2.0").described()
    assert a_space("loss=cross_entropy").examples()[0] == [
        "loss=cross_entropy",
        "optimizer.lr=0.0001",
    ]


def test_conditions_that_cannot_hold_are_not_searched() -> None:
    nested = [*CONDITIONS, Condition(when={"loss.gamma": 1}, params={"b": "choice(1,2)"})]
    given = {"params": PARAMS, "conditions": nested}
    space = Space(**given, arguments=["loss=cross_entropy"])
    assert space.described().keys() == {"optimizer.lr"}
    with pytest.raises(ConfigError, match="no range is left to search"):
        Space(**given, arguments=["loss=cross_entropy", "optimizer.lr=0.1"])


def test_examples_ask_for_conditions_within_conditions() -> None:
    nested = [
        Condition(when={"a": "y"}, params={"b": "choice(1,2,3)"}),
        Condition(when={"b": [2, 3]}, params={"c": "interval(0,1)"}),
    ]
    space = Space(params={"a": "choice(x,y)"}, conditions=nested, arguments=[])
    assert space.examples() == [["a=x"], ["a=y", "b=1"], ["a=y", "b=2", "c=0.0"]]


def test_examples_ask_for_what_depends_on_a_whole_number() -> None:
    deep = [Condition(when={"layers": [3, 2]}, params={"width": "choice(8,16)"})]
    space = Space(params={"layers": "int(interval(1,4))"}, conditions=deep, arguments=[])
    assert space.examples() == [["layers=1"], ["layers=2", "width=8"]]


def test_a_condition_on_a_choice_that_was_narrowed_away_is_not_searched() -> None:
    narrowed = a_space("loss=choice(cross_entropy,ldam)")
    assert narrowed.described().keys() == {"optimizer.lr", "loss"}
    nested = [*CONDITIONS, Condition(when={"loss.gamma": 2}, params={"b": "choice(1,2)"})]
    typed = ["loss=choice(cross_entropy,ldam)", "loss.gamma=choice(1,2)"]
    space = Space(params=PARAMS, conditions=nested, arguments=typed)
    assert space.described().keys() == {"optimizer.lr", "loss", "loss.gamma", "b"}


@pytest.mark.parametrize(
    ("params", "conditions", "said"),
    [
        ({"a": 3}, [], "no range is left to search"),
        ({"a": "interval(1,2"}, [], "hydra.sweeper: a=interval(1,2: "),
        ({"a": "glob(*)"}, [], "a=glob(*)"),
        ({"a": "choice(1,2)"}, [({"b": 1}, {"c": "interval(0,1)"})], "b decides what is searched"),
        ({"a": "choice(1,2)"}, [({"a": 1}, {"c": 4})], "c=4 is no range"),
        (
            {"a": "choice(1,2)"},
            [({"a": 1}, {"c": "interval(0,1)"}), ({"a": 2}, {"c": "interval(0,2)"})],
            "c has two ranges",
        ),
        (
            {"loss": "choice(cross_entropy,focal)"},
            [({"loss": ["focal", "focall"]}, {"loss.gamma": "interval(0,1)"})],
            "loss is never focall, since it is searched in CategoricalDistribution(choices="
            "('cross_entropy', 'focal')). Did you mean 'focal'?",
        ),
        ({"a": "interval(1,4)"}, [({"a": 5}, {"c": "choice(1,2)"})], "a is never 5, since it is"),
        ({"a": "interval(1.0,4)"}, [({"a": 2}, {"c": "choice(1,2)"})], "a is never 2, since it"),
    ],
)
def test_what_is_no_space_is_refused(params, conditions, said) -> None:
    conditions = [Condition(when=when, params=asked) for when, asked in conditions]
    with pytest.raises(ConfigError) as refused:
        Space(params=params, conditions=conditions, arguments=[])
    assert said in str(refused.value)


# A study


def test_the_same_seed_proposes_the_same_and_finds_the_best(tmp_path: Path) -> None:
    one = run_to_the_end(a_study(tmp_path / "one", n_trials=20), tmp_path / "sweep1")
    same = run_to_the_end(a_study(tmp_path / "two", n_trials=20), tmp_path / "sweep2")
    assert [p.overrides for p in one] == [p.overrides for p in same]
    other = run_to_the_end(a_study(tmp_path / "three", seed=8, n_trials=3), tmp_path / "sweep3")
    assert not {tuple(p.overrides) for p in other} & {tuple(p.overrides) for p in one}
    assert len({tuple(p.overrides) for p in one}) == 20
    # Of 20 trials the 12 last know the first ones' results, and look closer to the best.
    assert sorted(map(loss_of, one))[0] < 0.1
    for proposal in one:
        values = values_of(proposal)
        assert ("loss.gamma" in values) is (values["loss"] == "focal")


def test_a_study_that_goes_on_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = run_to_the_end(a_study(tmp_path / "whole"), tmp_path / "sweep1")
    run_to_the_end(a_study(tmp_path / "torn"), tmp_path / "sweep2", most=3)
    rest = run_to_the_end(a_study(tmp_path / "torn"), tmp_path / "sweep3")
    assert [p.number for p in rest] == [3, 4, 5, 6, 7]
    assert [p.job for p in rest] == [0, 1, 2, 3, 4]  # of another sweep
    assert [p.overrides for p in rest] == [p.overrides for p in whole[3:]]
    assert run_to_the_end(a_study(tmp_path / "torn"), tmp_path / "sweep4") == []
    more = run_to_the_end(a_study(tmp_path / "torn", n_trials=9), tmp_path / "sweep4")
    assert [p.number for p in more] == [8]


def _work(folder: Path, sweep: Path) -> None:
    sweep.mkdir()
    with run_lock(sweep):
        study = a_study(folder, n_trials=24)
        while batch := study.propose(a_space(), sweep):
            for proposal in batch:
                SearchTrial(study=study, number=proposal.number).verdict(
                    {"epoch": 1, "val/loss": loss_of(proposal)}
                )
                study.end(proposal.number, "done", value=loss_of(proposal), reason=None)


@pytest.mark.slow
def test_workers_share_a_study_without_a_trial_twice_or_lost(tmp_path: Path) -> None:
    """Also while its database is made: Optuna 2.10's own way has them crash in it."""
    fork = multiprocessing.get_context("fork")
    sweeps = [tmp_path / f"sweep{worker}" for worker in range(3)]
    workers = [fork.Process(target=_work, args=(tmp_path / "study", sweep)) for sweep in sweeps]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    trials = a_study(tmp_path / "study").trials
    assert [trial.number for trial in trials] == list(range(24))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({tuple(trial.params.items()) for trial in trials}) == 24
    folders = [Path(trial.user_attrs["folder"]) for trial in trials]
    assert len(set(folders)) == 24
    assert [trial_number(folder) for folder in folders] == list(range(24))
    for sweep in sweeps:
        own = sorted(int(folder.name) for folder in folders if folder.parent == sweep)
        assert own == list(range(len(own)))
    assert sum(trial.value == trial.intermediate_values[0] for trial in trials) == 24


def test_a_trial_whose_worker_is_gone_goes_on_and_others_are_left_alone(tmp_path: Path) -> None:
    study, sweep = a_study(tmp_path / "study", n_trials=2), tmp_path / "sweep1"
    sweep.mkdir()
    with run_lock(sweep):
        (begun,) = study.propose(a_space(), sweep)
        (other,) = a_study(tmp_path / "study", n_trials=2).propose(a_space(), tmp_path / "sweep2")
        assert (begun.number, other.number) == (0, 1)
    study.end(1, "done", value=1.0, reason=None)
    # Its own sweep goes on with it in its folder; another begins it again in one of its own.
    assert study.propose(a_space(), sweep) == [begun]
    (again,) = study.propose(a_space(), tmp_path / "sweep3")
    assert (again.number, again.job, again.overrides) == (0, 0, begun.overrides)
    assert Path(study.trials[0].user_attrs["folder"]) == tmp_path / "sweep3" / "0"


def test_a_batch_gets_folders_of_its_own(tmp_path: Path) -> None:
    study = a_study(tmp_path / "study", n_jobs=3)
    batches = []
    while batch := study.propose(a_space(), tmp_path / "sweep"):
        batches.append([(proposal.number, proposal.job) for proposal in batch])
        for proposal in batch:
            study.end(proposal.number, "done", value=loss_of(proposal), reason=None)
    assert batches == [[(0, 0), (1, 1), (2, 2)], [(3, 3), (4, 4), (5, 5)], [(6, 6), (7, 7)]]


def test_the_monitor_decides_what_is_best(tmp_path: Path) -> None:
    for monitor, best in (("val/loss", 0), ("val/macro_f1", 1), ("val/ece", 0)):
        study = a_study(tmp_path / monitor, monitor)
        for value in (0.25, 0.75):
            (proposal,) = study.propose(a_space(), tmp_path / "sweep")
            study.end(proposal.number, "done", value=value, reason=None)
        assert study.optuna.best_trial.number == best
    with pytest.raises(ConfigError, match=r"training\.monitor: val/ece -> val/loss"):
        a_study(tmp_path / "val/ece")


def test_other_data_or_ranges_are_another_study(tmp_path: Path) -> None:
    study = a_study(tmp_path)
    recipe = {"data.image_size": "64", "training.epochs": "5"}
    study.hold_to(recipe, a_space())
    study.hold_to(recipe, a_space())
    with pytest.raises(ConfigError) as refused:
        study.hold_to({**recipe, "training.epochs": "9"}, a_space("loss=focal"))
    lines = str(refused.value).splitlines()
    assert lines[
        1
    ] == "  - range of loss: CategoricalDistribution(choices=('cross_entropy', 'focal'))" + (
        " -> (absent)"
    )
    assert lines[-2] == "  - training.epochs: 5 -> 9"
    assert lines[-1].endswith("begin another study: hydra.sweeper.study=NAME.")


# Pruning


def curve(trial: SearchTrial, values: Sequence[float]) -> list[Any]:
    return [trial.verdict({"epoch": e, "val/loss": v}) for e, v in enumerate(values, start=1)]


def four_done(study: Study, sweep: Path, sign: float = 1.0) -> None:
    for level in (1.0, 2.0, 3.0, 4.0):
        (proposal,) = study.propose(a_space(), sweep)
        trial = SearchTrial(study=study, number=proposal.number)
        for epoch in range(1, 5):
            value = sign * level / epoch
            assert trial.verdict({"epoch": epoch, study.monitor: value}) is None
        study.end(proposal.number, "done", value=sign * level / 4, reason=None)


def test_a_trial_worse_than_the_median_is_stopped_after_the_warm_up(tmp_path: Path) -> None:
    study = a_study(tmp_path / "study")
    four_done(study, tmp_path / "sweep")
    (proposal,) = study.propose(a_space(), tmp_path / "sweep")
    trial = SearchTrial(study=study, number=proposal.number)
    assert trial.tags == {"study": "toy", "trial": "4"}
    # Others were at 1, 2, 3 and 4 over the number of the epoch: a median of 2.5 / 3 in the third.
    assert curve(trial, [9.0, 0.9]) == [None, None]
    stop = trial.verdict({"epoch": 3, "val/loss": 0.95})
    assert stop is not None
    assert str(stop) == "pruned after epoch 3: val/loss was 0.9 at best"
    assert stop.value == 0.9
    study.end(4, "pruned", value=stop.value, reason=str(stop))
    assert study.trials[4].state is TrialState.PRUNED
    assert study.trials[4].user_attrs["reason"] == str(stop)
    (better,) = study.propose(a_space(), tmp_path / "sweep")
    assert curve(SearchTrial(study=study, number=better.number), [9.0, 9.0, 0.8]) == [None] * 3


def test_where_larger_is_better_the_smaller_are_stopped(tmp_path: Path) -> None:
    study = a_study(tmp_path / "study", "val/accuracy")
    four_done(study, tmp_path / "sweep", sign=-1.0)
    (proposal,) = study.propose(a_space(), tmp_path / "sweep")
    trial = SearchTrial(study=study, number=proposal.number)
    said = [trial.verdict({"epoch": e, "val/accuracy": -9.0}) for e in (1, 2, 3)]
    assert [stop and stop.value for stop in said] == [None, None, -9.0]


def test_a_resumed_run_may_come_by_an_epoch_twice_and_nothing_is_pruned_unasked(
    tmp_path: Path,
) -> None:
    study = a_study(tmp_path / "study", pruner=None)
    four_done(study, tmp_path / "sweep")
    (proposal,) = study.propose(a_space(), tmp_path / "sweep")
    for _ in range(2):
        assert curve(SearchTrial(study=study, number=4), [9.0, 9.0, 9.0]) == [None] * 3
    assert proposal.number == 4
    assert study.trials[4].intermediate_values == {0: 9.0, 1: 9.0, 2: 9.0}


# A worker


@pytest.fixture
def composing() -> Any:
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        yield lambda words: compose("train", ["data=synthetic", *words])


def a_worker(folder: Path, composing: Callable[..., DictConfig], **change: Any) -> Worker:
    return Worker(
        options=options(folder / "study", conditions=CONDITIONS, **change),
        arguments=["experiment=demo"],
        compose=composing,
        sweep=folder / "sweep",
    )


def ended(worker: Worker, proposal: Proposal, **job: Any) -> list[bool]:
    folder = worker.sweep / str(proposal.job)
    write_job(folder, Job(number=proposal.job, name="", overrides=proposal.overrides, **job))
    return worker.end([proposal])


def test_a_worker_writes_down_what_became_of_each_job(tmp_path: Path, composing: Any) -> None:
    worker = a_worker(tmp_path, composing)
    worker.begin()
    first = worker.propose()
    assert ended(worker, first[0], status="done", value=0.5) == [False]
    second = worker.propose()
    assert ended(worker, second[0], status="failed", reason="not finite") == [True]
    third = worker.propose()
    assert ended(worker, third[0], status="pruned", value=0.7, reason="pruned after") == [False]
    fourth = worker.propose()
    assert ended(worker, fourth[0], status="twin", same_as=1) == [True]
    fifth = worker.propose()
    assert worker.end(fifth) == [True]  # no job.json
    sixth = worker.propose()
    assert ended(worker, sixth[0], status="stopped", reason="SIGINT") == []
    assert worker.propose() == sixth  # it goes on
    trials = worker.study.trials
    names = [trial.state.name for trial in trials]
    assert names == ["COMPLETE", "FAIL", "PRUNED", "FAIL", "FAIL", "RUNNING"]
    nothing = "the launcher has left nothing of it"
    reasons = [trial.user_attrs.get("reason") for trial in trials]
    assert reasons == [None, "not finite", "pruned after", "not finite", nothing, None]
    assert trials[0].value == 0.5


def test_a_name_or_value_that_no_run_can_have_is_refused_before_a_trial(
    tmp_path: Path, composing: Any
) -> None:
    params = {**PARAMS, "training.epochs": "choice(0,1)"}
    worker = a_worker(tmp_path, composing, params=params)
    with pytest.raises(ConfigError, match=r"training\.epochs=0"):
        worker.begin()
    assert worker.study.trials == []
    misspelt = a_worker(tmp_path / "other", composing, params={**PARAMS, "loss.gama": "1,2"})
    with pytest.raises(HydraException, match=r"Could not override 'loss\.gama'"):
        misspelt.begin()


def test_results_say_the_best_and_what_mattered(tmp_path: Path, composing: Any) -> None:
    worker = a_worker(tmp_path, composing, n_trials=12)
    for _ in range(11):
        (proposal,) = worker.propose()
        lr = float(values_of(proposal)["optimizer.lr"])
        ended(worker, proposal, status="done", value=lr)
    (failed,) = worker.propose()
    ended(worker, failed, status="failed", reason="no memory")
    made = write_results(worker.study)
    assert [path.name for path in made] == [
        "trials.csv", "history.png", "optimization_results.yaml", "importances.png"
    ]  # fmt: skip
    rows = list(csv.DictReader(made[0].read_text().splitlines()))
    best = min(rows[:11], key=lambda row: float(row["value"]))
    assert float(best["value"]) == float(best["optimizer.lr"])
    assert (rows[11]["state"], rows[11]["reason"], rows[11]["value"]) == ("failed", "no memory", "")
    found = OmegaConf.load(made[2])
    assert (found.best_trial, found.best_value) == (int(best["trial"]), float(best["value"]))
    assert found.best_params["optimizer.lr"] == float(best["optimizer.lr"])
    shares = importances(worker.study)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["optimizer.lr"] > 0.9  # the value is the learning rate and nothing else
    text = results_text(worker.study).splitlines()
    assert text[0] == "study toy: 12 of 12 trials: 11 done, 1 failed; val/loss, smaller is better"
    assert text[1].split()[1] == best["trial"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (made[1], made[3]))


def test_nothing_is_said_to_have_mattered_where_few_are_done(tmp_path: Path) -> None:
    study = a_study(tmp_path / "study")
    run_to_the_end(study, tmp_path / "sweep", most=3)
    assert importances(study) == {}
    assert [path.name for path in write_results(study)][-1] == "optimization_results.yaml"


# Options


def composed_sweeper(*words: str) -> Any:
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        return compose("train", ["sweep=optuna_quick", *words], return_hydra_config=True)


def test_the_options_of_the_quick_search(tmp_path: Path) -> None:
    found = search_options(composed_sweeper(f"paths.outputs={tmp_path}").hydra.sweeper)
    assert found.place == tmp_path / "studies" / "optuna_quick"
    assert found.storage == f"sqlite:///{found.place}/study.db"
    assert (found.n_trials, found.n_jobs) == (12, 1)
    space = Space(params=found.params, conditions=found.conditions, arguments=[])
    assert "loss.gamma" in space.described()
    assert json.loads(json.dumps(space.fixed)) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0 (int): Input should be greater"),
        (["+hydra.sweeper.trials=9"], "hydra.sweeper.trials: there is no such key"),
        (["hydra/sweeper/sampler=grid"], "a grid needs no study"),
        (["hydra.sweeper.pruner.n_startup_trial=4"], "n_startup_trial"),
        (["+hydra.sweeper.sampler.seeds=4"], "seeds"),
    ],
)
def test_options_that_cannot_work_are_refused(words: list[str], said: str) -> None:
    with pytest.raises((ConfigError, HydraException)) as refused:
        search_options(composed_sweeper(*words).hydra.sweeper)
    assert said in str(refused.value)
