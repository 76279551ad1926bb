"""The load is what it says it is, errors are counted, the depths are known, and every part runs on a small model."""

from __future__ import annotations

import itertools
import json
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import peers, serving, serving_model, serving_peers, serving_soak
from benchmarks.peers import Peer
from benchmarks.serving import Plan, plan, run
from benchmarks.serving_generator import answer_in
from benchmarks.serving_goals import judged
from benchmarks.serving_load import Load, measured, request
from benchmarks.serving_model import publish_model, questions
from benchmarks.serving_soak import mixed_requests, slope_mb_per_hour, soak
from benchmarks.serving_targets import Model, _no_orphans, echo, peer
from core.errors import ConfigError, ModelError
from core.settings import Settings
from flows.processes import end
from tests.benchmarks.fixed_keys import fixed
from tests.benchmarks.fixed_keys import measured as measured_keys

DECISION = b'{"action": 4, "segments":2, "role":"champion"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DECISION) + DECISION
REQUEST = request("POST", "/x", b"body", {})

Answer = Callable[[int], bytes | None]  # number of the request -> what is sent back; None hangs up


@contextmanager
def server(answer: Answer, delay_s: float = 0.0, *, hangs_up: bool = False) -> Iterator[int]:
    """A server with a thread per connection that answers each read with `answer(n)`; its port."""
    numbers = itertools.count()

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(65536):
                time.sleep(delay_s)
                said = answer(next(numbers))
                if said is None:
                    return
                self.request.sendall(said)
                if hangs_up:
                    return

    class Server(socketserver.ThreadingTCPServer):
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Connection) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield listening.server_address[1]
        finally:
            listening.shutdown()
            thread.join(10)


def load(port: int, **options: object) -> Load:
    chosen = {"clients": 4, "seconds": 1.0, "warmup_s": 0.2} | options
    return Load(port, (REQUEST,) * 3, **chosen)  # type: ignore[arg-type] # values of several types


@given(st.integers(0, len(OK)), st.booleans())
def test_an_answer_is_whole_or_not_there(cut: int, chunked: bool) -> None:
    whole = OK
    if chunked:
        whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    cut = min(cut, len(whole))
    found = answer_in(whole[:cut])
    assert (found is not None) == (cut == len(whole))
    if found is not None:
        assert found[0] == 200 and (b"abc" in found[1] if chunked else found[1] == DECISION)


def test_an_answer_without_a_body_is_one() -> None:
    assert answer_in(b"HTTP/1.1 204 No Content\r\n\r\n") == (204, b"")


def test_a_closed_loop_keeps_every_client_busy() -> None:
    with server(lambda _: OK, delay_s=0.02) as port:
        found = measured(load(port))
    assert found["errors"] == {} and found["mean_depth"] == 2.0
    assert 0 < found["decisions"] <= 4 * 50  # four clients, each at most once in 20 ms
    assert found["latency_ms"]["p50"] >= 20
    assert found["by_depth_ms"].keys() == {"2"}
    assert found["choices"] == {which: [4, 2] for which in "012"}


def test_an_open_loop_counts_the_wait_of_requests_that_found_no_connection() -> None:
    with server(lambda _: OK, delay_s=0.05) as port:
        found = measured(load(port, clients=1, rate_per_s=100.0))
    assert found["waiting"] > 20  # one client answers 20 of 100 in a second
    assert found["latency_ms"]["max"] > 400  # the last answered fell due long ago, though it was sent 50 ms ago


def test_an_open_loop_keeps_its_rate() -> None:
    with server(lambda _: OK) as port:
        found = measured(load(port, clients=8, rate_per_s=20.0, seconds=3.0))  # so few that a busy machine keeps up
    assert 42 < found["decisions"] < 78 and found["errors"] == {}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "status 503"),
        (b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"role":"safe"}', "held: no model answered"),
        (None, "connection lost"),
    ],
)
def test_what_is_no_decision_is_an_error_and_the_client_goes_on(answer: bytes | None, kind: str) -> None:
    with server(lambda n: answer if n % 2 else OK) as port:
        found = measured(load(port, clients=1))
    assert found["errors"][kind] >= 2
    assert found["decisions"] >= 2


def test_a_request_that_is_never_answered_is_counted() -> None:
    with server(lambda n: OK if n < 10 else b"") as port:
        found = measured(load(port, clients=3))
    assert found["errors"] == {"unanswered": 3}


def test_a_server_that_hangs_up_on_idle_clients_costs_them_a_connection_and_no_answer() -> None:
    with server(lambda _: OK, hangs_up=True) as port:
        found = measured(load(port, clients=1, rate_per_s=6.0, seconds=3.0))  # a hang-up is seen before the next one
    assert found["decisions"] > 5
    assert found["errors"].keys() == {"idle connection lost"}


