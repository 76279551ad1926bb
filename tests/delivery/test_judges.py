"""Judges: what is no data, what a verdict follows from, and how often it is wrong.

The simulations are the proof (benchmarks/judges.py draws them): 10,000 rollouts of a challenger that is as good as the
champion, or just tolerable, looked at as often as the judge may be. A judge passes if the upper end of the 99 %
confidence interval of its rate of false alarms is at most alpha.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from benchmarks.judges import PHIS, Outcome, conf_seq, mann_whitney, sprt
from core.gates import Verdict
from delivery.judges import FEWEST_RANKED, FIRST_LOOK, JUDGES, MOST_RANKED, Reading, batch_means, hodges_lehmann, judge
from delivery.metrics import Judge, JudgeKind, Metric
from delivery.sequential import evidence

PATHS = 10_000
SAMPLES = 2_000
SPRT = Judge(kind="sprt", alpha=0.01)
EARNS = Judge(kind="conf_seq", direction="decrease", alpha=0.01)
EARNS_MOST = EARNS.model_copy(update={"allowed": 0.2})
SLOWER = Judge(kind="mann_whitney", alpha=0.01)
PROVIDERS = {"threshold": "p95_ms", "sprt": "error_ratio", "mann_whitney": "outcome_bps", "conf_seq": "outcome_bps"}


def metric(kind: JudgeKind, judged_by: Judge | None = None, **told: Any) -> Metric:
    conditions = {"failureCondition": "result > 100"} if kind == "threshold" else {}
    told = {"judge": judged_by or {"kind": kind}, "provider": {"service": PROVIDERS[kind]}, **conditions, **told}
    return Metric.model_validate({"name": "metric", **told})


def enough(kind: JudgeKind, *, good: bool) -> Reading:
    """A reading that no judge can doubt."""
    if kind == "threshold":
        return Reading(50.0 if good else 150.0, samples=1000)
    if kind == "sprt":
        return Reading(samples=1000, hits=0 if good else 500)
    champion = np.random.default_rng(1).normal(50.0, 1.0, 2000)
    worse_is_more = 1.0 if kind == "mann_whitney" else 0.0
    return Reading(champion=champion, challenger=champion + (-5.0 if good else 5.0) * (worse_is_more or 1.0))


KINDS: list[JudgeKind] = ["threshold", "sprt", "mann_whitney", "conf_seq"]
NOTHING = {
    "threshold": [Reading(), Reading(float("nan"), samples=50), Reading(float("inf"), 50), Reading(hits=3, samples=9)],
    "sprt": [Reading(), Reading(0.5), Reading(hits=3, samples=2), Reading(hits=-1, samples=50)],
    "mann_whitney": [
        Reading(),
        Reading(5.0, samples=99),
        Reading(champion=np.zeros(0), challenger=np.zeros(0)),
        Reading(champion=np.zeros(2000)),
        Reading(champion=np.zeros(2000), challenger=np.full(2000, np.nan)),
        Reading(champion=np.zeros(2000), challenger=np.full(2000, 1e200)),
        Reading(champion=np.zeros((2, 1000)), challenger=np.zeros((2, 1000))),
    ],
}
NOTHING["conf_seq"] = [*NOTHING["mann_whitney"], Reading(champion=np.zeros(2000), challenger=np.zeros(1999))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["inconclusive", "fail"])
def test_no_data_is_what_the_plan_says_and_never_a_pass(kind: JudgeKind, policy: str) -> None:
    for reading in NOTHING[kind]:
        judged = judge(metric(kind, onNoData=policy), reading, {})
        assert judged.verdict is Verdict(policy)
        assert judged.detail.startswith("no data: ")
        assert judged.value is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("good", [True, False])
def test_fewer_than_min_samples_are_no_data_and_as_many_are_some(kind: JudgeKind, good: bool) -> None:
    reading = enough(kind, good=good)
    samples = reading.samples or len(np.asarray(reading.champion))
    assert judge(metric(kind, minSamples=samples), reading, {}).verdict is (Verdict.PASS if good else Verdict.FAIL)
    assert judge(metric(kind, minSamples=samples + 1), reading, {}).verdict is Verdict.INCONCLUSIVE


def test_every_kind_of_judge_is_there() -> None:
    assert sorted(JUDGES) == sorted(KINDS)


@pytest.mark.parametrize(
    ("success", "failure", "value", "verdict"),
    [
        ("result < 5", None, 4.0, Verdict.PASS),
        ("result < 5", None, 5.0, Verdict.FAIL),
        (None, "result > 9", 9.0, Verdict.PASS),
        (None, "result > 9", 10.0, Verdict.FAIL),
        ("result < 5", "result > 9", 4.0, Verdict.PASS),
        ("result < 5", "result > 9", 7.0, Verdict.INCONCLUSIVE),
        ("result < 5", "result > 9", 10.0, Verdict.FAIL),
        ("result > 1", "result > 9", 10.0, Verdict.FAIL),  # failure first
        ("1 / result > 0", None, 0.0, Verdict.INCONCLUSIVE),
        (None, "1 / result > 0", 0.0, Verdict.INCONCLUSIVE),
        ("result < args.limit", None, 4.0, Verdict.PASS),
    ],
)
def test_conditions_decide_as_argo_has_it(
    success: str | None, failure: str | None, value: float, verdict: Verdict
) -> None:
    told = {"successCondition": success, "failureCondition": failure}
    judged = judge(metric("threshold", **told), Reading(value), {"limit": 5.0})
    assert (judged.verdict, judged.value) == (verdict, value)


def test_a_detail_says_what_was_compared_with_what() -> None:
    assert judge(metric("threshold"), Reading(150.0), {}).detail == "150: result > 100"
    assert judge(metric("sprt"), Reading(hits=7, samples=40), {}).detail.startswith("7 of 40: evidence 9.")


readings = st.builds(
    Reading,
    st.none() | st.floats(),
    st.integers(-3, 10**9),
    st.integers(-3, 10**9),
    st.none() | arrays(np.float64, st.integers(0, 500), elements=st.floats() | st.floats(-1, 1)),
    st.none() | arrays(np.float64, st.integers(0, 500), elements=st.floats() | st.floats(-1, 1)),
)


@given(st.sampled_from(KINDS), readings)
def test_whatever_a_provider_says_there_is_an_answer_and_only_data_passes(kind: JudgeKind, reading: Reading) -> None:
    judged = judge(metric(kind), reading, {})
    assert judged.value is None or np.isfinite(judged.value)
    if judged.verdict is Verdict.PASS:
        assert judged.value is not None


@given(
    st.sampled_from(["mann_whitney", "conf_seq"]),
    arrays(np.float64, 450, elements=st.floats(-9, 9)),
    arrays(np.float64, 450, elements=st.floats(-9, 9)),
    st.floats(0, 1),
)
def test_what_is_good_one_way_is_bad_the_other_way(
    kind: JudgeKind, champion: np.ndarray, challenger: np.ndarray, allowed: float
) -> None:
    up, down = (metric(kind, Judge(kind=kind, direction=way, allowed=allowed)) for way in ("increase", "decrease"))
    assert (
        judge(up, Reading(champion=champion, challenger=challenger), {}).verdict
        is judge(down, Reading(champion=-champion, challenger=-challenger), {}).verdict
    )


@pytest.mark.parametrize("kind", ["mann_whitney", "conf_seq"])
def test_the_champion_itself_is_never_condemned(kind: JudgeKind) -> None:
    for champion in (np.full(2000, 0.3), np.random.default_rng(3).normal(0.0, 1.0, 2000)):
        for challenger in (champion, champion + 0.1 + 0.2 - 0.3):  # not quite zero
            assert (
                judge(metric(kind), Reading(champion=champion, challenger=challenger), {}).verdict is not Verdict.FAIL
            )


@pytest.mark.parametrize(("kind", "fewest"), [("mann_whitney", FEWEST_RANKED), ("conf_seq", FIRST_LOOK)])
def test_a_few_batches_say_nothing_however_bad_they_look(kind: JudgeKind, fewest: int) -> None:
    rng = np.random.default_rng(4)
    champion, challenger = rng.normal(0.0, 1.0, 20 * fewest), rng.normal(99.0, 1.0, 20 * fewest)
    few = Reading(champion=champion[:-1], challenger=challenger[:-1])
    assert judge(metric(kind), few, {}).verdict is Verdict.INCONCLUSIVE
    assert judge(metric(kind), Reading(champion=champion, challenger=challenger), {}).verdict is Verdict.FAIL


@pytest.mark.parametrize("kind", ["mann_whitney", "conf_seq"])
def test_a_tolerated_change_is_tolerated(kind: JudgeKind) -> None:
    rng = np.random.default_rng(5)
    champion, challenger = rng.normal(50.0, 1.0, 4000), rng.normal(54.0, 1.0, 4000)
    reading = Reading(champion=champion, challenger=challenger)
    for allowed, verdict in ((0.07, Verdict.FAIL), (0.09, Verdict.PASS)):
        assert judge(metric(kind, Judge(kind=kind, allowed=allowed)), reading, {}).verdict is verdict


def test_the_tolerance_is_a_share_of_the_champions_size_whatever_its_sign() -> None:
    rng = np.random.default_rng(6)
    champion, challenger = rng.normal(-50.0, 1.0, 4000), rng.normal(-54.0, 1.0, 4000)
    reading = Reading(champion=champion, challenger=challenger)
    for allowed, verdict in ((0.07, Verdict.FAIL), (0.09, Verdict.PASS)):
        told = Judge(kind="conf_seq", direction="decrease", allowed=allowed)
        assert judge(metric("conf_seq", told), reading, {}).verdict is verdict


def test_many_samples_make_larger_batches_not_more_work() -> None:
    rng = np.random.default_rng(7)
    reading = Reading(champion=rng.normal(0, 1, 30_001), challenger=rng.normal(0, 1, 30_001))
    detail = judge(metric("mann_whitney"), reading, {}).detail
    assert "over 491 and 491 batches of 61" in detail
    assert MOST_RANKED == 500


@given(st.integers(20, 60), st.integers(20, 60), st.sampled_from([0.001, 0.01, 0.05, 0.2]), st.integers(0, 999))
def test_the_shift_and_its_bound_are_those_of_the_rank_sum_test(n: int, m: int, alpha: float, seed: int) -> None:
    """The bound is where scipy's test turns: a shift just below it is rejected, one just above is not."""
    rng = np.random.default_rng(seed)
    champion, challenger = rng.normal(0.0, 1.0, n), rng.standard_t(3, m) + 0.5
    shift, low = hodges_lehmann(champion, challenger, alpha)
    assert shift == pytest.approx(np.median(challenger[:, None] - champion[None, :]))

    def p_value(moved: float) -> float:
        test = stats.mannwhitneyu(challenger - moved, champion, alternative="greater", method="asymptotic")
        return float(test.pvalue)

    assert p_value(low - 1e-9) <= alpha < p_value(low + 1e-9)


