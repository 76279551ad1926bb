"""`python -m serving [--champion name/version] [--workers N]`: the service as processes of its own."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import ConfigError, HrmSystemError
from core.log import configure_service_logging
from core.settings import Settings, load_settings
from delivery.state_database import place_of
from delivery.store import RolloutStore
from serving import allocator, telemetry, tracing
from serving.app import create_app
from serving.http import Http
from serving.workers import Gate, supervise

log = structlog.get_logger()

SHUTDOWN_S = 5  # for requests in flight after SIGTERM
BACKLOG = 2048
# Longer than clients keep an idle connection (httpx: 5 s), so that the client drops it first and no decision is
# sent into a connection that is just being closed.
KEEP_ALIVE_S = 30
# A thread that comes back from a model's run asks the loop for the interpreter and gets it after so long at most.
# Python's 5 ms are longer than a run: the core stood idle meanwhile.
SWITCH_S = 0.0005


def run(settings: Settings, *, champion: str | None = None) -> None:
    """Serve with `serving.workers` processes until SIGTERM or SIGINT; one worker is this very process.

    Raises ConfigError (busy port, unusable state) or ModelError (a champion that does not load) before serving.
    """
    serving, state_dir = settings.serving, settings.paths.state_dir
    with _bound(serving.host, serving.port) as bound:
        # Made, or found unusable, once and before there are several to do it.
        RolloutStore(place_of(settings), settings.rollout).close()
        host, port = bound.getsockname()[:2]
        log.info("listening", host=host, port=port, state_dir=str(state_dir), workers=serving.workers)
        if serving.workers == 1:
            bound.listen(BACKLOG)
            _serve(settings, champion, bound)
            return
        with telemetry.shared_folder(state_dir, port) as folder:
            _supervise(settings, champion, bound, folder)


def _supervise(settings: Settings, champion: str | None, reserved: socket.socket, folder: Path) -> None:
    """Keep the workers. Nobody listens on `reserved`: it holds the address, each worker has a socket of its own."""
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # bound alone, shared from now on
    host, port = reserved.getsockname()[:2]

    def work(slot: int, gate: Gate) -> None:
        try:
            telemetry.share(folder, slot)
            # One queue for all would give most connections to whoever is first; the kernel deals them out evenly.
            _serve(settings, champion, _bound(host, port, socket.SO_REUSEPORT), gate.wait)
        except HrmSystemError as error:
            gate.fail(error)
            sys.exit(1)

    supervise(work, settings.serving.workers, after_death=lambda slot: telemetry.forget(folder, slot))


def _serve(
    settings: Settings,
    champion: str | None,
    listener: socket.socket,
    opened: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve on `listener` until SIGTERM; `opened` is awaited when all is loaded and before anything is answered."""
    allocator.hold_threshold()
    sys.setswitchinterval(SWITCH_S)
    app = create_app(settings, champion=champion)
    # Our problem handlers and the log's own lines say what matters; uvicorn would add tracebacks to both.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        _around(app, opened),
        http=Http,
        log_config=None,
        access_log=False,
        ws="none",
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    _exit_cleanly_on_signals()
    server = uvicorn.Server(config)
    try:
        server.run(sockets=[listener])
    except SystemExit:  # uvicorn's way to say that start-up failed; ours, after SIGTERM
        if server.started:
            raise
    finally:
        tracing.stop()
    if not server.started:
        raise getattr(app.state, "startup_error", ConfigError("the service did not start; see its log"))


def _around(app: ASGIApp, opened: Callable[[], Awaitable[None]] | None) -> ASGIApp:
    if opened is not None:
        app = _opening(app, opened)
    return tracing.traced(app) if tracing.start() else app


def _opening(app: ASGIApp, opened: Callable[[], Awaitable[None]]) -> ASGIApp:
    """The app, whose start-up is complete only after `opened`: then uvicorn begins to listen."""

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        async def held(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                await opened()
            await send(message)

        await app(scope, receive, held if scope["type"] == "lifespan" else send)

    return waiting


def _exit_cleanly_on_signals() -> None:
    """uvicorn raises the signal again once it has shut down; that must not read as a crash."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))


def _bound(host: str, port: int, *options: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, because asyncio sets TCP_NODELAY only on sockets that say so: without it answers wait 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        for option in (socket.SO_REUSEADDR, *options):
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"serving.host:port {host}:{port} cannot be used ({error.strerror}); stop what listens there "
            f"or set HRM_SERVING__PORT to a free port (0 picks one)"
        ) from None
    return bound


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("--champion", help="name/version; used only while the rollout state names none")
    parser.add_argument("--workers", type=int, help="processes that answer; by default serving.workers")
    parser.add_argument("--book-model", help="name/version of a model of books; by default serving.book_model")
    arguments = parser.parse_args()
    if arguments.book_model is not None:
        os.environ["HRM_SERVING__BOOK_MODEL"] = arguments.book_model
    if arguments.workers is not None:
        os.environ["HRM_SERVING__WORKERS"] = str(arguments.workers)
    configure_service_logging()
    try:
        run(load_settings(), champion=arguments.champion)
    except HrmSystemError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the command line's answer
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
