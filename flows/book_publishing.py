"""`hrm book train`: the model of a book, trained, judged as the service would run it, and published if it is worth it.

    score             share of the attainable gain over staying put on instances nobody trained on; 1 is the optimum.
                      An answer that breaks a limit earns 0: the service holds the whole book instead
    exact_ratio       answers that are the optimum        infeasible_ratio    answers that break a limit
    greedy_score      the score of the best single move after the other, which needs no model

Limits: settings.gates.book. A model that fails is not published.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from core.actions import TARGET_OF
from core.errors import ModelError
from core.files import sha256_hex
from core.gates import Verdict, judge
from core.manifest import ModelManifest, Storage, publish, require_free
from core.settings import Settings
from flows.fit import parameters
from flows.progress import bars, report
from flows.revision import git_commit
from flows.tracking import Description, tracked
from flows.train import require_name
from serving.engine import Engine, load_engine
from serving.reasoning import UNLIMITED
from trading import book_rules
from trading.book import BookLaw, Floats, feasible, gains
from trading.book_exact import solve
from trading.bootstrap import Interval

if TYPE_CHECKING:  # torch takes seconds to import
    from hrm.book import BookModel

PHASE = "book"
MODEL = "book"
HELD_OUT_ROWS = 2048
EXACT = 1e-4  # utilities that are closer than this are the same


def train_and_publish(
    settings: Settings,
    law: BookLaw,
    *,
    budget_s: float,
    seed: int = 0,
    version: str | None = None,
    storage: Storage = "fp32",
) -> dict[str, Any]:
    """Train for `budget_s` seconds on books of `law` and publish as book/<version>; what it took, and the metrics.

    Raises ConfigError if `version` is no name, and ModelError, publishing nothing, if it is taken, `storage` is not
    made of books, or the gate says no.
    """
    from flows.book_training import book_settings, train
    from hrm.book_export import require_storage

    require_storage(storage)  # before minutes are spent on it
    settings, version = book_settings(settings), require_name(version or f"{datetime.now(UTC):%Y%m%d-%H%M%S}")
    state_dir = settings.paths.state_dir
    require_free(state_dir / "models" / MODEL / version)
    described = Description(f"{MODEL}/{version}", state_dir / "trainings" / MODEL / version, parameters(settings), {})
    with bars(Console(stderr=True)), tracked(state_dir, described) as record:
        model, facts = train(law, settings, budget_s=budget_s, seed=seed, name=PHASE)
        report(PHASE, 0.99, "exporting, and judging on held-out books")
        manifest = publish_judged(model, law, settings, version=version, storage=storage)
        record(facts["steps"], {f"test/{name}": value for name, value in manifest.metrics.items()})
        report(PHASE, 1.0, f"{MODEL}/{version} published")
    taken = {name: facts[name] for name in ("train_s", "steps", "rows", "parameters")}
    return {"model": f"{MODEL}/{version}", **taken, **manifest.metrics}


def publish_judged(
    model: BookModel, law: BookLaw, settings: Settings, *, version: str, storage: Storage
) -> ModelManifest:
    """Export into a scratch store, judge what the engine answers, publish. Raises ModelError if the gate says no."""
    from hrm.book_export import export_book

    with tempfile.TemporaryDirectory(prefix="hrm-book-") as folder:
        scratch = settings.model_copy(update={"paths": settings.paths.model_copy(update={"state_dir": Path(folder)})})
        exported = export_book(
            model,
            store=Path(folder) / "models",
            name=MODEL,
            version=version,
            settings=settings,
            metrics={},
            dataset_digest=sha256_hex(repr(sorted(asdict(law).items())).encode()),
            git_commit=git_commit(),
            storage=storage,
        )
        metrics = exported.metrics | judged(load_engine(scratch, f"{MODEL}/{version}"), law, HELD_OUT_ROWS)
        _require(metrics, settings, f"{MODEL}/{version}")
        written = Path(folder) / "models" / MODEL / version
        files = {name: (written / name).read_bytes() for name in exported.files}
    fields = {name: value for name, value in exported if name != "files"} | {"metrics": metrics}
    return publish(settings.paths.state_dir / "models", files, **fields)


def judged(engine: Engine, law: BookLaw, rows: int) -> dict[str, float]:
    """The metrics named above on `rows` books of `law` that no training draws, and how many segments they took."""
    from flows.book_sampler import arrays_of
    from flows.book_training import TEST_SEED

    book = law.draw(rows, np.random.default_rng(TEST_SEED))
    complexity, unlimited = np.zeros(rows, np.float32), np.full(rows, UNLIMITED)
    decided = engine.decide_rows(arrays_of(book), complexity, book.position, unlimited)
    targets = TARGET_OF[book.position + 1, decided.action]
    best = gains(book, solve(book).targets)
    found = score_of(gains(book, targets), best)
    return {
        "score": found.value,
        "score_ci95_low": found.ci95_low,
        "greedy_score": score_of(gains(book, book_rules.greedy(book)), best).value,
        "exact_ratio": float((gains(book, targets) >= best - EXACT).mean()),
        "infeasible_ratio": float(1 - feasible(book, targets).mean()),
        "mean_segments": float(decided.segments.mean()),
    }


def score_of(gain: Floats, attainable: Floats) -> Interval:
    """Share of the attainable gain [B], with the delta method's interval over instances."""
    score = float(gain.sum() / attainable.sum())
    half = 1.96 * float((gain - score * attainable).std() / np.sqrt(len(gain)) / attainable.mean())
    return Interval(score, score - half, score + half)


def _require(metrics: dict[str, float], settings: Settings, model_id: str) -> None:
    gate = judge(metrics, settings.gates.book)
    if gate.verdict is not Verdict.PASS:
        raise ModelError(
            f"{model_id}: {gate.reason}; nothing was published: train for longer, or on a GPU", code="gate_failed"
        )