def test_no_bound_is_found_where_the_level_is_beyond_the_ranks() -> None:
    champion = np.arange(20.0)
    assert hodges_lehmann(champion, champion, 1e-9)[1] == -np.inf


def test_an_unfinished_batch_waits() -> None:
    assert batch_means(np.arange(9.0), 4).tolist() == [1.5, 5.5]
    assert batch_means(np.arange(3.0), 4).size == 0


def test_evidence_is_walds_and_both_boundaries_are_used() -> None:
    assert evidence(1.0, 1.0, 0.01, 0.05) == pytest.approx(np.log(5))
    verdicts = {
        (3, 3): Verdict.FAIL,  # log 125 > log 100
        (2, 2): Verdict.INCONCLUSIVE,
        (0, 72): Verdict.INCONCLUSIVE,  # 72 log(95 / 99) > log 0.05
        (0, 73): Verdict.PASS,
    }
    for (hits, samples), verdict in verdicts.items():
        assert judge(metric("sprt"), Reading(hits=hits, samples=samples), {}).verdict is verdict


# How often they are wrong.


def surely_at_most(count: float, rate: float, paths: int = PATHS) -> bool:
    return bool(stats.binomtest(round(count), paths).proportion_ci(0.98, "exact").high <= rate)


def soon(outcome: Outcome, quantile: float) -> float:
    return float(np.quantile(outcome.failed_at, quantile, method="higher"))


