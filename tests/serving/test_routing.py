from hypothesis import given
from hypothesis import strategies as st

from serving.routing import bucket, route

symbols = st.text(min_size=1, max_size=20)
weights = st.integers(0, 100)


@given(symbols, symbols)
def test_a_bucket_is_in_the_unit_interval_and_never_changes(salt: str, symbol: str) -> None:
    assert 0 <= bucket(salt, symbol) < 1
    assert bucket(salt, symbol) == bucket(salt, symbol)


@given(symbols, weights, weights)
def test_a_growing_weight_only_moves_symbols_to_the_challenger(symbol: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    if route(symbol, low, "salt") == "challenger":
        assert route(symbol, high, "salt") == "challenger"


@given(symbols)
def test_no_symbol_is_the_challengers_at_weight_0_and_every_one_at_100(symbol: str) -> None:
    assert route(symbol, 0, "salt") == "champion"
    assert route(symbol, 100, "salt") == "challenger"


def test_the_weight_is_the_share_of_symbols_and_the_salt_picks_other_ones() -> None:
    names = [f"SYM{i}" for i in range(5000)]
    first = {name for name in names if route(name, 25, "a") == "challenger"}
    second = {name for name in names if route(name, 25, "b") == "challenger"}
    assert abs(len(first) / 5000 - 0.25) < 0.03
    assert 0.15 < len(first & second) / len(first) < 0.35


def test_the_bucket_is_pinned_so_that_a_new_release_does_not_move_symbols() -> None:
    assert round(bucket("hrm-rollout", "NIFTY50"), 6) == 0.231893
