"""Which hand-over a position gets: the symbol's own before the trigger's before the default."""

from __future__ import annotations

from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from delivery.handover import mode_for
from delivery.plan import Handover, HandoverMode

modes = st.sampled_from(get_args(HandoverMode))
names = st.sampled_from("ABC")
policies = st.dictionaries(names, modes)


@given(modes, policies, policies, names, names)
def test_the_symbols_own_mode_wins_over_the_triggers_and_that_over_the_default(
    default: HandoverMode,
    triggers: dict[str, HandoverMode],
    symbols: dict[str, HandoverMode],
    trigger: str,
    symbol: str,
) -> None:
    handover = Handover(default=default, triggers=triggers, symbols=symbols)
    expected = [
        *([symbols[symbol]] if symbol in symbols else []),
        *([triggers[trigger]] if trigger in triggers else []),
    ]
    assert mode_for(handover, trigger, symbol) == [*expected, default][0]


def test_a_trigger_that_nobody_named_gets_the_default() -> None:
    policy = Handover(default="freeze", triggers={"drawdown_exceeded": "reduce_only"})
    assert mode_for(policy, "manual", "NIFTY50") == "freeze"
    assert mode_for(policy, "drawdown_exceeded", "NIFTY50") == "reduce_only"
    assert mode_for(policy, "", "NIFTY50") == "freeze"
