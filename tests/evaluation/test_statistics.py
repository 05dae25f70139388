import math
import statistics as reference

import numpy as np
import pytest
from scipy import stats

from selfmoe_ray.evaluation.statistics import compare, holm, mcnemar, paired_bootstrap, score, wilson_interval
from selfmoe_ray.measure.statistics import Estimate, mean, mean_over_domains, paired_difference

OURS = {"a": 1.0, "b": 2.0, "c": 4.5}
THEIRS = {"c": 5.0, "a": 1.5, "b": 2.2}


def test_the_standard_error_is_that_of_the_differences():
    differences = [-0.5, -0.2, -0.5]
    estimate = paired_difference(OURS, THEIRS)
    assert estimate.mean == pytest.approx(reference.mean(differences))
    assert estimate.standard_error == pytest.approx(reference.stdev(differences) / 3**0.5)


def test_other_rows_are_refused():
    with pytest.raises(ValueError, match="same rows"):
        paired_difference(OURS, {"a": 1.0, "b": 2.0})


def test_one_row_has_no_standard_error():
    assert mean([2.0]) == Estimate(2.0, None)
    assert mean_over_domains([Estimate(1.0, 0.1), Estimate(2.0, None)]) == Estimate(1.5, None)


def test_domains_count_the_same():
    estimate = mean_over_domains([Estimate(1.0, 0.3), Estimate(3.0, 0.4)])
    assert estimate == Estimate(2.0, pytest.approx(0.25))


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (1, 7), (81, 263), (200, 200)])
def test_wilson_intervals_are_where_the_normal_test_of_the_share_turns(successes, n):
    share = successes / n
    for bound in wilson_interval(successes, n):
        if bound not in (0, 1):
            assert abs(share - bound) / (bound * (1 - bound) / n) ** 0.5 == pytest.approx(1.959963985)
    assert wilson_interval(0, 7)[0] == 0 and wilson_interval(200, 200)[1] == 1


def test_a_proportion_has_wilsons_interval():
    # Newcombe 1998, table I: 81 of 263.
    found = score([1.0] * 81 + [0.0] * 182)
    assert (found.n, found.mean) == (263, pytest.approx(81 / 263))
    assert found.interval == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert found.standard_error == pytest.approx((81 / 263 * 182 / 263 / 262) ** 0.5)


def test_any_other_mean_has_the_normal_interval():
    found = score([1.0, 2.0, 4.5])
    assert found.interval == pytest.approx((2.5 - 1.959964 * 1.0408330, 2.5 + 1.959964 * 1.0408330))
    assert score([2.5]).interval is None


@pytest.mark.parametrize(("only_ours", "only_theirs"), [(0, 0), (3, 3), (9, 1), (0, 6), (1, 12), (30, 50)])
def test_mcnemar_is_the_exact_binomial_test(only_ours, only_theirs):
    discordant = only_ours + only_theirs
    tail = sum(math.comb(discordant, count) for count in range(min(only_ours, only_theirs) + 1))
    assert mcnemar(only_ours, only_theirs) == pytest.approx(min(1.0, 2 * tail / 2**discordant))


def test_the_bootstrap_agrees_with_the_t_test_on_many_rows():
    differences = np.random.default_rng(0).normal(0.1, 1.0, 400)
    (low, high), p_value = paired_bootstrap(differences, seed=1)
    t = stats.ttest_1samp(differences, 0.0)
    expected = t.confidence_interval()
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert p_value == pytest.approx(t.pvalue, abs=0.015)
    assert paired_bootstrap(differences, seed=1) == ((low, high), p_value)


def test_where_nothing_differs_nothing_is_significant():
    assert paired_bootstrap(np.zeros(5), seed=0) == ((0.0, 0.0), 1.0)


def test_right_and_wrong_answers_are_compared_by_mcnemar():
    ours = {f"{index:02}": float(index < 16) for index in range(20)}
    theirs = {f"{index:02}": float(index < 8) for index in reversed(range(20))}
    found = compare(ours, theirs, seed=0)
    assert (found.n, found.difference, found.test) == (20, pytest.approx(0.4), "McNemar")
    assert found.p_value == pytest.approx(2 / 2**8)
    assert 0.15 < found.interval[0] < 0.4 < found.interval[1] < 0.65
    assert compare(dict(reversed(ours.items())), theirs, seed=0) == found


def test_other_values_are_compared_by_the_bootstrap():
    found = compare(OURS, THEIRS, seed=0)
    assert found.test == "paired bootstrap" and found.difference == pytest.approx(-0.4)
    assert found.interval == pytest.approx((-0.5, -0.2))
    with pytest.raises(ValueError, match="same rows"):
        compare(OURS, {"a": 1.0}, seed=0)


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
