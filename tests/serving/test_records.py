"""Decision records: what is written is read back, whatever happens to the disk, the process and the bytes."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from core.errors import DataError
from core.settings import Records as RecordsSettings
from serving import records as module
from serving.audit import between, find, find_request, of_ids, read
from serving.record_format import (
    FRAME,
    LENGTH,
    MAGIC,
    Answer,
    BookAnswer,
    BookFacts,
    DecisionFacts,
    InferenceAnswer,
    InferenceFacts,
    Record,
    encode,
    file_name,
)
from serving.records import ARCHIVE, RETRY_S, Records, Turns

SETTINGS = RecordsSettings(retention_days=2, min_free_gb=0.0)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
DAY_S = 86_400.0
numbers = itertools.count()


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def answer(**changes: Any) -> Answer:
    usual = Answer(
        role="champion",
        model="hrm/v1",
        manifest_sha256="a" * 64,
        onnx_sha256="b" * 64,
        provider="CPUExecutionProvider",
        storage="fp32",
        position=-1,
        segment_cap=None,
        action=3,
        quantity=0.1 + 0.2,
        probabilities=(0.0, 1 / 3, 0.0, 2 / 3, 0.0),
        value=-1.5,
        segments=2,
        halt_reason="q_learning_decision",
    )
    return usual.model_copy(update=changes)


def record(writer: Records, **changes: Any) -> Record:
    decision_id, at = writer.new_id()
    usual = DecisionFacts(
        decision_id=decision_id,
        at=at,
        request_id="r",
        symbol="A",
        complexity=0.3,
        epoch=3,
        rung="full",
        deadline_ms=None,
        latency_ms=1.25,
        fallback=False,
        errors={},
        answer=answer(),
    )
    rng = np.random.default_rng(next(numbers))
    arrays = {"bars": rng.normal(size=(4, 2)).astype(np.float32), "account": rng.normal(size=3).astype(np.float32)}
    return Record(usual.model_copy(update=changes), arrays)


def written(writer: Records, n: int = 1, **changes: Any) -> list[Record]:
    records = [record(writer, **changes) for _ in range(n)]
    assert all(writer.write(each) for each in records)
    return records


def same(one: Record, other: Record) -> bool:
    def bits(record: Record) -> list[tuple[str, str, tuple[int, ...], bytes]]:
        return [(name, array.dtype.str, array.shape, array.tobytes()) for name, array in record.arrays.items()]

    return one.facts == other.facts and bits(one) == bits(other)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writer(tmp_path: Path, clock: Clock) -> Iterator[Records]:
    writer = Records(tmp_path / "decisions", SETTINGS, clock)
    yield writer
    writer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "decisions"


def file_of(folder: Path) -> Path:
    (file,) = folder.glob("*.records")
    return file


def test_a_record_is_found_by_its_id_bit_for_bit(writer: Records, folder: Path) -> None:
    first, second = written(writer, 2, shadow=answer(role="challenger", position=1))
    assert same(find(folder, first.facts.decision_id), first)
    assert same(find(folder, second.facts.decision_id), second)


@given(
    text=st.text(min_size=1, max_size=20),
    number=st.floats(allow_nan=False, allow_infinity=False),
    rows=st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=6),
)
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, text: str, number: float, rows: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    writer = Records(folder, SETTINGS)
    made = record(writer, request_id=text, answer=answer(quantity=number, value=-number))
    made.arrays["bars"][0] = rows[:2]  # type: ignore[index]  # the mapping holds arrays
    assert writer.write(made)
    writer.close()
    assert same(find(folder, made.facts.decision_id), made)
    assert [each.facts.request_id for each in find_request(folder, text)] == [text]


def test_ids_are_unique_over_processes_and_sort_by_time(tmp_path: Path, clock: Clock) -> None:
    writers = [Records(tmp_path, SETTINGS, clock) for _ in range(3)]
    ids = []
    for _ in range(200):
        ids += [writer.new_id()[0] for writer in writers]
        clock.now += 0.001
    assert len(set(ids)) == 600
    assert [each[:18] for each in sorted(ids)] == [each[:18] for each in ids]
    assert ids[0].startswith("20261120T120000000-")


def test_a_request_that_was_asked_twice_has_two_records(writer: Records, folder: Path) -> None:
    written(writer, 3, request_id='odd "name"')
    first = written(writer, 1, request_id="odd")
    assert len(find_request(folder, 'odd "name"')) == 3
    assert [each.facts for each in find_request(folder, "odd")] == [first[0].facts]
    assert find_request(folder, "never") == []
    assert find_request(folder / "nowhere", "odd") == []


def test_a_range_of_time_merges_the_processes_and_the_archive(tmp_path: Path, clock: Clock) -> None:
    writers = [Records(tmp_path, SETTINGS, clock) for _ in range(2)]
    for _ in range(10):
        for writer in writers:
            written(writer)
        clock.now += DAY_S / 2
    writers[0].tidy()
    assert list((tmp_path / ARCHIVE).glob("*.records"))
    times = [each.facts.at for each in between(tmp_path, NOON + DAY_S, NOON + 3 * DAY_S)]
    assert times == [NOON + day * DAY_S for day in (1, 1, 1.5, 1.5, 2, 2, 2.5, 2.5)]
    for writer in writers:
        writer.close()


def test_decisions_are_found_by_their_ids_whenever_they_were_made(tmp_path: Path, clock: Clock) -> None:
    writer = Records(tmp_path, SETTINGS, clock)
    made = []
    for _ in range(4):
        made += written(writer, 3)
        clock.now += DAY_S
    writer.close()
    wanted = {each.facts.decision_id for each in made[::2]}
    unknown = {"../../etc/passwd", "d1", "20261120T120000000-aaaaaaaa-00000000"}
    assert {each.facts.decision_id for each in of_ids(tmp_path, wanted | unknown)} == wanted
    assert list(of_ids(tmp_path / "nowhere", wanted)) == []


@pytest.mark.parametrize("unknown", ["../../etc/passwd", "20261120T120000000-aaaaaaaa-00000000", "", "x\n"])
def test_an_id_that_no_record_has_is_an_error_that_says_what_may_be_the_matter(folder: Path, unknown: str) -> None:
    with pytest.raises(DataError, match="decision"):
        find(folder, unknown)


def test_what_is_torn_is_left_out_and_what_follows_is_read(writer: Records, folder: Path) -> None:
    """Every length a kill or a full disk can leave behind, with later records after it and without."""
    whole = written(writer, 2)
    file = file_of(folder)
    before = file.read_bytes()
    torn, after = (encode(record(writer)) for _ in range(2))
    for length in range(len(torn)):
        file.write_bytes(before + torn[:length])
        assert [each.facts for each in read(file)] == [each.facts for each in whole]
    for length in range(1, len(torn), 7):
        file.write_bytes(before + torn[:length] + after)
        with capture_logs() as logs:
            assert len(list(read(file))) == 3
        assert logs[0]["event"] == "records_damaged"
        assert (logs[0]["from_byte"], logs[0]["to_byte"]) == (len(before), len(before) + length)


def test_a_flipped_bit_costs_one_record(writer: Records, folder: Path) -> None:
    written(writer, 3)
    file = file_of(folder)
    data = bytearray(file.read_bytes())
    size = len(data) // 3
    for place in range(size, 2 * size, 11):
        data[place] ^= 1
        file.write_bytes(data)
        with capture_logs():
            assert len(list(read(file))) == 2
        data[place] ^= 1


def test_bytes_that_look_like_a_frame_inside_of_one_are_not_taken_for_it(writer: Records, folder: Path) -> None:
    inner = np.frombuffer(encode(record(writer)).ljust(4096, b"\0"), np.float32)
    made = record(writer)
    assert writer.write(Record(made.facts, {"bars": inner, "account": made.arrays["account"]}))
    assert [each.facts for each in read(file_of(folder))] == [made.facts]
    assert MAGIC in inner.tobytes()


def test_a_record_of_another_version_is_an_error_not_a_guess(folder: Path) -> None:
    known = json.loads(OLD_HEADER)
    for header in ({"format": 3}, known | {"format": 3}, known | {"facts": []}, known | {"dtypes": {"bars": "<c8"}}):
        with pytest.raises(DataError, match="version that wrote it"):
            list(read(framed(folder, json.dumps(header).encode())))
    for kind in ("prophecy", None, [], "book"):  # the facts are a decision's
        facts = known["facts"] | {"kind": kind}
        with pytest.raises(DataError, match="version that wrote it"):
            list(read(framed(folder, json.dumps(known | {"facts": facts}).encode())))


# As it was written before books and inferences were on record, to the letter.
OLD_HEADER = (
    b'{"format":1,"shapes":{"bars":[2,2],"account":[3]},"facts":{"decision_id":"20261120T120000000-aaaaaaaa-00000000",'
    b'"at":1795176000.0,"request_id":"r","symbol":"A","complexity":0.3,"epoch":3,"rung":"full","deadline_ms":null,'
    b'"latency_ms":1.25,"fallback":false,"errors":{},"trace_id":null,"answer":{"role":"champion","model":"hrm/v1",'
    b'"manifest_sha256":"a","onnx_sha256":"b","provider":"CPUExecutionProvider","storage":"fp32","position":-1,'
    b'"segment_cap":null,"action":3,"quantity":0.30000000000000004,"probabilities":[0.0,0.5,0.0,0.5,0.0],"value":-1.5,'
    b'"segments":2,"halt_reason":"q_learning_decision"},"shadow":null}}'
)


def framed(folder: Path, header: bytes, arrays: bytes = bytes(28)) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "20261120-aaaaaaaa.records"
    body = LENGTH.pack(len(header)) + header + arrays
    file.write_bytes(FRAME.pack(MAGIC, len(body), zlib.crc32(body)) + body)
    return file


def test_a_record_of_the_first_format_is_read_as_the_decision_it_is(folder: Path) -> None:
    arrays = np.arange(7, dtype="<f4")
    framed(folder, OLD_HEADER, arrays.tobytes())
    found = find(folder, "20261120T120000000-aaaaaaaa-00000000")
    assert isinstance(found.facts, DecisionFacts)
    assert (found.facts.kind, found.facts.answer.quantity, found.facts.answer.model) == (
        "decision",
        0.1 + 0.2,
        "hrm/v1",
    )
    assert found.arrays["bars"].tolist() == [[0, 1], [2, 3]]
    assert found.arrays["account"].tolist() == [4, 5, 6]


def book(writer: Records) -> Record:
    decision_id, at = writer.new_id()
    origin = answer().model_dump(include={"model", "manifest_sha256", "onnx_sha256", "provider", "storage"})
    kept = BookAnswer(
        **origin, action=(2, 4), target=(1, 0), utility=-0.0, feasible_by="model", segments=3, halt_reason="x"
    )
    facts = BookFacts(
        decision_id=decision_id, at=at, request_id="r", book_id="desk", symbols=("A", "B"), errors={},
        deadline_ms=4.0, latency_ms=1.0, answer=kept,
    )  # fmt: skip
    rng = np.random.default_rng(next(numbers))
    arrays = {"instruments": rng.normal(size=(2, 6)).astype(np.float32), "limits": np.ones(2, np.float32)}
    return Record(facts, arrays | {"probabilities": rng.random((2, 5))})


def inference(writer: Records) -> Record:
    decision_id, at = writer.new_id()
    origin = answer().model_dump(include={"model", "manifest_sha256", "onnx_sha256", "provider", "storage"})
    facts = InferenceFacts(
        decision_id=decision_id, at=at, request_id=None, outputs=("action",), deadline_ms=None, latency_ms=1.0,
        answer=InferenceAnswer(**origin, halt_reason=("x", "y")),
    )  # fmt: skip
    arrays = {"bars": np.ones((2, 3, 1), np.float32), "position": np.array([-(2**62), 2**62]), "value": np.full(2, 0.1)}
    return Record(facts, arrays)


def test_kinds_share_a_file_and_are_read_as_what_they_are_bit_for_bit(writer: Records, folder: Path) -> None:
    made = [book(writer), *written(writer), inference(writer), book(writer)]
    del made[1]
    assert all(writer.write(each) for each in made)
    read_back = list(read(file_of(folder)))
    assert [each.facts.kind for each in read_back] == ["decision", "book", "inference", "book"]
    assert all(same(one, other) for one, other in zip(read_back[1:], made, strict=True))
    assert str(read_back[1].facts.answer.utility) == "-0.0"  # type: ignore[union-attr]  # a book's
    assert [each.facts.kind for each in find_request(folder, "r")] == ["book", "decision", "book"]


def test_an_array_no_reader_would_know_is_refused_before_it_is_written(writer: Records, folder: Path) -> None:
    made = inference(writer)
    for array in (np.ones(2, np.int32), np.array(["text"]), np.ones(2, np.float16), np.array([None])):
        with pytest.raises(TypeError, match="float32, float64 and int64"):
            writer.write(Record(made.facts, {"bars": array}))
    assert not folder.exists()


def test_arrays_of_any_order_and_layout_are_read_back_as_numbers(writer: Records, folder: Path) -> None:
    made = inference(writer)
    numbers = np.arange(6.0).reshape(2, 3)
    odd = {"bars": numbers.astype(">f4").T, "value": numbers.astype(">f8")[:, ::2], "position": np.array(7, ">i8")}
    assert writer.write(Record(made.facts, odd))
    found = find(folder, made.facts.decision_id)
    assert all(np.array_equal(found.arrays[name], array) for name, array in odd.items())
    assert [array.dtype.str for array in found.arrays.values()] == ["<f4", "<f8", "<i8"]


def test_zeros_after_the_first_bytes_of_a_frame_are_no_record(writer: Records, folder: Path) -> None:
    """What a loss of power leaves of a page that never reached the disk: a length and a checksum that agree."""
    whole = written(writer)
    file = file_of(folder)
    file.write_bytes(MAGIC + bytes(4096) + file.read_bytes())
    with capture_logs() as logs:
        assert [each.facts for each in read(file)] == [each.facts for each in whole]
    assert logs[0]["event"] == "records_damaged"


def test_an_empty_file_holds_nothing(folder: Path) -> None:
    folder.mkdir()
    (folder / "20261120-aaaaaaaa.records").touch()
    assert find_request(folder, "r") == []


def test_old_days_are_archived_once_and_told_and_nothing_is_deleted(
    writer: Records, folder: Path, clock: Clock
) -> None:
    (old,) = written(writer)
    clock.now += SETTINGS.retention_days * DAY_S
    writer.tidy()
    assert not list((folder / ARCHIVE).iterdir())  # two days are kept
    clock.now += DAY_S
    (new,) = written(writer)
    with capture_logs() as logs:
        writer.tidy()
        writer.tidy()
    assert [each["event"] for each in logs] == ["records_archived"]
    assert [file.name for file in (folder / ARCHIVE).iterdir()] == [file_name(old.facts.decision_id)]
    assert same(find(folder, old.facts.decision_id), old)
    assert same(find(folder, new.facts.decision_id), new)


def test_a_clock_that_goes_back_over_midnight_loses_nothing(writer: Records, folder: Path, clock: Clock) -> None:
    made = written(writer)
    for step_s in (DAY_S, -DAY_S, DAY_S):
        clock.now += step_s
        made += written(writer)
    assert all(same(find(folder, each.facts.decision_id), each) for each in made)


def test_files_are_for_their_owner_alone(writer: Records, folder: Path) -> None:
    written(writer)
    assert (folder.stat().st_mode & 0o777, file_of(folder).stat().st_mode & 0o777) == (0o700, 0o600)


def unlimited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture
def after_the_pause(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets the seconds pass in which the disk is left alone."""
    times = {"ahead": 0.0}
    now = module.time.monotonic
    monkeypatch.setattr(module.time, "monotonic", lambda: now() + times["ahead"])

    def wait() -> None:
        times["ahead"] += RETRY_S

    return wait


