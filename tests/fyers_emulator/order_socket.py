"""The order socket of one client: JSON, a subscription to orders, trades and positions, ping and pong."""

from __future__ import annotations

import json
from typing import Any

from tests.fyers_emulator.lines import Line

SUBSCRIBED, REFUSED = 1605, -1600


class OrderLine(Line):
    topics: frozenset[str] = frozenset()

    def hear(self, message: str | bytes) -> None:
        if message in ("ping", b"ping"):
            self.tell("pong")
            return
        try:
            wanted = json.loads(message)
            topics = frozenset(map(str, wanted["SLIST"]))
            self.topics = self.topics | topics if wanted["SUB_T"] == 1 else self.topics - topics
        except (ValueError, KeyError, TypeError):
            self.tell(json.dumps({"s": "error", "code": REFUSED, "message": "Invalid input"}))
        else:
            self.tell(json.dumps({"s": "ok", "code": SUBSCRIBED, "message": "Successfully subscribed"}))

    def update(self, topic: str, content: dict[str, Any]) -> None:
        if topic in self.topics:
            self.tell(json.dumps({"s": "ok", topic: content}))
