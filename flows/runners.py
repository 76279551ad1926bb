"""Where a flow's tasks run, by one setting: threads of this process, a Dask cluster or a Ray cluster.

    threads   one per core; each trains with one BLAS thread
    dask      the cluster that DASK_SCHEDULER_ADDRESS names, else processes of this machine   (the extra `dask`)
    ray       the cluster that RAY_ADDRESS names, else processes of this machine              (prefect-ray)

On a cluster the workers need this package, the same files at the same paths, and the study on a Postgres server
(flows.study_url_env): SQLite is for one host.

A Ray of this machine listens on all its interfaces, behind a token (Ray 2.60), its metrics without one: keep it
behind a firewall.
"""

from __future__ import annotations

import os
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from core.errors import ConfigError
from core.settings import Settings


def task_runner(settings: Settings) -> TaskRunner[Any]:
    """What `flows.task_runner` names. Raises ConfigError if its package is not installed."""
    name = settings.flows.task_runner
    workers = os.cpu_count() or 1
    try:
        if name == "dask":
            return _dask(workers)
        if name == "ray":
            return _ray(workers)
    except ModuleNotFoundError as error:
        remedy = f"pip install prefect-{name}, or choose threads"
        raise ConfigError(f"flows.task_runner: {name} needs {error.name}; {remedy}", code="missing_extra") from None
    return ThreadPoolTaskRunner(max_workers=workers)


def _dask(workers: int) -> TaskRunner[Any]:
    from prefect_dask.task_runners import DaskTaskRunner

    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    if address:
        return DaskTaskRunner(address=address)
    # One task each at a time; no page that listens, which nobody has asked for.
    here = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    return DaskTaskRunner(cluster_kwargs=here)


def _ray(workers: int) -> TaskRunner[Any]:
    from prefect_ray import RayTaskRunner

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray tells its makers
    address = os.environ.get("RAY_ADDRESS")
    here = {"num_cpus": workers, "include_dashboard": False}
    runner: TaskRunner[Any] = RayTaskRunner(address=address) if address else RayTaskRunner(init_kwargs=here)
    return runner
