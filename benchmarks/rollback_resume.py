"""How long a rollout stands still when the process that controls it is killed: `resume` of `hrm bench rollback`.

A service of three workers walks a plan of timed pauses, a step every half second. The worker that holds the lease is
killed with SIGKILL, again and again; the time is from the kill to the next step that the controller of another process
takes, in the rollout's own log. No step may be taken twice.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import statistics
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from core.errors import RolloutError
from core.settings import Settings
from delivery.plan import Plan
from delivery.store import Event, RolloutStore, verify_chain
from delivery.transitions import Change, Command
from flows.drill_models import publish_policy
from flows.service_process import service_process

CHAMPION, CHALLENGER = "ppo/v1", "challenger/v1"
WORKERS = 3
STEP_S = 0.5
LIMIT_S = 30.0
LIMIT_RESUME_S = 5.0


def resume(settings: Settings, folder: Path, kills: int = 5) -> dict[str, Any]:
    """Seconds from each kill to the next step, and whether the log is whole. Raises RolloutError if none comes."""
    settings = _in_folder(settings, folder)
    for model in (CHAMPION, CHALLENGER):
        publish_policy(folder / "models", model)
    store = RolloutStore(folder / "rollout.db", settings.rollout)
    try:
        store.apply(
            Change(Command.START, time.time(), champion=CHAMPION, challenger=CHALLENGER, plan=_many_steps(kills))
        )
        with service_process(settings):
            seconds = [_one_kill(store, folder / "rollout.db") for _ in range(kills)]
        events = store.events()
    finally:
        store.close()
    return {
        "kills": kills,
        "resume_s": seconds,
        "median_s": statistics.median(seconds),
        "max_s": max(seconds),
        "steps": len(events),
        "chain_verifies": verify_chain(events),
        "each_step_once": [json.loads(event.state)["gate"] for event in events] == list(range(len(events))),
    }


def _many_steps(kills: int) -> Plan:
    """More pauses than there will be time for: a stage cannot be left by mistake."""
    pauses = [{"pause": {"duration": STEP_S}}] * int(2 * (kills + 2) * LIMIT_RESUME_S / STEP_S)
    return Plan.model_validate({"steps": [*pauses, {"pause": {}}, {"setWeight": 10}, {"pause": {}}]})


def _one_kill(store: RolloutStore, database: Path) -> float:
    """Wait for a step, kill who took it, and wait for the next one."""
    before = _next_step(store, store.read().version)
    killed_at = time.time()
    os.kill(_holder(database), signal.SIGKILL)
    return max(0.0, _next_step(store, _after(store, before, killed_at)).at - killed_at)


def _after(store: RolloutStore, step: Event, killed_at: float) -> int:
    """The version of the last step that was taken before the kill."""
    early = [event.version for event in store.events(step.version - 1) if event.at <= killed_at]
    return early[-1]


def _next_step(store: RolloutStore, version: int) -> Event:
    deadline = time.monotonic() + LIMIT_S
    while not (events := store.events(version, 1)):
        if time.monotonic() > deadline:
            raise RolloutError(f"no step within {LIMIT_S:g} s after version {version}", code="benchmark_failed")
        time.sleep(0.005)
    return events[0]


def _holder(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        (holder,) = connection.execute("SELECT holder FROM lease").fetchone()
    return int(holder.split(":")[1])


def _in_folder(settings: Settings, folder: Path) -> Settings:
    paths = settings.paths.model_copy(update={"state_dir": folder})
    serving = settings.serving.model_copy(update={"host": "127.0.0.1", "workers": WORKERS})
    return settings.model_copy(update={"paths": paths, "serving": serving})
