"""The paper loop books what the backtest books, holds when it is not answered, and survives being killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decision_service import RuleService, follow_signal

from core.actions import TARGET_OF, Action
from core.settings import Settings
from trading import backtest
from trading.costs import flat_costs, nse_index_future_costs
from trading.env import SessionEnv
from trading.features import schema
from trading.gateway import OrderGateway
from trading.instruments import lot_of
from trading.intents import earned_bps
from trading.ledger import Fill, Ledger
from trading.market import Bars, Market, day_of
from trading.observations import observe
from trading.paper import PaperBroker
from trading.paper_replay import PaperTrader, TradeReport, run_paper
from trading.service import DecisionClient
from trading.stream import replay

ROOT = Path(__file__).parents[2]


def fills_of(settings: Settings, symbol: str = "SYNTHETIC") -> list[Fill]:
    ledger = Ledger(settings.paths.state_dir / "paper.db")
    try:
        return ledger.fills(symbol)
    finally:
        ledger.close()


@pytest.mark.parametrize("cost", [flat_costs(1.5), nse_index_future_costs(0.5)])
def test_paper_money_equals_the_backtest_of_the_same_bars(
    cost: object, service: RuleService, client: DecisionClient, paper_market: Market, paper_settings: Settings
) -> None:
    report = run_paper(paper_market.bars, paper_settings, client, cost=cost)
    result = backtest.run(
        follow_signal, paper_market, schema(paper_settings.observation), cost=cost, initial_capital=1e6
    )
    assert report.decisions == len(result.journal.at) == len(service.requests)
    assert report.position.fills == result.trades.sum()
    assert report.position.units == 0
    assert report.position.costs == pytest.approx(result.charges.sum(), rel=1e-9)
    assert report.equity == pytest.approx(result.equity[-1], rel=1e-12)
    assert service.authorisations == {"Bearer token"}


@pytest.mark.parametrize(("name", "known"), [("NIFTY", True), ("BANKNIFTY_5MIN", False)])  # in the year of these bars
def test_paper_trades_the_whole_lots_of_the_backtest(
    client: DecisionClient, paper_market: Market, paper_settings: Settings, name: str, known: bool
) -> None:
    market = replace(paper_market, bars=replace(paper_market.bars, name=name))
    report = run_paper(market.bars, paper_settings, client, cost=flat_costs(1.5))
    lots = [lot_of(name, day_of(int(bar_ns))) for bar_ns in market.bars.timestamps]
    result = backtest.run(
        follow_signal,
        market,
        schema(paper_settings.observation),
        cost=flat_costs(1.5),
        initial_capital=1e6,
        lot_units=lambda day: float(lot_of(name, day)),
    )
    assert report.equity == pytest.approx(result.equity[-1], rel=1e-12)
    assert report.position.fills == result.trades.sum() > 0
    assert (min(lots) > 1) == known
    assert all(fill.units % lot_of(name, day_of(fill.bar_ns)) == 0 for fill in fills_of(paper_settings, name))


def test_sessions_before_the_first_one_only_feed_the_features(
    service: RuleService, client: DecisionClient, paper_market: Market, paper_settings: Settings
) -> None:
    first = int(paper_market.bars.session[-1])
    report = run_paper(paper_market.bars, paper_settings, client, first_session=first)
    decided_in = paper_market.bars.session[paper_market.decision_bars]
    assert report.decisions == len(service.requests) == (decided_in == first).sum() > 0
    assert report.bars == len(paper_market.bars)


def test_live_observations_equal_the_batch_bit_for_bit(
    service: RuleService, client: DecisionClient, paper_market: Market, paper_settings: Settings
) -> None:
    run_paper(paper_market.bars, paper_settings, client)
    positions = np.array([request["accounts"]["champion"]["position"] for request in service.requests])
    seen = observe(paper_market, schema(paper_settings.observation), paper_market.decision_bars, positions)
    np.testing.assert_array_equal(np.float32([request["bars"] for request in service.requests]), seen.bars)
    account = [request["accounts"]["champion"]["features"] for request in service.requests]
    np.testing.assert_array_equal(np.float32(account), seen.account)
    np.testing.assert_array_equal(np.float32([r["complexity"] for r in service.requests]), seen.complexity)
    _assert_wire_format(service)


def test_reported_outcomes_are_the_environment_s_rewards_of_both_arms(
    service: RuleService, client: DecisionClient, paper_market: Market, paper_settings: Settings
) -> None:
    run_paper(paper_market.bars, paper_settings, client)
    for arm, sign in (("champion", 1.0), ("challenger", -1.0)):
        env = SessionEnv(
            paper_market,
            schema(paper_settings.observation),
            paper_market.sessions,
            paper_settings.trading.cost_bps,
        )
        rewards = np.zeros((len(paper_market.bars), 1))
        while not env.done:
            seen = env.observe()
            step = env.step(follow_signal(seen.bars, sign * seen.account, seen.complexity, seen.position).action)
            rewards[step.at[step.active], 0] = step.reward_bps[step.active]
        reported = [outcome[f"{arm}_bps"] for outcome in service.outcomes]
        np.testing.assert_allclose(reported, rewards[paper_market.decision_bars, 0], atol=1e-9)


def test_the_real_position_follows_the_acting_arm_and_changes_hands_only_when_flat(
    service: RuleService, client: DecisionClient, paper_bars: Bars, paper_settings: Settings
) -> None:
    middle = int(paper_bars.timestamps[len(paper_bars) * 2 // 3])
    service.role = lambda bar_ns: "champion" if bar_ns < middle else "challenger"
    run_paper(paper_bars, paper_settings, client)
    fills = fills_of(paper_settings)
    for request in service.requests:
        at = int(np.searchsorted(paper_bars.timestamps, int(request["request_id"].rsplit(":", 1)[1])))
        if at + 2 == len(paper_bars) or paper_bars.first_of_session[at + 2]:
            continue  # filled and squared off within one bar
        acting = service.decision(request)
        held = sum(fill.units for fill in fills if fill.bar_ns <= paper_bars.timestamps[at + 1])
        position = request["accounts"][acting["role"]]["position"]
        assert np.sign(held) == TARGET_OF[position + 1, acting["action"]]
    held_before = np.cumsum([0.0, *(fill.units for fill in fills)])
    changed = [at for at in range(1, len(fills)) if fills[at].owner != fills[at - 1].owner]
    assert {fill.owner for fill in fills} == {"champion:ppo/v1", "challenger:hrm/v1"}
    assert all(held_before[at] == 0.0 for at in changed)


REFUSALS = {
    "server error": (500, b"{}"),
    "unauthorized": (401, b"{}"),
    "no JSON": (200, b"<html>"),
    "unknown action": (200, b'{"role":"champion","action":7,"quantity":1,"model":"ppo","model_version":"1","epoch":1}'),
    "quantity not finite": (
        200,
        b'{"role":"champion","action":0,"quantity":NaN,"model":"ppo","model_version":"1","epoch":1}',
    ),
    "nothing to close": (
        200,
        b'{"role":"champion","action":2,"quantity":5,"model":"ppo","model_version":"1","epoch":1}',
    ),
    "safe that trades": (
        200,
        b'{"role":"safe","action":0,"quantity":5,"model":"none","model_version":"none","epoch":1}',
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_without_a_valid_decision_the_loop_holds_and_counts(
    refusal: str, service: RuleService, client: DecisionClient, paper_bars: Bars, paper_settings: Settings
) -> None:
    service.override = lambda _number: REFUSALS[refusal]
    report = run_paper(paper_bars, paper_settings, client)
    assert report.held_without_answer == report.decisions > 0
    assert (report.position.fills, report.equity, service.outcomes) == (0, 1e6, [])


def test_a_service_that_is_not_there_means_hold(paper_bars: Bars, paper_settings: Settings) -> None:
    client = DecisionClient("http://127.0.0.1:9", "token")
    report = run_paper(paper_bars, paper_settings, client)
    client.close()
    assert report.held_without_answer == report.decisions > 0


def test_a_position_is_squared_off_even_when_the_service_dies(
    service: RuleService, client: DecisionClient, paper_bars: Bars, paper_settings: Settings
) -> None:
    service.override = lambda number: None if number < 20 else (503, b"{}")
    report = run_paper(paper_bars, paper_settings, client)
    assert report.position.fills > 0
    assert report.position.units == 0


def spoiled(bars: Bars, at: int) -> Bars:
    high = bars.high.copy()
    high[at] = bars.low[at] * 0.9
    return replace(bars, high=high)


def test_an_impossible_bar_is_skipped_and_never_traded_on(
    service: RuleService, client: DecisionClient, paper_market: Market, paper_settings: Settings
) -> None:
    at = int(paper_market.decision_bars[10])
    report = run_paper(spoiled(paper_market.bars, at), paper_settings, client)
    assert report.skipped_bars == 1
    stamp = int(paper_market.bars.timestamps[at])
    assert not any(request["request_id"].endswith(str(stamp)) for request in service.requests)
    assert all(fill.bar_ns != stamp for fill in fills_of(paper_settings))


def test_if_the_last_bar_of_a_session_is_bad_the_position_goes_at_the_next_open(
    service: RuleService, client: DecisionClient, paper_market: Market, paper_settings: Settings
) -> None:
    model = {"model": "ppo", "model_version": "1", "epoch": 1}
    always_long = {"role": "champion", "account": "champion", "quantity": 5} | model
    service.decision = lambda body: (
        always_long
        | {  # type: ignore[method-assign] # the test's own rule
            "action": 0 if body["accounts"]["champion"]["position"] == 0 else 4
        }
    )
    bars = paper_market.bars
    last = int(np.flatnonzero(bars.first_of_session)[-1]) - 1
    run_paper(spoiled(bars, last), paper_settings, client)
    late = [fill for fill in fills_of(paper_settings) if fill.bar_ns == bars.timestamps[last + 1]]
    assert [(fill.units, fill.price) for fill in late] == [(-5.0, bars.open[last + 1])]


def test_what_could_not_be_done_before_the_night_has_earned_nothing_by_day(
    service: RuleService, client: DecisionClient, paper_market: Market, paper_settings: Settings
) -> None:
    """The last decision of the session wants to go long; its order is cancelled with the session."""
    bars = paper_market.bars
    last = int(np.flatnonzero(bars.first_of_session)[-1]) - 1
    buys = {"action": int(Action.BUY_LONG), "quantity": 5}
    holds = {"action": int(Action.HOLD), "quantity": 1}
    decided = int(bars.timestamps[last - 1])

    def decision(body: dict[str, Any]) -> dict[str, Any]:
        at_last = int(body["request_id"].rsplit(":", 1)[1]) == decided
        model = {"model": "ppo", "model_version": "1", "epoch": 1}
        other = {"role": "challenger", **model, **(buys if at_last else holds)}
        return {"role": "champion", "account": "champion", **model, **(buys if at_last else holds), "shadow": other}

    service.decision = decision  # type: ignore[method-assign] # the test's own rule
    run_paper(spoiled(bars, last), paper_settings, client)
    assert {(one["champion_bps"], one["challenger_bps"]) for one in service.outcomes} == {(0.0, 0.0)}


class Crash(BaseException):
    """Stands for the process's end: nothing may handle it."""


