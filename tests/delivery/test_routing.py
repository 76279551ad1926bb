"""Who decides: how much the weight is, and what it may never do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delivery.plan import Plan
from delivery.routing import Asked, Role, bucket, route

symbols = st.text(min_size=1, max_size=20)
weights = st.integers(0, 100)
roles = st.sampled_from(["champion", "challenger"])
MANY = [f"SYM{i}" for i in range(10_000)]


def plan_with(**fields: Any) -> Plan:
    return Plan.model_validate({"steps": [{"setWeight": 100}], **fields})


SYMBOLS, REQUESTS = plan_with(), plan_with(weightBasis="requests")
shares = st.dictionaries(symbols, st.floats(0.01, 1e6), min_size=1, max_size=30)
plans = st.builds(
    lambda basis, notional, deny: plan_with(
        weightBasis=basis, symbols={"notional": notional, "deny": deny[: len(notional) - 1]}
    ),
    st.sampled_from(["symbols", "requests", "notional"]),
    shares,
    st.lists(symbols, max_size=3),
)


def challenged(names: list[str], weight: int, plan: Plan = SYMBOLS, salt: str = "salt") -> set[str]:
    return {name for name in names if route(Asked(name, name), weight, plan, salt) == "challenger"}


@given(symbols, symbols)
def test_a_bucket_is_in_the_unit_interval_and_never_changes(salt: str, symbol: str) -> None:
    assert 0 <= bucket(salt, symbol) < 1
    assert bucket(salt, symbol) == bucket(salt, symbol)


def test_the_bucket_is_pinned_so_that_a_new_release_does_not_move_symbols() -> None:
    assert round(bucket("hrm-rollout", "NIFTY50"), 6) == 0.231893


@given(plans, symbols, symbols, weights, weights, st.none() | roles)
def test_a_growing_weight_only_moves_symbols_to_the_challenger(
    plan: Plan, symbol: str, request: str, one: int, other: int, holder: Role | None
) -> None:
    low, high = sorted((one, other))
    asked = Asked(symbol, request, holder)
    if route(asked, low, plan, "salt") == "challenger":
        assert route(asked, high, plan, "salt") == "challenger"


@given(plans, symbols, symbols, st.none() | roles)
def test_nothing_is_the_challengers_at_weight_0_and_every_allowed_flat_symbol_at_100(
    plan: Plan, symbol: str, request: str, holder: Role | None
) -> None:
    assert route(Asked(symbol, request, holder), 0, plan, "salt") == "champion"
    wanted = "champion" if symbol in plan.symbols.deny else "challenger"
    assert route(Asked(symbol, request), 100, plan, "salt") == wanted


@given(plans, symbols, symbols, roles, st.integers(1, 100))
def test_a_symbol_stays_with_whoever_holds_it_until_it_is_flat(
    plan: Plan, symbol: str, request: str, holder: Role, weight: int
) -> None:
    wanted = "champion" if symbol in plan.symbols.deny else holder
    assert route(Asked(symbol, request, holder), weight, plan, "salt") == wanted


@given(plans, symbols, symbols, st.lists(symbols, max_size=3), st.none() | roles, weights)
def test_the_challenger_never_has_a_symbol_that_is_not_allowed(
    plan: Plan, symbol: str, request: str, allow: list[str], holder: Role | None, weight: int
) -> None:
    plan = plan.model_copy(update={"symbols": plan.symbols.model_copy(update={"allow": tuple(allow)})})
    if symbol not in allow or symbol in plan.symbols.deny:
        assert route(Asked(symbol, request, holder), weight, plan, "salt") == "champion"


@settings(max_examples=20)
@given(symbols, st.integers(1, 99), st.sampled_from([SYMBOLS, REQUESTS]))
def test_the_measured_weight_of_many_is_within_two_percent(salt: str, weight: int, plan: Plan) -> None:
    assert abs(len(challenged(MANY, weight, plan, salt)) / len(MANY) - weight / 100) <= 0.02


@settings(max_examples=20)
@given(symbols, st.integers(1, 99))
def test_the_weight_is_of_the_symbols_that_are_allowed(salt: str, weight: int) -> None:
    allowed, denied = MANY[:1500], MANY[:500]
    plan = plan_with(symbols={"allow": allowed, "deny": denied})
    found = challenged(MANY[:2000], weight, plan, salt)
    assert found <= set(allowed) - set(denied)
    assert abs(len(found) / 1000 - weight / 100) <= 0.06


@settings(max_examples=20)
@given(symbols, st.integers(1, 99), st.data())
def test_by_notional_the_measured_weight_of_many_is_within_two_percent_and_never_above(
    salt: str, weight: int, data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.floats(1.0, 100.0), min_size=200, max_size=300))
    notional = dict(zip(MANY, sizes, strict=False))
    plan = plan_with(weightBasis="notional", symbols={"notional": notional})
    got = sum(notional[name] for name in challenged(list(notional), weight, plan, salt)) / sum(sizes)
    largest = max(sizes) / sum(sizes)
    assert weight / 100 - largest - 1e-9 <= got <= weight / 100 + 1e-9
    assert got >= weight / 100 - 0.02 or largest > 0.02


def test_by_notional_a_large_symbol_is_not_given_for_a_small_weight() -> None:
    plan = plan_with(weightBasis="notional", symbols={"notional": {"LARGE": 60, "SMALL": 40}})
    for weight, most in ((5, 0), (45, 40), (70, 60), (99, 60), (100, 100)):
        held = sum(plan.symbols.notional[name] for name in challenged(["LARGE", "SMALL"], weight, plan))
        assert held <= most


def test_by_value_at_risk_a_calm_symbol_counts_less_than_a_wild_one_of_the_same_size() -> None:
    risky = {"notional": {"CALM": 50, "WILD": 50}, "volatility": {"CALM": 0.005, "WILD": 0.02}}
    by_var, by_size = plan_with(weightBasis="var", symbols=risky), plan_with(weightBasis="notional", symbols=risky)
    for salt in "abcdefgh":
        assert challenged(["CALM", "WILD"], 20, by_var, salt) <= {"CALM"}  # a fifth of what can be lost
        assert challenged(["CALM", "WILD"], 79, by_var, salt) < {"CALM", "WILD"}
        assert challenged(["CALM", "WILD"], 49, by_size, salt) == set()
        assert challenged(["CALM", "WILD"], 100, by_var, salt) == {"CALM", "WILD"}


@settings(max_examples=20)
@given(symbols, st.integers(1, 99), st.data())
def test_by_value_at_risk_the_challenger_never_has_more_than_its_weight(
    salt: str, weight: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(2, 40))
    sizes = data.draw(st.lists(st.floats(1.0, 100.0), min_size=count, max_size=count))
    moves = data.draw(st.lists(st.floats(0.001, 0.1), min_size=count, max_size=count))
    names = [f"S{i}" for i in range(count)]
    told = {"notional": dict(zip(names, sizes, strict=True)), "volatility": dict(zip(names, moves, strict=True))}
    plan = plan_with(weightBasis="var", symbols=told)
    risk = {name: size * move for name, size, move in zip(names, sizes, moves, strict=True)}
    held = sum(risk[name] for name in challenged(names, weight, plan, salt))
    assert held <= (weight / 100 + 1e-9) * sum(risk.values())


def test_by_notional_what_has_no_share_goes_last_and_what_is_denied_has_none() -> None:
    notional = {"A": 0.1, "B": 0.2, "C": 0.7, "DENIED": 1000.0}
    plan = plan_with(weightBasis="notional", symbols={"notional": notional, "deny": ["DENIED"]})
    names = [*notional, "UNKNOWN"]
    assert challenged(names, 99, plan) < {"A", "B", "C"}
    assert challenged(names, 100, plan) == {"A", "B", "C", "UNKNOWN"}


def test_shares_that_add_up_to_the_weight_are_within_it_whatever_the_rounding() -> None:
    plan = plan_with(weightBasis="notional", symbols={"notional": {f"S{i}": 0.1 for i in range(10)}})
    names = list(plan.symbols.notional)
    assert [len(challenged(names, weight, plan)) for weight in range(10, 101, 10)] == list(range(1, 11))


def test_by_requests_one_symbol_is_shared_and_a_repeated_request_goes_to_the_same_arm() -> None:
    found = [route(Asked("NIFTY50", f"r{i}"), 25, REQUESTS, "salt") for i in range(2000)]
    assert 0.22 < found.count("challenger") / 2000 < 0.28
    assert found == [route(Asked("NIFTY50", f"r{i}"), 25, REQUESTS, "salt") for i in range(2000)]


def test_the_salt_picks_other_symbols() -> None:
    first, second = challenged(MANY, 25, salt="a"), challenged(MANY, 25, salt="b")
    assert 0.2 < len(first & second) / len(first) < 0.3


@pytest.mark.parametrize("basis", ["symbols", "notional"])
def test_two_plans_and_salts_do_not_take_each_others_order(basis: str) -> None:
    one = plan_with(weightBasis=basis, symbols={"notional": {"A": 1.0, "B": 9.0}})
    other = plan_with(weightBasis=basis, symbols={"notional": {"A": 9.0, "B": 1.0}})
    for salt in "abcdefgh":
        first = challenged(["A", "B"], 10, one, salt)
        assert first == challenged(["A", "B"], 10, one, salt)
        if basis == "notional":
            assert first <= {"A"}
            assert challenged(["A", "B"], 10, other, salt) <= {"B"}
