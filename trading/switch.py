"""The switch that every order passes: whoever may stop trading writes it, whoever sends an order reads it first.

    active     orders go out
    reducing   only orders that make a position smaller; with `flatten` what is held goes at the next price
    halted     nothing but cancels: what the books say may itself be wrong

Two files of the state directory hold it: `trading_state.json` (who, why, since when, until when), which is replaced in
one step, and KILL, which anybody may make with `touch`. What cannot be read is halted. Engaging never weakens what
stands; only a person's release does, and says what it lifted. Times are UTC nanoseconds.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import structlog
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from core.errors import BrokerError, ConfigError
from core.files import write_atomically

State = Literal["active", "reducing", "halted"]
Time = Annotated[int, Field(ge=0, lt=1 << 63)]
STRICTER: tuple[State, ...] = ("active", "reducing", "halted")  # than the one before
FILE, KILL, LOCK = "trading_state.json", "KILL", "trading_state.lock"
LOCK_WAIT_S = 2.0  # for another engagement or release; then KILL is made instead
POLL_S = 0.001
SECOND_NS = 10**9
NOBODY = "nobody"  # halted it: it cannot be read
LONGEST = 500  # characters of a reason that are kept

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Switch:
    """What stands, and who said so. `until_ns` and `flatten` are of reducing alone: a halt ends with a person."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    state: State
    by: str
    reason: str
    at_ns: Time
    until_ns: Time | None = None  # from then on active
    flatten: bool = False  # what is held goes at the next price

    def __post_init__(self) -> None:
        if self.state != "reducing" and (self.until_ns is not None or self.flatten):
            raise ValueError(f"{self.state}: only reducing has an end of its own, or closes what is held")

    def at(self, now_ns: int) -> Switch:
        """What is left of it at that time."""
        if self.until_ns is None or now_ns < self.until_ns:
            return self
        return Switch("active", self.by, f"over: {self.reason}", self.until_ns)


NEVER_ENGAGED = Switch("active", "", "", 0)
_RECORD = TypeAdapter(Switch)


def read(state_dir: Path) -> Switch:
    """What stands now. Never raises; costs some tens of microseconds.

    From the moment `engage` returned, no reader in any process finds less, until a person releases it.
    """
    by_hand = _killed(state_dir)
    return by_hand if by_hand is not None else _recorded(state_dir, time.time_ns())


def engage(
    state_dir: Path,
    state: Literal["reducing", "halted"],
    by: str,
    reason: str,
    *,
    until_ns: int | None = None,
    flatten: bool = False,
) -> Switch:
    """Let at most `state` be possible from now on. Returns what stands: this, or what was stricter already.

    Where that cannot be written, on a full disk or past somebody who holds the lock, KILL is made: stricter than asked
    for, never weaker. Raises BrokerError (`switch_unwritable`) where not even that can be, or there is no such folder.
    """
    wanted = Switch(state, _text(by), _text(reason), time.time_ns(), until_ns, flatten)
    try:
        with _alone(state_dir):
            # Written even if nothing changed: what stood may have been a file that could not be read this once.
            _write(state_dir, _stricter(_recorded(state_dir, wanted.at_ns), wanted))
    except OSError as error:
        _make_kill_file(state_dir)  # before any log: that may be on the same full disk
        log.error("switch_not_written", wanted=asdict(wanted), error=str(error), instead=KILL)
    now = read(state_dir)
    log.info("switch_engaged", wanted=asdict(wanted), stands=asdict(now))
    return now


def release(state_dir: Path, by: str, reason: str, *, flatten: bool = False) -> Switch:
    """A person lifts what stands, whoever engaged it. Returns what that was; `active`: there was nothing to lift.

    Args:
        flatten: not to active: what is held is closed and nothing opened, even if everything was halted.

    Raises ConfigError without a reason (`reason_missing`), BrokerError (`switch_unwritable`) where it cannot be lifted.
    """
    if not reason.strip():
        raise ConfigError("say why trading may go on: --reason 'the feed is back'", code="reason_missing")
    state: State = "reducing" if flatten else "active"
    try:
        with _alone(state_dir):
            lifted = read(state_dir)
            _write(state_dir, Switch(state, _text(by), _text(reason), time.time_ns(), flatten=flatten))
            (state_dir / KILL).unlink(missing_ok=True)  # last: whatever fails before leaves it standing
            _sync(state_dir)
    except OSError as error:
        raise BrokerError(
            f"{error.filename or state_dir}: {error.strerror or error}; nothing was resumed; try again, or "
            f"make {state_dir} writable and remove {KILL} there by hand",
            code="switch_unwritable",
        ) from None
    log.info("switch_released", by=by, reason=reason, lifted=asdict(lifted), to=state)
    return lifted


