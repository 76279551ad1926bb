"""An empty store of trainings, made once in a process: its migrations take seconds, and are MLflow's own affair."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.tracking import client_of


@cache
def _made() -> bytes:
    with TemporaryDirectory() as folder:
        client_of(Path(folder)).search_experiments()
        client_of(Path(folder)).search_registered_models()
        return (Path(folder) / "mlflow.db").read_bytes()


def make_store(state_dir: Path) -> None:
    """What the first training in a state directory would begin with."""
    state_dir.mkdir(parents=True, exist_ok=True)
    (state_dir / "mlflow.db").write_bytes(_made())
