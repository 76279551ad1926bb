"""Settings of live trading: what an order may be, and how the loop deals with feed and broker."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.section import Count, Positive, Ratio, Section


class Risk(Section):
    """Judged before every order by trading/risk.py. Ratios are of `trading.initial_capital`."""

    max_lots: Count = Field(description="of one symbol")
    max_notional_rupees: Positive = Field(description="of one symbol, at its last price")
    max_gross_rupees: Positive = Field(description="of all symbols together")
    collar_bps: float = Field(gt=0, lt=10_000, description="of a limit price, from the last price")
    max_price_age_s: Positive
    margin_ratio: Ratio = Field(description="of an order's value: must be free before it is sent")
    daily_loss_ratio: float = Field(gt=0, le=1, description="then exits only, until the next session")
    drawdown_ratio: float = Field(
        gt=0, le=1, description="from the highest equity; then exits only, until a person resumes"
    )
    undecided_bars: Count = Field(
        description="in a row, that no model decided while something is held; then exits only, until the next session"
    )


class Live(Section):
    broker: Literal["paper", "fyers"] = Field(description="fyers: real orders")
    symbols: tuple[Annotated[str, Field(pattern=r"^[A-Z0-9][A-Z0-9_&-]{0,31}$")], ...] = Field(min_length=1)
    interval_min: Literal[1, 3, 5, 15]
    manual_positions: Literal["leave", "adopt"] = Field(description="what becomes of trades that are not ours")
    flatten_before_square_off_s: float = Field(ge=0)
    order_lifetime_s: Positive = Field(description="then what is not filled is cancelled")
    snapshot_s: Positive = Field(description="between two questions for orders, trades and positions")
    unknown_settle_s: Positive = Field(description="an order that no snapshot shows for so long was never there")
    stale_ticks_s: Positive = Field(description="without a tick inside the session")
    max_clock_skew_s: Positive = Field(description="of this machine against the exchange's times")


class Fyers(Section):
    base_url: str | None = Field(
        default=None,
        pattern=r"^http://(127\.0\.0\.1|localhost):[0-9]{1,5}$",
        description="of an emulator; only loopback, so that a token goes nowhere else",
    )
