"""A sweep on a real Slurm of one node, whose jobs are taken away in the middle and queued again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from same_run import assert_same_run

from dermalyze.sweep_folder import jobs_of

ONE_NODE = str(Path(__file__).parents[1] / "slurm" / "one_node.sh")
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
# Long enough to be taken away in the middle, saving often enough to be within an epoch then.
LONG = ("training.epochs=25", "training.patience=null", "training.checkpoint_every_steps=2")

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1500)]


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands speak to a node of the test's own."""
    if reason := os.environ.get("DERMALYZE_NO_SLURM"):
        pytest.skip(reason)
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install munge slurm-wlm")
    if os.geteuid() != 0:
        pytest.skip("slurmctld and slurmd of the test's own need root")
    pytest.importorskip("submitit", reason="pip install 'dermalyze[slurm]'")
    folder = tmp_path_factory.mktemp("slurm")
    done = subprocess.run([ONE_NODE, "start", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    yield os.environ | {"SLURM_CONF": f"{folder}/slurm.conf", "OMP_NUM_THREADS": "1"}
    subprocess.run([ONE_NODE, "stop", str(folder)], check=True)


def wait_for(what: Callable[[], object], seconds: float = 400) -> object:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "this took too long"
        time.sleep(0.5)
    return found


@pytest.fixture
def ask(slurm: dict[str, str]) -> Callable[..., str]:
    """Run one of Slurm's commands, and return what it prints."""

    def run(*command: str) -> str:
        done = subprocess.run(command, env=slurm, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_jobs_taken_away_and_queued_again_equal_the_undisturbed(slurm, ask, python, tiny, tmp_path):
    words = (*tiny, *LONG, "tracking=none", "sweep.evaluate=false")
    sweep, log = tmp_path / "sweep", tmp_path / "log"
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1")
    command = ("dermalyze.train", "-m", *words, *launcher, "training.seed=7,13")
    with (
        log.open("w") as said,
        subprocess.Popen(
            [sys.executable, "-m", *command, f"hydra.sweep.dir={sweep}"],
            cwd=tmp_path,
            env=slurm,
            stdout=said,
            stderr=subprocess.STDOUT,
        ) as started,
    ):
        try:
            # One is taken away by Slurm, as by a preemption: SIGTERM, and in line again. One is
            # warned, as before its time is up: submitit has it queued again.
            wait_for((sweep / "0" / "training_history.json").exists)
            (array,) = set(ask("squeue", "--noheader", "--format=%F").split())
            ask("scontrol", "requeue", f"{array}_0")
            wait_for((sweep / "1" / "training_history.json").exists)
            ask("scancel", "--signal=USR2", f"{array}_1")

            def restarts() -> list[str]:
                return re.findall(r"Restarts=(\d+)", ask("scontrol", "show", "job", array))

            wait_for(lambda: restarts() == ["1", "1"])
            # Slurm lets a job that was queued again wait for two minutes.
            assert started.wait(timeout=900) == 0, log.read_text()
        finally:
            started.kill()
    assert restarts() == ["1", "1"]
    assert [job.status for job in jobs_of(sweep)] == ["done", "done"]
    for number, seed, name in ((0, 7, "SIGTERM"), (1, 13, "SIGUSR2")):
        of_job = (sweep / str(number) / "train.log").read_text()
        assert f"stopped by {name}; the state is saved" in of_job
        python("-m", "dermalyze.train", *words, f"training.seed={seed}", f"hydra.run.dir={seed}")
        assert_same_run(sweep / str(number), tmp_path / str(seed))
