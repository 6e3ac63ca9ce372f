"""What makes two runs the same run, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dermalyze.checkpoint_file import BEST, LATEST, read_checkpoint

TIMING = "images_per_second"


def without_timing(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != TIMING} for record in history]


def assert_same_run(one: Path, other: Path) -> None:
    for name in (BEST, LATEST):
        tensors, header = read_checkpoint(one / name)
        expected, expected_header = read_checkpoint(other / name)
        assert tensors.keys() == expected.keys()
        assert len(tensors) > 50
        for key, tensor in tensors.items():
            assert torch.equal(tensor, expected[key]), f"{name}: {key}"
        if "state" in header:
            for head in (header, expected_header):
                head["state"]["history"] = without_timing(head["state"]["history"])
                (head["state"]["best_record"],) = without_timing([head["state"]["best_record"]])
        assert header == expected_header
    histories = [json.loads((run / "training_history.json").read_text()) for run in (one, other)]
    assert without_timing(histories[0]) == without_timing(histories[1])
