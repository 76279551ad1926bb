"""`python -m backend [--port N]`: the backend as a process of its own."""

from __future__ import annotations

import argparse
import signal
import socket
import sys

import structlog
import uvicorn
from fastapi import FastAPI

from backend.app import create_app
from core.errors import ConfigError, HrmSystemError
from core.log import configure_logging
from core.settings import Settings, load_settings
from serving.http import Http

DEFAULT_PORT = 8200
FRAME_BYTES = 16 * 1024  # of what a client sends: one frame, with a ticket and the names of its symbols
ENDING_S = 10  # for requests that are under way when the process is to end
UNREAD_MS = 60_000
SEND_BUFFER_BYTES = 64 * 1024  # of the kernel's: else it takes megabytes before anybody notices

log = structlog.get_logger(__name__)


def run(settings: Settings, port: int = DEFAULT_PORT, host: str | None = None) -> None:
    """Serve on `host`, or `serving.host`, until SIGTERM or SIGINT; port 0 picks a free one.

    In a container of its own it listens elsewhere than where the service is. Raises ConfigError if the port is busy.
    """
    host = host or settings.serving.host
    with _listen(host, port) as listener:
        server = uvicorn.Server(_config(create_app(settings)))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: _end(server))  # before uvicorn has its own, and when it gives them back
        log.info("listening", host=host, port=listener.getsockname()[1])
        server.run(sockets=[listener])


def _end(server: uvicorn.Server) -> None:
    server.should_exit = True


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Http,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=ENDING_S,
        ws="websockets-sansio",
        ws_max_size=FRAME_BYTES,
        ws_ping_timeout=None,  # who does not read is dropped as slow, and counted; who is gone, by TCP_USER_TIMEOUT
        ws_per_message_deflate=False,  # it would press every message once for each client
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be used ({error.strerror}); stop what listens there or give another --port",
            code="port_busy",
        ) from None
    # Connections inherit both: a client that reads nothing is found out soon, and its connection ends.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
    return listener


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m backend", description=__doc__)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--host", help="where to listen; serving.host by default, where it also finds the service")
    arguments = parser.parse_args()
    configure_logging()
    try:
        run(load_settings(), arguments.port, arguments.host)
    except HrmSystemError as error:
        log.error("cannot_start", code=error.code, error=str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
