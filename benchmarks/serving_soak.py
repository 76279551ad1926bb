"""Mixed load for as long as asked: does anything fail, does memory grow?

Every form of a question, health and metrics arrive at a rate that leaves room; meanwhile models are loaded and unloaded
and rollouts begun and aborted, the whole time. A leak is told from noise by the slope of the resident set, least
squares over medians of equal parts of the time, with its 95 % interval.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.serving_load import Load, measured, request
from benchmarks.serving_model import Questions
from benchmarks.serving_start import resident_mb
from benchmarks.serving_targets import JSON, Model, Target, decision_document, decision_request, our_service
from core.manifest import publish

CLIENTS = 40
CALIBRATION_S = 3.0
RATE_SHARE = 0.25  # of what it can: shadows double the work, and nobody runs a desk at its limit
SAMPLE_S = 1.0
WARMUP_RATIO = 0.1  # of the time: caches fill, allocators find their size
PARTS = 60  # of the time: minutes of an hour
CHANGE_S = 120.0  # between two changes of what is loaded; shorter when the whole is short
COMMAND_TIMEOUT_S = 60.0
MIX = {"binary": 60, "json": 25, "batch": 6, "infer": 6, "/metrics": 2, "/health/ready": 1}  # percent of the requests


def soak(model: Model, asked: Questions, seconds: float) -> dict[str, Any]:
    """Errors of the load and of the changes, latency, and the slope of the resident set."""
    rollout = model.settings.rollout.model_copy(update={"cool_down_s": 0.0})  # a new attempt every few seconds
    model = replace(model, settings=model.settings.model_copy(update={"rollout": rollout}))
    with our_service(model, asked) as target, ThreadPoolExecutor(2) as pool:
        ended = threading.Event()
        able = measured(Load(target.port, target.requests, clients=CLIENTS, seconds=CALIBRATION_S))["decisions_per_s"]
        memory = pool.submit(_watch_memory, target.pid, ended)
        changes = pool.submit(_keep_changing, model, target, ended, min(CHANGE_S, seconds / 6))
        try:
            load = Load(
                target.port,
                mixed_requests(asked, model, target.token),
                clients=CLIENTS,
                seconds=seconds,
                rate_per_s=max(1.0, RATE_SHARE * able),
                pid=target.pid,
            )
            found = measured(load)
        finally:
            ended.set()
        rss, changed = memory.result(), changes.result()
    return {
        "seconds": seconds,
        "rate_per_s": load.rate_per_s,
        "answers": found["decisions"],
        "errors": sum(found["errors"].values()) + len(changed.refused),
        "error_kinds": found["errors"] | {"changes": changed.refused},
        "latency_ms": found["latency_ms"],
        "changes": changed.made,
        "unhealthy": changed.unhealthy,
        "rss_mb": {
            "first": float(rss[0, 1]),
            "last": float(rss[-1, 1]),
            "max": float(rss[:, 1].max()),
            "by_part": [float(np.median(part)) for part in np.array_split(rss[:, 1], PARTS) if len(part)],
        },
        "slope_mb_per_hour": slope_mb_per_hour(rss),
    }


def mixed_requests(asked: Questions, model: Model, token: str) -> tuple[bytes, ...]:
    """A hundred requests in the shares of MIX, in random order."""
    authorization = {"Authorization": f"Bearer {token}"}

    def one(kind: str, which: int) -> bytes:
        if kind in ("binary", "json"):
            return decision_request(asked, which, token, "json" if kind == "json" else "binary")
        if kind.startswith("/"):
            return request("GET", kind, b"", authorization)
        path, body = (
            ("/v1/decisions/batch", _batch(asked, which))
            if kind == "batch"
            else (f"/v2/models/{model.manifest.name}/infer", _infer(asked, which))
        )
        return request("POST", path, json.dumps(body).encode(), authorization | JSON)

    kinds = np.random.default_rng(0).permutation([kind for kind, share in MIX.items() for _ in range(share)])
    return tuple(one(str(kind), which % len(asked)) for which, kind in enumerate(kinds))


def slope_mb_per_hour(rss: NDArray[np.float64]) -> dict[str, float]:
    """Of samples [n, 2] (s, MB) after the warm-up: `slope`, and the bounds `low` and `high` of its 95 % interval."""
    from scipy import stats

    since, until = rss[0, 0], rss[-1, 0]
    settled = rss[rss[:, 0] >= since + WARMUP_RATIO * (until - since)]
    part = np.minimum((settled[:, 0] - settled[0, 0]) / (until - settled[0, 0]) * PARTS, PARTS - 1).astype(int)
    hours = np.array([np.median(settled[part == each, 0]) / 3600 for each in np.unique(part)])
    level = np.array([np.median(settled[part == each, 1]) for each in np.unique(part)])
    line = stats.linregress(hours, level)
    width = float(stats.t.ppf(0.975, max(1, len(hours) - 2)) * line.stderr)
    return {"slope": float(line.slope), "low": float(line.slope) - width, "high": float(line.slope) + width}


def _batch(asked: Questions, which: int) -> dict[str, Any]:
    rows = [decision_document(asked, (which + step) % len(asked)) for step in range(4)]
    return {"decisions": rows}


def _infer(asked: Questions, which: int) -> dict[str, Any]:
    rows = slice(which, which + 1)
    arrays: dict[str, NDArray[Any]] = {
        "bars": asked.bars,
        "account": asked.account,
        "complexity": asked.complexity,
        "position": asked.position,
    }
    inputs = [
        {
            "name": name,
            "datatype": "INT64" if name == "position" else "FP32",
            "shape": list(array[rows].shape),
            "data": array[rows].ravel().tolist(),
        }
        for name, array in arrays.items()
    ]
    return {"inputs": inputs}


def _watch_memory(pid: int, ended: threading.Event) -> NDArray[np.float64]:
    samples = [(time.perf_counter(), resident_mb(pid))]
    while not ended.wait(SAMPLE_S):
        try:
            samples.append((time.perf_counter(), resident_mb(pid)))
        except psutil.NoSuchProcess:  # a worker that was replaced meanwhile
            continue
    return np.array(samples)


@dataclass
class _Changes:
    """How many rounds were made, what was said to what was refused, and how often /health found something to blame."""

    made: int = 0
    unhealthy: int = 0
    refused: list[str] = field(default_factory=list)


def _keep_changing(model: Model, target: Target, ended: threading.Event, every_s: float) -> _Changes:
    found = _Changes()
    base, headers = f"http://127.0.0.1:{target.port}", {"Authorization": f"Bearer {target.token}"}
    with httpx.Client(base_url=base, headers=headers, timeout=COMMAND_TIMEOUT_S, trust_env=False) as http:
        while not ended.wait(every_s):
            version = f"soak-{found.made}"
            _publish_again(model, version)
            name = model.manifest.name
            stored = f"/v2/repository/models/{name}/{version}"
            started = {"champion": model.id, "challenger": f"{name}/{version}", "reason": "soak"}
            steps: tuple[tuple[str, dict[str, str]], ...] = (
                (f"{stored}/load", {}),
                (f"{stored}/unload", {}),
                ("/v1/rollout/start", started),
            )
            for path, body in steps:
                found.refused += _refusal(http.post(path, json=body))
            ended.wait(every_s / 4)  # shadows run meanwhile
            found.unhealthy += not http.get("/health").is_success
            found.refused += _refusal(http.post("/v1/rollout/abort", json={"reason": "soak"}))
            shutil.rmtree(model.folder.parent / version)  # aborted: it never runs again
            found.made += 1
    return found


def _publish_again(model: Model, version: str) -> None:
    fields = {name: value for name, value in model.manifest if name not in ("files", "version")}
    files = {name: (model.folder / name).read_bytes() for name in model.manifest.files}
    publish(model.settings.paths.state_dir / "models", files, **fields, version=version)


def _refusal(answer: httpx.Response) -> list[str]:
    return [] if answer.is_success else [f"{answer.request.url.path}: {answer.status_code} {answer.text[:200]}"]
