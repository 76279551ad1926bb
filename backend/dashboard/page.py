"""The page itself: a shell that is the same for everybody and holds no data, and the files that it is made of.

All come from this host: the chart library is the one in plotly's wheel. Nothing inline runs; styles may be inline, for
the charts set them on their elements (docs/adr/0033-dashboard.md).
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from serving.scopes import needs

HERE = Path(__file__).parent
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class Shown:
    """A panel's place on the page. `wide` is in twelfths; `table`: no figure."""

    name: str
    title: str
    caption: str
    wide: int
    table: bool = False
    filtered: bool = False


PANELS = (
    Shown("price", "Price and trades", "Bars, with what was bought and sold", 8),
    Shown("equity", "Equity and drawdown", "Champion and challenger on the same ticks", 4),
    Shown("positions", "Positions", "What is held, and whose it is", 12, table=True),
    Shown("timeline", "Rollout", "The challenger's share of the symbols, and every command", 6),
    Shown("verdicts", "Analyses", "What was measured last, and its verdict", 6, table=True),
    Shown("agreement", "Action agreement", "How often both arms chose the same action", 4),
    Shown("actions", "Actions, arm against arm", "Champion in rows, challenger in columns", 4),
    Shown("latency", "Latency", "From question to answer", 4),
    Shown("depth", "Reasoning depth", "Mean segments of a decision", 4),
    Shown("halting", "Why reasoning stopped", "Share of the decisions, over time", 4),
    Shown("complexity", "Depth against complexity", "In tenths of the decisions", 4),
    Shown("decisions", "Decisions", "The newest; each opens its explanation", 12, table=True),
    Shown("log", "Event log", "Rollout, trading and everything refused", 12, table=True, filtered=True),
)


@cache
def environment() -> Environment:
    """Of the templates; whatever is put into one is escaped."""
    folder = FileSystemLoader(HERE / "templates")
    return Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)


@cache
def rendered() -> bytes:
    page = environment().get_template("dashboard.html.j2")
    return page.render(panels=PANELS, digest=digest(), plotly=hashlib.sha256(_plotly()).hexdigest()[:16]).encode()


def router() -> APIRouter:
    """The shell and its small files are for everybody; the library, which is large, for who is logged in."""
    routes = APIRouter(include_in_schema=False)  # files, no API

    @routes.get("/dashboard", response_model=None)
    @needs(None, public=True)
    async def page() -> Response:
        return Response(rendered(), media_type="text/html", headers=HEADERS)

    @routes.get("/dashboard/plotly.js", response_model=None)
    @needs(None)
    async def plotly(request: Request) -> Response:
        headers = HEADERS | {"Cache-Control": "private, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(_plotly(), media_type=KINDS[".js"], headers=headers | {"Content-Encoding": "gzip"})
        return Response(gzip.decompress(_plotly()), media_type=KINDS[".js"], headers=headers)

    for file in sorted((HERE / "static").iterdir()):
        routes.add_api_route(f"/dashboard/static/{file.name}", _served(file), response_model=None)
    return routes


def _served(file: Path) -> Callable[[], Awaitable[Response]]:
    content = file.read_bytes()

    async def endpoint() -> Response:
        return Response(content, media_type=KINDS[file.suffix], headers=HEADERS)

    endpoint.__name__ = file.stem
    return needs(None, public=True)(endpoint)


@cache
def _plotly() -> bytes:
    """Packed once: a quarter of its size."""
    return gzip.compress(get_plotlyjs().encode(), mtime=0)


@cache
def digest() -> str:
    """Of the page's own files: a browser asks for them by it."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted((HERE / "static").iterdir()))).hexdigest()[:16]