def test_a_client_that_is_refused_and_hung_up_on_asks_once_at_a_time() -> None:
    refusal = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
    with server(lambda _: refusal, hangs_up=True) as port:
        found = measured(load(port, clients=2))
    assert found["errors"].keys() == {"status 503", "idle connection lost"}


def test_an_answer_that_is_no_http_is_an_error() -> None:
    with server(lambda n: b"nonsense, whatever\r\n\r\n" if n % 2 else OK) as port:
        found = measured(load(port, clients=1))
    assert any("ValueError" in kind for kind in found["errors"]) and found["decisions"] >= 2


def test_only_this_machine_is_loaded() -> None:
    with pytest.raises(ConfigError, match="loopback"):
        measured(load(80, host="192.0.2.1"))


def test_the_generator_costs_little(model: Model) -> None:
    with echo(questions(model.manifest, (1,), 4)) as target:
        found = measured(Load(target.port, target.requests, clients=20, seconds=1.0))
    assert found["errors"] == {} and found["decisions"] > 100
    assert found["client_us"] < 1000


@pytest.fixture(scope="module")
def model(small: Settings, tmp_path_factory: pytest.TempPathFactory) -> Model:
    state_dir = tmp_path_factory.mktemp("serving")
    settings = small.model_copy(update={"paths": small.paths.model_copy(update={"state_dir": state_dir})})
    return Model(settings, publish_model(settings, state_dir / "models", None))


def test_questions_come_in_equal_parts_of_their_depths(model: Model) -> None:
    asked = questions(model.manifest, (1, 3), 40)
    assert sorted(asked.depth.tolist()) == [1] * 20 + [3] * 20
    assert asked.depth.tolist() != sorted(asked.depth.tolist())
    with pytest.raises(ModelError, match="depths must be in"):
        questions(model.manifest, (1, 7), 4)


def test_a_model_of_which_the_depth_is_not_known_is_not_measured(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_model, "MARKER", -serving_model.MARKER)  # read the wrong way round
    with pytest.raises(ModelError, match="longer or shorter"):
        serving_model._prove(model.manifest, model.folder.parent.parent, model.settings)


def test_what_was_not_measured_is_said_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    goal = {"figure": "load.ratio", "goal": "at least 3"}
    serving.table({"goals": [goal | {"value": None, "reached": False}, goal | {"value": 3.14159, "reached": True}]})
    said = capsys.readouterr().out
    assert "not measured" in said and "3.142" in said and "NO" in said


@pytest.mark.slow  # six services, one after the other
def test_every_part_runs_and_says_what_was_reached(small: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "RUNS", 1)
    monkeypatch.setattr(serving, "START_PRESETS", ())
    monkeypatch.setattr(serving, "PINNED_PRESET", small.preset)
    found = run(small, Plan(clients=4, seconds=0.7, parts=("load", "full_depth", "mixed", "start")))
    json.dumps(found, allow_nan=False)
    assert found["load"]["ours"]["agrees_ratio"] == found["load"]["ours_json"]["agrees_ratio"] == 1.0
    assert found["mixed"]["whole_requests"]["agrees_ratio"] == 1.0 and found["mixed"]["ours"]["server_cores"] > 0
    assert found["load"]["ours"]["errors"] == {} and found["load"]["ratio_to_best_peer"] is None
    assert found["full_depth"]["ours"]["mean_depth"] == found["full_depth"]["segments"] == 3
    assert set(found["mixed"]["ours"]["by_depth_ms"]) == {"1", "3"}
    assert measured_keys("serving", found) == set(fixed("serving", found)) - {"peers", "ratio_vs_best_peer"}
    assert found["start"][small.preset]["rss_mb"] > 50
    reached = {goal["figure"]: goal["reached"] for goal in found["goals"]}
    for part in ("load", "full_depth", "mixed"):
        assert reached[f"{part}.ours.error_ratio"], found[part]["ours"]["errors"]
    assert "mixed.shallow_p50_ratio" in reached and "load.ours.decisions_per_s" not in reached  # of `default` only
    serving.table(found)


def test_nobody_s_processors_are_changed_for_good(small: Settings) -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError), serving._on_cores({min(before)}):
        assert os.sched_getaffinity(0) == {min(before)}
        _ = 1 / 0
    assert os.sched_getaffinity(0) == before


def test_a_soak_mixes_everything_and_finds_no_error(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_soak, "CALIBRATION_S", 0.5)
    monkeypatch.setattr(serving_soak, "SAMPLE_S", 0.2)
    found = soak(model, questions(model.manifest, (1, 2, 3), 12), seconds=6.0)
    assert found["errors"] == 0, found["error_kinds"]
    assert found["changes"] >= 2 and found["answers"] > 10
    assert (
        found["slope_mb_per_hour"]["low"] <= found["slope_mb_per_hour"]["slope"] <= found["slope_mb_per_hour"]["high"]
    )
    assert not list((model.settings.paths.state_dir / "models" / "hrm").glob("soak-*"))