def facts(switch: Switch) -> dict[str, Any]:
    """As people read it; nobody, and no time, where nobody engaged anything."""
    return {
        "state": switch.state,
        "flatten": switch.flatten,
        "by": switch.by or None,
        "reason": switch.reason or None,
        "since": utc(switch.at_ns or None),
        "until": utc(switch.until_ns),
    }


def utc(at_ns: int | None) -> str | None:
    """A time as documents have it."""
    return None if at_ns is None else datetime.fromtimestamp(at_ns // SECOND_NS, UTC).isoformat()


def _killed(state_dir: Path) -> Switch | None:
    file = state_dir / KILL
    try:
        made = file.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return _unreadable(file, error)
    return Switch("halted", KILL, f"{file} is there", made.st_mtime_ns)


def _recorded(state_dir: Path, now_ns: int) -> Switch:
    """What the record says alone, whether or not there is a KILL file."""
    file = state_dir / FILE
    try:
        record = file.read_bytes()
    except FileNotFoundError as error:
        return NEVER_ENGAGED if state_dir.is_dir() else _unreadable(state_dir, error)
    except OSError as error:
        return _unreadable(file, error)
    try:
        return _RECORD.validate_json(record).at(now_ns)
    except ValidationError as error:
        return _unreadable(file, error.errors(include_url=False, include_input=False)[0]["msg"])


def _unreadable(file: Path, why: OSError | str) -> Switch:
    problem = why if isinstance(why, str) else why.strerror or type(why).__name__
    return Switch("halted", NOBODY, f"{file} cannot be read: {problem}", 0)


def _stricter(before: Switch, wanted: Switch) -> Switch:
    """What allows no more than either: the stricter state; of two alike the later end, and closing if one closes."""
    if before.state != wanted.state:
        return max(before, wanted, key=lambda each: STRICTER.index(each.state))
    if wanted.state == "halted":
        return wanted if before.by == NOBODY else before  # the first one is the cause
    ends = (before.until_ns, wanted.until_ns)
    until_ns = None if None in ends else max(end for end in ends if end is not None)
    flatten = before.flatten or wanted.flatten
    unchanged = (before.until_ns, before.flatten) == (until_ns, flatten)
    return before if unchanged else replace(wanted, until_ns=until_ns, flatten=flatten)


def _text(said: str) -> str:
    """As it can be written down: nothing that a person says may keep the switch from being engaged."""
    return said[:LONGEST].encode(errors="replace").decode()


def _write(state_dir: Path, switch: Switch) -> None:
    write_atomically(state_dir / FILE, _RECORD.dump_json(switch, indent=2) + b"\n", mode=0o600)
    _sync(state_dir)


def _make_kill_file(state_dir: Path) -> None:
    try:
        (state_dir / KILL).touch(mode=0o600)
        _sync(state_dir)
    except OSError as error:
        if os.path.lexists(state_dir / KILL):
            return  # somebody else made it
        raise BrokerError(
            f"{state_dir / KILL}: {error.strerror or error}; trading was NOT stopped: end the trading process, and "
            f"make that file by hand",
            code="switch_unwritable",
        ) from None


def _sync(folder: Path) -> None:
    """What was renamed or removed in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    """One engagement or release at a time, over all processes; who dies lets go. Raises OSError after LOCK_WAIT_S."""
    descriptor = os.open(state_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        give_up = time.monotonic() + LOCK_WAIT_S
        while not _locked(descriptor):
            if time.monotonic() >= give_up:
                raise TimeoutError(f"{state_dir / LOCK} is held by another process")
            time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
