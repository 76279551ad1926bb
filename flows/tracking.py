"""Training runs in a tracking store: MLflow on SQLite, <state_dir>/mlflow.db, or what MLFLOW_TRACKING_URI names.

Metrics are sent in batches from a thread of their own, so a slow, locked or absent store costs training nothing: it
is warned about once, what was not sent is tried again with the next batch, and given up at the end. A run that is
continued after a kill goes on under the same MLflow run.

The store also answers how often validation sessions were looked at: `trials`, which a Sharpe ratio is deflated by.

To look at it: `mlflow ui --backend-store-uri sqlite:///.hrm/mlflow.db`, in an environment with the whole of mlflow.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from trading.bootstrap import sharpe
from trading.evaluation import Evaluation
from trading.significance import Trials

if TYPE_CHECKING:  # mlflow takes seconds to import; only the thread needs it
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "hrm"
RUN_TAG = "hrm.run"  # the run's folder: what finds it again after a kill
DATASET_TAG = "dataset_digest"
LOOK = "validation/sharpe"  # per session, at each step at which weights were judged on validation sessions
UNMEASURED_LOOK = "validation/loss_bps"  # the same before its Sharpe ratio was kept
BATCH_S = 5.0
PATIENCE_S = 20.0  # at the end, for a store that is being made or is busy
METRICS_IN_A_BATCH = 1000  # the most that MLflow takes at once

log = structlog.get_logger(__name__)

Record = Callable[[int, Mapping[str, float]], None]  # step, metrics by name


class Point(NamedTuple):
    """One metric at one step."""

    name: str
    value: float
    at_ms: int
    step: int


class Description(NamedTuple):
    """What the store should know of a run besides its metrics."""

    name: str
    folder: Path
    params: Mapping[str, str]
    tags: Mapping[str, str]


@contextmanager
def tracked(state_dir: Path, run: Description) -> Iterator[Record]:
    """A function that records metrics by step while the block runs; then the run is finished, or failed."""
    points: queue.SimpleQueue[list[Point] | str] = queue.SimpleQueue()
    store = _Store(_uri(state_dir), run)
    thread = threading.Thread(target=_send, args=(points, store), name="tracking", daemon=True)
    thread.start()
    status = "FAILED"
    try:
        yield lambda step, metrics: points.put(_points(step, metrics))
        status = "FINISHED"
    finally:
        points.put(status)
        thread.join(PATIENCE_S)
        if thread.is_alive():
            store.warn("it did not answer in time")


def judged(found: Evaluation) -> dict[str, float]:
    """What to record of weights that were judged on validation sessions."""
    return {LOOK: sharpe(found.return_bps)}


def trials(state_dir: Path, dataset_digest: str) -> Trials:
    """Every set of weights on record that was judged on the validation sessions of a dataset, by whatever training.

    Where the store cannot be asked, or knows of no look, the number is a lower bound, and a warning says so.
    """
    uri = _uri(state_dir)
    try:
        found = _looks(uri, dataset_digest)
    except Exception as error:  # whatever a store raises: the comparison goes on with a number known to be too low
        return _at_least_one(uri, f"{type(error).__name__}: {error}".splitlines()[0])
    return found if found.sharpes or found.unrecorded else _at_least_one(uri, "no look at this data is on record")


def _at_least_one(uri: str, why: str) -> Trials:
    log.warning("trials_unknown", uri=uri, why=why, effect="the number of trials is a lower bound")
    return Trials(complete=False)


def _looks(uri: str, dataset_digest: str) -> Trials:
    path = uri.removeprefix("sqlite:///")
    if path != uri and not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist")  # asking would create it
    client = _client(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    sharpes: list[float] = []
    unrecorded = 0
    for run in _runs(client, experiment, dataset_digest) if experiment is not None else ():
        known = _by_step(client, run, LOOK)
        sharpes += known.values()
        unrecorded += len(_by_step(client, run, UNMEASURED_LOOK).keys() - known.keys())
    return Trials(tuple(sorted(sharpes)), unrecorded)  # whichever training ended first


def _runs(client: MlflowClient, experiment: Any, dataset_digest: str) -> Iterator[Run]:
    query, token = f"tags.`{DATASET_TAG}` = '{dataset_digest}'", None
    while True:
        page = client.search_runs([experiment.experiment_id], filter_string=query, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _by_step(client: MlflowClient, run: Run, metric: str) -> dict[int, float]:
    """A step that was done again after a kill is one look: the weights are the same."""
    return {point.step: point.value for point in client.get_metric_history(run.info.run_id, metric)}


def _uri(state_dir: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{state_dir / 'mlflow.db'}"


class _Store:
    """One run in the store, opened when something is first sent."""

    def __init__(self, uri: str, run: Description) -> None:
        self.uri, self.run = uri, run
        self.unsent: list[Point] = []
        self.warned = False
        self._opened: tuple[MlflowClient, str] | None = None

    def send(self, points: list[Point], status: str | None = None) -> None:
        """Send these points and those that could not be sent before; with a `status` the run is over."""
        self.unsent += points
        try:
            self._opened = self._opened or _open(self.uri, self.run)
            client, run_id = self._opened
            self._send_unsent(client, run_id)
            if status is not None:
                client.set_terminated(run_id, status)
        except Exception as error:  # whatever a store raises: training goes on without its record
            self.warn(f"{type(error).__name__}: {error}".splitlines()[0])

    def warn(self, why: str) -> None:
        if not self.warned:
            self.warned = True
            log.warning("tracking_store_unavailable", uri=self.uri, why=why, effect="training goes on unrecorded")

    def _send_unsent(self, client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import Metric

        while self.unsent:
            batch = self.unsent[:METRICS_IN_A_BATCH]
            client.log_batch(run_id, metrics=[Metric(*point) for point in batch])
            del self.unsent[:METRICS_IN_A_BATCH]


def _send(points: queue.SimpleQueue[list[Point] | str], store: _Store) -> None:
    """The thread: whatever has come in the last seconds at once, until the status comes."""
    waiting: list[Point] = []
    due = time.monotonic()
    while True:
        try:
            came = points.get(timeout=max(0.0, due - time.monotonic()) if waiting else None)
        except queue.Empty:
            store.send(waiting)
            waiting, due = [], time.monotonic() + BATCH_S
            continue
        if isinstance(came, str):
            store.send(waiting, came)
            return
        waiting += came


def _points(step: int, metrics: Mapping[str, float]) -> list[Point]:
    now_ms = int(time.time() * 1000)
    return [Point(name, float(value), now_ms, step) for name, value in metrics.items()]


def _open(uri: str, run: Description) -> tuple[MlflowClient, str]:
    """The store and the id of the run in it, which is a new one unless it was begun before."""
    client = _client(uri)
    experiment = _experiment(client)
    begun = client.search_runs([experiment], filter_string=f"tags.`{RUN_TAG}` = '{run.folder}'", max_results=1)
    if begun:
        client.update_run(begun[0].info.run_id, status="RUNNING")
        return client, begun[0].info.run_id
    return client, _create(client, experiment, run)


def _client(uri: str) -> MlflowClient:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # it would write over the progress bar
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _experiment(client: MlflowClient) -> str:
    found: Any = client.get_experiment_by_name(EXPERIMENT)
    return found.experiment_id if found is not None else client.create_experiment(EXPERIMENT)


def make_store(state_dir: Path) -> None:
    """Before several processes record at once: of two that both create its tables one would go unrecorded."""
    uri = _uri(state_dir)
    try:
        _experiment(_client(uri))
    except Exception as error:  # whatever a store raises: trainings go on without their record
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        log.warning("tracking_store_unavailable", uri=uri, why=why, effect="trainings go on unrecorded")


def client_of(state_dir: Path) -> MlflowClient:
    """Of the store that trainings are recorded in. Raises what MLflow raises."""
    return _client(_uri(state_dir))


def run_id_of(client: MlflowClient, folder: Path) -> str | None:
    """Of the training in that folder; None where it was not recorded."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    found = client.search_runs(
        [experiment.experiment_id], filter_string=f"tags.`{RUN_TAG}` = '{folder}'", max_results=1
    )
    return str(found[0].info.run_id) if found else None


def _create(client: MlflowClient, experiment: str, run: Description) -> str:
    from mlflow.entities import Param

    tags = {**run.tags, RUN_TAG: str(run.folder)}
    run_id: str = client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
    client.log_batch(run_id, params=[Param(name, value) for name, value in run.params.items()])
    return run_id
