"""`python -m serving [--champion name/version]`: the service as a process of its own."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys

import structlog
import uvicorn

from core.errors import ConfigError, HrmSystemError
from core.log import configure_logging
from core.settings import Settings, load_settings
from serving.app import create_app

log = structlog.get_logger()

SHUTDOWN_S = 5  # for requests in flight after SIGTERM
BACKLOG = 2048
# Longer than clients keep an idle connection (httpx: 5 s), so that the client drops it first and no decision is
# sent into a connection that is just being closed.
KEEP_ALIVE_S = 30


def run(settings: Settings, *, champion: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT. One worker: the guard's windows and the router live in its memory.

    Raises ConfigError (busy port, unusable state) or ModelError (a champion that does not load) before serving.
    """
    listener = _listen(settings.serving.host, settings.serving.port)
    with listener:
        app = create_app(settings, champion=champion)
        # Our problem handlers and the lines below log what matters; uvicorn would add tracebacks to both.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        host, port = listener.getsockname()[:2]
        log.info("listening", host=host, port=port, state_dir=str(settings.paths.state_dir))
        _exit_cleanly_on_signals()
        server = uvicorn.Server(config)
        try:
            server.run(sockets=[listener])
        except SystemExit:  # uvicorn's way to say that start-up failed; ours, after SIGTERM
            if server.started:
                raise
        if not server.started:
            raise getattr(app.state, "startup_error", ConfigError("the service did not start; see its log"))


def _exit_cleanly_on_signals() -> None:
    """uvicorn raises the signal again once it has shut down; that must not read as a crash."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, because asyncio sets TCP_NODELAY only on sockets that say so: without it answers wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"serving.host:port {host}:{port} cannot be used ({error.strerror}); stop what listens there "
            f"or set HRM_SERVING__PORT to a free port (0 picks one)"
        ) from None
    return listener


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("--champion", help="name/version; used only while the rollout state names none")
    arguments = parser.parse_args()
    configure_logging()
    try:
        run(load_settings(), champion=arguments.champion)
    except HrmSystemError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the command line's answer
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
