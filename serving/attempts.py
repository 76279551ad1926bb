"""Who may answer a question, and in which order: by route, by fall-back, and by the rung the ladder stands on.

FULL, CAPPED   the routed model, then the stable one
PPO            the single-pass model among those that decide anyway
RULE, HOLD     none
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.errors import ModelError
from core.halting import HaltingRule, minimum_segments
from delivery.routing import Asked, Role, route
from serving.batcher import Batcher
from serving.ladder import Rung
from serving.live import Live
from serving.question import Question
from serving.reasoning import UNLIMITED
from serving.service import Service

ALL = frozenset(Rung)
NO_SINGLE_PASS = ALL - {Rung.PPO}
SINGLE_PASS = ALL - {Rung.PPO, Rung.CAPPED}


@dataclass(frozen=True)
class Attempt:
    """A model that may answer, and in which role."""

    model: Batcher
    role: Role

    @property
    def id(self) -> str:
        return self.model.engine.id

    @property
    def halting(self) -> HaltingRule | None:
        """None for a single pass, which cannot be shortened."""
        manifest = self.model.engine.manifest
        return None if manifest.algorithm == "ppo" else manifest.halting

    def cap(self, rung: Rung, complexity: float) -> int:
        """How many segments it is given: at least its own minimum for such a row."""
        if rung is not Rung.CAPPED or self.halting is None:
            return UNLIMITED
        return int(minimum_segments(np.float32(complexity), self.halting))


def arms(service: Service, live: Live, question: Question) -> tuple[Attempt, Attempt | None]:
    """The routed arm and the other one, if there is one. Raises ModelError `not_ready`.

    That is the challenger or the champion, whoever is not routed; after a promotion the champion before it, for as long
    as the plan looks back: what the promoted one earns is judged beside it.
    """
    champion, challenger = live.champion, live.model(live.state.challenger)
    if champion is None:
        raise ModelError("no champion is loaded; start the service with one, or a rollout", code="not_ready")
    stable = Attempt(champion, "champion")
    if challenger is None:
        return _after_promotion(service, live, stable)
    candidate = Attempt(challenger, "challenger")
    weight = 0 if service.follower.blind else live.state.weight
    asked = Asked(question.symbol, question.request_id, question.holder)
    if route(asked, weight, live.plan, service.settings.rollout.salt) == "challenger":
        return candidate, stable
    return stable, candidate


def _after_promotion(service: Service, live: Live, stable: Attempt) -> tuple[Attempt, Attempt | None]:
    """The champion before it decides, while nobody here can know whether another process has taken that back."""
    before = live.on_trial
    if before is None or before is stable.model:  # the promoted one is still loading
        return stable, None
    return (Attempt(before, "champion"), None) if service.follower.blind else (stable, Attempt(before, "challenger"))


def attempts(live: Live, routed: Attempt, rung: Rung) -> list[Attempt]:
    """Who is asked, one after the other, until one answers."""
    if rung >= Rung.RULE:
        return []
    single = _single_pass(live) if rung is Rung.PPO else None
    if single is not None:
        return [single]
    stable = _stable(live, routed)
    return [routed] if stable is None else [routed, stable]


def rungs(live: Live) -> frozenset[Rung]:
    """Those that can be stood on with the models that are loaded: fewer segments, or one pass, for whoever has more."""
    if all(each.halting is None for each in _deciding(live)):
        return SINGLE_PASS
    return ALL if _single_pass(live) is not None else NO_SINGLE_PASS


def _stable(live: Live, routed: Attempt) -> Attempt | None:
    """Who answers when the routed model does not: the champion, or after a promotion the one before it."""
    if routed.role == "challenger":
        return Attempt(live.champion, "champion") if live.champion else None
    fallback = live.model(live.state.fallback)
    return Attempt(fallback, "champion") if fallback not in (None, routed.model) else None


def _single_pass(live: Live) -> Attempt | None:
    """Of those trusted with decisions: the champion, the one before it, or a challenger that has symbols."""
    fallback = live.model(live.state.fallback)
    trusted = [*_deciding(live), *([Attempt(fallback, "champion")] if fallback else [])]
    return next((each for each in trusted if each.model.engine.manifest.algorithm == "ppo"), None)


def _deciding(live: Live) -> list[Attempt]:
    challenger = live.model(live.state.challenger) if live.state.weight else None
    found: list[Attempt] = [Attempt(live.champion, "champion")] if live.champion else []
    return [*found, Attempt(challenger, "challenger")] if challenger else found
