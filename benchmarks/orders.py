"""Orders from several processes and threads while epochs change: is one accepted that was stale when it was sent?

The witness knows nothing of the gateway's fence: whoever raises an epoch says so only after it is durable; whoever
sends an order looks first at what has been said. An order older than that and accepted is stale, whatever the reason.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core.settings import load_settings
from trading.gateway import SAME_CLOCK_NS, Accepted, OrderGateway
from trading.ledger import Ledger, Order
from trading.ledger_tables import handovers, orders
from trading.ownership import Handover, Owner

SYMBOLS = tuple(f"SYMBOL{number}" for number in range(40))
OWNERS = ("champion:ppo/v1", "challenger:hrm/v1")
BATCH = 100
THREADS = 2  # of each process
CHANGES = 0.3  # of the epoch, after a batch


@dataclass(frozen=True)
class Said:
    """The highest epoch that was said to be in force, and whose turn it is to say a higher one."""

    epoch: Any  # a 64-bit integer in shared memory; read without a lock, so that readers never wait for a change
    turn: Any


SAID: list[Said] = []  # in a sending process: the one it shares with all others


@dataclass(frozen=True)
class Sender:
    """One thread's part: `orders` of its own, under ids of its own."""

    path: Path
    name: str
    orders: int
    seed: int


def interleaved(folder: Path, *, orders: int, processes: int, seed: int = 0) -> dict[str, Any]:
    """Send `orders` orders among which epochs and owners change; counts, of which `stale_accepted` must be 0."""
    path, started = folder / "orders.db", time.perf_counter()
    Ledger(path).close()
    context = multiprocessing.get_context("spawn")
    said = Said(context.Value("q", 0, lock=False), context.Lock())
    share, rest = divmod(orders, processes)
    parts = [Sender(path, str(n), share + (n < rest), seed + n) for n in range(processes)]
    with ProcessPoolExecutor(processes, context, initializer=_hear, initargs=(said,)) as senders:
        total: Counter[str] = sum(senders.map(_send_all, parts), Counter())
    seconds = round(time.perf_counter() - started, 1)
    found = {"stale_accepted": total["stale_accepted"], "epochs": said.epoch.value, "seconds": seconds}
    return dict(total) | _checked(path) | found


def _hear(said: Said) -> None:
    SAID.append(said)


def _gateway(path: Path) -> OrderGateway:
    """The real one; the exchange's rate is not what is measured."""
    rules = load_settings(preset="compact", environ={}).trading
    return OrderGateway(Ledger(path), rules.model_copy(update={"orders_per_s": 1_000_000}))


def _send_all(sender: Sender) -> Counter[str]:
    share, rest = divmod(sender.orders, THREADS)
    parts = [
        Sender(sender.path, f"{sender.name}.{n}", share + (n < rest), sender.seed + 1000 * n) for n in range(THREADS)
    ]
    gateway = _gateway(sender.path)
    with ThreadPoolExecutor(THREADS) as threads:
        counts = list(threads.map(lambda part: _send(part, gateway), parts))
    gateway.ledger.close()
    return sum(counts, Counter())


def _send(sender: Sender, gateway: OrderGateway) -> Counter[str]:
    chance, count = random.Random(sender.seed), Counter[str]()
    while count["orders"] < sender.orders:
        known = SAID[0].epoch.value
        size = min(chance.choice((1, BATCH)), sender.orders - count["orders"])
        wanted = [_order(f"{sender.name}:{count['orders'] + n}", known, chance) for n in range(size)]
        results = gateway.submit_all(wanted)
        accepted = [order for order, result in zip(wanted, results, strict=True) if isinstance(result, Accepted)]
        count["orders"] += size
        count["accepted"] += len(accepted)
        count["stale_accepted"] += sum(order.epoch is not None and order.epoch < known for order in accepted)
        count.update(f"refused_{result.reason}" for result in results if not isinstance(result, Accepted))
        for order in accepted[:1]:
            count["fills"] += gateway.fill(order.order_id, 100.0, 0.0, 0)
        if chance.random() < CHANGES:
            _change_epoch(gateway, chance)
    return count


def _order(order_id: str, known: int, chance: random.Random) -> Order:
    """Mostly of the epoch that is known, often of an older one; of an arm that owns the symbol, or does not."""
    symbol = chance.choice(SYMBOLS)
    epoch = known - chance.choice((0, 0, 0, 1, 1, 2, 5))
    at_ns = chance.randrange(1_000_000) * SAME_CLOCK_NS
    return Order(order_id, symbol, chance.choice((-2.0, -1.0, 1.0, 2.0)), chance.choice(OWNERS), epoch, at_ns, 0)


def _change_epoch(gateway: OrderGateway, chance: random.Random) -> None:
    """A new epoch; every other one takes a symbol from its owner. It is said when it is durable."""
    with SAID[0].turn:
        epoch, symbol = SAID[0].epoch.value + 1, chance.choice(SYMBOLS)
        if chance.random() < 0.5:
            gateway.raise_fence(epoch)
        else:
            to = Owner.parse(chance.choice(OWNERS))
            gateway.hand_over(Handover(symbol, to, chance.choice(("adopt", "reduce_only", "flatten")), epoch, 0))
        SAID[0].epoch.value = epoch


def _checked(path: Path) -> dict[str, int]:
    """What the ledger itself says: in the order they were accepted, epochs never fall; and everything adds up."""
    ledger = Ledger(path)
    before = sa.func.lag(orders.c.epoch).over(order_by=orders.c.seq)
    pairs = sa.select(orders.c.epoch, before.label("before")).subquery()
    falls = sa.select(sa.func.count()).where(pairs.c.epoch < pairs.c.before)
    with ledger.engine.connect() as connection:
        found = {
            "epochs_fell": connection.execute(falls).scalar_one(),
            "handovers": connection.execute(sa.select(sa.func.count()).select_from(handovers)).scalar_one(),
        }
    found["discrepancies"] = len(ledger.discrepancies())
    ledger.close()
    return found
