"""Who owns a position after an answer, and what may be done with it: the rules without a ledger."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.actions import TARGET_OF, Action
from trading.intents import answered, handing_over, holding, leaving, legal, succession
from trading.market import SECOND_NS
from trading.ownership import STRICTER, Book, Handover, Owner, filled, handed_over
from trading.service import DecisionAnswer

CHAMPION, CHALLENGER = Owner("champion", "ppo/v1"), Owner("challenger", "hrm/v1")
LONG = Book("NIFTY", CHALLENGER, 5.0)
OWNERS = st.sampled_from([CHAMPION, CHALLENGER, Owner("champion", "hrm/v1")])
BOOKS = st.builds(
    Book,
    st.just("NIFTY"),
    OWNERS,
    st.integers(-9, 9).map(float),
    st.sampled_from(STRICTER),
    st.one_of(st.none(), st.integers(0, 100)),
)


def decision(owner: Owner, **facts: Any) -> dict[str, Any]:
    model, version = owner.model.split("/")
    said = {"role": owner.arm, "action": int(Action.HOLD), "quantity": 3.0, "model": model, "model_version": version}
    return said | {"epoch": 1} | facts


def answer(owner: Owner, **facts: Any) -> DecisionAnswer:
    return DecisionAnswer.model_validate({"account": owner.arm} | decision(owner, **facts))


TERMS = {"mode": "flatten", "flatten_after_s": 60.0, "flatten_before_close_s": 60.0}
SAFE = {"role": "safe", "model": "none", "model_version": "none"}


@pytest.mark.parametrize(
    ("book", "given", "taken"),
    [
        pytest.param(LONG, answer(CHALLENGER), None, id="its owner answers"),
        pytest.param(replace(LONG, units=0.0), answer(CHAMPION), None, id="flat"),
        pytest.param(LONG, answer(CHAMPION, handover=TERMS), "flatten", id="rolled back"),
        pytest.param(LONG, answer(CHAMPION, handover=TERMS, **SAFE), "flatten", id="rolled back, and no model answers"),
        pytest.param(LONG, answer(CHAMPION, **SAFE), None, id="no model answers"),
        pytest.param(
            Book("NIFTY", Owner("champion", "hrm/v1"), 5.0),
            answer(CHAMPION, handover=TERMS),
            "flatten",
            id="rolled back after its promotion",
        ),
        pytest.param(
            Book("NIFTY", CHAMPION, 5.0), answer(CHAMPION, handover=TERMS), None, id="not what was rolled back"
        ),
        pytest.param(
            Book("NIFTY", CHAMPION, 5.0), answer(CHAMPION, handover=TERMS, **SAFE), None, id="nobody says whose it was"
        ),
        pytest.param(LONG, answer(CHAMPION, shadow=decision(CHALLENGER)), None, id="it is in the shadow for a while"),
        pytest.param(LONG, answer(CHAMPION, shadow_missing="late"), None, id="nobody knows whether it is there"),
        pytest.param(LONG, answer(CHAMPION, fallback=True), None, id="it failed once"),
        pytest.param(
            Book("NIFTY", Owner("champion", "hrm/v1"), 5.0),
            answer(CHAMPION, fallback=True),
            None,
            id="it was promoted, and failed once",
        ),
        pytest.param(LONG, answer(CHAMPION), "reduce_only", id="it is gone, and nobody says why"),
        pytest.param(
            LONG,
            answer(Owner("champion", "hrm/v2"), promoted=True, shadow=decision(CHALLENGER)),
            "reduce_only",
            id="the champion before a promotion was a challenger once",
        ),
        pytest.param(
            LONG,
            answer(Owner("champion", "hrm/v2"), promoted=True, shadow_missing="late"),
            "reduce_only",
            id="after a promotion nobody is challenger",
        ),
        pytest.param(
            LONG, answer(CHAMPION, promoted=True, fallback=True), None, id="it failed once, beside the one before it"
        ),
        pytest.param(LONG, answer(Owner("challenger", "hrm/v2")), "reduce_only", id="another one has its place"),
        pytest.param(LONG, answer(Owner("champion", "hrm/v1")), "adopt", id="it was promoted"),
        pytest.param(
            Book("NIFTY", CHAMPION, -2.0), answer(Owner("champion", "hrm/v1")), "adopt", id="the next champion"
        ),
        pytest.param(Book("NIFTY", CHAMPION, -2.0), answer(CHALLENGER), None, id="a champion's, and it is not flat"),
    ],
)
def test_who_takes_over_what(book: Book, given: DecisionAnswer, taken: str | None) -> None:
    assert succession(book, given) == taken


@given(BOOKS, OWNERS, st.sampled_from(["adopt", "reduce_only", "flatten", "freeze"]), st.integers(0, 100))
def test_a_hand_over_moves_all_units_and_never_allows_what_was_forbidden(
    book: Book, to: Owner, mode: Any, flatten_at_ns: int
) -> None:
    after = handed_over(book, Handover("NIFTY", to, mode, 1, 0, flatten_at_ns))
    assert (after.owner, after.units) == (to, book.units)
    assert STRICTER.index(after.mode) >= STRICTER.index(book.mode)
    if book.exit_due(50):
        assert after.exit_due(50) or after.mode == "freeze"


@given(BOOKS, st.integers(-20, 20).filter(bool).map(float), st.integers(0, 20))
def test_an_order_that_reduces_ends_nearer_to_zero_and_on_the_same_side(
    book: Book, units: float, under_way: int
) -> None:
    pending = -float(under_way) if book.units > 0 else float(under_way)
    if book.reduces(units, pending):
        after = book.units + units + pending
        assert abs(after) < abs(book.units) and after * book.units >= 0


@given(BOOKS)
def test_once_flat_a_symbol_is_free_unless_a_person_has_to_release_it(book: Book) -> None:
    after = filled(book, -book.units)
    assert after.mode == ("freeze" if book.mode == "freeze" else "normal")
    assert after.acting is None and not after.exit_due(10**18)


@given(BOOKS, st.sampled_from(list(Action)), st.sampled_from([-1, 0, 1]), st.booleans())
def test_an_order_leads_where_the_acting_arm_decided_or_to_flat(
    book: Book, action: Action, other: int, safe: bool
) -> None:
    sign = (book.units > 0) - (book.units < 0)
    owner = book.owner
    assert owner is not None
    positions = {"champion": other, "challenger": other} | {owner.arm: sign}
    given_answer = answer(owner, action=int(action), **(SAFE if safe else {}))
    if not legal(given_answer, positions, book):
        return
    intent = answered(given_answer, holding("NIFTY", 0, positions), book, 100.0)
    reached, target = book.units + intent.order_units, int(TARGET_OF[sign + 1, action])
    if safe:
        assert reached in (book.units, 0.0)
    elif book.mode == "normal" or target == sign:
        assert (reached > 0) - (reached < 0) == target
    else:
        assert reached == 0.0  # the gateway refuses even that in a freeze


def test_what_has_to_go_goes_some_time_after_the_hand_over_or_before_the_close() -> None:
    intent = holding("NIFTY", 0, {"champion": 0, "challenger": 1})
    given_answer = answer(CHAMPION, handover=TERMS | {"mode": "reduce_only"})
    early = handing_over(intent, "reduce_only", given_answer, now_ns=0, closes_ns=3600 * SECOND_NS)
    late = handing_over(intent, "reduce_only", given_answer, now_ns=0, closes_ns=90 * SECOND_NS)
    assert (early.flatten_at_ns, late.flatten_at_ns) == (60 * SECOND_NS, 30 * SECOND_NS)
    assert early.owner == str(CHAMPION)


def test_an_exit_leaves_its_owner_s_own_book_flat() -> None:
    intent = leaving(holding("NIFTY", 0, {"champion": -1, "challenger": 1}), LONG)
    assert (intent.order_units, intent.challenger_to, intent.champion_to, intent.is_exit) == (-5.0, 0, -1, True)


def in_its_stead(action: Action, shadow: Action) -> DecisionAnswer:
    """The champion's answer on the account of a challenger that failed, and its own decision beside it."""
    own = decision(CHAMPION, action=int(shadow))
    return answer(CHAMPION, account="challenger", action=int(action), fallback=True, shadow=own)


