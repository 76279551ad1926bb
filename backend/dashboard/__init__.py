"""The desk's page: what trades, who decides, how it thinks, and the buttons that a person on duty needs.

    page.py             the shell: HTML, styles, modules; no data, no credentials
    reference.py        every route in words, without a script
    sessions.py         a browser's cookie stands for a credential that stays in this process
    panel_routes.py     figures and tables, built here with plotly from what is durably on record
    rollout_routes.py   commands, passed on to the inference service as the person who gives them

Why it is built so: docs/adr/0033-dashboard.md.
"""

from __future__ import annotations

from fastapi import FastAPI

from backend.dashboard import page, panel_routes, reference, rollout_routes, session_routes
from backend.dashboard.sessions import SessionCookies, Sessions
from core.settings import Settings


def install(app: FastAPI, settings: Settings) -> None:
    """Add the page to the backend. After the door: what a cookie stands for must be there when the door looks."""
    sessions = Sessions()
    app.add_middleware(SessionCookies, sessions=sessions)
    for routes in (page.router(), reference.router(app), session_routes.router(sessions)):
        app.include_router(routes)
    for router in (panel_routes.router, rollout_routes.router):
        app.include_router(router(settings))
