"""What surrounds the commands of a rollout: whom a step is asked of, whom it is told to, and the controller.

    before a start or a step   the plan's webhooks of that kind must allow it; a plan must be usable before it starts
    after every change         webhooks and people are told, and nobody is waited for
    always                     the controller, if this process holds the lease

A step that a person asks for needs what the controller's needs: the market's time, and a background analysis that has
something to say for it. An abort and a rollback are never asked about, and told only when they are done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from sqlalchemy.exc import SQLAlchemyError

from core.errors import HrmSystemError, RolloutError
from core.settings import Settings
from delivery.notifications import Notification, Notifier, targets_of
from delivery.outbound import Outbound
from delivery.plan import Plan
from delivery.progress import may_step, silent, tallies_of
from delivery.providers import External
from delivery.sending import Sender, Severity
from delivery.store import RolloutStore
from delivery.transitions import UNSTOPPABLE, Change, Command, Phase, RolloutState, transition
from delivery.webhooks import Asked, Webhooks

ENDED = frozenset({Phase.PROMOTED, Phase.ROLLED_BACK})
PEOPLE_MUST_ACT = frozenset({Command.PAUSE})
FIRST_LOOK_S = 3.0  # a promotion right after the start waits so long for the first measurements
LOOK_S = 0.05


class Steering:
    """Used on the service's event loop. Raises ConfigError or DataError for notification targets that cannot be."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._outbound = Outbound(settings.delivery)
        self._sender = Sender()
        self._webhooks = Webhooks(self._outbound, self._sender, environ)
        targets = targets_of(settings.delivery, self._outbound, environ)
        self._notifier = Notifier(targets, self._sender, dedupe_s=settings.delivery.notifications.dedupe_s)
        self.external = External(self._outbound, environ)

    def require_usable(self, plan: Plan) -> None:
        """Hosts, secrets and variables that a plan needs, before it starts. Raises RolloutError `plan_unusable`."""
        try:
            self._webhooks.require_usable(plan)
            self.external.require_usable(plan)
        except HrmSystemError as error:
            raise RolloutError(f"the plan cannot be carried out: {error}", code="plan_unusable") from None

    async def require_possible(self, store: RolloutStore, change: Change, state: RolloutState) -> int:
        """All that a command needs before anything is loaded for it; the version that it was judged on.

        Raises RolloutError.
        """
        rules = store.rules(state, change)
        after = transition(state, change, rules)
        if change.command is Command.START:
            self.require_usable(rules.plan)
        if change.command is Command.PROMOTE and steps(state, after):
            await require_step(store, state, rules.plan)
        await self.require_allowed(change, state, after, rules.plan)
        return state.version

    async def require_allowed(self, change: Change, before: RolloutState, after: RolloutState, plan: Plan) -> None:
        """Ask the plan's webhooks about a step. Raises RolloutError `webhook_denied`."""
        kinds = asked_about(change, before, after)
        answers = await asyncio.gather(*(self._webhooks.ask(plan, kind, after) for kind in kinds))
        refused = [one.detail for kind in answers for one in kind if not one.allowed]
        if refused:
            raise RolloutError("; ".join(refused), code="webhook_denied", retryable=True)

    def tell(self, change: Change, after: RolloutState, plan: Plan) -> None:
        """Of a change that is durable."""
        if change.command in UNSTOPPABLE:
            self._webhooks.tell(plan, "rollback", after)
        if after.phase in ENDED:
            self._webhooks.tell(plan, "post-rollout", after)
        self._webhooks.tell(plan, "event", after)
        self._notifier.notify(told_to_people(change, after))

    async def close(self) -> None:
        self._notifier.close()
        await self._sender.close()
        await self._outbound.close()


def asked_about(change: Change, before: RolloutState, after: RolloutState) -> list[Asked]:
    """The kinds of webhooks whose word a change needs."""
    if change.command is Command.START:
        return ["confirm-rollout"]
    if change.command is Command.ADVANCE:
        return ["rollout"]
    if change.command is not Command.PROMOTE or not steps(before, after):
        return []
    if after.phase is Phase.PROMOTED:
        return ["rollout", "confirm-promotion"]
    first: list[Asked] = ["pre-rollout"] if before.weight == 0 else []
    return [*first, "rollout", "confirm-traffic-increase"]


async def require_step(store: RolloutStore, state: RolloutState, plan: Plan) -> None:
    """What a step needs beside gates and approvals.

    Raises RolloutError `outside_market_time`, `background_not_passed` or, without the database, `state_unreadable`.
    """
    if not may_step(plan.market, time.time()):
        raise RolloutError(
            "the plan steps in market time only, and not near the open, the close or an expiry; promote then",
            code="outside_market_time",
            retryable=True,
        )
    deadline = time.monotonic() + FIRST_LOOK_S
    while against := await asyncio.to_thread(_silent, store, state, plan):
        if time.monotonic() >= deadline:
            raise RolloutError(
                f"the background analysis does not speak for a step: {'; '.join(against)}; wait for it, or abort",
                code="background_not_passed",
                retryable=True,
            )
        await asyncio.sleep(LOOK_S)


def _silent(store: RolloutStore, state: RolloutState, plan: Plan) -> list[str]:
    if plan.background_analysis is None:
        return []
    try:
        taken = store.measurements(state.attempt)
    except SQLAlchemyError as error:
        raise RolloutError(
            f"the rollout's measurements cannot be read: {error}; see to its database and retry",
            code="state_unreadable",
            retryable=True,
        ) from error
    return silent(state, plan, tallies_of(taken), time.time())


def steps(before: RolloutState, after: RolloutState) -> bool:
    """Whether a promotion moves the rollout, and does not only end a wait inside of a stage."""
    return (after.step, after.phase) != (before.step, before.phase)


def told_to_people(change: Change, after: RolloutState) -> Notification:
    """One line for a person, with what it is about as its key."""
    model = after.rejected[-1] if change.command in UNSTOPPABLE and after.rejected else after.challenger
    title = f"{change.command}: {model or after.champion}, {after.phase}, {after.weight} % of symbols"
    severity = Severity.INFO
    if change.command in UNSTOPPABLE:
        severity = Severity.CRITICAL
    elif change.command in PEOPLE_MUST_ACT or after.phase is Phase.PROMOTED:
        severity = Severity.WARNING
    return Notification(severity, f"rollout {after.attempt} {change.command} {after.step}", title, change.reason)
