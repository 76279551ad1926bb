"""Conditions of a metric: `result > args.limit and result < 2 * args.limit`. Never eval: a whitelist of syntax.

    condition  = comparison | condition and condition | condition or condition | not condition
    comparison = number (< <= > >= == !=) number ...
    number     = result | args.NAME | literal | - number | number (+ - * /) number

Anything else is refused when the plan is read. A condition without an answer (a division by zero, a number too large)
holds neither way: the measurement is inconclusive.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from core.errors import ConfigError

LONGEST = 200  # characters: bounds the work and the depth of a condition
Names = Mapping[str, float]
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Condition:
    text: str
    args: frozenset[str]  # that it reads
    _truth: Callable[[Names], bool]

    def holds(self, result: float, args: Mapping[str, float | str]) -> bool | None:
        """Whether it holds for a finite `result`; None where it has no answer. ConfigError if an arg is no number."""
        names = {"result": result} | {name: _number_in(args, name, self.text) for name in self.args}
        try:
            return self._truth(names)
        except ArithmeticError:
            return None


@lru_cache(maxsize=1024)
def compile_condition(text: str) -> Condition:
    """Raises ConfigError that says what is not allowed, for a condition is written by whoever may start a rollout."""
    if len(text) > LONGEST:
        raise ConfigError(f"a condition has at most {LONGEST} characters, this one {len(text)}", code="plan_invalid")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # what Python's parser is known to raise
        raise ConfigError(f"'{text}' is not a condition: {error}", code="plan_invalid") from None
    truth = _truth(tree, text)
    if not any(isinstance(node, ast.Name) and node.id == "result" for node in ast.walk(tree)):
        raise ConfigError(f"'{text}' says the same whatever is measured; compare `result`", code="plan_invalid")
    read = frozenset(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return Condition(text, read, truth)


def _truth(node: ast.expr, text: str) -> Callable[[Names], bool]:
    match node:
        case ast.BoolOp(op=op, values=values):
            parts = [_truth(value, text) for value in values]
            join = all if isinstance(op, ast.And) else any
            return lambda names: join(part(names) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _truth(operand, text)
            return lambda names: not inner(names)
        case ast.Compare(left=left, ops=ops, comparators=comparators) if all(type(op) in _COMPARISONS for op in ops):
            compares = [_COMPARISONS[type(op)] for op in ops]
            numbers = [_number(side, text) for side in (left, *comparators)]
            return lambda names: all(
                compare(a(names), b(names)) for compare, a, b in zip(compares, numbers, numbers[1:], strict=False)
            )
    raise _refused(node, text, "a comparison")


def _number(node: ast.expr, text: str) -> Callable[[Names], float]:
    match node:
        case ast.Constant(value=int() | float() as literal) if not isinstance(literal, bool) and abs(literal) < 1e300:
            constant = float(literal)
            return lambda names: constant
        case ast.Name(id="result"):
            return lambda names: names["result"]
        case ast.Attribute(value=ast.Name(id="args"), attr=name):
            return lambda names: names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _number(operand, text)
            return lambda names: -inner(names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            compute, a, b = _ARITHMETIC[type(op)], _number(left, text), _number(right, text)
            return lambda names: _finite(compute(a(names), b(names)))
    raise _refused(node, text, "a number")


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise OverflowError
    return value


def _number_in(args: Mapping[str, float | str], name: str, text: str) -> float:
    value = args.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"'{text}' needs args.{name} to be a number, it is {value!r}", code="plan_invalid")
    return value


def _refused(node: ast.expr, text: str, wanted: str) -> ConfigError:
    return ConfigError(
        f"'{text}': `{ast.unparse(node)}` is not {wanted}; a condition is made of result, args.NAME, numbers, "
        f"+ - * /, comparisons, and, or, not",
        code="plan_invalid",
    )
