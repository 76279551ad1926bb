"""A decision service for a desk that is to trade all the time: it answers on loopback, by lot, and at once.

What it says follows from the question alone, so that a desk that asks again after a crash is told the same. Nothing is
learned or judged here: it stands in for the service where the desk is the one to be tried.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from core.actions import ACTION_OF

EPOCH = 1
LOTS = (1, 2, 3, 30)  # of an order; the last is more than the exchange takes in one
HOLDS = 0.1  # share of the decisions


def decision(request: dict[str, Any], lot: int) -> dict[str, Any]:
    """Mostly another position than there is, of some lots."""
    draw = random.Random(request["request_id"])
    held = int(request["accounts"]["champion"]["position"])
    target = held if draw.random() < HOLDS else draw.choice([each for each in (-1, 0, 1) if each != held])
    return {
        "role": "champion",
        "account": "champion",
        "model": "ppo",
        "model_version": "v1",
        "epoch": EPOCH,
        "action": int(ACTION_OF[held + 1, target + 1]),
        "quantity": float(lot * draw.choice(LOTS)),
        "decision_id": request["request_id"].replace(":", "-"),
    }


@contextmanager
def deciding(lot: int) -> Iterator[int]:
    """The port on which a service answers, in orders of lots of so many units."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._send({"epoch": EPOCH})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(decision(body, lot) if self.path == "/v1/decisions" else {})

        def _send(self, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing: thousands of questions are not worth a line each."""

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Whoever asked was killed: that is what it is for."""
