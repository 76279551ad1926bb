"""A decision service on loopback that answers by a rule, for tests of the loop around it.

Runs in a thread of the test and speaks real HTTP; the rule is the same function that the backtest is given.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from core.actions import ACTION_OF, Action

QUANTITY = 37.6
Answer = tuple[int, bytes]


@dataclass(frozen=True)
class RuleDecisions:
    action: np.ndarray
    quantity: np.ndarray
    segments: np.ndarray


def follow_signal(
    _bars: np.ndarray, account: np.ndarray, complexity: np.ndarray, position: np.ndarray
) -> RuleDecisions:
    """Long above +0.3, short below -0.3, else flat; the signal is the first account feature."""
    signal = account[:, 0]
    target = np.where(signal > 0.3, 1, np.where(signal < -0.3, -1, 0))
    action = ACTION_OF[position + 1, target + 1]
    return RuleDecisions(action, QUANTITY + complexity, 1 + (complexity > 0.3).astype(np.int64))


class RuleService:
    """Champion follows the signal, challenger does the opposite of its sign on its own account."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.outcomes: list[dict[str, Any]] = []
        self.authorisations: set[str | None] = set()
        self.role: Callable[[int], str] = lambda _bar_ns: "champion"  # whom a symbol that is flat is routed to
        self.handover: Callable[[int], dict[str, Any] | None] = lambda _bar_ns: None  # given: rolled back
        self.terms: dict[str, Any] = {}
        self.epoch: Callable[[int], int] = lambda _bar_ns: 1
        self.latest_ns = 0  # the bar of the latest question
        self.challenger_version = "v1"
        self.stubborn = False  # a champion after a rollback that always holds, or buys
        self.safe = False  # no model answers after a rollback
        self.override: Callable[[int], Answer | None] = lambda _number: None
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self._send(200, json.dumps({"epoch": service.epoch(service.latest_ns)}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.authorisations.add(self.headers["Authorization"])
                self._send(*service.answer(self.path, body))

            def _send(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign] # clients are killed here
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> RuleService:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        if path == "/v1/outcomes":
            self.outcomes.append(body)
            return 200, b"{}"
        number = len(self.requests)
        self.requests.append(body)
        return self.override(number) or (200, json.dumps(self.decision(body)).encode())

    def decision(self, body: dict[str, Any]) -> dict[str, Any]:
        """Sticky until flat, as the service is: the acting arm keeps the symbol, until it is rolled back."""
        bar_ns = self.latest_ns = int(body["request_id"].rsplit(":", 1)[1])
        epoch, terms = self.epoch(bar_ns), self.handover(bar_ns)
        held = body["acting"] == "challenger"
        arms = {arm: self._arm(arm, body) | {"epoch": epoch} for arm in ("champion", "challenger")}
        if terms is not None:
            told = {"account": "champion", "handover": terms if held else None}
            return self._rolled_back(arms["champion"], body) | told
        acting = arms.pop(body["acting"] or self.role(bar_ns))
        return {**acting, "account": acting["role"], "decision_id": f"d{bar_ns}", "shadow": next(iter(arms.values()))}

    def _rolled_back(self, champion: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        if self.safe:
            hold = {"role": "safe", "action": int(Action.HOLD), "action_name": "HOLD", "quantity": 1.0}
            return champion | hold | {"model": "none", "model_version": "none"}
        if self.stubborn:
            flat = body["accounts"]["champion"]["position"] == 0
            return champion | {"action": int(Action.BUY_LONG if flat else Action.HOLD)}
        return champion

    def _arm(self, arm: str, body: dict[str, Any]) -> dict[str, Any]:
        account = np.array([body["accounts"][arm]["features"]])
        position = np.array([body["accounts"][arm]["position"]])
        if arm == "challenger":
            account = -account
        decided = follow_signal(np.empty(0), account, np.array([body["complexity"]]), position)
        return {
            "role": arm,
            "action": int(decided.action[0]),
            "action_name": Action(int(decided.action[0])).name,
            "quantity": float(decided.quantity[0]),
            "model": {"champion": "ppo", "challenger": "hrm"}[arm],
            "model_version": {"champion": "v1", "challenger": self.challenger_version}[arm],
        }