WRITES = {"record_intent", "claim_report", "submit", "fill", "cancel", "hand_over"}


class Budget:
    """Ends the process before or after a write, once its writes are used up."""

    def __init__(self, writes: int, *, before: bool) -> None:
        self.left, self.before = writes, before

    def spend(self, write: Callable[..., object], arguments: tuple[object, ...]) -> object:
        self.left -= 1
        if self.left < 0 and self.before:
            raise Crash
        result = write(*arguments)
        if self.left < 0:
            raise Crash
        return result


class Fragile:
    budget: Budget

    def __getattribute__(self, name: str) -> object:
        found = super().__getattribute__(name)
        return (lambda *arguments: self.budget.spend(found, arguments)) if name in WRITES else found


class FragileLedger(Fragile, Ledger):
    pass


class FragileGateway(Fragile, OrderGateway):
    pass


def incarnation(
    bars: Bars, settings: Settings, client: DecisionClient, life: tuple[Path, Budget | None]
) -> TradeReport | None:
    path, budget = life
    ledger = Ledger(path) if budget is None else FragileLedger(path)
    gateway = (OrderGateway if budget is None else FragileGateway)(ledger, settings.trading)
    if budget is not None:
        ledger.budget = gateway.budget = budget  # type: ignore[attr-defined] # both are Fragile
    try:
        trader = PaperTrader(
            bars.name,
            client,
            PaperBroker(gateway, flat_costs(settings.trading.cost_bps)),
            settings=settings,
            session_bars=30,
        )
        for bar in replay(bars):
            trader.on_bar(bar)
        return trader.summary()
    except Crash:
        return None
    finally:
        ledger.close()


