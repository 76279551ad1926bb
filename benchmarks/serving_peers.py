"""LitServe and Ray Serve, tuned as their documentation advises: each with the best of a few settings, all reported.

LitServe   batches of 8 to 64 with a short wait, one or two workers, the ZeroMQ queue (`fast_queue`)
Ray Serve  @serve.batch, one or two replicas, its throughput switch (no separate threads, logs buffered, direct ingress)
           and HAProxy in front
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS, PeerError, installed
from benchmarks.serving_load import Load, measured
from benchmarks.serving_model import Questions
from benchmarks.serving_targets import Model, Target, peer

TRIAL_S = 4.0  # for each setting; the best one is measured properly

Tuning = Mapping[str, Any]
Contender = Callable[[], AbstractContextManager[Target]]


def _litserve(batch: int, wait_s: float, workers: int, *, fast_queue: bool) -> Tuning:
    return {
        "max_batch_size": batch,
        "batch_timeout": wait_s,
        "workers_per_device": workers,
        "num_api_servers": 1,
        "fast_queue": fast_queue,
    }


def _ray_serve(batch: int, wait_s: float, replicas: int, **switches: int) -> Tuning:
    return {"max_batch_size": batch, "batch_wait_timeout_s": wait_s, "replicas": replicas, **switches}


THROUGHPUT = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": 1}
HAPROXY = THROUGHPUT | {"RAY_SERVE_ENABLE_HA_PROXY": 1, "RAY_SERVE_EXPERIMENTAL_PIP_HAPROXY": 1}
TUNINGS: dict[str, tuple[Tuning, ...]] = {
    "litserve": (
        _litserve(32, 0.005, 1, fast_queue=False),
        _litserve(32, 0.005, 2, fast_queue=True),
        _litserve(16, 0.002, 2, fast_queue=False),
        _litserve(64, 0.01, 1, fast_queue=True),
    ),
    "ray_serve": (
        _ray_serve(32, 0.005, 1),
        _ray_serve(32, 0.005, 1, **THROUGHPUT),
        _ray_serve(32, 0.005, 2, **HAPROXY),
    ),
}
PEER_NAMES = tuple(TUNINGS)


def tuned(
    name: str, model: Model, asked: Questions, *, clients: int, state_dir: Path
) -> tuple[list[dict[str, Any]], Contender | None]:
    """Every setting with what it was worth in a short trial, and the best one as a contender; None if none runs."""
    try:
        installed(PEERS[name], state_dir)
    except PeerError as error:
        return [{"absent": str(error)}], None
    trials, contenders = [], []
    for tuning in TUNINGS[name]:
        contender = partial(peer, name, model, asked, tuning=tuning, state_dir=state_dir)
        trials.append({"tuning": dict(tuning)} | _trial(contender, clients))
        contenders.append(contender)
    able = [which for which, trial in enumerate(trials) if "absent" not in trial]
    if not able:
        return trials, None
    return trials, contenders[max(able, key=lambda which: float(trials[which]["decisions_per_s"]))]


def _trial(contender: Contender, clients: int) -> dict[str, Any]:
    try:
        with contender() as target:
            found = measured(Load(target.port, target.requests, clients=clients, seconds=TRIAL_S))
    except PeerError as error:
        return {"absent": str(error)}
    return {"decisions_per_s": found["decisions_per_s"], "latency_ms": found["latency_ms"], "errors": found["errors"]}
