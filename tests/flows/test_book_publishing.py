"""`hrm book train` end to end in seconds: what is published is what was judged, and what is bad is not published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import ConfigError, ModelError
from core.gates import Limit
from core.observation import BookSchema
from core.settings import Settings, load_settings
from flows import book_publishing, book_training
from flows.book_publishing import judged, publish_judged, score_of, train_and_publish
from flows.book_sampler import arrays_of, book_of
from flows.book_training import TEST_SEED, book_settings, think
from hrm.book import BookModel
from serving.engine import load_engine
from serving.store import list_versions
from trading.book import BookLaw, feasible, gains
from trading.book_exact import solve

HRM = "HRM_HIERARCHICAL_REASONING_MODEL__"
SMALL = {
    **{f"{HRM}ARCHITECTURE__{name}": "16" for name in ("HIDDEN_DIM", "H_MODULE_DIM", "L_MODULE_DIM", "EMBEDDING_DIM")},
    f"{HRM}HIERARCHICAL__N_CYCLES": "1",
    f"{HRM}HIERARCHICAL__T_TIMESTEPS": "1",
}
LAW = BookLaw(instruments=4, factors=2)
ANYTHING = (Limit(metric="infeasible_ratio", max=1.0, why="a test publishes what it has"),)


@pytest.fixture(autouse=True)
def few_books(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(book_training, "VALIDATION_ROWS", {"cpu": 32})
    monkeypatch.setattr(book_publishing, "HELD_OUT_ROWS", 64)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(preset="compact", environ=SMALL | {"HRM_PATHS__STATE_DIR": str(tmp_path)})


def lenient(settings: Settings) -> Settings:
    return settings.model_copy(update={"gates": settings.gates.model_copy(update={"book": ANYTHING})})


def untrained(settings: Settings) -> BookModel:
    return BookModel(settings.hierarchical_reasoning_model, LAW.instruments, LAW.factors)


def test_a_training_publishes_a_model_that_the_engine_loads_with_its_metrics(settings: Settings) -> None:
    found = train_and_publish(lenient(settings), LAW, budget_s=1.5, version="v1")
    engine = load_engine(settings, found["model"])
    assert engine.manifest.algorithm == "hrm_book"
    assert engine.manifest.observation == BookSchema(instruments=4, factors=2)
    assert engine.manifest.metrics["score"] == found["score"] == pytest.approx(judged(engine, LAW, 64)["score"])
    assert found["steps"] >= 1
    assert 0 <= found["exact_ratio"] <= 1 - found["infeasible_ratio"]
    with pytest.raises(ModelError, match="exists already"):
        train_and_publish(lenient(settings), LAW, budget_s=1.5, version="v1")


def test_a_model_that_earns_nothing_is_not_published(settings: Settings) -> None:
    asked = book_settings(settings)
    with pytest.raises(ModelError, match=r"book/bad: .*nothing was published: train for longer") as error:
        publish_judged(untrained(asked), LAW, asked, version="bad", storage="fp32")
    assert error.value.code == "gate_failed"
    assert list_versions(settings.paths.state_dir / "models") == []


@pytest.mark.parametrize("storage", ["fp16", "int8"])
def test_fewer_bits_are_judged_as_they_are_stored(settings: Settings, storage: str) -> None:
    asked = lenient(book_settings(settings))
    manifest = publish_judged(untrained(asked), LAW, asked, version=storage, storage=storage)
    assert manifest.storage == storage
    engine = load_engine(settings, f"book/{storage}")
    assert manifest.metrics["score"] == pytest.approx(judged(engine, LAW, 64)["score"])


def test_the_metrics_are_those_of_the_torch_model_at_the_depth_it_halts_at(settings: Settings) -> None:
    asked = lenient(book_settings(settings))
    model = untrained(asked)
    manifest = publish_judged(model, LAW, asked, version="v1", storage="fp32")
    book = LAW.draw(64, np.random.default_rng(TEST_SEED))
    batch = {name: torch.from_numpy(array) for name, array in arrays_of(book).items()}
    targets = think(model.eval(), batch, 16)[-1].targets.numpy()  # an untrained one never halts by itself
    expected = score_of(gains(book, targets), gains(book, solve(book).targets))
    assert manifest.metrics["mean_segments"] == 16
    assert manifest.metrics["score"] == pytest.approx(expected.value)
    assert manifest.metrics["infeasible_ratio"] == pytest.approx(1 - feasible(book, targets).mean())


def test_a_book_becomes_a_models_inputs_and_back() -> None:
    book = LAW.draw(5, np.random.default_rng(0))
    back = book_of({name: torch.from_numpy(array) for name, array in arrays_of(book).items()})
    np.testing.assert_allclose(back.loadings, book.loadings, rtol=1e-6)
    np.testing.assert_allclose(back.mu, book.mu, rtol=1e-6)
    for name in ("position", "gross", "net"):
        np.testing.assert_array_equal(getattr(back, name), getattr(book, name))


def test_a_version_that_is_no_name_is_refused_before_anything_is_trained(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="use up to 64"):
        train_and_publish(settings, LAW, budget_s=1e6, version="../v1")
