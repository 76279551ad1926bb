"""One migration run is a folder: what went in, and what each finished phase found.

    <state_dir>/runs/<run id>/
        run.json                 inputs: data and its digest, seed, settings
        settings.yaml            the same settings, for child processes
        phases/<phase>.json      written in one step when the phase has finished
        steps/<name>.json        finished parts of a long phase
        outcome.json             the migration's verdict; a run without one is unfinished
        logs/, report.html

The same inputs find the unfinished run again, so the command that was killed continues where it was.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import ConfigError, DataError
from core.files import write_json
from core.gates import Check, Verdict
from core.settings import Settings

log = structlog.get_logger()

Record = TypeVar("Record", bound=BaseModel)


class Inputs(BaseModel):
    """What decides a run's results. Two runs with equal inputs are the same migration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path | None = Field(default=None, description="bars on disk; None: the synthetic market")
    data_digest: str = Field(description="SHA-256 of the file; `synthetic` without one")
    seed: int = Field(ge=0)
    settings: Settings
    start_from: str | None = Field(default=None, description="model whose weights training begins with; None: new ones")

    @property
    def key(self) -> str:
        """SHA-256 of everything but where files lie, which port is used and where tasks run."""
        settings = self.settings.model_dump(mode="json", exclude={"paths", "serving", "flows"})
        decides = (self.data_digest, self.seed, settings, *filter(None, [self.start_from]))
        return hashlib.sha256(repr(decides).encode()).hexdigest()

    @property
    def market_name(self) -> str:
        return "synthetic market" if self.data is None else self.data.name


class PhaseRecord(BaseModel):
    """A finished phase: its numbers, and what its gate said about them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: str
    verdict: Verdict
    reason: str
    checks: tuple[Check, ...]
    result: dict[str, Any]
    seconds: float


class Outcome(BaseModel):
    """How a migration ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Literal["migrated", "stopped", "rolled_back"]
    exit_code: int
    stopped_at: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Run:
    folder: Path
    inputs: Inputs

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def settings(self) -> Settings:
        return self.inputs.settings

    @property
    def service_dir(self) -> Path:
        """State directory of the run's own service: a migration beside no running one touches nobody's rollout."""
        return self.folder / "service"

    @property
    def models(self) -> Path:
        """The model store, shared by all runs."""
        return self.settings.paths.state_dir / "models"

    def environment(self, **changes: str) -> dict[str, str]:
        """For a child process: this one's environment, with exactly this run's settings and `changes` to them."""
        settings = self.settings.model_dump(mode="json") | {"presets": {self.settings.preset: {}}}
        file = self.folder / "settings.yaml"  # JSON is YAML
        write_json(file, settings)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HRM_")}
        return inherited | {"HRM_SETTINGS": str(file), "PYTHONPATH": _python_path()} | changes

    def phase(self, name: str) -> PhaseRecord | None:
        """What the phase found, or None while it has not finished."""
        return _read(self.folder / "phases" / f"{name}.json", PhaseRecord)

    def record(self, record: PhaseRecord) -> None:
        write_json(self.folder / "phases" / f"{record.phase}.json", record.model_dump(mode="json"))

    def result(self, phase: str) -> dict[str, Any]:
        """The numbers of a phase that must have finished before. Raises ConfigError if it has not."""
        record = self.phase(phase)
        if record is None:
            raise ConfigError(f"{self.folder}: phase {phase} has not finished; run it first")
        return record.result

    def step(self, name: str) -> dict[str, Any] | None:
        step = _read(self.folder / "steps" / f"{name}.json", _Step)
        return None if step is None else step.result

    def record_step(self, name: str, result: Mapping[str, Any]) -> None:
        write_json(self.folder / "steps" / f"{name}.json", {"result": to_json(result)})

    @property
    def outcome(self) -> Outcome | None:
        return _read(self.folder / "outcome.json", Outcome)

    def finish(self, outcome: Outcome) -> None:
        write_json(self.folder / "outcome.json", outcome.model_dump(mode="json"))


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]))


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    result: dict[str, Any]


def inputs_of(settings: Settings, data: Path | None, seed: int) -> Inputs:
    """Raises DataError if the file cannot be read."""
    if data is None:
        return Inputs(data_digest="synthetic", seed=seed, settings=settings)
    try:
        with data.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{data}: cannot be read ({error.strerror}); pass a CSV or parquet file") from None
    return Inputs(data=data.resolve(), data_digest=digest, seed=seed, settings=settings)


def open_run(inputs: Inputs) -> Run:
    """The latest unfinished run with these inputs, or a new one."""
    unfinished = (run for run in runs_of(inputs.settings) if run.inputs.key == inputs.key and run.outcome is None)
    return next(unfinished, None) or _create(_folder(inputs.settings), inputs)


def runs_of(settings: Settings) -> Iterator[Run]:
    """All of the state directory that can be read, the latest first."""
    for file in sorted(_folder(settings).glob("*/run.json"), reverse=True):
        try:
            yield load_run(file.parent)
        except DataError as error:
            log.warning("run_skipped", reason=str(error))  # written by another version, or damaged


def _folder(settings: Settings) -> Path:
    return settings.paths.state_dir.resolve() / "runs"


def load_run(folder: Path) -> Run:
    """Raises ConfigError if the folder holds no run, DataError if its run.json is damaged."""
    inputs = _read(folder / "run.json", Inputs)
    if inputs is None:
        raise ConfigError(f"{folder}: holds no run.json; name a folder under <state_dir>/runs")
    return Run(folder.resolve(), inputs)


def _create(runs: Path, inputs: Inputs) -> Run:
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{inputs.key[:6]}"
    names = [stamp, *(f"{stamp}-{n}" for n in range(2, 1000))]
    folder = next(runs / name for name in names if not (runs / name).exists())
    absolute = inputs.settings.paths.model_copy(update={"state_dir": runs.parent})
    inputs = inputs.model_copy(update={"settings": inputs.settings.model_copy(update={"paths": absolute})})
    write_json(folder / "run.json", inputs.model_dump(mode="json"))
    return Run(folder, inputs)


def _read(path: Path, kind: type[Record]) -> Record | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        message = f"{path}: damaged ({place}: {problem['msg']}); delete it to repeat that part"
        raise DataError(message) from None


def to_json(value: Any) -> Any:
    """Plain JSON values: numpy becomes lists and numbers, what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


@contextmanager
def migration_lock(state_dir: Path) -> Iterator[None]:
    """Only one migration at a time in a state directory. Raises ConfigError naming the other process."""
    complaint = f"is migrating in {state_dir}; wait for it, or choose another state directory with HRM_PATHS__STATE_DIR"
    with only_one(state_dir / "migration.lock", complaint, code="migration_running"):
        yield


@contextmanager
def only_one(path: Path, complaint: str, *, code: str) -> Iterator[None]:
    """Hold a lock file; the kernel frees it when its holder dies. Raises ConfigError: the holder `complaint`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(f"{path}: process {file.read().strip()} {complaint}", code=code) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
