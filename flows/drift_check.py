"""Do the latest sessions still look like those that models are trained on? A report, and an event where they do not.

The event pauses a rollout (prefect.yaml): what was measured of a challenger was measured on another market. It takes
nothing away, and what hurts is the guard's to find, not this one's.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.context import FlowRunContext

from core.gates import Verdict
from core.settings import load_settings
from flows.arrival import tell
from flows.fyers_bars import bars_file
from serving.outbox import NAMESPACE
from trading import drift_record
from trading.dataset import Dataset, build_dataset
from trading.drift import FeatureDrift, drift

DRIFT = "hrm.data.drift"
RECENT_SESSIONS = 20  # a month: fewer are too few bars that are independent of each other


@flow(name="drift_check", timeout_seconds=1800)
def drift_check(data: str | None = None, seed: int = 0, symbol: str | None = None) -> dict[str, Any]:
    """Compare the latest sessions with the training part.

    Args:
        data: a CSV or parquet file; without one, and without `symbol`, the synthetic market.
        seed: of the synthetic market.
        symbol: as Fyers names it; its bars are fetched first.

    Raises ConfigError for two sources of bars or without a login, DataError for bars that cannot be used.
    """
    settings = load_settings()
    found = checked(build_dataset(settings, bars_file(settings, data, symbol), seed))
    moved = tuple(row["feature"] for row in found["features"] if row["verdict"] == Verdict.FAIL.value)
    psi = {row["feature"]: row["psi"] for row in found["features"]}
    drift_record.keep(settings.paths.state_dir, found["verdict"], psi, moved)
    return found


def checked(data: Dataset) -> dict[str, Any]:
    """`verdict`, `reason`, and `features`, a row each; told to Prefect where something drifted."""
    found = of_dataset(data)
    moved = [one.feature for one in found if one.verdict is Verdict.FAIL]
    unknown = [one.feature for one in found if one.verdict is Verdict.INCONCLUSIVE]
    reason = f"{', '.join(moved)}: not as in the sessions that were trained on" if moved else ""
    verdict = Verdict.FAIL if moved else Verdict.INCONCLUSIVE if len(unknown) == len(found) else Verdict.PASS
    rows = [asdict(one) | {"verdict": one.verdict.value} for one in found]
    if FlowRunContext.get() is not None:
        create_table_artifact(key="drift", table=rows, description=reason or f"{verdict.value}: {len(found)} features")
    if moved:
        tell(_event(data, reason))
    return {"verdict": verdict.value, "reason": reason, "features": rows}


def of_dataset(data: Dataset) -> tuple[FeatureDrift, ...]:
    """Every bar feature of the last RECENT_SESSIONS against the training part."""
    old, new = data.train, data.test
    recent = new.decision_bars[np.isin(new.bars.session[new.decision_bars], new.sessions[-RECENT_SESSIONS:])]
    return drift(old.bar_features[old.decision_bars], new.bar_features[recent], data.schema.bar_features)


def _event(data: Dataset, reason: str) -> dict[str, Any]:
    """The same bars and the same finding are one event, however often they are looked at."""
    last = str(data.test.bars.timestamps[-1])
    known = hashlib.sha256(f"{data.digest} {last} {reason}".encode()).hexdigest()
    return {
        "id": str(uuid.uuid5(NAMESPACE, f"{DRIFT}:{known}")),
        "event": DRIFT,
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {
            "prefect.resource.id": f"hrm.data.{data.digest[:12]}",
            "prefect.resource.name": data.test.bars.name,
        },
        "payload": {"reason": reason, "dataset": data.digest},
    }
