"""`python -m backend [--port N]`: the backend as a process of its own."""

from __future__ import annotations

import argparse
import signal
import socket
import sys

import structlog
import uvicorn

from backend.app import create_app
from core.errors import ConfigError, HrmSystemError
from core.log import configure_logging
from core.settings import Settings, load_settings

DEFAULT_PORT = 8200

log = structlog.get_logger(__name__)


def run(settings: Settings, port: int = DEFAULT_PORT) -> None:
    """Serve on `serving.host` until SIGTERM or SIGINT; port 0 picks a free one. Raises ConfigError if it is busy."""
    with _listen(settings.serving.host, port) as listener:
        app = create_app(settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))  # uvicorn raises it again after its clean shutdown
        log.info("listening", host=settings.serving.host, port=listener.getsockname()[1])
        uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none")).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be used ({error.strerror}); stop what listens there or give another --port",
            code="port_busy",
        ) from None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m backend", description=__doc__)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    arguments = parser.parse_args()
    configure_logging()
    try:
        run(load_settings(), arguments.port)
    except HrmSystemError as error:
        log.error("cannot_start", code=error.code, error=str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
