"""Conditions of metrics: what they mean is what Python means, and nothing else can be said with them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from delivery.conditions import LONGEST, compile_condition

numbers = st.recursive(
    st.sampled_from(["result", "args.limit", "0.5", "2", "1e3"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: f"({' '.join(parts)})"),
        inner.map(lambda text: f"-{text}"),
    ),
    max_leaves=5,
)
comparisons = st.tuples(numbers, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), numbers).map(" ".join)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda parts: f"({' '.join(parts)})"),
        inner.map(lambda text: f"not ({text})"),
    ),
    max_leaves=3,
)


class Args:
    def __init__(self, limit: float) -> None:
        self.limit = limit


@given(conditions, st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_condition_means_what_python_means(text: str, result: float, limit: float) -> None:
    if len(text) > LONGEST or "result" not in text:
        with pytest.raises(ConfigError):
            compile_condition(text)
        return
    try:
        meant = eval(text, {"__builtins__": {}}, {"result": result, "args": Args(limit)})
    except ZeroDivisionError:
        meant = None
    assert compile_condition(text).holds(result, {"limit": limit}) is meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "result",
        "result > 1 > ",
        "__import__('os').system('true') > result",
        "result.__class__ > 1",
        "result.real > 1",
        "args.limit.real > result",
        "args > result",
        "args['limit'] > result",
        "abs(result) > 1",
        "(lambda: result)() > 1",
        "[result for result in (1, 2)] > 1",
        "(x := result) > 1",
        "result if result > 1 else 2",
        "result ** 9 > 1",
        "result % 2 > 1",
        "result // 2 > 1",
        "result << 9 > 1",
        "result in (1, 2)",
        "result is 1",
        "result > 'a'",
        "result > True",
        "result > 1j",
        "result > 1e999",
        "result > None",
        "result and 1",
        "not result",
        "result > (result < 1)",
        "f'{result}' > 1",
        "other > result",
        "args.limit > 1",
        "1 > 0",
        "result > 1; result < 2",
        "result = 1",
        "result >\x001",
        "(" * 90 + "result" + ")" * 90 + " > 1" + " and result > 0" * 9,
        "result > " + "-" * 150 + "1" + "0" * 50,
    ],
)
def test_anything_else_is_refused_in_words(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        compile_condition(text)
    assert error.value.code == "plan_invalid"


def test_a_refusal_names_the_part_and_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"`abs\(result\)` is not a number; a condition is made of result, args.NAME"):
        compile_condition("abs(result) > 1")


@pytest.mark.parametrize("text", ["1 / result > 1", "result / (result - result) < 1", "result * 1e299 * 1e299 > 0"])
def test_no_answer_is_neither_true_nor_false(text: str) -> None:
    assert compile_condition(text).holds(0.0 if text.startswith("1") else 5.0, {}) is None
    assert compile_condition(f"not ({text})").holds(0.0 if text.startswith("1") else 5.0, {}) is None


def test_a_difference_of_two_infinities_does_not_pass_for_a_small_one() -> None:
    assert compile_condition("result * 1e299 - result * 1e299 > 5").holds(1e20, {}) is None


def test_it_reads_only_the_arguments_it_names_and_they_must_be_numbers() -> None:
    condition = compile_condition("result > args.low and result < args.high * args.low")
    assert condition.args == {"low", "high"}
    assert condition.holds(3.0, {"low": 2.0, "high": 4.0, "other": "text"}) is True
    for wrong in ({"low": 2.0}, {"low": 2.0, "high": "4"}, {"low": 2.0, "high": math.nan}):
        with pytest.raises(ConfigError, match=r"needs args\.high to be a number"):
            condition.holds(3.0, wrong)
