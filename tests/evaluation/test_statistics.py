import statistics as reference

import pytest

from selfmoe_ray.evaluation.statistics import Estimate, mean, mean_over_domains, paired_difference

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
