"""Models in MLflow: named by an address, loaded as a pyfunc, and answered by its server."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dermalyze.taxonomy import DISCLAIMER, HAM10000_CODES
from dermalyze.tracking.run_identity import read_identity

pytestmark = [
    pytest.mark.slow,
    # MLflow warns of types of its own when its pyfunc is imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

COLUMNS = [f"probability_{code}" for code in HAM10000_CODES]
UNCERTAINTY = ["predictive_entropy", "margin"]


def identity_of(run: Path) -> tuple[str, str]:
    identity = read_identity(run)
    assert identity is not None
    return identity.uri, identity.run_id


@pytest.fixture(scope="session")
def evaluated(trained: Path, python_in, tmp_path_factory) -> pd.DataFrame:
    """What `evaluate` says of the test images of the run, which is named by its address."""
    folder = tmp_path_factory.mktemp("evaluated")
    uri, run_id = identity_of(trained)
    run = ("-m", "dermalyze.evaluate", f"checkpoint=runs:/{run_id}", f"tracking_uri={uri}")
    done = python_in(folder)(*run, "device=cpu", "output=test", "track=false")
    assert f"its run's folder is here, {trained}" in done.stdout
    return pd.read_csv(folder / "test" / "predictions.csv")


@pytest.fixture
def files(evaluated: pd.DataFrame, phantoms: Path) -> list[bytes]:
    """The bytes of the test images, in the order of `evaluated`."""
    paths = {path.stem: path for path in phantoms.rglob("*.jpg")}
    return [paths[name].read_bytes() for name in evaluated["image_id"]]


def model_folder(run: Path) -> Path:
    """Where the local store keeps the model of a run."""
    uri, run_id = identity_of(run)
    client = MlflowClient(tracking_uri=uri)
    (output,) = client.get_run(run_id).outputs.model_outputs
    place = client.get_logged_model(output.model_id).artifact_location
    return Path(place.removeprefix("file://"))


def agrees(answer: pd.DataFrame, evaluated: pd.DataFrame) -> None:
    assert answer["predicted_class"].tolist() == evaluated["predicted"].tolist()
    for column in [*COLUMNS, *UNCERTAINTY]:
        np.testing.assert_allclose(answer[column], evaluated[column], rtol=0, atol=1e-6)
    assert answer["confidence"].tolist() == answer[COLUMNS].max(axis=1).tolist()
    assert set(answer["disclaimer"]) == {DISCLAIMER}


def test_the_pyfunc_agrees_with_evaluate(trained, evaluated, files):
    from mlflow.pyfunc import load_model

    model = load_model(str(model_folder(trained)))
    answer = model.predict(pd.DataFrame({"image": files}))
    assert answer.columns.tolist() == [column.name for column in model.metadata.signature.outputs]
    agrees(answer, evaluated)
    encoded = [base64.b64encode(file).decode() for file in files]
    assert model.predict(pd.DataFrame({"image": encoded})).equals(answer)
    example = model.predict(model.input_example)
    assert example[COLUMNS].to_numpy().sum() == pytest.approx(1, abs=1e-12)

    for wrong, why in (
        (b"text", "them: image 1: neither JPEG"),
        ("%", "image 1: neither bytes nor"),
    ):
        with pytest.raises(MlflowException, match=why):
            model.predict(pd.DataFrame({"image": [files[0], wrong]}))


def test_a_run_is_evaluated_on_another_machine(trained, evaluated, python, phantoms, tmp_path):
    """From a copy of the store, whose run has a folder that is not here."""
    uri, run_id = identity_of(trained)
    shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "other.db")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    client = MlflowClient(tracking_uri=other)
    client.set_tag(run_id, "dermalyze.folder", "/gone/one")
    run = ("-m", "dermalyze.evaluate", f"checkpoint=runs:/{run_id}", "device=cpu")
    refused = python(*run, expect=2, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/none.db")
    assert "none.db: there is no such file" in refused.stdout
    done = python(*run, f"data.root={phantoms}", MLFLOW_TRACKING_URI=other)
    assert "since the run's folder /gone/one on" in done.stdout
    (home,) = (tmp_path / "outputs" / "from_mlflow").iterdir()
    result = home / "evaluation" / "test"
    pd.testing.assert_frame_equal(pd.read_csv(result / "predictions.csv"), evaluated)
    # Its results went to the run in MLflow that the model is of.
    report = json.loads((result / "evaluation_metrics.json").read_text())
    logged = client.get_run(run_id).data.metrics
    assert logged["test/accuracy"] == pytest.approx(report["metrics"]["accuracy"])


@contextmanager
def server(folder: Path, uri: str, *command: str) -> Iterator[str]:
    """Run an `mlflow` server on a free port of this machine; yield its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "server.log").open("w+")
    process = subprocess.Popen(
        [Path(sys.executable).with_name("mlflow"), *command, "--port", str(port)],
        cwd=folder,
        env=os.environ
        | {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"}
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            try:
                if requests.get(f"{address}/health", timeout=5).status_code == 200:
                    break
            except requests.ConnectionError:
                assert process.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        log.close()


@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_a_registered_model_is_served(trained, evaluated, files, python, tiny, tmp_path):
    """By `mlflow models serve`, to whoever sends an image in base64 as JSON."""
    same = ("tracking.register_as=lesions", "hydra.run.dir=outputs/train/two")
    python("-m", "dermalyze.train", *tiny, *same)
    uri, _ = identity_of(tmp_path / "outputs/train/two")
    MlflowClient(tracking_uri=uri).set_registered_model_alias("lesions", "champion", "1")
    address = "models:/lesions@champion"
    python("-m", "dermalyze.evaluate", f"checkpoint={address}", "track=false", "output=test")
    expected = pd.read_csv(tmp_path / "test" / "predictions.csv")

    serve = ("models", "serve", "--model-uri", address, "--env-manager", "local")
    with server(tmp_path, uri, *serve) as where:

        def asked(records: list[dict[str, Any]]) -> requests.Response:
            body = {"dataframe_records": records}
            return requests.post(f"{where}/invocations", json=body, timeout=60)

        sent = [{"image": base64.b64encode(file).decode()} for file in files]
        agrees(pd.DataFrame(asked(sent).json()["predictions"]), expected)
        refused = asked([*sent[:1], {"image": base64.b64encode(b"text").decode()}])
        assert refused.status_code == 400
        assert re.search("1 of 2 images.*image 1: .*neither JPEG", refused.json()["message"])
        assert asked([{"picture": ""}]).status_code == 400


@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_eight_runs_at_once_against_a_server(tiny, python, phantoms, tmp_path):
    """None fails, no metric is lost, each is a version of one model; then one is fetched back."""
    store = f"sqlite:///{tmp_path / 'server.db'}"
    options = ("--host", "127.0.0.1", "--workers", "1", "--artifacts-destination", "kept")
    with server(tmp_path, store, "server", "--backend-store-uri", store, *options) as where:
        train = [sys.executable, "-m", "dermalyze.train", *tiny, "tracking.register_as=lesions"]
        # Drawn and decoded once, by a run of its own.
        python("-m", "dermalyze.train", *tiny, "tracking=none", "hydra.run.dir=first")
        processes = [
            subprocess.Popen(
                [
                    *train,
                    f"hydra.run.dir=run{seed}",
                    f"training.seed={seed}",
                    f"tracking.uri={where}",
                ],
                cwd=tmp_path,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for seed in range(8)
        ]
        said = [process.communicate()[0] for process in processes]
        client = MlflowClient(tracking_uri=where)
        models = set()
        for seed, (process, text) in enumerate(zip(processes, said, strict=True)):
            assert process.returncode == 0, text
            assert "tracking:" not in text, text
            folder = tmp_path / f"run{seed}"
            _, run_id = identity_of(folder)
            run = client.get_run(run_id)
            assert run.info.status == "FINISHED"
            models.add(run.data.tags["dermalyze.checkpoint"])
            for record in json.loads((folder / "training_history.json").read_text()):
                for name, value in record.items():
                    points = client.get_metric_history(run_id, name)
                    found = [point.value for point in points if point.step == record["epoch"]]
                    assert found == ([] if value is None else [value]), name
        versions = client.search_model_versions("name='lesions'")
        assert sorted(int(version.version) for version in versions) == list(range(1, 9))
        places = {re.search("m-[0-9a-f]{32}", version.source)[0] for version in versions}
        assert places == models

        evaluate = ("-m", "dermalyze.evaluate", f"tracking_uri={where}", "device=cpu")
        python(*evaluate, "checkpoint=run3", "output=before", "track=false")
        (tmp_path / "run3").rename(tmp_path / "moved")
        address = f"checkpoint=runs:/{identity_of(tmp_path / 'moved')[1]}"
        done = python(*evaluate, address, f"data.root={phantoms}", "output=after")
        assert "is not here" in done.stdout
        before, after = (
            pd.read_csv(tmp_path / name / "predictions.csv") for name in ("before", "after")
        )
        pd.testing.assert_frame_equal(before, after)
