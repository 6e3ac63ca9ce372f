"""Wires `python -m dermalyze.serve`: models in, a server that answers until it is stopped."""

from __future__ import annotations

import io
import logging
import socket
from collections.abc import Mapping
from typing import Any

import uvicorn

from dermalyze.errors import ConfigError
from dermalyze.inference.identity import way_of
from dermalyze.prediction.panel import Panel, panel_and_way
from dermalyze.prediction.pictures import Given
from dermalyze.prediction.results import Prediction
from dermalyze.prediction.ways import Way
from dermalyze.serving.app import application
from dermalyze.taxonomy import DISCLAIMER, description

logger = logging.getLogger(__name__)

Node = dict[str, Any]

_SECONDS_TO_END = 10  # for requests under way, once the server is to end

SENT = "the image that was sent"


def serve(config: Node) -> None:
    """Answer as `conf/serve.yaml` describes, until SIGINT or SIGTERM.

    Requests under way have ten seconds to come to their end.

    Args:
        config: checked, plain.

    Raises:
        CheckpointError, DataError, ConfigError: what the user can mend, a port in use among it.
    """
    with _listening(config["host"], config["port"]) as listening:
        panel, way = panel_and_way(config)

        def judge(file: io.BytesIO, known: Mapping[str, str]) -> Node:
            given = Given(SENT, file, known)
            ((result,),) = panel.results([[given]], way, panel.batch_size)
            said = result.as_dict()
            if isinstance(result, Prediction):  # where files lie here is nobody's business
                del said["model"]["checkpoints"]
            return said

        app = application(
            judge,
            about=_about(panel, way),
            most_bytes=int(config["most_megabytes"] * 2**20),
            most_waiting=config["most_waiting"],
            most_seconds=config["most_seconds"],
        )
        host, port = listening.getsockname()[:2]
        address = address_of(host, port)
        logger.info(
            "%s at %s; Ctrl-C ends it. Ask: curl --data-binary @lesion.jpg %s/predict\n%s",
            "1 model answers" if len(panel.models) == 1 else f"{len(panel.models)} models answer",
            address,
            address,
            DISCLAIMER,
        )
        settings = uvicorn.Config(
            app, log_level="warning", lifespan="off", timeout_graceful_shutdown=_SECONDS_TO_END
        )
        uvicorn.Server(settings).run(sockets=[listening])


def address_of(host: str, port: int) -> str:
    """Return the address to ask at; one of IPv6 stands in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens already, so that what is wrong with it shows before models load.

    Raises:
        ConfigError: the place is in use, not of this machine, or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"host={host} port={port}: cannot be listened at ({error}). Name another port, or 0 "
            "for a free one; host is an address of this machine."
        ) from error


def _about(panel: Panel, way: Way) -> Node:
    """Return what the server tells of itself: no path of this machine."""
    return {
        "classes": {code: description(code) for code in panel.classes},
        "models": [
            {
                "epoch": model.header["epoch"],
                "seed": model.header["seed"],
                "split_fingerprint": model.header["split_fingerprint"],
                "image_size": model.preprocess.image_size,
            }
            for model in panel.models
        ],
        **way_of(way.views, way.method, way.weights_M),
        "metadata": panel.columns,
        "calibrated": way.fit is not None,
    }
