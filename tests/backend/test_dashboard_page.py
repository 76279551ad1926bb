"""The desk's page in a real headless Chromium, against a running backend and inference service."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import REFUSED, chromium, log_in, opened, told
from desk_stack import Desk, desk
from playwright.sync_api import Browser, Page, Route
from test_backend_app import backend

from backend.dashboard.page import PANELS
from serving import keys
from serving.scopes import Scope
from trading.switch import read, release

FIGURES = [panel.name for panel in PANELS if not panel.table]
TABLES = [panel.name for panel in PANELS if panel.table]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def running(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    del browser  # without one no desk is needed
    with desk(tmp_path_factory.mktemp("desk")) as running:
        yield running


@pytest.fixture
def page(browser: Browser, running: Desk) -> Iterator[Page]:
    """Logged in with the token that may do everything; nothing is to be complained of."""
    with opened(browser, running.url) as (page, seen):
        log_in(page, running.token)
        told(page, "#phase", str(running.rollout()["phase"]).replace("_", " "))
        yield page
        assert seen.complaints(REFUSED) == []
        assert seen.hosts == {running.url.removeprefix("http://")}


def command(page: Page, name: str, reason: str = "") -> None:
    """By keyboard alone."""
    page.wait_for_selector(f"[data-command={name}]:enabled")
    page.focus(f"[data-command={name}]")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    if reason:
        page.focus("#reason")
        page.keyboard.type(reason)
    page.focus("#command-confirm")
    page.keyboard.press("Enter")


@pytest.mark.slow
def test_a_stranger_sees_a_form_and_nothing_else(browser: Browser, running: Desk) -> None:
    with opened(browser, running.url) as (page, seen):
        assert page.evaluate("document.activeElement.id") == "key"
        assert not page.is_visible("#desk")
        assert not page.is_visible("#kill")
        page.keyboard.type("hrm_wrong_key")
        page.keyboard.press("Enter")
        told(page, "#login-problem", "opens nothing")
        assert "wrong" not in page.url
        assert seen.complaints(REFUSED) == []


def test_whoever_logs_in_sees_every_panel_with_its_age_and_no_other_host_is_asked(page: Page, running: Desk) -> None:
    for name in FIGURES:
        page.wait_for_selector(f"[data-panel={name}] .main-svg", state="attached")
    for name in TABLES:
        page.wait_for_selector(f"[data-panel={name}] tbody tr", state="attached")
    for name in FIGURES + TABLES:
        told(page, f"[data-panel={name}] .age", "as of")
    told(page, "[data-chip=service]", "healthy")
    told(page, "[data-panel=positions] table", "challenger:hrm/v1")
    kept = page.evaluate(
        "[document.cookie, location.href, JSON.stringify(localStorage), document.body.innerHTML].join()"
    )
    assert running.token not in kept
    assert page.evaluate("document.cookie") == ""
    assert {cookie["name"] for cookie in page.context.cookies() if cookie["httpOnly"]} == {"hrm_session"}
    assert page.locator("main h2, dialog h2").count() == len(page.query_selector_all("[aria-labelledby]")) - len(
        TABLES
    ) - len(FIGURES)


@pytest.mark.slow
def test_the_log_is_filtered_by_what_is_typed(page: Page) -> None:
    page.wait_for_selector("[data-panel=log] tbody tr", state="attached")
    page.fill("#log-filter", "no such words")
    told(page, "#log-count", "0 of")
    page.fill("#log-filter", "START")
    page.select_option("#log-source", "rollout")
    shown = page.locator("[data-panel=log] tbody tr:not([hidden])")
    assert shown.count() >= 1
    assert all("start" in text for text in shown.all_inner_texts())


@pytest.mark.slow
def test_a_promotion_by_keyboard_says_what_will_happen_and_is_on_record_with_its_reason(
    page: Page, running: Desk
) -> None:
    page.wait_for_selector("[data-command=promote]:enabled")
    page.focus("[data-command=promote]")
    page.keyboard.press("Enter")
    told(page, "#command-what", "hrm/v1 will decide 5 %")
    assert page.evaluate("document.activeElement.id") == "reason"
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert running.rollout()["weight"] == 0
    command(page, "promote", "shadow looks right")
    told(page, "#weight", "5 %")
    told(page, "[data-panel=log] tbody", "shadow looks right")
    assert running.rollout()["weight"] == 5


@pytest.mark.slow
def test_of_two_pages_the_slower_one_is_told_and_changes_nothing(browser: Browser, page: Page, running: Desk) -> None:
    with opened(browser, running.url) as (other, _):
        log_in(other, running.token)
        other.wait_for_selector("[data-command=pause]:enabled")
        other.focus("[data-command=pause]")
        other.keyboard.press("Enter")
        other.wait_for_selector("dialog[open]")
        command(page, "promote")
        told(page, "#weight", "25 %")
        other.focus("#command-confirm")
        other.keyboard.press("Enter")
        told(other, "#command-problem", "Somebody was faster")
        assert not running.rollout()["paused"]
        told(other, "#weight", "25 %")  # without being asked


@pytest.mark.slow
def test_the_switch_stops_trading_in_one_confirmation_and_a_resume_needs_a_reason(page: Page, running: Desk) -> None:
    folder = running.settings.paths.state_dir
    page.focus("#kill")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # the confirmation has the focus
    told(page, "[data-chip=trading]", "HALTED")
    assert (read(folder).state, read(folder).by) == ("halted", "local")
    page.click("#resume-trading")
    page.click("#command-confirm")
    assert read(folder).state == "halted"  # the browser asks for the reason first
    page.fill("#reason", "the feed is back")
    page.click("#command-confirm")
    told(page, "[data-chip=trading]", "active")
    assert read(folder).state == "active"


@pytest.mark.slow
def test_a_key_that_may_only_look_has_no_buttons(browser: Browser, running: Desk) -> None:
    _, text = keys.create(running.settings.paths.state_dir, "guest", (Scope.ROLLOUT_READ,))
    with opened(browser, running.url) as (page, seen):
        log_in(page, text)
        told(page, "#champion", "ppo/v1")
        assert page.locator("[data-command]:enabled").count() == 0
        assert "rollout:abort" in str(page.get_attribute("[data-command=abort]", "title"))
        assert not page.is_visible("#kill")
        assert seen.complaints(REFUSED) == []


@pytest.mark.slow
def test_a_session_that_is_over_takes_everything_off_the_page(browser: Browser, running: Desk) -> None:
    with opened(browser, running.url) as (page, seen):
        log_in(page, running.token)
        page.wait_for_selector("[data-panel=latency] .main-svg", state="attached")
        page.context.clear_cookies()
        told(page, "#banner", "Your session is over")
        assert not page.is_visible("#desk")
        assert page.locator("tbody tr").count() == 0
        assert seen.complaints(REFUSED) == []


@pytest.mark.slow
def test_a_phone_has_all_of_it_without_scrolling_sideways_and_the_theme_stays(browser: Browser, running: Desk) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "color_scheme": "dark"}
    with opened(browser, running.url, **phone) as (page, seen):
        log_in(page, running.token)
        page.wait_for_selector("[data-panel=complexity] .main-svg", state="attached")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        scheme = "getComputedStyle(document.documentElement).colorScheme"
        assert page.evaluate(scheme) == "dark"
        page.click("#theme")
        page.reload()
        page.wait_for_selector("#desk:not([hidden])")  # the session, too
        assert page.evaluate(scheme) == "light"
        assert seen.complaints(REFUSED) == []


@pytest.mark.slow
def test_an_explanation_that_comes_late_is_not_shown_under_another_decisions_name(page: Page) -> None:
    held: list[Route] = []
    page.route("**/api/explanations/*", lambda route: held.append(route))  # noqa: PLW0108 - playwright writes on what it is given
    for row in range(3):
        if row:
            page.click("#explanation-close")
        page.locator("[data-panel=decisions] button.link").nth(row).click()
        page.wait_for_selector("#explanation[open]")
        told(page, "#explanation-content", "Computed now")
    until = time.monotonic() + 60
    while len(held) < 3 and time.monotonic() < until:
        page.wait_for_timeout(50)
    for number in (2, 0, 1):
        held[number].fulfill(json={"text": f"answer {number}", "figures": {}})
    told(page, "#explanation-content", "answer 2")
    page.evaluate("new Promise((done) => setTimeout(done, 500))")  # the others have come, and are not shown
    assert page.inner_text("#explanation-content") == "answer 2"
    page.click("#explanation-close")


def test_an_abort_from_the_page_takes_the_traffic_at_once(page: Page, running: Desk) -> None:
    page.wait_for_selector("[data-command=abort]:enabled")
    page.focus("[data-command=abort]")
    page.keyboard.press("Enter")
    told(page, "#command-what", "hrm/v1 can never be started again")
    page.keyboard.press("Enter")
    told(page, "#phase", "rolled back")
    stands = running.rollout()
    assert (stands["phase"], stands["weight"], stands["champion"]) == ("rolled_back", 0, "ppo/v1")


@pytest.mark.slow
def test_a_service_that_is_down_is_said_and_what_is_on_record_is_still_shown(browser: Browser, tmp_path: Path) -> None:
    with desk(tmp_path) as running, opened(browser, running.url) as (page, seen):
        log_in(page, running.token)
        told(page, "[data-chip=service]", "healthy")
        running.service.process.kill()
        running.service.process.wait()
        told(page, "[data-chip=service]", "no answer")
        told(page, "#service-problem", "is `hrm serve` running?")
        told(page, "#rollout-age", "the service does not answer")
        assert page.text_content("#challenger") == "hrm/v1"  # as it was said last
        told(page, "[data-panel=positions] table", "BANKNIFTY")
        page.click("[data-command=abort]")
        page.click("#command-confirm")
        told(page, "#command-problem", "nothing was done")
        assert seen.complaints(REFUSED) == []


@pytest.mark.slow
def test_a_backend_that_is_gone_leaves_no_page_that_looks_alive(browser: Browser, running: Desk) -> None:
    folder = running.settings.paths.state_dir
    release(folder, "the test", "a new one")
    port = {"HRM_SERVING__PORT": running.service.url.rpartition(":")[2]}
    with (
        backend(folder, environment=port) as (process, listening),
        opened(browser, f"http://127.0.0.1:{listening['port']}") as (page, _),
    ):
        log_in(page, running.token)
        told(page, "[data-chip=contact]", "ago")
        process.kill()
        process.wait()
        told(page, "#banner", "No contact with the backend")
        assert page.evaluate("document.body.classList.contains('lost')")
        with backend(folder, listening["port"], port):
            told(page, "#banner", "Your session is over")  # it knew of no session; nothing was repeated meanwhile
            log_in(page, running.token)
            told(page, "#champion", "ppo/v1")
            assert not page.evaluate("document.body.classList.contains('lost')")
