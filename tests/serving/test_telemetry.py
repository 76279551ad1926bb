"""What is counted, over however many processes, and that counting ends nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_workers import WORKERS, everybody, question, until, with_workers, workers_of

from core.errors import ConfigError
from core.settings import Settings
from flows.service_process import ServiceProcess, service_process
from serving import telemetry
from serving.batcher import Run
from serving.reasoning import Decisions
from serving.telemetry import FILE_BYTES, FILES, Telemetry, share, shared_folder

ROOT = Path(__file__).parent.parent.parent


def samples(text: str, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """The values of one sample name, by its labels."""
    families = text_string_to_metric_families(text)
    found = [sample for family in families for sample in family.samples if sample.name == name]
    return {tuple(sorted(sample.labels.items())): sample.value for sample in found}


def scrape(service: ServiceProcess) -> str:
    answer = httpx.get(f"{service.url}/metrics", trust_env=False, timeout=60)
    assert answer.status_code == 200
    return answer.text


def total(text: str, name: str) -> float:
    return sum(samples(text, name).values())


def ask(service: ServiceProcess, times: int) -> None:
    headers = {"Authorization": f"Bearer {service.token}"}
    with httpx.Client(base_url=service.url, headers=headers, trust_env=False, timeout=60) as client:
        for number in range(times):
            assert client.post("/v1/decisions", json=question(depth=1 + number % 3)).status_code == 200


def test_the_counts_of_all_workers_add_up_under_load_and_over_a_death(settings: Settings) -> None:
    with service_process(with_workers(settings, WORKERS), champion="hrm/v1") as service:
        clients, each = 12, 25
        with ThreadPoolExecutor(clients) as pool:
            work = [pool.submit(ask, service, each) for _ in range(clients)]
            seen = [0.0]
            while not all(done.done() for done in work):
                seen.append(total(scrape(service), "hrm_inference_requests_total"))
            for done in work:
                done.result()
        assert seen == sorted(seen)
        # Whoever scrapes without a pause reads what was found a moment ago.
        until(lambda: total(scrape(service), "hrm_inference_requests_total") == clients * each)
        text = scrape(service)
        arm = (("model", "hrm"), ("role", "champion"), ("version", "v1"))
        assert samples(text, "hrm_inference_requests_total") == {
            (("model", "hrm"), ("outcome", "ok"), ("role", "champion"), ("version", "v1")): clients * each
        }
        for histogram in ("hrm_inference_duration_seconds", "hrm_inference_queue_seconds", "hrm_act_segments"):
            assert samples(text, f"{histogram}_count") == {arm: clients * each}
        depth = sum(1 + number % 3 for number in range(each)) * clients
        assert samples(text, "hrm_act_segments_sum") == {arm: depth}
        assert total(text, "hrm_inference_batch_rows_sum") == depth  # every segment of every row was in some run

        victim = workers_of(service)[0]
        victim.kill()
        until(
            lambda: total(scrape(service), "process_resident_memory_bytes") > 0 and len(workers_of(service)) == WORKERS
        )
        until(lambda: len(samples(scrape(service), "process_resident_memory_bytes")) == WORKERS)
        ask(service, 5)  # and what the dead one counted stays counted
        until(
            lambda: total(scrape(service), "hrm_inference_requests_total") == clients * each + 5
        )  # the dead one's, too


def test_one_process_counts_in_the_same_way(settings: Settings) -> None:
    with service_process(settings, champion="hrm/v1") as service:
        ask(service, 3)
        text = scrape(service)
        assert total(text, "hrm_inference_requests_total") == 3
        (resident,) = samples(text, "process_resident_memory_bytes").values()
        assert resident == pytest.approx(psutil.Process(service.process.pid).memory_info().rss, rel=0.2)
        assert samples(text, "hrm_rollout_phase")[(("phase", "idle"),)] == 1
        assert total(text, "hrm_rollout_state_age_seconds") < 2
        denied = httpx.post(f"{service.url}/v1/decisions", json={}, trust_env=False)
        assert denied.status_code == 401
        assert samples(scrape(service), "hrm_http_refused_total") == {(("code", "unauthorized"),): 1}
        assert not (service.log.parent / "metrics").exists()  # nothing on the disk


def test_the_disk_is_taken_before_it_is_needed(settings: Settings) -> None:
    settings = settings.model_copy(update={"serving": settings.serving.model_copy(update={"workers": 2})})
    with service_process(settings, champion="hrm/v1") as service:
        folder = service.log.parent / "metrics" / service.url.rpartition(":")[2]
        assert sorted(file.name for file in folder.iterdir()) == sorted(
            f"{n}_{slot}.db" for n in FILES for slot in (0, 1)
        )
        for file in folder.iterdir():  # a full disk is met at the start or not at all
            assert file.stat().st_size == FILE_BYTES <= file.stat().st_blocks * 512


def test_the_next_service_on_a_port_starts_from_zero(tmp_path: Path) -> None:
    with shared_folder(tmp_path, 8100) as folder:
        (folder / "counter_0.db").write_bytes(b"left by one that was killed")
        with shared_folder(tmp_path, 8100) as again:
            assert list(again.iterdir()) == []
        assert not again.exists()


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("in the way")
    with pytest.raises(ConfigError, match="no place for metrics"), shared_folder(tmp_path, 8100):
        pass


def test_a_full_disk_is_told_before_anything_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(telemetry.os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match="free the disk"):
        share(tmp_path, 0)


COUNT = """
import sys
from pathlib import Path
from serving import telemetry
folder = Path(sys.argv[1])
telemetry.share(folder, int(sys.argv[2]))
counts = telemetry.Telemetry()
counts.answered("hrm/v1", "champion", fallback=False)
counts.resident.set(int(sys.argv[2]) + 1)
if len(sys.argv) > 3:
    telemetry.forget(folder, 0)
