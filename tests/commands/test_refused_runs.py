"""A run that is refused before it has its images leaves nothing."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.slow


def test_a_refused_run_names_its_folder_first_and_leaves_none(python, tmp_path):
    failed = python("-m", "dermalyze.train", "data.root=nowhere", expect=2)
    (gone,) = re.findall(
        r"the run has made nothing in (\S+), so it is removed again\n", failed.stdout
    )
    first = failed.stdout.splitlines()[0].partition("] ")[2]
    assert first == f"this run's folder is {gone}; loading torch and timm takes some seconds"
    assert re.fullmatch(r"outputs/train/[\d-]{10}_[\d-]{15}", gone)
    assert [*(tmp_path / "outputs" / "train").iterdir()] == []