def test_the_mix_has_its_shares(model: Model) -> None:
    made = mixed_requests(questions(model.manifest, (1,), 8), model, "token")
    paths = [each.split(b" ")[1].split(b"?")[0].decode() for each in made]
    assert len(made) == 100 and paths.count("/v1/decisions/batch") == 6 and paths.count("/health/ready") == 1


@pytest.mark.parametrize("growth", [0.0, 30.0])
def test_a_leak_is_told_from_noise(growth: float) -> None:
    seconds = np.arange(0.0, 3600.0, 1.0)
    filling = 50 * np.minimum(seconds / 300, 1)  # during the warm-up, which does not count
    noise = np.random.default_rng(0).normal(0, 2, len(seconds))
    found = slope_mb_per_hour(np.column_stack([seconds, 200 + filling + noise + growth * seconds / 3600]))
    assert found["low"] < growth < found["high"]
    assert found["high"] - found["low"] < 6


def test_one_part_runs_and_says_what_was_reached(small: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "RUNS", 1)
    monkeypatch.setattr(serving, "PINNED_PRESET", small.preset)
    found = run(small, Plan(clients=4, seconds=0.5, parts=("full_depth",)))
    json.dumps(found, allow_nan=False)
    assert measured_keys("serving", found) == {"preset", "clients"}
    assert found["full_depth"]["ours"]["mean_depth"] == found["full_depth"]["segments"] == 3
    reached = {goal["figure"]: goal["reached"] for goal in found["goals"]}
    assert reached["full_depth.ours.error_ratio"], found["full_depth"]["ours"]["errors"]


def test_goals_are_those_of_the_machine_and_the_preset() -> None:
    ours = {"decisions_per_s": 999.0, "latency_ms": {"mean": 15.0}, "error_ratio": 0.0}
    found = {"load": {"ours": ours, "ratio_to_best_peer": None}}
    rates = {"load.ours.latency_ms.mean": True, "load.ours.error_ratio": True}
    on_cpu = {row["figure"]: row["reached"] for row in judged(found, "default", gpu=False)}
    assert on_cpu == {"load.ours.decisions_per_s": False} | rates
    assert {row["figure"]: row["reached"] for row in judged(found, "paper_27m", gpu=True)} == rates
    del ours["error_ratio"]  # its part ran and does not say: not reached
    assert not {row["figure"]: row["reached"] for row in judged(found, "default", gpu=False)}["load.ours.error_ratio"]
    assert judged({}, "default", gpu=False) == []


def test_a_part_or_a_format_that_there_is_not_is_told_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="fast: unknown; choose from load"):
        plan(only="load,fast", storage=None)
    with pytest.raises(ConfigError, match="fp1: unknown"):
        plan(only=None, storage="fp1")
    assert plan(only="few", storage="fp16").parts == ("few",)


def test_a_peer_that_cannot_be_installed_is_reported_with_the_reason(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = (tmp_path / "nowhere-1.0-py3-none-any.whl").as_uri()
    monkeypatch.setitem(peers.PEERS, "litserve", Peer("litserve", (nowhere,)))
    asked = questions(model.manifest, (1,), 4)
    trials, best = serving_peers.tuned("litserve", model, asked, clients=2, state_dir=tmp_path)
    assert best is None and len(trials) == 1 and "nowhere" in trials[0]["absent"]


def test_daemons_do_not_outlive_their_server() -> None:
    starts_a_daemon = (
        "import subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'], start_new_session=True);"
        "print(p.pid, flush=True); time.sleep(100)"
    )
    parent = subprocess.Popen([sys.executable, "-c", starts_a_daemon], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    daemon = int(parent.stdout.readline())
    with _no_orphans(parent.pid):
        assert psutil.pid_exists(daemon)
    end(parent)
    parent.stdout.close()
    assert not psutil.pid_exists(daemon)


@pytest.mark.slow
@pytest.mark.parametrize("name", serving_peers.PEER_NAMES)
def test_a_peer_answers_as_our_engine_does(name: str, model: Model, tmp_path_factory: pytest.TempPathFactory) -> None:
    asked = questions(model.manifest, (1, 2, 3), 12)
    tuning, state_dir = serving_peers.TUNINGS[name][0], tmp_path_factory.mktemp("peers")
    with peer(name, model, asked, tuning=tuning, state_dir=state_dir) as served:
        found = measured(Load(served.port, served.requests, clients=4, seconds=2.0))
    assert found["errors"] == {} and [
        choice[1] for _, choice in sorted(found["choices"].items(), key=lambda c: int(c[0]))
    ] == (asked.depth.tolist())
