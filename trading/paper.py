"""The paper broker: fills what the gateway accepted, at the prices of the bars it is shown."""

from __future__ import annotations

from trading.costs import CostModel, Side
from trading.gateway import OrderGateway
from trading.ledger import Order
from trading.market import day_of


class PaperBroker:
    """Fills whole orders, charging `cost`."""

    def __init__(self, gateway: OrderGateway, cost: CostModel) -> None:
        self.gateway, self.cost = gateway, cost

    def fill_open_orders(self, symbol: str, price: float, bar_ns: int) -> None:
        """Fill everything ordered at an earlier bar; bars seen again after a restart fill nothing."""
        for order in self.gateway.ledger.open_orders(symbol):
            if order.bar_ns < bar_ns:
                self.fill(order, price, bar_ns)

    def fill(self, order: Order, price: float, bar_ns: int) -> None:
        """Fill an order; one that is filled already stays as it is."""
        side = Side.BUY if order.units > 0 else Side.SELL
        cost = self.cost(day_of(bar_ns)).of(side, price, abs(order.units))
        self.gateway.fill(order.order_id, price, cost, bar_ns)
