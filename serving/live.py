"""What the service holds while it answers: who decides, by which plan, and the models that are loaded for it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.errors import ModelError, RolloutError
from core.observation import BookSchema
from core.settings import Settings
from delivery.plan import Plan
from delivery.store import RolloutStore
from delivery.transitions import Change, Command, Phase, RolloutState
from serving.batcher import Batcher
from serving.store import load_version

log = structlog.get_logger()


@dataclass(frozen=True)
class Live:
    """Who decides now, and by which plan. `durable` is False between a rollback in memory and its arrival on disk."""

    state: RolloutState
    plan: Plan
    models: MappingProxyType[str, Batcher] = field(default_factory=lambda: MappingProxyType({}))
    durable: bool = True

    def model(self, model_id: str | None) -> Batcher | None:
        """None where it is not loaded. What is the candidate by its name alone answers nobody."""
        found = self.models.get(model_id) if model_id else None
        return found if found is not None and _is_started(found, self.state) else None

    @property
    def missing(self) -> set[str]:
        """What the rollout needs, and is not here."""
        return {name for name in needed(self.state) if self.model(name) is None}

    @property
    def champion(self) -> Batcher | None:
        """Who decides; while a model that was promoted in another process is still loading, the one before it."""
        return self.model(self.state.champion) or self.model(self.state.fallback)

    @property
    def on_trial(self) -> Batcher | None:
        """The champion before a promotion, for as long as the plan looks back; it goes on beside the one on trial."""
        looking_back = time.time() < self.state.stage_at + self.plan.rollback_window
        return self.model(self.state.fallback) if self.state.phase is Phase.PROMOTED and looking_back else None


def require_books(model: Batcher) -> None:
    """Raises ModelError if it decides single instruments: it would never be asked."""
    if not isinstance(model.engine.manifest.observation, BookSchema):
        raise ModelError(
            f"serving.book_model: {model.engine.id} decides single instruments; name what `hrm book train` published",
            code="not_a_book_model",
        )


def require_same_market(champion: Batcher | None, challenger: Batcher | None) -> None:
    """Raises ModelError where both are there and do not look at the same."""
    if champion is not None and challenger is not None:
        theirs = challenger.engine
        champion.engine.manifest.market.require(theirs.manifest.market, theirs.id)


def _is_started(model: Batcher, state: RolloutState) -> bool:
    engine = model.engine
    return engine.id != state.candidate or state.challenger_sha256 in (None, engine.manifest_sha256)


def require_started(model: Batcher, state: RolloutState) -> None:
    """Raises ModelError where it is the candidate by its name, and not what the attempt was started with."""
    if not _is_started(model, state):
        raise _changed(model.engine.id)


async def require_unchanged(live: Live, settings: Settings) -> None:
    """That what is to decide more is still in the store as it was loaded, signed by a key that is trusted today.

    Raises ModelError.
    """
    challenger, loaded = live.state.challenger, live.model(live.state.challenger)
    started = live.state.challenger_sha256 or (loaded.engine.manifest_sha256 if loaded is not None else None)
    if challenger is None:
        return
    folder, limit_mb = settings.paths.state_dir / "models", settings.performance.model_size_limit_mb
    stored = await asyncio.to_thread(load_version, folder, challenger, size_limit_mb=limit_mb)
    if started not in (None, stored.manifest_sha256):
        raise _changed(challenger)


def _changed(model_id: str) -> ModelError:
    why = f"{model_id} was published again after it was loaded; abort, and start with a new version"
    return ModelError(why, code="model_changed")


def current(store: RolloutStore) -> tuple[RolloutState, Plan]:
    """Raises RolloutError and SQLAlchemyError."""
    state = store.read()
    return state, store.plan(state)


def applied(store: RolloutStore, rollback: Change, plan: Plan) -> tuple[RolloutState, Plan]:
    """A rollback made durable, and the plan of the attempt; `plan` where that cannot be read any more."""
    state = store.apply(rollback)
    try:
        return state, store.plan(state)
    except RolloutError as error:
        log.error("plan_unreadable", error=str(error))
        return state, plan


def facts(state: RolloutState) -> dict[str, Any]:
    """For the log: who decides."""
    names = ("phase", "champion", "challenger", "weight", "epoch", "version")
    return {name: getattr(state, name) for name in names}


def needed(state: RolloutState) -> set[str]:
    return {name for name in (state.champion, state.challenger, state.fallback) if name is not None}


def not_loadable(error: ModelError, attempt: int) -> Change:
    return Change(Command.ROLLBACK, time.time(), str(error), "service", trigger="not_loadable", attempt=attempt)


def not_durable(error: SQLAlchemyError) -> RolloutError:
    message = f"the rollout's database: {error}; free its disk, or bring it back, and retry"
    return RolloutError(message, code="state_not_durable", retryable=True)
