"""Where live processes are killed: an exchange, its market in steps, and one desk after the other over one ledger.

The market stands still but for the steps that are made here, and it waits for what is under way: no real market moves a
bar while one call hangs. After each kill nothing may be open twice at the exchange. At the end of each day, with every
fault healed and a process that lives, the ledger must be the exchange's book (benchmarks/live_books.py) and nothing be
held; then comes the broker's night, and the next day.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.live_books import Verdict, all_orders, judged, live_twice
from benchmarks.live_crashes import SLOW, Kill
from benchmarks.live_market import BARS, DAY, Market, index_of, names, start_s, synthetic
from benchmarks.live_victim import Victim, environment, started
from core.errors import BrokerError
from tests.fyers_emulator.process import Emulator
from trading import switch
from trading.instruments import instrument, lot_of
from trading.ledger import Ledger
from trading.manual import ManualTrade, Requests
from trading.market import day_of

SYMBOLS = names(2)
DAYS = 3  # on one ledger
WITHIN_BAR_S = (0.0, 100.0, 200.0, 299.0)
LAST_BAR = 71  # after the bar that squares off
LIFE_S = 12.0  # of trading; then a life that did not get to its point is ended at whatever instant that is
STEP_S = 2.5  # at most, for what follows from a price
WAIT_S = 1.2  # for calls that hang
SETTLE_S = 60.0
WAITING_S, HALTED_S = 0.3, 0.8  # until the second order of a second waits for its turn; until that turn is over
MOST_ENDED = 3  # desks by themselves; then there is nothing to be tried
LOGGED_OUT = 2  # exit code: a person logs in again
NS = 10**9


@dataclass
class Tally:
    """What was seen."""

    verdict: Verdict = field(default_factory=Verdict)
    at_points: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)  # points that a life did not get to
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    restarts_s: list[float] = field(default_factory=list)
    restarts_cpu_s: list[float] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)  # processes that ended by themselves, and should not have

    def add(self, other: Tally) -> None:
        self.verdict.add(other.verdict)
        for mine, theirs in (
            (self.at_points, other.at_points),
            (self.missed, other.missed),
            (self.faults, other.faults),
            (self.counts, other.counts),
        ):
            mine.update(theirs)
        self.restarts_s += other.restarts_s
        self.restarts_cpu_s += other.restarts_cpu_s
        self.ended += other.ended


@dataclass
class Arena:
    """An exchange, its market in steps, and the desk that is killed again and again."""

    emulator: Emulator
    folder: Path
    environ: dict[str, str]
    draw: random.Random
    tally: Tally = field(default_factory=Tally)
    number: int = 0  # of ledgers
    days: int = 0
    day: date = DAY
    at: int = 0  # the next step of the day: four of each bar
    market: Market = field(default_factory=lambda: synthetic(SYMBOLS))
    start_s: float = 3.0  # that the last start took

    @property
    def state_dir(self) -> Path:
        return self.folder / f"state{self.number}"

    @property
    def ledger_file(self) -> Path:
        return self.state_dir / "live.db"

    def open(self) -> None:
        """A new exchange with some days behind it, and a new ledger."""
        self.number, self.days, self.day, self.at = self.number + 1, 1, DAY, 0
        self.market = synthetic(SYMBOLS, seed=self.draw.randrange(10**6))
        self.state_dir.mkdir()
        self.emulator.reset()
        self.emulator.clock(now=float(start_s(0) - 60), speed=0.0)
        self.emulator.post("funds", {"rupees": 1e10})
        for symbol in SYMBOLS:
            self.emulator.history(index_of(symbol), self.market.candles(symbol))

    def live(self, kill: Kill) -> None:
        """Start a process, let it trade, and kill it."""
        if self.at >= 4 * LAST_BAR:
            self.next_day()
        for _ in range(4 * kill.place.bars_missed):
            self._tick()
        self._set_rules(kill.rules)
        crash = {} if kill.point is None else {"HRM_CRASH_AT": f"{kill.point}#{kill.nth}"}
        with self._victim(HRM_TRADING__ORDERS_PER_S=str(kill.place.orders_per_s), **crash) as victim:
            self._until_its_end(victim, kill)
        self._look_at_the_dead(victim, kill)

    def settle(self, *, flat: bool = False) -> None:
        """Everything is healed, a process lives, and the ledger comes to be the book; `flat`: with nothing held."""
        self.emulator.heal()
        self._set_rules({"fill": "arrival", "units_per_fill": None})
        with self._victim() as victim:
            victim.until_trading(SETTLE_S)
            give_up = time.monotonic() + SETTLE_S
            while not (verdict := self._verdict(flat=flat)).clean and time.monotonic() < give_up:
                if self.at < 4 * BARS:
                    self._step(victim)
                time.sleep(0.3)
            victim.kill()
        self.tally.verdict.add(verdict)
        self.tally.counts["days"] += 1
        self.tally.counts.update(self._sizes())

    def next_day(self) -> None:
        """After the close nothing is held: the broker's night, or another exchange."""
        self.settle(flat=True)
        if self.days == DAYS:
            self.count_faults()
            self.open()
            return
        self.emulator.fault("nightly_reset")
        self.tally.faults["nightly_reset"] += 1
        self.day = day_of(int(self.emulator.clock()["now"]) * NS)
        self.days, self.at = self.days + 1, 0

    def count_faults(self) -> None:
        for each in self.emulator.get("faults")["faults"]:
            self.tally.faults[each["kind"]] += each["fired"]

    # one life

    @contextmanager
    def _victim(self, **environ: str) -> Iterator[Victim]:
        more = self.environ | environment(self.emulator, self.state_dir, SYMBOLS) | environ
        with started(self.emulator.client_id, self.state_dir / "live.log", more) as victim:
            yield victim

    def _until_its_end(self, victim: Victim, kill: Kill) -> None:
        due_s = kill.after_s if kill.trading else kill.after_s * self.start_s
        harmed = False
        while victim.code is None:
            if kill.point is None and (victim.trading_s if kill.trading else victim.age_s) >= due_s:
                victim.kill()
            elif victim.trading_s > LIFE_S or victim.age_s > SETTLE_S:
                self.tally.missed[kill.point or "instant"] += 1
                victim.kill()
                return
            elif victim.look():
                if not harmed:
                    harmed = True
                    self._harm(kill)
                self._step(victim, kill)
            time.sleep(0.01)
        if victim.was_killed:
            self.tally.at_points[kill.point or "instant"] += 1

    def _look_at_the_dead(self, victim: Victim, kill: Kill) -> None:
        if switch.read(self.state_dir).state != "active":
            switch.release(self.state_dir, "benchmark", "the next life")
        if victim.ready_s is not None:
            self.start_s = victim.ready_s
            self.tally.restarts_s.append(victim.ready_s)
            self.tally.restarts_cpu_s.append(victim.ready_cpu_s)
        self.tally.counts["kills"] += victim.was_killed
        kinds = {fault["kind"] for fault in kill.faults}
        logged_out = victim.code == LOGGED_OUT and "token_expiry" in kinds
        if logged_out:
            self.tally.counts["logged_out"] += 1
        elif not victim.was_killed:
            self.tally.ended.append(victim.last_words())
            if len(self.tally.ended) == MOST_ENDED:
                raise BrokerError(
                    f"a desk that ends by itself is not to be killed: {self.tally.ended[-1]}", code="desk_stuck"
                )
        if kinds & SLOW:
            time.sleep(WAIT_S)  # what the dead one asked for may still be done
        if self.ledger_file.exists():
            with self._ledger() as ledger:
                self.tally.verdict.duplicate_orders += live_twice(all_orders(ledger), self.emulator.book())

    def _harm(self, kill: Kill) -> None:
        for fault in kill.faults:
            match fault["kind"]:
                case "halt":
                    continue  # once it has orders: see _step
                case "manual_trade":
                    self._trade_by_hand()
                case "request":
                    self._request()
                case "disconnect" | "token_expiry":
                    self.emulator.fault(**fault)
                    self.tally.faults[fault["kind"]] += 1
                case _:
                    self.emulator.fault(**fault)

    def _trade_by_hand(self) -> None:
        traded = instrument("NIFTY").traded_symbol(self.day).replace("NIFTY", self.draw.choice(SYMBOLS))
        units = self.draw.choice((-1, 1)) * lot_of("NIFTY", self.day)
        self.emulator.post("manual-trade", {"symbol": traded, "units": units, "price": 24_000.0})
        self.tally.faults["manual_trade"] += 1

    def _request(self) -> None:
        """A person asks the desk itself."""
        name, symbol, units = f"r{self.draw.randrange(10**9)}", self.draw.choice(SYMBOLS), lot_of("NIFTY", self.day)
        trade = ManualTrade(name, self.ledger_file.name, symbol, units, "benchmark", "to try it", time.time_ns())
        Requests(self.state_dir).ask(trade)
        self.tally.faults["request"] += 1

    # the market

    def _step(self, victim: Victim, kill: Kill | None = None) -> None:
        """The next prices, and time for what follows from them."""
        bar, part = divmod(self.at, 4)
        self._tick()
        if part == 0 and kill is not None and any(fault["kind"] == "halt" for fault in kill.faults):
            self._halt(victim)
        give_up = time.monotonic() + STEP_S
        while time.monotonic() < give_up and victim.code is None:
            if victim.has_settled(start_s(bar - 1, self.day) * NS, len(SYMBOLS) if part == 0 else 0):
                break
            time.sleep(0.02)

    def _halt(self, victim: Victim) -> None:
        """Somebody stops everything while orders wait for their turn, and lets it go on."""
        give_up = time.monotonic() + STEP_S
        while victim.waiting_orders() == 0 and victim.code is None and time.monotonic() < give_up:
            time.sleep(0.01)
        time.sleep(WAITING_S)
        switch.engage(self.state_dir, "halted", "benchmark", "to see it stop")
        self.tally.faults["halt"] += 1
        give_up = time.monotonic() + HALTED_S
        while victim.code is None and time.monotonic() < give_up:
            time.sleep(0.02)
        switch.release(self.state_dir, "benchmark", "seen")

    def _tick(self) -> None:
        """The next prices; after the close there are none, however long a life lasts."""
        if self.at == 4 * BARS:
            return
        bar, part = divmod(self.at, 4)
        at_s = start_s(bar, self.day) + WITHIN_BAR_S[part]
        self.emulator.ticks({index_of(symbol): self.market.path(symbol, bar)[part] for symbol in SYMBOLS}, at=at_s)
        self.at += 1

    def _set_rules(self, rules: dict[str, Any] | None) -> None:
        if rules is not None:
            lots = rules["units_per_fill"]
            self.emulator.rules(**rules | {"units_per_fill": lots and lots * lot_of("NIFTY", self.day)})

    # the books

    @contextmanager
    def _ledger(self) -> Iterator[Ledger]:
        ledger = Ledger(self.ledger_file)
        try:
            yield ledger
        finally:
            ledger.close()

    def _verdict(self, *, flat: bool) -> Verdict:
        with self._ledger() as ledger:
            verdict = judged(ledger, self.emulator.book(), self.day)
            held = [each for each in ledger.positions() if each.units] if flat else []
        verdict.ledger_mismatches += [f"{each.units} of {each.symbol} are held after the close" for each in held]
        return verdict

    def _sizes(self) -> Counter[str]:
        book = self.emulator.book()
        return Counter({"orders": len(book["orders"]), "trades": len(book["trades"])})
