"""What a rollback takes from the model that it takes away: its open positions, from the ledgers of the state directory.

A symbol leaves its owner with the next decision about it (trading/intents.py), so seconds after a rollback some are
handed over, and the others still wait. Ledgers are read as they are: whoever trades goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from core.errors import HrmSystemError
from trading.ledger import Ledger
from trading.ledger_tables import handovers
from trading.ownership import Owner
from trading.status import LEDGERS


def open_positions(
    state_dir: Path, model: str, epoch: int, mode: Callable[[str], str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of `symbol`, `position` (signed units), `mode`, `ledger` and `owner` by now; and ledgers that say nothing.

    Args:
        model: as name/version, that was taken away.
        epoch: that began with the rollback: earlier hand-overs are others.
        mode: of a symbol that still waits, by its name; what was handed over has its own on record.
    """
    found: list[dict[str, Any]] = []
    problems: list[str] = []
    for name in LEDGERS:
        file = state_dir / name
        if not file.exists():
            continue
        try:
            found += [row | {"ledger": name} for row in _of_ledger(file, model, epoch, mode)]
        except (HrmSystemError, SQLAlchemyError, OSError, ValueError) as error:  # the others are told all the same
            problems.append(f"{name}: {type(error).__name__}: {error}".splitlines()[0])
    return sorted(found, key=lambda row: (row["symbol"], row["ledger"])), problems


def _of_ledger(file: Path, model: str, epoch: int, mode: Callable[[str], str]) -> list[dict[str, Any]]:
    ledger = Ledger(file, as_it_is=True)
    try:
        held = ledger.holdings()  # before the hand-overs: whatever changes hands in between is seen at least once
        with ledger.engine.connect() as connection:
            given = connection.execute(
                sa.select(handovers)
                .where(handovers.c.epoch >= epoch, handovers.c.units != 0)
                .where(handovers.c.from_owner != handovers.c.to_owner)  # the same: a person released the symbol
            ).all()
    finally:
        ledger.close()
    waiting = [(symbol, units, mode(symbol), owner) for (symbol, owner), units in held.items() if _is(owner, model)]
    gone = [(row.symbol, row.units, row.mode, row.to_owner) for row in given if _is(row.from_owner, model)]
    rows = {symbol: (units, how, owner) for symbol, units, how, owner in (*waiting, *gone)}
    return [
        {"symbol": symbol, "position": int(units), "mode": how, "owner": owner}
        for symbol, (units, how, owner) in rows.items()
    ]


def _is(owner: str, model: str) -> bool:
    return Owner.parse(owner).model == model
