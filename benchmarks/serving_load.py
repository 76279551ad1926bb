"""A load of HTTP requests from a process of its own (benchmarks/serving_generator.py), each request's own latency.

    closed loop   every connection sends its next request when the last one is answered
    open loop     requests fall due at random instants (Poisson) at a fixed rate, whatever became of the others;
                  one that finds no free connection waits, and its latency counts from when it fell due

Only loopback is loaded, and never longer than asked.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import ONE_THREAD
from core.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
GRACE_S = 60.0  # for the process to start, to connect and to sum up
DRAIN_S = 5.0  # for answers still due when the time is over


@dataclass(frozen=True)
class Load:
    """`requests` are whole HTTP requests, taken in turn. `rate_per_s` None: closed loop. `pid`: whose CPU to count."""

    port: int
    requests: tuple[bytes, ...]
    clients: int
    seconds: float
    host: str = "127.0.0.1"
    warmup_s: float = 1.0
    rate_per_s: float | None = None
    pid: int | None = None

    def to_json(self) -> str:
        requests = [base64.b64encode(each).decode() for each in self.requests]
        return json.dumps(asdict(self) | {"requests": requests})

    @classmethod
    def from_json(cls, text: str) -> Load:
        fields = json.loads(text)
        return cls(**fields | {"requests": tuple(base64.b64decode(each) for each in fields["requests"])})


def request(method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def measured(load: Load) -> dict[str, Any]:
    """`load` from a process of its own: decisions_per_s, latency_ms, errors and more (`_Run.summary` there).

    Raises ConfigError if that process fails: without it nothing is measured.
    """
    if not ipaddress.ip_address(load.host).is_loopback:
        raise ConfigError(f"{load.host}: only a server of this machine is loaded; name a loopback address")
    command = [sys.executable, "-m", "benchmarks.serving_generator"]
    limit_s = load.warmup_s + load.seconds + DRAIN_S + GRACE_S
    environ = dict(os.environ) | ONE_THREAD
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command,
            input=load.to_json(),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environ,
            timeout=limit_s,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"the load generator did not end within {limit_s:g} s; is the machine overloaded?") from None
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"the load generator failed: {error.stderr.strip().splitlines()[-1:]}") from None
    return dict(json.loads(done.stdout))
