"""A real browser on the desk's page, which must ask nobody else, break no rule of the page, and complain of nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
WITHIN_MS = 60_000  # and for ever, if it does not come: machines are busy
REFUSED = "Failed to load resource: the server responded with a status of "  # a browser's own line for every 4xx


@contextmanager
def chromium() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@dataclass
class Seen:
    """What a page did: hosts it asked, and what its console said."""

    hosts: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    def request(self, request: Request) -> None:
        if not request.url.startswith(("data:", "blob:")):
            self.hosts.add(urlsplit(request.url).netloc)

    def console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.said.append(message.text)

    def complaints(self, *expected: str) -> list[str]:
        """Without those that begin with one of `expected`."""
        return [text for text in self.said if not text.startswith(expected)]


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[tuple[Page, Seen]]:
    """The page, not logged in, in a browser profile of its own."""
    context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}} | options)
    page, seen = context.new_page(), Seen()
    page.set_default_timeout(WITHIN_MS)
    page.on("request", seen.request)
    page.on("websocket", lambda socket: seen.hosts.add(urlsplit(socket.url).netloc))
    page.on("console", seen.console)
    page.on("pageerror", lambda error: seen.said.append(str(error)))
    page.goto(f"{url}/dashboard")
    page.wait_for_selector("#login:not([hidden])")
    try:
        yield page, seen
    finally:
        context.close()


def log_in(page: Page, key: str) -> None:
    """By keyboard: the field has the focus."""
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#desk:not([hidden])")


def told(page: Page, selector: str, words: str) -> None:
    """Wait until that element says so."""
    page.wait_for_function(
        "([selector, words]) => document.querySelector(selector)?.textContent.includes(words)", arg=[selector, words]
    )
