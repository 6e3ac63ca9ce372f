"""What several files of unit tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from filelock import FileLock


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make its tables; the tests begin with copies, in all processes."""
    from mlflow import MlflowClient

    database = tmp_path_factory.getbasetemp().parent / "mlflow" / "fresh.db"
    database.parent.mkdir(exist_ok=True)
    with FileLock(f"{database}.lock"):
        if not database.exists():
            made = database.with_suffix(".unfinished")
            made.unlink(missing_ok=True)
            MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
            made.rename(database)
    return database


@pytest.fixture
def uri(tmp_path: Path, fresh_database: Path) -> str:
    """The address of a store of the test's own, without runs."""
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