def test_sprt_condemns_the_healthy_and_passes_the_unhealthy_as_rarely_as_it_says() -> None:
    healthy = sprt(SPRT, 0.01, 0.0, (PATHS, SAMPLES))
    assert surely_at_most(healthy.failed, SPRT.alpha)
    assert healthy.passed > 0.99 * PATHS
    unhealthy = sprt(SPRT, 0.05, 0.0, (PATHS, SAMPLES))
    assert surely_at_most(unhealthy.passed, 0.055)  # 0.0487 in the long run: discrete steps leave little below beta
    assert unhealthy.failed > 0.99 * PATHS


@pytest.mark.parametrize(("ratio", "median", "late"), [(0.05, 120, 350), (0.2, 22, 45)])
def test_sprt_finds_errors_within_the_samples_that_theory_promises(ratio: float, median: int, late: int) -> None:
    outcome = sprt(SPRT, ratio, 0.0, (2000, SAMPLES))
    assert soon(outcome, 0.5) <= median
    assert soon(outcome, 0.95) <= late


def test_sprt_is_fooled_by_bursts_of_errors_which_is_why_the_documents_say_so() -> None:
    assert not surely_at_most(sprt(SPRT, 0.01, 0.8, (2000, SAMPLES)).failed, SPRT.alpha, 2000)