def test_a_full_disk_costs_the_record_and_not_the_decision_and_later_ones_are_written(
    writer: Records, folder: Path, after_the_pause: Callable[[], None]
) -> None:
    """A limit on the size of files: a short write, then an error, as a full disk answers."""
    first = written(writer)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_of(folder).stat().st_size + 100, resource.RLIM_INFINITY))
    try:
        assert not writer.write(record(writer))  # a part of it fits
        after_the_pause()
        assert not writer.write(record(writer))  # nothing fits
    finally:
        unlimited()
        signal.signal(signal.SIGXFSZ, handler)
    assert writer.problem is not None
    assert not writer.write(record(writer))  # the disk is left alone for a moment
    after_the_pause()
    last = written(writer)
    assert writer.problem is None
    with capture_logs():
        assert [each.facts for each in read(file_of(folder))] == [each.facts for each in first + last]


def test_a_folder_that_cannot_be_made_is_a_problem_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "decisions").write_text("in the way")
    writer = Records(tmp_path / "decisions", SETTINGS)
    with capture_logs() as logs:
        assert not writer.write(record(writer))
        writer.tidy()
    assert logs[0]["event"] == "decisions_not_recorded"
    assert "decisions" in str(writer.problem)
    writer.close()


def test_little_room_stops_records_before_the_disk_is_full_and_room_brings_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Records(tmp_path, RecordsSettings(retention_days=2, min_free_gb=1e6))
    written(writer)
    writer.tidy()
    assert "min_free_gb" in str(writer.problem)
    assert not writer.write(record(writer))
    free = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: free._replace(free=10**16))
    writer.tidy()
    assert writer.problem is None
    written(writer)
    writer.close()


