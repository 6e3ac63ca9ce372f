"""Models answer over HTTP what they say in Python."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import requests

from dermalyze import SkinLesionPredictor, load_ensemble_predictor
from dermalyze.serving.server import address_of
from dermalyze.taxonomy import DISCLAIMER, HAM10000_CODES

pytestmark = pytest.mark.slow

Serving = Callable[..., AbstractContextManager[tuple[str, "subprocess.Popen[str]"]]]


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    """Start the server; yield its address and its process, which is ended afterwards."""

    @contextmanager
    def start(*words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
        command = [sys.executable, "-m", "dermalyze.serve", "port=0", "device=cpu", *words]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        said = ""
        try:
            for line in process.stdout:  # until it is ready, or has ended
                said += line
                if found := re.search(r"(http://127\.0\.0\.1:\d+)/predict", line):
                    yield found[1], process
                    break
            else:
                pytest.fail(said)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    return start


def posted(address: str, content: bytes, **known: str) -> requests.Response:
    return requests.post(f"{address}/predict", data=content, params=known, timeout=60)


def test_a_model_answers_what_it_says_in_python(trained, phantoms, serving) -> None:
    path = sorted(phantoms.rglob("*.jpg"))[0]
    expected = SkinLesionPredictor(trained, device="cpu").predict_with_tta(path, "light")
    with serving(f"checkpoint={trained}", "tta=light") as (address, process):
        answer = posted(address, path.read_bytes())
        assert answer.status_code == 200
        said = answer.json()
        assert said["probabilities"] == pytest.approx(dict(expected.probabilities), abs=1e-6)
        assert said["predicted_class"] == expected.predicted_class
        assert said["model"]["tta"] == "light"
        assert said["disclaimer"] == DISCLAIMER
        assert said["image"] == "the image that was sent"

        about = requests.get(address, timeout=10).json()
        assert list(about["classes"]) == list(HAM10000_CODES)
        assert about["classes"]["mel"] == "melanoma"
        assert (about["tta"]["name"], about["ensemble"]) == ("light", None)
        assert str(trained) not in answer.text + requests.get(address, timeout=10).text
        health = requests.get(f"{address}/health", timeout=10)
        assert health.json() == {"status": "ok", "disclaimer": DISCLAIMER}

        # What cannot be used is refused with its reason, and the server lives on.
        for content, known, code, why in (
            (b"no image", {}, 422, "neither JPEG, PNG, BMP nor WebP"),
            (path.read_bytes()[:300], {}, 422, "Download it again"),
            (path.read_bytes(), {"dx_type": "histo"}, 422, "metadata 'dx_type'"),
            (b"", {}, 400, "curl --data-binary @lesion.jpg"),
        ):
            refused = posted(address, content, **known)
            assert refused.status_code == code, refused.text
            assert why in refused.json()["error"]
            assert refused.json()["disclaimer"] == DISCLAIMER
        form = requests.post(f"{address}/predict", files={"image": b"a"}, timeout=10)
        assert form.status_code == 415
        assert "--data-binary @lesion.jpg" in form.json()["error"]
        assert requests.get(f"{address}/etc", timeout=10).status_code == 404
        assert requests.get(f"{address}/predict", timeout=10).status_code == 405

        # Many at once get the same answer, each its own.
        with ThreadPoolExecutor(8) as pool:
            many = [*pool.map(lambda _: posted(address, path.read_bytes()).json(), range(16))]
        assert all(one == said for one in many)

        # One that never sends what it announced keeps nobody from ending the server.
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as stalled:
            stalled.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0


@pytest.mark.thorough
def test_a_list_of_models_answers_together(trained, phantoms, serving, tmp_path) -> None:
    listed = tmp_path / "ensemble.yaml"
    listed.write_text(f"checkpoints: [{trained}, {trained}]\n")
    path = sorted(phantoms.rglob("*.jpg"))[1]
    expected = load_ensemble_predictor(listed, device="cpu").predict(path, "mean")
    with serving(f"checkpoint={listed}", "ensemble=mean", "most_megabytes=0.5") as (
        address,
        process,
    ):
        said = posted(address, path.read_bytes()).json()
        assert said["probabilities"] == pytest.approx(dict(expected.probabilities), abs=1e-6)
        assert said["model"]["ensemble"] == "mean"
        about = requests.get(address, timeout=10).json()
        assert (len(about["models"]), about["weights"]) == (2, [0.5, 0.5])

        large = posted(address, b"0" * (2**19 + 1))
        assert large.status_code == 413
        assert "larger most_megabytes" in large.json()["error"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM


def test_a_place_that_is_taken_is_refused_before_models_are_loaded(python, tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = python(
            "-m", "dermalyze.serve", f"port={port}", f"checkpoint={tmp_path}/none", expect=2
        )
    assert f"host=127.0.0.1 port={port}: cannot be listened at" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_an_address_of_ipv6_stands_in_brackets():
    assert address_of("::1", 80) == "http://[::1]:80"
    assert address_of("127.0.0.1", 80) == "http://127.0.0.1:80"
