"""nautilus_trader: SMA crossover by market orders. Runs in its own environment (peers.py).

Reads {"arrays", "runs"}; the arrays are open, high, low, close and timestamps (UTC ns), [n] each. Logging is bypassed,
only the engine's run is timed; its own venue fills and charges the orders: the same work, another equity.
"""

import json
import statistics
import sys
import time

import numpy as np
import pandas as pd
from nautilus_trader.backtest.engine import BacktestEngine, BacktestEngineConfig
from nautilus_trader.config import LoggingConfig, StrategyConfig
from nautilus_trader.indicators import SimpleMovingAverage
from nautilus_trader.model.currencies import USD
from nautilus_trader.model.data import Bar, BarType
from nautilus_trader.model.enums import AccountType, OmsType, OrderSide
from nautilus_trader.model.identifiers import InstrumentId, Venue
from nautilus_trader.model.objects import Money
from nautilus_trader.persistence.wranglers import BarDataWrangler
from nautilus_trader.test_kit.providers import TestInstrumentProvider
from nautilus_trader.trading.strategy import Strategy

asked = json.load(sys.stdin)
with np.load(asked["arrays"], allow_pickle=False) as arrays:
    table = pd.DataFrame(
        {name: arrays[name] for name in ("open", "high", "low", "close")},
        index=pd.to_datetime(arrays["timestamps"], utc=True),
    ).round(2)
table["volume"] = 1_000_000.0

VENUE = Venue("SIM")
INSTRUMENT = TestInstrumentProvider.equity(symbol="INDEX", venue="SIM")
BAR_TYPE = BarType.from_str(f"{INSTRUMENT.id}-5-MINUTE-LAST-EXTERNAL")
BARS = BarDataWrangler(BAR_TYPE, INSTRUMENT).process(table)


class CrossoverConfig(StrategyConfig, frozen=True):
    instrument_id: InstrumentId
    bar_type: BarType


class Crossover(Strategy):
    def __init__(self, config: CrossoverConfig) -> None:
        super().__init__(config)
        self.fast, self.slow, self.side = SimpleMovingAverage(20), SimpleMovingAverage(50), None
        self.orders = 0

    def on_start(self) -> None:
        for average in (self.fast, self.slow):
            self.register_indicator_for_bars(self.config.bar_type, average)
        self.subscribe_bars(self.config.bar_type)

    def on_bar(self, bar: Bar) -> None:
        if not self.slow.initialized:
            return
        side = OrderSide.BUY if self.fast.value > self.slow.value else OrderSide.SELL
        if side != self.side:
            units = 1 if self.side is None else 2  # reverse
            quantity = INSTRUMENT.make_qty(units)
            self.submit_order(self.order_factory.market(self.config.instrument_id, side, quantity))
            self.side, self.orders = side, self.orders + 1


def play() -> tuple[float, int]:
    engine = BacktestEngine(BacktestEngineConfig(logging=LoggingConfig(bypass_logging=True)))
    engine.add_venue(
        venue=VENUE,
        oms_type=OmsType.NETTING,
        account_type=AccountType.MARGIN,
        base_currency=USD,
        starting_balances=[Money(100_000_000, USD)],
    )
    engine.add_instrument(INSTRUMENT)
    engine.add_data(BARS)
    strategy = Crossover(CrossoverConfig(instrument_id=INSTRUMENT.id, bar_type=BAR_TYPE))
    engine.add_strategy(strategy)
    started = time.perf_counter()
    engine.run()
    seconds = time.perf_counter() - started
    engine.dispose()
    return seconds, strategy.orders


found = [play() for _ in range(asked["runs"])]
answer = {"bars_per_s": len(BARS) / statistics.median(run[0] for run in found), "orders": found[0][1]}
print(json.dumps(answer))  # noqa: T201 - the answer
