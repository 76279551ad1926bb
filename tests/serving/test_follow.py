"""What a process does when the durable state is out of sight."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from test_decisions import command, question, serve, to_canary, until
from tiny_models import publish_all, settings_in

import delivery.store
from benchmarks.postgres import PostgresServer, postgres_server
from core.errors import RolloutError
from core.settings import Settings
from delivery import follow
from delivery.follow import Follower
from delivery.state_database import Place
from delivery.store import RolloutStore
from delivery.transitions import Change, Command
from flows.drill_models import publish_policy
from serving.decisions import decide
from serving.service import Service

Story = Callable[[Follower, list[float]], Awaitable[None]]


def following(place: Place, story: Story, sync: Callable[[], None] = lambda: None) -> Follower:
    """Run `story` beside a follower of `place`; it is given the times at which `sync` was called."""

    async def run() -> Follower:
        calls: list[float] = []

        async def synced() -> None:
            calls.append(time.monotonic())
            sync()

        follower = Follower(place, synced)
        task = asyncio.get_running_loop().create_task(follower.run())
        try:
            await story(follower, calls)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return follower

    return asyncio.run(run())


def install(store: RolloutStore) -> None:
    store.apply(Change(Command.INSTALL, time.time(), champion="ppo/v1"))


@pytest.fixture
def store(place: Place, settings: Settings) -> Iterator[RolloutStore]:
    store = RolloutStore(place, settings.rollout)
    yield store
    store.close()


def test_a_commit_of_another_connection_is_seen_and_only_that(store: RolloutStore, place: Place) -> None:
    async def story(follower: Follower, calls: list[float]) -> None:
        await until(lambda: len(calls) == 1)
        looked_at = time.monotonic()
        await until(lambda: follower.age_s < time.monotonic() - looked_at)  # it has looked again since
        assert len(calls) == 1
        install(store)
        await until(lambda: len(calls) == 2)

    following(place, story)


def test_a_notification_is_heard_before_the_next_look(
    postgres: PostgresServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "SERVER_POLL_S", 3600.0)
    url = postgres.new_database()
    store = RolloutStore(url, settings.rollout)

    async def story(_: Follower, calls: list[float]) -> None:
        await until(lambda: len(calls) == 1)
        install(store)
        await until(lambda: len(calls) == 2)

    following(url, story)
    store.close()


def test_without_notifications_the_next_look_sees_it(
    store: RolloutStore, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a pooler, which gives every statement another connection."""
    monkeypatch.setattr(delivery.store, "notify", lambda *_: None)

    async def story(_: Follower, calls: list[float]) -> None:
        await until(lambda: len(calls) == 1)
        install(store)
        await until(lambda: len(calls) == 2)

    following(place, story)


def test_what_was_committed_while_the_connection_was_lost_is_read(postgres: PostgresServer, settings: Settings) -> None:
    url = postgres.new_database()
    store = RolloutStore(url, settings.rollout)
    others = "pid != pg_backend_pid() AND datname = current_database()"

    async def story(follower: Follower, calls: list[float]) -> None:
        await until(lambda: len(calls) == 1)
        with store.engine.begin() as connection:
            ended = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
            assert len(connection.exec_driver_sql(ended).all()) == 1
        await until(lambda: len(calls) == 2)
        await until(lambda: not follower.blind)

    following(url, story)
    store.close()


def test_a_change_whose_reading_failed_is_read_again(store: RolloutStore, place: Place) -> None:
    attempts: list[int] = []

    def fails_twice() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise RolloutError("disk I/O error", code="state_not_durable")

    async def story(follower: Follower, calls: list[float]) -> None:
        await until(lambda: len(calls) == 3 and follower.age_s < 1.0)

    with structlog.testing.capture_logs() as lines:
        following(place, story, fails_twice)
    assert [line["event"] for line in lines] == ["rollout_state_unreadable"]  # once, not every 50 ms


def test_who_cannot_read_is_blind_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "BLIND_AFTER_S", 0.2)
    (tmp_path / "rollout.db").write_bytes(b"no database, and longer than its header would be" * 99)

    async def story(follower: Follower, _: list[float]) -> None:
        await until(lambda: follower.blind)

    assert following(tmp_path / "rollout.db", story).age_s > 0.2


def test_who_follows_a_file_that_is_not_there_is_blind_and_makes_none(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "BLIND_AFTER_S", 0.2)
    file = tmp_path / "rollout.db"

    async def story(follower: Follower, calls: list[float]) -> None:
        await until(lambda: follower.blind)
        assert not file.exists()
        RolloutStore(file, settings.rollout).close()
        await until(lambda: not follower.blind and len(calls) == 1)

    following(file, story)


