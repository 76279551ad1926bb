"""What the newest drift check found, where whoever watches finds it: `<state_dir>/drift.json`.

A check is over in a minute, and runs somewhere else: Prometheus cannot ask it. One record, replaced whole.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import DataError
from core.files import write_json

FILE = "drift.json"


class DriftRecord(BaseModel):
    """`features` were looked at, `drifted` of them are not as in the sessions that were trained on; `psi` of each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # Unix
    verdict: Literal["pass", "fail", "inconclusive"]
    features: Annotated[int, Field(ge=0)]
    drifted: tuple[str, ...]
    psi: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = {}  # by feature; records of before have none


def keep(state_dir: Path, verdict: str, psi: Mapping[str, float], drifted: tuple[str, ...]) -> None:
    """Put a check on record, in place of the one before: the PSI of each feature that was looked at, and which drifted.

    Raises OSError where the disk refuses.
    """
    values = {"at_s": time.time(), "verdict": verdict, "features": len(psi), "drifted": drifted, "psi": dict(psi)}
    state_dir.mkdir(parents=True, exist_ok=True)
    write_json(state_dir / FILE, DriftRecord.model_validate(values).model_dump(mode="json"))


def newest(state_dir: Path) -> DriftRecord | None:
    """None where nobody has looked yet. Raises DataError for a file that is no record."""
    file = state_dir / FILE
    try:
        return DriftRecord.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{error.error_count()} fields are wrong"
        raise DataError(f"{file}: {why}; delete it, the next check writes it", code="drift_unreadable") from None
