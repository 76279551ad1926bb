"""What Prometheus sees of a real live process: that it trades, that it has no prices, that it is gone."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from backend.metrics import Desk
from tests.fyers_emulator.process import running

sys.path.append(str(Path(__file__).parents[1] / "trading"))  # where live_world is; pytest adds it for its own tests
from decision_service import RuleService
from live_world import World, eventually
from test_live_process import step, trade_at_every_bar

pytestmark = pytest.mark.slow


def test_a_desk_is_seen_to_trade_to_lose_its_prices_and_to_be_gone(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(Desk(tmp_path / "state"))

    def told(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"ledger": "live.db", **labels})

    with running() as emulator, RuleService() as service:
        world = World(emulator, service, tmp_path / "state")
        world.prepare()
        trade_at_every_bar(service)
        with world.live(HRM_LIVE__STALE_TICKS_S="3") as live:
            live.trading()
            eventually(lambda: told("hrm_live_running") == 1.0, "seen to run")
            step(world, 0)
            step(world, 1)
            assert world.units("NIFTY")
            assert told("hrm_live_positions") == 1.0
            assert told("hrm_live_blocked", why="feed_stale") is None
            emulator.process.send_signal(signal.SIGSTOP)
            try:
                eventually(lambda: told("hrm_live_blocked", why="feed_stale") == 1.0, "seen to have no prices")
            finally:
                emulator.process.send_signal(signal.SIGCONT)
            live.kill()
        assert told("hrm_live_running") == 0.0
        assert told("hrm_live_positions") == 1.0
        assert told("hrm_live_blocked", why="feed_stale") is None