def held_by_challenger(bars: Bars, settings: Settings, client: DecisionClient, service: RuleService) -> int:
    """Let the challenger decide everything, and find a bar in the middle of a session at which it holds something."""
    service.role = lambda _bar_ns: "challenger"
    incarnation(bars, settings, client, (settings.paths.state_dir / "trial.db", None))
    asked = [(int(each["request_id"].rsplit(":", 1)[1]), each["acting"]) for each in service.requests]
    service.requests.clear()
    service.outcomes.clear()
    starts = bars.timestamps[bars.first_of_session]
    minutes = {bar_ns: (bar_ns - starts[starts <= bar_ns].max()) / 60e9 for bar_ns, _ in asked}
    return next(bar_ns for bar_ns, acting in asked[20:] if acting == "challenger" and 40 < minutes[bar_ns] < 60)


def rolled_back_at(bar_ns: int, mode: str, service: RuleService, flatten_after_s: float = 900.0) -> None:
    service.terms = {"mode": mode, "flatten_after_s": flatten_after_s, "flatten_before_close_s": 900.0}
    service.handover = lambda now_ns: service.terms if now_ns >= bar_ns else None
    service.epoch = lambda now_ns: 1 + (now_ns >= bar_ns)


@pytest.mark.parametrize(
    ("mode", "before"), [("adopt", True), ("reduce_only", False), ("flatten", True), ("freeze", False)]
)
def test_crashes_at_every_kind_of_write_change_nothing(
    mode: str,
    before: bool,
    service: RuleService,
    client: DecisionClient,
    paper_bars: Bars,
    paper_settings: Settings,
    tmp_path: Path,
) -> None:
    taken_ns = held_by_challenger(paper_bars, paper_settings, client, service)
    rolled_back_at(taken_ns, mode, service)
    incarnation(paper_bars, paper_settings, client, (paper_settings.paths.state_dir / "paper.db", None))
    undisturbed, outcomes = fills_of(paper_settings), len(service.outcomes)
    budgets, report, lives = random.Random(1), None, 0
    while report is None:
        lives += 1
        budget = Budget(budgets.randint(3, 20), before=before)
        report = incarnation(paper_bars, paper_settings, client, (tmp_path / "crashing.db", budget))
        assert lives < 500
    ledger = Ledger(tmp_path / "crashing.db")
    assert ledger.fills("SYNTHETIC") == undisturbed
    assert ledger.discrepancies() == []
    ledger.close()
    assert lives > 10
    assert len(service.outcomes) - outcomes <= outcomes  # at most once each, whatever was lost on the way


