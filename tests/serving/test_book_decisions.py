"""Which model decides a book, what is answered when it may not, and that company changes nothing. No HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_books import FAULT_LEVEL, SCHEMA, publish_book
from tiny_models import publish_hrm, settings_in

from core.actions import TARGET_OF
from core.errors import DataError, ModelError
from core.observation import BookSchema
from core.settings import Settings
from flows.drill_models import publish_policy
from serving.batcher import open_model
from serving.book import BookObservation
from serving.book_decisions import decide_book
from serving.engine import Engine, load_engine
from serving.health import health
from serving.reasoning import UNLIMITED
from serving.schemas_book import BookRequest, BookResponse
from serving.service import Service

SYMBOLS = ("RELIANCE", "INFY", "TCS", "HDFC")
Story = Callable[[Service], Awaitable[None]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    publish_policy(tmp_path / "models", "ppo/v1")
    publish_book(tmp_path / "models", "book/v1")
    return settings_in(tmp_path, serving={"book_model": "book/v1"})


def serve(settings: Settings, story: Story) -> None:
    async def run() -> None:
        service = Service(settings, "ppo/v1")
        await service.open()
        try:
            await story(service)
        finally:
            await service.close()

    asyncio.run(run())


def request(
    mus: list[float],
    positions: list[int] | None = None,
    *,
    gross: int = 4,
    net: int = 4,
    depth: int = 1,
    variance: float = 0.2,
    **more: Any,
) -> BookRequest:
    """A book that the tiny model decides by the signs of `mus` after `depth` segments (tiny_books)."""
    held = positions or [0] * len(mus)
    first = (depth - 0.75) / len(mus)
    instruments = [
        {"symbol": symbol, "mu": mu, "loadings": [first, 0.1], "variance": variance, "cost": 0.1, "position": position}
        for symbol, mu, position in zip(SYMBOLS, mus, held, strict=False)
    ]
    fields = {"book_id": "desk", "instruments": instruments, "limits": {"gross": gross, "net": net}}
    return BookRequest.model_validate(fields | more)


def targets(answer: BookResponse) -> dict[str, int]:
    return {decision.symbol: decision.target for decision in answer.decisions}


def test_a_book_is_decided_by_the_model_within_its_limits(settings: Settings) -> None:
    async def story(service: Service) -> None:
        answer = await decide_book(service, request([1.0, -1.0, 0.5, -2.0], [0, 1, 1, -1], net=0, depth=3).question())
        assert targets(answer) == {"RELIANCE": 1, "INFY": -1, "TCS": 1, "HDFC": -1}
        actions = [decision.action_name for decision in answer.decisions]
        assert actions == ["BUY_LONG", "SELL_SHORT", "HOLD", "HOLD"]
        assert (answer.feasible, answer.feasible_by, answer.segments) == (True, "model", 3)
        assert (answer.model, answer.model_version, answer.halt_reason) == ("book", "v1", "q_learning_decision")
        for decision in answer.decisions:
            assert decision.probabilities is not None
            assert sum(decision.probabilities) == pytest.approx(1.0)
            assert np.argmax(decision.probabilities) == decision.action

    serve(settings, story)


def test_an_answer_that_breaks_a_limit_is_not_given_out_the_book_is_held(settings: Settings) -> None:
    async def story(service: Service) -> None:
        answer = await decide_book(service, request([1.0, 1.0, 1.0, 1.0], [1, 0, -1, 0], gross=3).question())
        assert targets(answer) == {"RELIANCE": 1, "INFY": 0, "TCS": -1, "HDFC": 0}
        assert {decision.action_name for decision in answer.decisions} == {"HOLD"}
        assert (answer.feasible, answer.feasible_by, answer.model) == (True, "held", "book")

    serve(settings, story)


def test_positions_that_break_a_limit_themselves_are_reduced(settings: Settings) -> None:
    async def story(service: Service) -> None:
        answer = await decide_book(service, request([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 0], gross=3, net=1).question())
        assert answer.feasible_by == "reduced"
        assert sorted(targets(answer).values()) == [0, 0, 0, 1]
        assert {decision.action_name for decision in answer.decisions} == {"HOLD", "CLOSE_LONG"}

    serve(settings, story)


def test_a_model_that_fails_leaves_the_safe_answer_which_names_no_model(settings: Settings) -> None:
    async def story(service: Service) -> None:
        answer = await decide_book(service, request([1.0] * 4, [1, 0, 0, -1], variance=FAULT_LEVEL).question())
        assert list(targets(answer).values()) == [1, 0, 0, -1]
        assert (answer.model, answer.segments, answer.halt_reason) == ("none", 0, "no_model_answered")
        assert answer.feasible_by == "held"
        assert all(decision.probabilities is None for decision in answer.decisions)
        healthy = await decide_book(service, request([1.0] * 4).question())
        assert healthy.feasible_by == "model"

    serve(settings, story)


def test_past_its_deadline_a_book_gets_the_best_segment_so_far_and_says_so(settings: Settings) -> None:
    async def story(service: Service) -> None:
        model = service.live.models["book/v1"]
        question = request([1.0, -1.0, 1.0, -1.0], depth=6, deadline_ms=1e-3).question()
        run = await model.run(question.row, question.deadline)
        assert run.decisions is not None
        assert (run.decisions.halt_reason, run.decisions.segments.tolist()) == (["deadline_reached"], [1])

    serve(settings, story)


def test_the_order_of_instruments_turns_the_answer_and_nothing_else(settings: Settings) -> None:
    async def story(service: Service) -> None:
        asked = request([1.0, -1.0, 0.5, 0.3], [1, -1, 0, 0], gross=3, net=3, depth=2)
        straight = await decide_book(service, asked.question())
        for order in ([3, 1, 0, 2], [2, 3, 1, 0]):
            turned = asked.model_copy(update={"instruments": [asked.instruments[index] for index in order]})
            answer = await decide_book(service, turned.question())
            assert answer.decisions == [straight.decisions[index] for index in order]
            assert (answer.utility, answer.segments) == (straight.utility, straight.segments)

    serve(settings, story)


def test_of_equals_those_are_closed_that_come_first_by_symbol_however_they_were_asked_for(settings: Settings) -> None:
    async def story(service: Service) -> None:
        asked = request([1.0] * 4, [1, 1, 1, 1], gross=2, net=2)
        for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
            turned = asked.model_copy(update={"instruments": [asked.instruments[index] for index in order]})
            answer = await decide_book(service, turned.question())
            assert targets(answer) == {"HDFC": 0, "INFY": 0, "RELIANCE": 1, "TCS": 1}
            assert [decision.symbol for decision in answer.decisions] == [SYMBOLS[index] for index in order]

    serve(settings, story)


def test_the_newest_model_that_is_loaded_for_books_of_this_size_decides_unless_one_is_named(settings: Settings) -> None:
    store = settings.paths.state_dir / "models"
    publish_book(store, "book/v2")
    publish_book(store, "pair/v1", BookSchema(instruments=2, factors=2))

    async def story(service: Service) -> None:
        await service.load("book/v2")
        await service.load("pair/v1")
        four, two = request([1.0, -1.0, 1.0, -1.0]), request([1.0, -1.0])
        assert (await decide_book(service, four.question())).model_version == "v2"
        assert (await decide_book(service, two.question())).model == "pair"
        named = four.model_copy(update={"model": "book/v1"})
        assert (await decide_book(service, named.question())).model_version == "v1"
        await service.unload("book/v2")
        assert (await decide_book(service, four.question())).model_version == "v1"
        with pytest.raises(DataError, match="pair/v1 takes books of 2 instruments") as wrong_size:
            await decide_book(service, four.model_copy(update={"model": "pair/v1"}).question())
        assert wrong_size.value.code == "shape_mismatch"

    serve(settings, story)


@pytest.mark.parametrize(
    ("model", "mus", "code"),
    [
        (None, [1.0, 1.0, 1.0], "no_book_model"),
        ("book/v9", [1.0] * 4, "model_not_loaded"),
        ("ppo/v1", [1.0] * 4, "not_a_book_model"),
    ],
)
def test_without_a_model_that_takes_it_a_book_is_refused_with_the_remedy(
    settings: Settings, model: str | None, mus: list[float], code: str
) -> None:
    async def story(service: Service) -> None:
        with pytest.raises(ModelError, match=r"load loads it|/v1/decisions") as error:
            await decide_book(service, request(mus, model=model).question())
        assert error.value.code == code

    serve(settings, story)


def test_a_model_of_books_is_no_champion_and_no_challenger(settings: Settings) -> None:
    from test_decisions import command  # beside this file

    with pytest.raises(ModelError, match="decides books"):
        asyncio.run(Service(settings, "book/v1").open())

    async def story(service: Service) -> None:
        with pytest.raises(ModelError, match="decides books"):
            await command(service, "start", champion="ppo/v1", challenger="book/v1")
        assert service.live.state.champion == "ppo/v1"

    serve(settings, story)


@pytest.mark.parametrize(
    ("model", "complaint"), [("book/v9", "no such file"), ("ppo/v1", "name what `hrm book train` published")]
)
def test_a_service_whose_book_model_is_none_does_not_start(settings: Settings, model: str, complaint: str) -> None:
    serving = settings.serving.model_copy(update={"book_model": model})
    with pytest.raises(ModelError, match=complaint):
        serve(settings.model_copy(update={"serving": serving}), lambda _: asyncio.sleep(0))


def test_the_health_of_a_model_of_books_is_looked_at_too(settings: Settings) -> None:
    publish_hrm(settings.paths.state_dir / "models", "hrm/v1")

    async def story(service: Service) -> None:
        document: Any = await health(service)
        checks = document["individual_checks"]
        for name in ("check_model_loading", "check_act_mechanism", "check_hierarchical_convergence"):
            assert checks[name]["status"] == "healthy", checks[name]
        assert checks["check_act_mechanism"]["details"]["book/v1"]["minimum"] == 1

    serve(settings, story)


def test_every_decision_on_a_book_is_logged_with_its_targets(settings: Settings) -> None:
    async def story(service: Service) -> None:
        with structlog.testing.capture_logs() as lines:
            await decide_book(service, request([1.0, -1.0, 1.0, -1.0], request_id="r-1").question())
        line = next(line for line in lines if line["event"] == "book_decision")
        assert (line["request_id"], line["model"], line["feasible_by"]) == ("r-1", "book/v1", "model")
        assert line["targets"] == {"RELIANCE": 1, "INFY": -1, "TCS": 1, "HDFC": -1}
        assert b'role="book"' in service.telemetry.exposition.text()

    serve(settings, story)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("books")
    publish_book(folder / "models", "book/v1")
    return settings_in(folder)


@pytest.fixture(scope="module")
def engine(shared: Settings) -> Engine:
    return load_engine(shared, "book/v1")


def drawn(seed: int) -> BookObservation:
    rng, (instruments, numbers) = np.random.default_rng(seed), SCHEMA.row_shapes["instruments"]
    row = rng.normal(size=(instruments, numbers)).astype(np.float32)
    row[:, 1] = rng.uniform(0, 6) / instruments  # how long it thinks
    row[:, -1] = rng.integers(-1, 2, instruments)
    row[:, -3] = rng.choice([0.2, FAULT_LEVEL], p=[0.9, 0.1])
    return BookObservation(row, rng.integers(0, 5, 2).astype(np.float32))


@hypothesis_settings(max_examples=20)
@given(seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=40), pauses=st.lists(st.booleans(), max_size=40))
def test_a_book_is_decided_alike_whoever_is_there_and_whenever_it_comes(
    shared: Settings, engine: Engine, seeds: list[int], pauses: list[bool]
) -> None:
    books = [drawn(seed) for seed in seeds]

    async def together() -> list[Any]:
        batcher = await open_model(shared, "book/v1")
        try:
            asked = []
            for index, book in enumerate(books):
                asked.append(asyncio.ensure_future(batcher.run(book)))
                if index < len(pauses) and pauses[index]:
                    await asyncio.sleep(0)
            return list(await asyncio.gather(*asked))
        finally:
            await batcher.close(drain=False)

    for book, run in zip(books, asyncio.run(together()), strict=True):
        if book.instruments[0, -3] == FAULT_LEVEL:  # the tiny model's fault: its own, and nobody else's
            assert run.error_code == "output_not_finite"
            continue
        feeds = {name: array[None] for name, array in book.feeds.items()}
        alone = engine.decide_rows(feeds, np.zeros(1, np.float32), book.position[None], np.array([UNLIMITED]))
        assert run.decisions.action.tolist() == alone.action.tolist()
        assert run.decisions.segments.tolist() == alone.segments.tolist()
        np.testing.assert_array_equal(run.decisions.probabilities, alone.probabilities)
        signs = np.sign(book.instruments[:, 0])
        assert TARGET_OF[book.position + 1, run.decisions.action[0]].tolist() == signs.tolist()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"limits": {"gross": -1, "net": 1}}, "limits.gross"),
        ({"limits": {"gross": 1.5, "net": 1}}, "limits.gross"),
        ({"instruments": []}, "instruments"),
        ({"unknown": 1}, "unknown"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"model": "book"}, "model"),
    ],
)
def test_a_book_that_is_none_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint.replace(".", "\\.")):
        request([1.0], **changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [("mu", np.nan), ("mu", 2e6), ("mu", "1"), ("variance", -0.1), ("cost", -1.0), ("position", 2), ("position", 0.5)],
)
def test_an_instrument_that_is_none_is_refused(field: str, value: object) -> None:
    sound = request([1.0]).model_dump()
    sound["instruments"][0][field] = value
    with pytest.raises(ValidationError, match=field):
        BookRequest.model_validate(sound)


def test_a_symbol_twice_and_ragged_loadings_are_refused_by_name() -> None:
    one, two = request([1.0, 1.0]).instruments
    twice = request([1.0, 1.0]).model_copy(update={"instruments": [one, one]})
    with pytest.raises(DataError, match="RELIANCE comes twice") as error:
        twice.question()
    assert error.value.code == "duplicate_symbol"
    ragged = request([1.0, 1.0]).model_copy(update={"instruments": [one, two.model_copy(update={"loadings": [1.0]})]})
    with pytest.raises(DataError, match="same number of loadings"):
        ragged.question()
