"""What a process does when the durable state is out of sight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from test_decisions import command, question, serve, to_canary, until

from core.errors import RolloutError
from core.settings import Settings
from serving import follow
from serving.decisions import decide
from serving.follow import Follower
from serving.rollout import RolloutStore
from serving.service import Service
from serving.transitions import Change, Command


def follow_while(
    file: Path, condition: Callable[[Follower], bool], sync: Callable[[], None] = lambda: None
) -> Follower:
    async def run() -> Follower:
        async def synced() -> None:
            sync()

        follower = Follower(file, synced)
        task = asyncio.get_running_loop().create_task(follower.run())
        await until(lambda: condition(follower))
        task.cancel()
        return follower

    return asyncio.run(run())


def test_a_commit_of_another_connection_is_seen_and_only_that(settings: Settings, tmp_path: Path) -> None:
    store = RolloutStore(tmp_path / "rollout.db", settings.rollout)
    calls: list[float] = []

    def enough(_: Follower) -> bool:
        if len(calls) == 1:
            store.apply(Change(Command.INSTALL, time.time(), champion="ppo/v1"))
        return len(calls) == 2

    follow_while(tmp_path / "rollout.db", enough, lambda: calls.append(time.monotonic()))
    store.close()


def test_a_change_whose_reading_failed_is_read_again(settings: Settings, tmp_path: Path) -> None:
    RolloutStore(tmp_path / "rollout.db", settings.rollout).close()
    calls: list[int] = []

    def fails_twice() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise RolloutError("disk I/O error", code="state_not_durable")

    with structlog.testing.capture_logs() as lines:
        follow_while(tmp_path / "rollout.db", lambda _: len(calls) == 3, fails_twice)
    assert [line["event"] for line in lines] == ["rollout_state_unreadable"]  # once, not every 50 ms


def test_who_cannot_read_is_blind_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "BLIND_AFTER_S", 0.2)
    (tmp_path / "rollout.db").write_bytes(b"no database, and longer than its header would be" * 99)
    follower = follow_while(tmp_path / "rollout.db", lambda follower: follower.blind)
    assert follower.age_s > 0.2


def test_a_blind_service_gives_its_challenger_no_traffic_until_it_sees_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(service: Service) -> None:
        await to_canary(service, "hrm/v1")
        assert (await decide(service, question())).role == "challenger"
        monkeypatch.setattr(Follower, "blind", property(lambda _: True))
        assert (await decide(service, question())).role == "champion"
        monkeypatch.undo()
        assert (await decide(service, question())).role == "challenger"

    serve(settings, story)


def test_a_candidate_that_does_not_load_here_is_rolled_back_for_all(settings: Settings) -> None:
    """Two services on one state, as two workers: one has started a challenger whose file is gone for the other."""

    async def story(one: Service) -> None:
        two = Service(settings, None)
        await two.open()
        try:
            folder = settings.paths.state_dir / "models/hrm/v1"
            await command(one, "start", challenger="hrm/v1")
            (folder / "model.onnx").write_bytes(b"tampered")
            await until(lambda: one.live.state.latched and two.live.state.latched)
            assert one.live.state.rejected == ("hrm/v1",)
            assert (await decide(two, question())).model == "ppo"
        finally:
            await two.close()

    serve(settings, story)


def test_a_model_promoted_elsewhere_is_answered_for_by_the_one_before_it_while_it_loads(settings: Settings) -> None:
    async def story(service: Service) -> None:
        other = RolloutStore(settings.paths.state_dir / "rollout.db", settings.rollout)
        other.apply(Change(Command.START, time.time(), challenger="hrm/v1"))
        for _ in range(len(settings.rollout.steps) + 1):
            other.apply(Change(Command.PROMOTE, time.time()))
        other.close()
        models = set()
        while "hrm" not in models:
            models.add((await decide(service, question())).model)
        assert models == {"ppo", "hrm"}  # somebody always answered
        assert service.live.state.champion == "hrm/v1"

    serve(settings, story)
