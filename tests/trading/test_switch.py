"""Whoever may stop trading can, whatever state the disk is in, and nobody finds less until a person says so."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from core.errors import BrokerError, ConfigError
from trading import switch
from trading.switch import FILE, KILL, LOCK, STRICTER, Switch, engage, read, release

ROUNDS = 60
HOUR_NS = 3600 * 10**9
BEFORE_NS, AFTER_NS = 10**9, 4 * 10**18  # any now lies between


def state(folder: Path) -> str:
    return read(folder).state


def test_where_nothing_was_ever_engaged_trading_is_active(tmp_path: Path) -> None:
    assert read(tmp_path) == Switch("active", "", "", 0)
    assert list(tmp_path.iterdir()) == []


def test_what_is_engaged_says_who_why_and_when_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    before = time.time_ns()
    engaged = engage(tmp_path, "halted", "asha", "the feed shows yesterday")
    assert engaged == read(tmp_path)
    assert (engaged.state, engaged.by, engaged.reason) == ("halted", "asha", "the feed shows yesterday")
    assert before <= engaged.at_ns <= time.time_ns()
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_a_kill_where_nobody_looks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="NOT stopped"):
        engage(tmp_path / "mistyped", "halted", "asha", "")
    assert list(tmp_path.iterdir()) == []


def test_a_weaker_state_never_weakens_a_stronger_one(tmp_path: Path) -> None:
    halted = engage(tmp_path, "halted", "asha", "first")
    assert engage(tmp_path, "reducing", "risk", "daily_loss", until_ns=AFTER_NS) == halted
    assert engage(tmp_path, "halted", "ravi", "second") == halted, "of two halts the first is the cause"


def test_of_two_reductions_the_later_end_stands_and_closing_stays_asked_for(tmp_path: Path) -> None:
    now = time.time_ns()
    engage(tmp_path, "reducing", "risk", "daily_loss", until_ns=now + HOUR_NS)
    later = engage(tmp_path, "reducing", "risk", "daily_loss", until_ns=now + 2 * HOUR_NS)
    assert later.until_ns == now + 2 * HOUR_NS
    assert engage(tmp_path, "reducing", "risk", "daily_loss", until_ns=now + HOUR_NS) == later
    closing = engage(tmp_path, "reducing", "asha", "closing", flatten=True)
    assert (closing.until_ns, closing.flatten, closing.by) == (None, True, "asha")
    assert engage(tmp_path, "reducing", "risk", "daily_loss", until_ns=now + HOUR_NS) == closing


def test_a_reduction_with_an_end_ends_by_itself_and_a_halt_cannot_have_one(tmp_path: Path) -> None:
    over = engage(tmp_path, "reducing", "risk", "daily_loss", until_ns=BEFORE_NS)
    assert (over.state, over.at_ns) == ("active", BEFORE_NS)
    assert "daily_loss" in over.reason
    with pytest.raises(ValueError, match="halted"):
        engage(tmp_path, "halted", "asha", "", until_ns=AFTER_NS)
    with pytest.raises(ValueError, match="halted"):
        engage(tmp_path, "halted", "asha", "", flatten=True)


def test_what_is_over_does_not_count_against_what_is_engaged_now(tmp_path: Path) -> None:
    engage(tmp_path, "reducing", "risk", "yesterday's", until_ns=BEFORE_NS)
    assert engage(tmp_path, "reducing", "risk", "today's", until_ns=AFTER_NS).reason == "today's"


engagements = st.builds(
    lambda how, end, flatten: Switch(how, "", "", 0, *((end, flatten) if how == "reducing" else ())),
    st.sampled_from(STRICTER),
    st.none() | st.integers(0, 100),
    st.booleans(),
)


@given(first=engagements, second=engagements, now_ns=st.integers(0, 100))
def test_what_stands_allows_no_more_than_either_at_any_time_and_in_any_order(
    first: Switch, second: Switch, now_ns: int
) -> None:
    first, second = first.at(now_ns), second.at(now_ns)
    both = switch._stricter(first, second)
    assert switch._stricter(both, second) == both
    assert _facts(both) == _facts(switch._stricter(second, first))
    for later in range(now_ns, 102):
        strictness = [STRICTER.index(each.at(later).state) for each in (first, second, both)]
        assert strictness[2] >= max(strictness[:2])


def _facts(what: Switch) -> tuple[object, ...]:
    return what.state, what.until_ns, what.flatten


def test_anyone_can_halt_with_a_bare_file(tmp_path: Path) -> None:
    (tmp_path / KILL).touch()
    found = read(tmp_path)
    assert (found.state, found.by) == ("halted", KILL)
    assert abs(found.at_ns - time.time_ns()) < 600 * 10**9


def test_a_kill_file_that_is_removed_again_leaves_what_was_engaged_beside_it(tmp_path: Path) -> None:
    (tmp_path / KILL).touch()
    engage(tmp_path, "halted", "asha", "as well")
    (tmp_path / KILL).unlink()
    assert read(tmp_path).by == "asha"


@pytest.mark.parametrize("made", [Path.mkdir, lambda file: file.symlink_to("nowhere")])
def test_whatever_is_named_kill_halts(tmp_path: Path, made: Callable[[Path], None]) -> None:
    made(tmp_path / KILL)
    assert state(tmp_path) == "halted"


VALID = '{"state": "reducing", "by": "a", "reason": "b", "at_ns": 1, "until_ns": null, "flatten": false}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"null",
        b'"active"',
        VALID[:-1].encode(),
        VALID.replace("reducing", "Active").encode(),
        VALID.replace("reducing", "halted").replace("false", "true").encode(),  # closes although nothing may go out
        VALID.replace('"at_ns": 1', '"at_ns": "1"').encode(),
        VALID.replace('"at_ns": 1', '"at_ns": 1.5').encode(),
        VALID.replace('"at_ns": 1', '"at_ns": 1' + 30 * "0").encode(),
        VALID.replace('"by": "a", ', "").encode(),
        VALID.replace("}", ', "more": 1}').encode(),
        VALID.encode() + VALID.encode(),
        b"\xff\xfe" + VALID.encode(),
        b"[" * 100_000,
    ],
)
def test_a_record_that_is_not_a_whole_one_of_ours_is_halted_and_a_person_can_release_it(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / FILE).write_bytes(content)
    found = read(tmp_path)
    assert found.state == "halted"
    assert "cannot be read" in found.reason
    assert release(tmp_path, "asha", "looked at it") == found
    assert state(tmp_path) == "active"


def test_the_record_that_the_others_are_made_from_is_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(VALID)
    assert read(tmp_path) == Switch("reducing", "a", "b", 1)


def test_a_record_that_cannot_be_opened_and_a_directory_that_is_gone_are_halted(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    assert state(tmp_path) == "halted"
    assert state(tmp_path / "gone") == "halted"
    (tmp_path / "file").touch()
    assert state(tmp_path / "file") == "halted"


def test_a_kill_replaces_a_record_that_cannot_be_read_with_its_own(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    assert engage(tmp_path, "reducing", "risk", "daily_loss").state == "halted", "what it said is not known"
    (tmp_path / FILE).write_text("{")
    assert engage(tmp_path, "halted", "asha", "why").by == "asha"


def test_a_release_needs_a_reason_and_says_what_it_lifted(tmp_path: Path) -> None:
    engaged = engage(tmp_path, "halted", "asha", "the feed")
    with pytest.raises(ConfigError, match="--reason"):
        release(tmp_path, "ravi", "  ")
    assert state(tmp_path) == "halted"
    assert release(tmp_path, "ravi", "the feed is back") == engaged
    now = read(tmp_path)
    assert (now.state, now.by, now.reason) == ("active", "ravi", "the feed is back")
    assert release(tmp_path, "ravi", "again").state == "active"


def test_a_release_lifts_the_kill_file_too(tmp_path: Path) -> None:
    (tmp_path / KILL).touch()
    engage(tmp_path, "reducing", "risk", "drawdown")
    assert release(tmp_path, "asha", "looked").by == KILL
    assert state(tmp_path) == "active"
    assert not (tmp_path / KILL).exists()


def test_from_a_halt_a_person_can_close_what_is_held_without_opening_anything(tmp_path: Path) -> None:
    engage(tmp_path, "halted", "asha", "")
    assert release(tmp_path, "asha", "close it", flatten=True).state == "halted"
    now = read(tmp_path)
    assert (now.state, now.flatten, now.until_ns) == ("reducing", True, None)


def test_a_kill_file_that_cannot_be_removed_stands_and_says_so(tmp_path: Path) -> None:
    (tmp_path / KILL).mkdir()
    with pytest.raises(BrokerError, match="by hand") as error:
        release(tmp_path, "asha", "looked")
    assert error.value.code == "switch_unwritable"
    assert state(tmp_path) == "halted"


def test_a_kill_gets_past_somebody_who_holds_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch, "LOCK_WAIT_S", 0.05)
    with (tmp_path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert engage(tmp_path, "reducing", "asha", "").state == "halted", "stricter than asked for, never weaker"
        with pytest.raises(BrokerError, match="held by another process"):
            release(tmp_path, "asha", "looked")
    assert (tmp_path / KILL).exists()
    release(tmp_path, "asha", "looked")
    assert state(tmp_path) == "active"


def test_a_kill_works_where_the_record_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()  # a rename cannot replace it, as on a full disk it could not be written
    engage(tmp_path, "halted", "asha", "why")
    assert (tmp_path / KILL).is_file()
    assert state(tmp_path) == "halted"


def test_a_kill_that_nothing_can_keep_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BrokerError, match="NOT stopped"):
        engage(tmp_path / "file", "halted", "asha", "")


@effort(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(said=st.text(max_size=2_000), by=st.text())
def test_nothing_that_a_person_says_keeps_the_switch_from_being_engaged(tmp_path: Path, said: str, by: str) -> None:
    (tmp_path / FILE).unlink(missing_ok=True)
    found = engage(tmp_path, "halted", by + "\udcff", said + "\udcff")
    assert found == read(tmp_path)
    assert (found.by, found.reason) == ((by + "?")[:500], (said + "?")[:500])
    assert found.state == "halted"
    assert not (tmp_path / KILL).exists()


def test_who_dies_in_the_middle_leaves_no_lock_and_nothing_weaker(tmp_path: Path) -> None:
    engage(tmp_path, "halted", "asha", "")
    program = (
        "import os, pathlib, sys\nfrom trading import switch\n"
        "switch._write = lambda *_: os.kill(os.getpid(), 9)\n"
        "switch.release(pathlib.Path(sys.argv[1]), 'ravi', 'looked')"
    )
    root = str(Path(switch.__file__).parents[1])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": root}
    died = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=False, timeout=60)
    assert died.returncode == -9
    assert state(tmp_path) == "halted"
    release(tmp_path, "ravi", "looked")
    assert state(tmp_path) == "active"
    assert not (tmp_path / KILL).exists()


def test_from_the_moment_a_kill_is_done_no_process_finds_anything_else(tmp_path: Path) -> None:
    """One process engages and releases; others read without pause, and engage what is weaker, all the time.

    `halted` is odd from after `engage` returned until before `release` begins: a read wholly within that time must find
    a halt.
    """
    context = multiprocessing.get_context("spawn")
    halted, stop = context.Value("q", 0), context.Event()
    counts = [context.Value("q", 0) for _ in range(2)]
    others = [context.Process(target=_watch, args=(tmp_path, halted, stop, count)) for count in counts]
    others.append(context.Process(target=_weaken, args=(tmp_path, stop)))
    for each in others:
        each.start()
    try:
        wait_until(lambda: all(count.value for count in counts))
        for _ in range(ROUNDS):
            engage(tmp_path, "halted", "asha", "")
            halted.value += 1
            seen = [count.value for count in counts]
            wait_until(lambda seen=seen: all(now.value > then for now, then in zip(counts, seen, strict=True)))
            halted.value += 1
            release(tmp_path, "asha", "next round")
    finally:
        stop.set()
        for each in others:
            each.join(30)
    assert [each.exitcode for each in others] == [0, 0, 0]
    assert json.loads((tmp_path / FILE).read_text())["state"] in ("active", "reducing")
    assert [file.name for file in tmp_path.iterdir() if file.name not in (FILE, LOCK)] == []


def wait_until(done: Callable[[], bool], within_s: float = 60.0) -> None:
    give_up = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def _watch(folder: Path, halted: Synchronized[int], stop: Event, reads: Synchronized[int]) -> None:
    """Exits with 1 at the first read that finds less than there is."""
    while not stop.is_set():
        before = halted.value
        found = read(folder)
        if before % 2 and before == halted.value:
            assert found.state == "halted", found
        reads.value += 1


def _weaken(folder: Path, stop: Event) -> None:
    while not stop.is_set():
        engage(folder, "reducing", "risk", "daily_loss", until_ns=AFTER_NS)
        time.sleep(0.002)  # a lock is not passed on in turn


def test_threads_of_one_process_wait_for_each_other(tmp_path: Path) -> None:
    engaging = [
        threading.Thread(target=engage, args=(tmp_path, how, "asha", str(number)))
        for number, how in enumerate(["halted", "reducing"] * 8)
    ]
    for each in engaging:
        each.start()
    for each in engaging:
        each.join()
    assert state(tmp_path) == "halted"
    assert not (tmp_path / KILL).exists()
