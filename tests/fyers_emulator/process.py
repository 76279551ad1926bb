"""The emulator in a process of its own, with a handle for tests. Needs httpx only."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
CLIENT_ID = "EMULATOR-100"
SECRET = "emulator-secret"
TIMEOUT_S = 30.0


class EmulatorError(AssertionError):
    """The emulator was asked for what it does not do."""


class Emulator:
    """A running emulator. Times in seconds since the epoch, prices in rupees."""

    client_id = CLIENT_ID
    secret = SECRET

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self._http = httpx.Client(base_url=f"{url}/emulator", timeout=TIMEOUT_S, trust_env=False)

    @classmethod
    def start(cls, port: int = 0, environ: Mapping[str, str] | None = None) -> Emulator:
        """Listening when this returns; it ends with this process, whatever happens. `environ` adds variables."""
        command = [sys.executable, "-m", "tests.fyers_emulator", "--port", str(port), "--until-stdin-ends"]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | dict(environ or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        url = process.stdout.readline().strip() if process.stdout else ""
        if not url:
            raise EmulatorError(f"the emulator did not start (exit code {process.wait()}): see its standard error")
        return cls(process, url)

    def stop(self) -> None:
        self._end(self.process.terminate)

    def kill(self) -> None:
        self._end(self.process.kill)

    def _end(self, how: Any) -> None:
        self._http.close()
        how()
        self.process.wait(TIMEOUT_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._answer(self._http.post(f"/{path}", json=body or {}))

    def get(self, path: str, **query: str) -> dict[str, Any]:
        return self._answer(self._http.get(f"/{path}", params=query))

    def _answer(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code != httpx.codes.OK:
            raise EmulatorError(f"{response.request.url.path}: {response.status_code} {response.text}")
        answer: dict[str, Any] = response.json()
        return answer

    def login(self, **more: Any) -> str:
        """A token, as after the browser's part of it."""
        return str(self.post("login", more)["access_token"])

    def ticks(self, prices: Mapping[str, float], at: float | None = None) -> dict[str, Any]:
        """One price of each symbol, in this order; `at` by default now."""
        return self.post("market/ticks", {"ticks": [{"symbol": s, "price": p, "at": at} for s, p in prices.items()]})

    def follow(self, leaders: Mapping[str, Any]) -> None:
        self.post("market/follow", leaders)

    def list(self, symbol: str, **more: Any) -> None:
        self.post("instruments", {"symbol": symbol, **more})

    def history(self, symbol: str, candles: Any) -> None:
        self.post("market/history", {"symbol": symbol, "candles": candles})

    def rules(self, **rules: Any) -> None:
        self.post("rules", rules)

    def clock(self, **clock: float) -> dict[str, Any]:
        """`now` and `speed` (0: it stands still), `skew_s`; without any, what it is."""
        return self.post("clock", clock) if clock else self.get("clock")

    def fault(self, kind: str, **more: Any) -> int | None:
        """Its id; None for what has happened already."""
        fault_id: int | None = self.post("faults", {"kind": kind, **more})["id"]
        return fault_id

    def heal(self) -> None:
        self._answer(self._http.delete("/faults"))

    def book(self, day: str | None = None) -> dict[str, Any]:
        return self.get("book", **({} if day is None else {"day": day}))

    def reset(self) -> None:
        self.post("reset")


@contextmanager
def running(port: int = 0, environ: Mapping[str, str] | None = None) -> Iterator[Emulator]:
    emulator = Emulator.start(port, environ)
    try:
        yield emulator
    finally:
        if emulator.process.poll() is None:
            emulator.stop()