print(counts.exposition.text().decode())
"""


def test_a_place_that_changes_hands_goes_on_counting_and_forgets_the_dead(tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", COUNT, str(tmp_path), *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout

    assert total(run("0"), "hrm_inference_requests_total") == 1
    assert total(run("0"), "hrm_inference_requests_total") == 2
    both = run("1")
    assert total(both, "hrm_inference_requests_total") == 3
    assert set(samples(both, "process_resident_memory_bytes").values()) == {1, 2}
    after = run("1", "forget")
    assert total(after, "hrm_inference_requests_total") == 4
    assert set(samples(after, "process_resident_memory_bytes").values()) == {2}


def run_of(**fields: Any) -> Run:
    decisions = Decisions(
        action=np.array([4]),
        quantity=np.array([1.0]),
        probabilities=np.full((1, 5), 0.2),
        value=np.array([0.0]),
        segments=np.array([2]),
        stable=np.array([True]),
        halt_reason=[fields.pop("halt_reason", "q_halt")],
    )
    made = fields.pop("made", True)
    return Run("hrm/v1", "CPUExecutionProvider", decisions if made else None, 2.0, 1.0, **fields)


def test_what_is_refused_cut_short_or_remembered_is_told_apart() -> None:
    counts = Telemetry()
    counts.ran(run_of(), "champion")
    counts.ran(run_of(halt_reason="deadline_reached"), "champion")
    counts.ran(run_of(cached=True), "champion")
    counts.ran(run_of(made=False, error_code="overloaded"), "champion")
    counts.ran(run_of(made=False, error_code="inference_failed"), "champion")
    text = counts.exposition.text().decode()
    names = ("hrm_inference_shed_total", "hrm_inference_deadline_total", "hrm_inference_cache_hits_total")
    assert [total(text, name) for name in (*names, "hrm_inference_errors_total")] == [1, 1, 1, 1]
    assert total(text, "hrm_inference_duration_seconds_count") == 4  # one that was refused took no time of the model's
    assert total(text, "hrm_act_segments_sum") == 6


def test_two_services_of_one_process_count_apart() -> None:
    one, two = Telemetry(), Telemetry()
    one.answered("hrm/v1", "champion", fallback=True)
    assert total(one.exposition.text().decode(), "hrm_inference_requests_total") == 1
    assert total(two.exposition.text().decode(), "hrm_inference_requests_total") == 0


class Queue:
    """A model's queue, as far as it is watched."""

    def __init__(self, waiting: int) -> None:
        self.waiting, self.thinking = waiting, 1


def test_a_model_that_has_gone_has_nobody_waiting() -> None:
    counts = Telemetry()
    counts.watched({"hrm/v1": Queue(3), "ppo/v1": Queue(0)}, 7)  # type: ignore[dict-item]
    counts.watched({"ppo/v1": Queue(0)}, 9)  # type: ignore[dict-item]
    text = counts.exposition.text().decode()
    assert samples(text, "hrm_inference_pending_requests") == {
        (("model", "hrm"), ("version", "v1")): 0,
        (("model", "ppo"), ("version", "v1")): 1,
    }
    assert total(text, "hrm_log_lines_dropped_total") == 9


def test_versions_that_left_long_ago_are_forgotten_and_the_latest_are_not() -> None:
    counts = Telemetry()

    def series() -> set[str]:
        return set(re.findall(r'version="(v\d+)"', counts.exposition.text().decode()))

    for number in range(20):
        name = f"hrm/v{number}"
        counts.watched({name: Queue(0)}, 0)  # type: ignore[dict-item]
        counts.batch_rows.labels("hrm", f"v{number}").observe(1)
        for role in ("challenger", "shadow"):
            counts.ran(replace(run_of(), model_id=name), role)
            counts.answered(name, role, fallback=False)
    assert series() == {f"v{number}" for number in range(15, 20)}
    counts.watched({"hrm/v3": Queue(0)}, 0)  # type: ignore[dict-item]  # it comes back
    counts.answered("hrm/v3", "challenger", fallback=False)
    assert total(counts.exposition.text().decode(), "hrm_inference_requests_total") == 4 * 2 + 1
    assert "v3" in series()


def test_no_label_names_a_symbol_or_a_request(settings: Settings) -> None:
    with service_process(settings, champion="hrm/v1") as service, everybody(service) as clients:
        clients.decide(symbol="SECRET-SYMBOL")
        assert "SECRET" not in scrape(service)