def test_killed_again_and_again_it_ends_with_the_same_fills(
    service: RuleService, client: DecisionClient, paper_bars: Bars, paper_settings: Settings, tmp_path: Path
) -> None:
    run_paper(paper_bars, paper_settings, client)
    expected, decisions = fills_of(paper_settings), len(service.requests)
    killed_state = paper_settings.paths.state_dir.with_name("killed")
    command = [sys.executable, str(Path(__file__).with_name("paper_worker.py")), service.url, str(killed_state)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for target in (15, 40, 65):
        start = len(service.requests)
        with subprocess.Popen([*command, "400"], env=environment) as worker:
            _wait_until(lambda: len(service.requests) >= decisions + target or worker.poll() is not None)  # noqa: B023
            os.kill(worker.pid, signal.SIGKILL)
        assert len(service.requests) > start
    subprocess.run([*command, "10000"], env=environment, check=True, timeout=60)
    assert fills_of(paper_settings.model_copy(update={"paths": _paths(killed_state)})) == expected
    asked = [request["request_id"] for request in service.requests[decisions:]]
    assert len(set(asked)) == decisions
    assert len(asked) <= decisions + 3  # a decision in flight at each kill may be asked again, no other


def _wait_until(condition: object, deadline_s: float = 60.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.002)


def _paths(state_dir: Path) -> object:
    from core.settings import Paths

    return Paths(state_dir=state_dir)


def test_earned_bps_counts_both_legs_and_the_forced_exit(paper_bars: Bars) -> None:
    bar = replace(next(iter(replay(paper_bars))), open=101.0, close=102.0, last_of_session=True)
    assert earned_bps(100.0, bar, (1, -1), 2.0) == pytest.approx(100.0 - 100.0 - 2 * 2.0 - 2.0)
    assert earned_bps(100.0, replace(bar, last_of_session=False), (1, 1), 2.0) == pytest.approx(200.0)


def _assert_wire_format(service: RuleService) -> None:
    request = service.requests[0]
    assert request.keys() == {"symbol", "bars", "complexity", "accounts", "acting", "request_id"}
    assert request["accounts"].keys() == {"champion", "challenger"}
    assert np.shape(request["bars"]) == (60, 6)
    assert service.outcomes[0].keys() == {"symbol", "day", "champion_bps", "challenger_bps"}