def test_a_slow_disk_is_left_alone_for_a_moment(
    writer: Records, monkeypatch: pytest.MonkeyPatch, after_the_pause: Callable[[], None]
) -> None:
    written(writer)
    monkeypatch.setattr(module, "SLOW_S", -1.0)  # every disk is slower than that
    written(writer)
    assert "took" in str(writer.problem)
    assert not writer.write(record(writer))
    monkeypatch.undo()


def test_a_file_that_somebody_removed_is_made_anew(writer: Records, folder: Path) -> None:
    written(writer)
    file_of(folder).unlink()
    writer.tidy()
    (made,) = written(writer)
    assert same(find(folder, made.facts.decision_id), made)


def test_a_sync_that_fails_is_told_and_the_next_one_forgets_it(
    writer: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(writer)

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        writer.tidy()
        assert "input/output error" in str(writer.problem)
        written(writer)  # the kernel still takes it
        assert writer.problem is not None
    writer.tidy()
    assert writer.problem is None


def test_tidying_in_a_thread_disturbs_no_writing(writer: Records, folder: Path, clock: Clock) -> None:
    over = threading.Event()

    def tidy() -> None:
        while not over.is_set():
            writer.tidy()

    thread = threading.Thread(target=tidy)
    thread.start()
    try:
        made = []
        for _ in range(50):
            made += written(writer, 20)
            clock.now += DAY_S / 48  # over a midnight, so that files are closed and opened
    finally:
        over.set()
        thread.join()
    assert len(list(between(folder, NOON, clock.now + 1))) == len(made)


KILLED = """
import sys, threading
from pathlib import Path
from test_records import SETTINGS, record
from serving.records import Records
writer = Records(Path(sys.argv[1]), SETTINGS)
while True:
    made = record(writer)
    assert writer.write(made)
    print(made.facts.decision_id, flush=True)
"""


def test_kill_9_loses_no_record_that_was_reported_written(tmp_path: Path) -> None:
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert child.stdout is not None
        told = [child.stdout.readline().strip() for _ in range(200)]
        child.kill()
        told += [line.strip() for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        child.wait()
        child.stdout.close()
        assert len(told) >= 200
        on_record = {each.facts.decision_id for file in tmp_path.glob("*.records") for each in read(file)}
        assert set(told) <= on_record


def test_records_of_one_turn_are_one_write_and_one_that_cannot_be_kept_fails_alone(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Records(tmp_path, SETTINGS, clock)
    turns, writes = Turns(writer), []
    write = writer.write_frames
    monkeypatch.setattr(writer, "write_frames", lambda frames: (writes.append(len(frames)), write(frames))[1])

    async def story() -> list[object]:
        made = [record(writer) for _ in range(5)]
        made[2] = Record(made[2].facts, {"bars": None})  # type: ignore[dict-item]  # no array
        answers = await asyncio.gather(*(turns.write(each) for each in made), return_exceptions=True)
        assert writes == [4]
        assert await turns.write(made[0])
        return list(answers)

    answers = asyncio.run(story())
    assert [answer for number, answer in enumerate(answers) if number != 2] == [True] * 4
    assert isinstance(answers[2], AttributeError)
    writer.close()
    assert len(list(between(tmp_path, NOON - 1, NOON + 1))) == 5