def test_a_challenger_that_fails_while_flat_is_answered_for_once_and_not_twice() -> None:
    flat, positions = Book("NIFTY", CHAMPION), {"champion": 0, "challenger": 0}
    given_answer = in_its_stead(Action.BUY_LONG, Action.BUY_LONG)
    assert legal(given_answer, positions, flat)
    intent = answered(given_answer, holding("NIFTY", 0, positions), flat, 100.0)
    assert (intent.order_units, intent.owner) == (3.0, str(CHAMPION))
    assert (intent.champion_to, intent.challenger_to) == (1, 1)


def test_what_a_failing_challenger_holds_can_be_let_go_of_by_the_champion_s_decision() -> None:
    positions = {"champion": 0, "challenger": 1}
    given_answer = in_its_stead(Action.CLOSE_LONG, Action.HOLD)
    assert legal(given_answer, positions, LONG)
    intent = answered(given_answer, holding("NIFTY", 0, positions), LONG, 100.0)
    assert (intent.order_units, intent.owner) == (-5.0, str(CHALLENGER))  # the owner's: nobody else's is accepted
    assert (intent.champion_to, intent.challenger_to) == (0, 0)


def test_two_decisions_for_one_account_are_none() -> None:
    given_answer = answer(CHAMPION, action=int(Action.BUY_LONG), shadow=decision(CHAMPION, action=int(Action.BUY_LONG)))
    assert not legal(given_answer, {"champion": 0, "challenger": 0}, Book("NIFTY", CHAMPION))


@pytest.mark.parametrize("text", ["", "ppo/v1", "shadow:ppo/v1", "champion:"])
def test_an_owner_is_an_arm_and_a_model(text: str) -> None:
    with pytest.raises(ValueError, match="names no owner"):
        Owner.parse(text)
    assert Owner.parse(str(CHALLENGER)) == CHALLENGER
