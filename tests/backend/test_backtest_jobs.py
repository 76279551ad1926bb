"""Backtests as jobs: progress, results, cancelling, a bounded queue, and what a killed process leaves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from signal_model import nifty_bars, publish_signal_follower
from test_backend_app import backend, settings_of

from backend import jobs as module
from backend.backtest_routes import preferred_wait_s
from backend.jobs import FOLDER, MOST_KEPT, MOST_WAITING, Document, Job, Jobs, Progress
from core.errors import DataError, ModelError
from serving import keys
from serving.scopes import Scope

WITHIN_S = 60.0


class Work:
    """A job that goes on until the test lets it, or somebody cancels it."""

    def __init__(self) -> None:
        self.go_on, self.began = threading.Event(), threading.Semaphore(0)

    def __call__(self, request: Document, told: Progress) -> Document:
        told(0, 10)
        self.began.release()
        while not self.go_on.wait(0.01):
            told(5, 10)
        if request.get("fails"):
            raise DataError("no bars", code="unknown_symbol")
        return {"of": request}


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work()
    yield work
    work.go_on.set()


def ended(jobs: Jobs, job: Job) -> Job:
    future = jobs.future(job.id)
    if future is not None:
        future.result(WITHIN_S)
    found = jobs.get(job.id)
    assert found is not None
    return found


def test_a_job_tells_its_progress_and_keeps_its_result_over_a_restart(tmp_path: Path, work: Work) -> None:
    jobs = Jobs(tmp_path, work)
    job = jobs.submit({"n": 1}, "asha")
    assert job.status == "queued"
    assert work.began.acquire(timeout=WITHIN_S)
    going = jobs.get(job.id)
    assert going is not None
    assert (going.status, going.bars) == ("running", 10)
    work.go_on.set()
    over = ended(jobs, job)
    assert (over.status, over.result, over.by) == ("succeeded", {"of": {"n": 1}}, "asha")
    jobs.close()
    assert Jobs(tmp_path, work).get(job.id) == over


def test_a_failure_is_told_as_the_problem_that_it_was(tmp_path: Path, work: Work) -> None:
    jobs = Jobs(tmp_path, work)
    work.go_on.set()
    over = ended(jobs, jobs.submit({"fails": True}, "asha"))
    assert over.status == "failed"
    assert over.problem is not None
    assert (over.problem["status"], over.problem["code"]) == (422, "unknown_symbol")
    jobs.close()


def test_one_is_cancelled_while_it_runs_and_another_before_it_does(tmp_path: Path, work: Work) -> None:
    jobs = Jobs(tmp_path, work)
    running, waiting = jobs.submit({}, "asha"), jobs.submit({}, "asha")
    assert work.began.acquire(timeout=WITHIN_S)
    assert jobs.cancel(waiting.id)
    assert jobs.cancel(running.id)
    assert [ended(jobs, job).status for job in (running, waiting)] == ["cancelled", "cancelled"]
    assert not jobs.cancel(running.id)  # it is over
    assert not jobs.cancel("nothing")
    jobs.close()


def test_the_queue_is_bounded_and_opens_again(tmp_path: Path, work: Work) -> None:
    jobs = Jobs(tmp_path, work)
    queued = [jobs.submit({}, "asha") for _ in range(MOST_WAITING + 1)]
    with pytest.raises(ModelError) as error:
        jobs.submit({}, "asha")
    assert error.value.code == "overloaded"
    jobs.cancel(queued[-1].id)
    work.go_on.set()
    for job in queued:
        ended(jobs, job)
    assert ended(jobs, jobs.submit({}, "asha")).status == "succeeded"
    jobs.close()


def test_a_job_whose_process_died_has_failed_and_says_what_to_do(tmp_path: Path, work: Work) -> None:
    dead = Job("20260101T000000000000-00000000", "asha", {}, "running", "2026-01-01T00:00:00+00:00")
    Jobs(tmp_path, work)._write(dead)  # as one leaves it that is killed
    jobs = Jobs(tmp_path, work)
    found = jobs.get(dead.id)
    assert found is not None
    assert found.status == "failed"
    assert found.problem is not None
    assert found.problem["code"] == "backend_stopped"
    job = jobs.submit({}, "asha")
    other = Jobs(tmp_path, work)  # a second process of this state directory: the lock is somebody's
    told = other.get(job.id)
    assert told is not None
    assert told.status in ("queued", "running")
    with pytest.raises(ModelError, match="another backend"):
        other.submit({}, "asha")
    jobs.close()


def test_only_the_newest_results_are_kept(tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 3)
    assert MOST_KEPT > 3
    jobs = Jobs(tmp_path, work)
    work.go_on.set()
    ids = [ended(jobs, jobs.submit({}, "asha")).id for _ in range(5)]
    assert sorted(file.stem for file in (tmp_path / FOLDER).glob("*.json")) == sorted(ids)[-3:]
    jobs.close()


@pytest.mark.parametrize("job_id", ["", "..", "../../etc/passwd", "20260101T000000000000-0000000g", "x" * 500])
def test_what_is_no_id_names_no_file(tmp_path: Path, work: Work, job_id: str) -> None:
    assert Jobs(tmp_path, work).get(job_id) is None


def test_a_damaged_job_is_said_to_be_one(tmp_path: Path, work: Work) -> None:
    (tmp_path / FOLDER).mkdir()
    name = "20260101T000000000000-00000000"
    (tmp_path / FOLDER / f"{name}.json").write_text('{"id": 7')
    with pytest.raises(DataError, match="delete it"):
        Jobs(tmp_path, work).get(name)


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [
        (None, None),
        ("", None),
        ("respond-async", 0.0),
        ("Respond-Async, Wait=10", 10.0),
        ("wait=7", 7.0),
        ("wait=99999999", 600.0),
        ("wait=-1", None),
        ("wait=nan", None),
        ("handling=lenient", None),
    ],
)
def test_preferences_are_those_of_rfc_7240(prefer: str | None, wait_s: float | None) -> None:
    assert preferred_wait_s(prefer) == wait_s


def test_over_http_a_job_is_asked_for_followed_and_killed_with_its_process(tmp_path: Path) -> None:
    publish_signal_follower(settings_of(tmp_path), "ppo/v1")
    (tmp_path / "data").mkdir()
    nifty_bars().to_csv(tmp_path / "data" / "NIFTY_5.csv", index=False)
    wanted = {"symbol": "NIFTY_5", "start_date": "2023-01-12", "end_date": "2023-01-16"}
    with backend(tmp_path) as (process, listening), client_of(tmp_path, listening) as client:
        answer = client.post("/api/backtest/run", json=wanted, headers={"Prefer": "respond-async"})
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "respond-async"
        over = polled(client, answer.headers["location"])
        assert over["status"] == "succeeded"
        assert over["bars_done"] == over["bars"] == over["result"]["decisions"] > 0
        seed = {"avg_reasoning_depth", "computation_efficiency", "hierarchical_convergence"}
        assert seed <= over["result"]["hrm_metrics"].keys()
        assert client.post("/api/backtest/run", json=wanted).json() == over["result"]
        assert client.delete(answer.headers["location"]).json()["code"] == "job_over"
        assert client.get("/api/backtest/20260101T000000000000-00000000").status_code == 404
        assert client.get("/api/backtest/..%2F..%2Fapi_token").status_code == 404
        long = client.post("/api/backtest/run", json={"symbol": "SYNTHETIC"}, headers={"Prefer": "respond-async"})
        job = long.headers["location"]
        process.kill()
        process.wait()
    with backend(tmp_path) as (_, listening), client_of(tmp_path, listening) as client:
        after = client.get(job).json()
        assert after["status"] in ("failed", "succeeded")  # as fast as this machine is
        if after["status"] == "failed":
            assert after["problem"]["code"] == "backend_stopped"


def test_a_backtest_is_cancelled_by_who_asked_for_it_and_by_nobody_who_only_reads(tmp_path: Path) -> None:
    publish_signal_follower(settings_of(tmp_path), "ppo/v1")
    texts = {name: keys.create(tmp_path, name, (Scope.MODELS_READ,))[1] for name in ("asha", "ravi")}
    with backend(tmp_path) as (_, listening):
        asha, ravi = (client_of(tmp_path, listening, text) for text in texts.values())
        with asha, ravi, client_of(tmp_path, listening) as admin:
            for who, cancelled in ((asha, True), (ravi, False), (admin, True)):
                asked = {"json": {"symbol": "SYNTHETIC"}, "headers": {"Prefer": "respond-async"}}
                job = asha.post("/api/backtest/run", **asked).headers["location"]
                assert ravi.get(job).status_code == 200
                answer = who.delete(job)
                assert (answer.status_code in (202, 409)) == cancelled  # 409: it was over by then
                assert cancelled or answer.json()["code"] == "not_yours"


def client_of(state_dir: Path, listening: dict[str, Any], text: str | None = None) -> httpx.Client:
    headers = {"Authorization": f"Bearer {text or (state_dir / 'api_token').read_text().strip()}"}
    url = f"http://127.0.0.1:{listening['port']}"
    return httpx.Client(base_url=url, headers=headers, timeout=WITHIN_S, trust_env=False)


def polled(client: httpx.Client, location: str) -> dict[str, Any]:
    give_up = time.monotonic() + WITHIN_S
    while True:
        job: dict[str, Any] = json.loads(client.get(location).content)
        if job["status"] not in ("queued", "running"):
            return job
        assert time.monotonic() < give_up, job
        time.sleep(0.05)