@pytest.mark.parametrize("phi", PHIS)
def test_the_sequence_condemns_equals_at_most_alpha_often_though_looked_at_after_every_batch(phi: float) -> None:
    outcome = conf_seq(EARNS, (0.3, 0.3), phi, (PATHS, SAMPLES))
    assert surely_at_most(outcome.failed, EARNS.alpha)
    assert surely_at_most(outcome.passed, EARNS.alpha)


@pytest.mark.parametrize("means", [(0.3, 0.24), (-0.3, -0.36)])
def test_the_sequence_is_as_rarely_wrong_about_what_is_just_tolerable(means: tuple[float, float]) -> None:
    outcome = conf_seq(EARNS_MOST, means, 0.5, (PATHS, SAMPLES))
    assert surely_at_most(outcome.failed, EARNS.alpha)
    assert surely_at_most(outcome.passed, EARNS.alpha)


@pytest.mark.parametrize(
    ("phi", "shift", "median", "late"), [(0.0, 0.5, 400, 400), (0.0, 0.2, 800, 1500), (0.8, 0.5, 900, 2000)]
)
def test_the_sequence_finds_a_worse_challenger_soon(phi: float, shift: float, median: int, late: int) -> None:
    outcome = conf_seq(EARNS, (0.3, 0.3 - shift), phi, (1000, SAMPLES))
    assert soon(outcome, 0.5) <= median
    assert soon(outcome, 0.95) <= late
    assert outcome.passed <= 1


def test_without_batches_autocorrelation_fools_the_sequence() -> None:
    raw = EARNS.model_copy(update={"batch": 1})
    assert conf_seq(raw, (0.3, 0.3), 0.8, (1000, SAMPLES)).failed > 0.1 * 1000


@pytest.mark.parametrize("phi", PHIS)
def test_the_rank_test_condemns_equals_at_most_alpha_often(phi: float) -> None:
    assert surely_at_most(PATHS * mann_whitney(SLOWER, (5.0, 5.0), phi, (PATHS, 1000)), SLOWER.alpha)


@pytest.mark.parametrize(("phi", "least"), [(0.0, 0.99), (0.5, 0.99), (0.8, 0.7)])
def test_the_rank_test_finds_half_a_deviation_in_fifty_batches(phi: float, least: float) -> None:
    assert mann_whitney(SLOWER, (5.0, 5.5), phi, (500, 1000)) >= least


def test_without_batches_autocorrelation_fools_the_rank_test() -> None:
    raw = SLOWER.model_copy(update={"batch": 1})
    assert mann_whitney(raw, (5.0, 5.0), 0.8, (2000, 50)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_thirty_thousand_rollouts_of_five_thousand_decisions_agree(phi: float, alpha: float) -> None:
    paths = 30_000
    judged = EARNS_MOST.model_copy(update={"alpha": alpha})
    outcome = conf_seq(judged, (0.3, 0.24), phi, (paths, 5000))
    assert surely_at_most(outcome.failed, alpha, paths)
    assert surely_at_most(outcome.passed, alpha, paths)
