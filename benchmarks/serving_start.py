"""How long a service takes from its start to readiness, and how much memory it then has."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

from benchmarks.serving_load import Load, measured
from benchmarks.serving_model import Questions
from benchmarks.serving_targets import Model, decision_request, wait_until_served
from flows.processes import free_port
from flows.service_process import service_process

POLL_S = 0.005
USED_S = 2.0  # of load, after which the memory counts: what a first batch allocates stays


def start(model: Model, asked: Questions, runs: int) -> dict[str, Any]:
    """Medians of `runs` starts: seconds to the first 200 of /health/ready, MB then and after a little load."""
    found = [_start_once(model, asked) for _ in range(runs)]
    return {"storage": model.manifest.storage} | {
        name: statistics.median(each[name] for each in found) for name in ("ready_s", "rss_ready_mb", "rss_mb")
    }


def _start_once(model: Model, asked: Questions) -> dict[str, float]:
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        began = time.perf_counter()
        ready = pool.submit(_ready_at, port)
        fixed = {"HRM_SERVING__PORT": str(port)}  # known before the service says so
        with service_process(model.settings, champion=model.id, environ=fixed) as running:
            ready_s = ready.result() - began
            rss_ready_mb = resident_mb(running.process.pid)
            requests = tuple(decision_request(asked, which, running.token, "binary") for which in range(len(asked)))
            measured(Load(port, requests, clients=20, seconds=USED_S, warmup_s=0.0))
            return {"ready_s": ready_s, "rss_ready_mb": rss_ready_mb, "rss_mb": resident_mb(running.process.pid)}


def _ready_at(port: int) -> float:
    wait_until_served(f"http://127.0.0.1:{port}", poll_s=POLL_S)
    return time.perf_counter()


def resident_mb(pid: int) -> float:
    """Of a process and its descendants; what they share counts for each of them."""
    root = psutil.Process(pid)
    return sum(each.memory_info().rss for each in (root, *root.children(recursive=True))) / 1e6