def test_a_file_that_was_moved_away_is_no_state_any_more_until_it_is_back(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open file is read on for ever: only its name says that what others do is elsewhere now."""
    monkeypatch.setattr(follow, "BLIND_AFTER_S", 0.3)
    file, away = tmp_path / "rollout.db", tmp_path / "away.db"
    RolloutStore(file, settings.rollout).close()

    async def story(follower: Follower, calls: list[float]) -> None:
        await until(lambda: len(calls) == 1)
        file.rename(away)
        await until(lambda: follower.blind)
        RolloutStore(file, settings.rollout).close()  # another state in its place
        await asyncio.sleep(0.2)
        assert follower.blind
        away.rename(file)
        await until(lambda: not follower.blind)

    with structlog.testing.capture_logs() as lines:
        following(file, story)
    assert any("was replaced under the running service; restart it" in line["error"] for line in lines)


def test_a_server_that_is_silent_or_gone_makes_blind_and_is_followed_again_when_it_is_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "BLIND_AFTER_S", 1.0)
    with postgres_server(synced=False) as server:
        url = server.new_database()
        store = RolloutStore(url, settings.rollout)

        async def story(follower: Follower, calls: list[float]) -> None:
            await until(lambda: len(calls) == 1)
            server.freeze()
            await until(lambda: follower.blind)
            server.thaw()
            await until(lambda: not follower.blind)
            server.stop(signal.SIGQUIT)
            await until(lambda: follower.blind)
            server.start()
            install(store)
            seen = len(calls)
            await until(lambda: not follower.blind and len(calls) > seen)

        following(url, story)
        store.close()


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


def test_a_blind_service_trusts_the_champion_before_a_promotion_while_that_may_be_taken_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(service: Service) -> None:
        await to_canary(service, "hrm/v1", promotions=5)
        assert (await decide(service, question())).model == "hrm"
        monkeypatch.setattr(Follower, "blind", property(lambda _: True))
        assert (await decide(service, question())).model == "ppo"
        over = service.live.plan.model_copy(update={"rollback_window": 0.0})
        service.live = replace(service.live, plan=over)
        assert (await decide(service, question())).model == "hrm"

    serve(settings, story)


def published_again(settings: Settings) -> None:
    folder = settings.paths.state_dir / "models"
    shutil.rmtree(folder / "hrm/v1")
    publish_policy(folder, "hrm/v1", "opposite")


def test_another_model_under_the_same_name_on_a_second_worker_is_rolled_back_for_all(settings: Settings) -> None:
    async def story(one: Service) -> None:
        two = Service(settings, None)
        await two.open()
        try:
            await command(one, "start", challenger="hrm/v1")
            published_again(settings)
            await until(lambda: one.live.state.latched and two.live.state.latched)
            assert (one.live.state.rejected, one.live.state.trigger) == (("hrm/v1",), "not_loadable")
            assert "hrm/v1" not in two.live.models
            assert (await decide(two, question())).model == "ppo"
        finally:
            await two.close()

    serve(settings, story)


def test_what_is_loaded_under_the_name_of_the_candidate_already_answers_nobody_there(settings: Settings) -> None:
    async def story(one: Service) -> None:
        two = Service(settings, None)
        await two.open()
        try:
            await two.load("hrm/v1")
            published_again(settings)
            await command(one, "start", challenger="hrm/v1")
            await until(lambda: two.live.state.version >= 2)
            assert two.live.model("hrm/v1") is None
            await until(lambda: one.live.state.latched and two.live.state.latched)
            assert one.live.state.trigger == "not_loadable"
        finally:
            await two.close()

    serve(settings, story)


def test_another_model_under_the_name_of_the_candidate_is_rolled_back_at_the_next_start(settings: Settings) -> None:
    async def begin(service: Service) -> None:
        await to_canary(service, "hrm/v1", promotions=5)

    async def later(service: Service) -> None:
        assert (service.live.state.champion, service.live.state.trigger) == ("ppo/v1", "not_loadable")
        assert "hrm/v1" not in service.live.models
        assert (await decide(service, question())).model == "ppo"

    serve(settings, begin)
    published_again(settings)
    serve(settings, later)


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


def test_two_hosts_with_one_rollout_on_a_server(tmp_path: Path, postgres: PostgresServer) -> None:
    """Each has a state directory of its own, with a copy of the same models; who decides is the same everywhere."""
    publish_all(tmp_path / "one" / "models")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    url = postgres.new_database()
    environ = {"ROLLOUT_DATABASE_URL": url.render_as_string(hide_password=False)}

    def host(name: str) -> Service:
        rollout = {"cool_down_s": 0.0, "database_url_env": "ROLLOUT_DATABASE_URL"}
        return Service(settings_in(tmp_path / name, rollout=rollout), "ppo/v1", environ=environ)

    async def story() -> None:
        one, two = host("one"), host("two")
        await asyncio.gather(one.open(), two.open())
        try:
            await to_canary(one, "hrm/v1", len(one.settings.rollout.steps))
            await until(lambda: two.live.state.weight == 100 and two.live.model("hrm/v1") is not None)
            assert (await decide(two, question())).role == "challenger"
            await two.command(Change(Command.ABORT, time.time()))
            await until(lambda: one.live.state.latched)
            assert (await decide(one, question())).role == "champion"
            assert one.live.state == two.live.state == one.store.read()
        finally:
            await asyncio.gather(one.close(), two.close())
        assert not list(tmp_path.glob("*/rollout.db"))

    asyncio.run(story())


def test_a_rollback_that_a_full_disk_does_not_take_makes_the_others_blind_at_once(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "BLIND_AFTER_S", 3600.0)
    file = tmp_path / "rollout.db"
    RolloutStore(file, settings.rollout).close()
    other = Follower(file, lambda: asyncio.sleep(0))
    other.steady()

    async def story(follower: Follower, calls: list[float]) -> None:
        await until(lambda: len(calls) == 1)
        assert not follower.blind
        other.unsteady()
        await until(lambda: follower.blind)
        other.steady()
        await until(lambda: not follower.blind)

    following(file, story)


def test_where_nothing_can_be_written_beside_the_state_it_is_looked_at_as_ever(
    tmp_path: Path, settings: Settings
) -> None:
    file = tmp_path / "rollout.db"
    RolloutStore(file, settings.rollout).close()

    async def story(follower: Follower, calls: list[float]) -> None:
        looked_at = time.monotonic()
        await until(lambda: follower.age_s < time.monotonic() - looked_at)
        assert not follower.blind

    following(file, story)
