"""Scraping without end costs decisions a bounded share of the time, and what is read is soon up to date."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Metric

from serving.exposition import BURST_S, FOLDER_VARIABLE, SHARE, Exposition

COST_S = 0.02


class _Slow:
    """A collector that takes a known time of computing."""

    collected = 0

    def collect(self) -> Iterator[Metric]:
        _Slow.collected += 1
        until = time.thread_time() + COST_S
        while time.thread_time() < until:
            pass
        return iter(())

    def describe(self) -> list[Metric]:
        return []


@pytest.fixture
def registry() -> CollectorRegistry:
    _Slow.collected = 0
    registry = CollectorRegistry()
    registry.register(_Slow())
    return registry


def test_now_and_then_everybody_reads_what_is_so_now(registry: CollectorRegistry) -> None:
    counted = Counter("seen", "", registry=registry)
    exposition = Exposition(registry)
    for number in (1, 2, 3):
        counted.inc()
        assert f"seen_total {number}.0" in exposition.text().decode()


def test_scraping_without_end_takes_its_share_and_no_more(registry: CollectorRegistry) -> None:
    exposition = Exposition(registry)
    began = time.monotonic()
    for _ in range(2_000):
        exposition.text()
    allowed = (BURST_S + SHARE * (time.monotonic() - began)) / COST_S
    assert BURST_S / COST_S <= _Slow.collected <= allowed + 1


def test_after_a_rest_it_is_found_again(registry: CollectorRegistry) -> None:
    counted = Counter("seen", "", registry=registry)
    exposition = Exposition(registry)
    for _ in range(2_000):  # all that it may
        exposition.text()
    counted.inc()
    until = time.monotonic() + 60 * COST_S / SHARE
    while b"seen_total 1.0" not in exposition.text():
        assert time.monotonic() < until, "it is older than it may be"
        time.sleep(COST_S)


def test_a_process_that_may_not_compute_reads_what_another_found_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    one, another = Exposition(CollectorRegistry()), Exposition(CollectorRegistry())
    assert one.text() == b""
    monkeypatch.setattr("serving.exposition.generate_latest", lambda registry: b"later")
    assert another.text() == b"later"
    monkeypatch.setattr("serving.exposition.generate_latest", lambda registry: b"never")
    with (tmp_path / "exposition.lock").open("a") as lock:  # a third one computes, or was stopped while it did
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert one.text() == another.text() == b"later"
