"""Tickets: once, in time, for whom they were given to, and not without bound."""

from __future__ import annotations

from backend.tickets import GOOD_FOR_S, MOST, MOST_OF_ONE, Holder, Tickets
from serving.scopes import Principal, Scope, Unknown


def holder(name: str = "key:1") -> Holder:
    principal = Principal(name, frozenset({Scope.ROLLOUT_READ}))
    return Holder(principal, lambda: principal)


def test_a_ticket_opens_once_and_in_time() -> None:
    now = [100.0]
    tickets = Tickets(lambda: now[0])
    first, second, third = (str(tickets.give(holder())) for _ in range(3))
    assert tickets.take(first) is not None
    assert tickets.take(first) is None
    now[0] += GOOD_FOR_S - 0.001
    assert tickets.take(second) is not None
    now[0] += 0.001
    assert tickets.take(third) is None
    assert len(tickets) == 0


def test_ten_thousand_tickets_are_not_kept_and_one_caller_does_not_shut_out_another() -> None:
    tickets = Tickets()
    given = [tickets.give(holder()) for _ in range(10_000)]
    assert sum(ticket is not None for ticket in given) == len(tickets) == MOST_OF_ONE
    assert tickets.give(holder("key:2")) is not None
    for caller in range(10_000 // MOST_OF_ONE + 1):
        for _ in range(MOST_OF_ONE):
            tickets.give(holder(f"key:{caller}"))
    assert len(tickets) == MOST


def test_what_never_was_a_ticket_opens_nothing() -> None:
    tickets = Tickets()
    tickets.give(holder())
    for text in ("", "x", "\ud800", "0" * 64):
        assert tickets.take(text) is None


def test_whose_it_is_is_asked_again() -> None:
    given = Principal("key:1", frozenset({Scope.ROLLOUT_READ}))
    for now, may in (
        (given, True),
        (Principal("key:1", frozenset({Scope.ADMIN})), True),
        (Principal("key:1", frozenset({Scope.DECIDE})), False),
        (Principal("key:2", frozenset({Scope.ADMIN})), False),
        (Unknown.EXPIRED, False),
        (Unknown.INVALID, False),
    ):
        assert Holder(given, lambda now=now: now).may_still(Scope.ROLLOUT_READ) is may
