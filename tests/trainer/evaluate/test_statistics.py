"""Intervals and distances against independent definitions of the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apl_guard.trainer.evaluate.statistics import (
    bootstrap_interval,
    clopper_pearson,
    effective,
    frechet_distance,
)


def binomial_tail(successes: int, n: int, p: float) -> float:
    """P(X ≥ successes), summed term by term."""
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(successes, n + 1))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_clopper_pearson_cuts_tails_of_the_binomial(case: tuple[int, int]) -> None:
    """At each end what was seen, or something more extreme, has a chance of exactly 2.5 per cent."""
    successes, n = case

    low, high = clopper_pearson(successes, n)

    assert 0 <= low <= successes / n <= high <= 1
    assert low == 0 if successes == 0 else binomial_tail(successes, n, low) == pytest.approx(0.025, rel=1e-6)
    assert high == 1 if successes == n else 1 - binomial_tail(successes + 1, n, high) == pytest.approx(0.025, rel=1e-6)


def test_an_interval_of_nothing_is_everything() -> None:
    """Without pictures every rate is possible."""
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_pictures_of_different_people_count_in_full() -> None:
    """One picture of each: nothing to be taken off, whatever came out."""
    for hits in ([True, False, False, False, True], [False] * 5, [True] * 5):
        assert effective(hits, range(5)) == pytest.approx((sum(hits), 5), rel=1e-9)


def test_where_nobody_can_see_how_people_differ_pictures_count_in_full() -> None:
    """All came out alike, all are of one person, there are none, or people differ less than by chance."""
    for hits, of in (([True] * 4, "aabb"), ([False] * 4, "aabb"), ([True, False], "aa"), ([], "")):
        assert effective(hits, of) == (sum(hits), len(hits))
    assert effective([True, False] * 9, np.arange(18) // 2) == (9, 18)


def test_copies_of_a_picture_count_as_one() -> None:
    """The interval of 30 people with ten equal pictures each is no narrower than that of 30 pictures."""
    hits = np.arange(30) % 3 == 0

    successes, n = effective(hits.repeat(10), np.arange(30).repeat(10).tolist())

    assert successes / n == pytest.approx(1 / 3)
    assert 26 < n < 30  # Student's law takes a little more


@pytest.mark.parametrize(
    ("share", "alike", "people", "each"), [(0.9, 0.2, 40, 20), (0.5, 0.3, 20, 4), (0.02, 0, 40, 20)]
)
def test_intervals_hold_for_other_people_than_those_drawn(share: float, alike: float, people: int, each: int) -> None:
    """Where people differ, about 95 of 100 intervals hold the share; of the binomial's as few as 65 do."""
    rng = np.random.default_rng(0)
    held = plain = 0
    for _ in range(400):
        own = rng.beta(share * (1 / alike - 1), (1 - share) * (1 / alike - 1), people) if alike else share
        hits = (rng.random((people, each)) < np.reshape(own, (-1, 1))).ravel()
        low, high = clopper_pearson(*effective(hits, np.arange(people).repeat(each).tolist()))
        held += low <= share <= high
        low, high = clopper_pearson(int(hits.sum()), len(hits))
        plain += low <= share <= high

    assert held / 400 >= 0.93
    assert plain / 400 < 0.9 if alike else plain / 400 > 0.93


def with_moments(rng: np.random.Generator, mean: np.ndarray, spread: np.ndarray, n: int) -> np.ndarray:
    """Samples that have exactly this mean and this diagonal covariance."""
    x = rng.normal(size=(n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x * spread + mean


def test_frechet_is_the_closed_form_for_axis_parallel_gaussians() -> None:
    """With diagonal covariances it is the sum of squared differences of means and of standard deviations, also of 0."""
    rng = np.random.default_rng(0)
    means, spreads = rng.normal(size=(2, 5)), rng.uniform(0.5, 2, size=(2, 5))
    spreads[0, 0] = spreads[1, 1] = 0
    x, y = (with_moments(rng, means[k], spreads[k], 40) for k in range(2))

    expected = ((means[0] - means[1]) ** 2).sum() + ((spreads[0] - spreads[1]) ** 2).sum()

    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_is_the_same_after_a_rotation_and_the_other_way_round() -> None:
    """It is a distance: symmetric, zero for equal sets, and blind to the choice of axes."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)), rng.normal(size=(60, 4))
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]

    distance = frechet_distance(x, y)

    assert distance == pytest.approx(frechet_distance(y, x), rel=1e-9)
    assert distance == pytest.approx(frechet_distance(x @ rotation, y @ rotation), rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_of_fewer_pictures_than_features_is_a_distance() -> None:
    """A singular covariance is no obstacle, and no rounding makes it less than nothing."""
    rng = np.random.default_rng(2)

    for _ in range(20):
        x, y = rng.normal(size=(2, 5, 20))
        assert 1 < frechet_distance(x, y) < math.inf
        assert 0 <= frechet_distance(x, x) < 1e-9


def test_the_bootstrap_interval_is_as_wide_as_theory_says() -> None:
    """For a mean, 1.96 standard errors to either side."""
    x = np.random.default_rng(3).normal(5, 1, size=200)

    found = bootstrap_interval(np.mean, [x], repetitions=10_000)

    error = 1.96 * x.std() / math.sqrt(len(x))
    assert found == pytest.approx((x.mean() - error, x.mean() + error), abs=0.05 * error)


def test_the_bootstrap_interval_lies_around_the_value_of_the_sets() -> None:
    """Also of a statistic that pictures drawn twice make smaller, and not below the least that it can be."""

    def distinct(x: np.ndarray) -> float:
        return float(len(np.unique(x)))

    low, high = bootstrap_interval(distinct, [np.arange(100)])
    assert 90 < low < 100 < high < 110
    assert bootstrap_interval(distinct, [np.arange(100)], lowest=98.0) == (98.0, high)
    small = np.linspace(-1.0, 1.1, 20)
    assert bootstrap_interval(np.mean, [small])[0] == 0
    assert bootstrap_interval(np.mean, [small], lowest=None)[0] < -0.1


def test_rows_of_a_pair_are_drawn_together() -> None:
    """What is the same in both sets then makes no interval wider; rows of sets that are no pairs are drawn apart."""
    x = np.random.default_rng(4).normal(size=50)

    def apart(x: np.ndarray, y: np.ndarray) -> float:
        return float(y.mean() - x.mean())

    low, high = bootstrap_interval(apart, [x, x + 3], paired=True)
    assert (low, high) == pytest.approx((3, 3))
    low, high = bootstrap_interval(apart, [x, x + 3])
    assert high - low == pytest.approx(2 * 1.96 * x.std() * math.sqrt(2 / 50), rel=0.3)


def test_a_negative_seed_is_a_seed() -> None:
    """It gives an interval of its own, the same each time."""
    first, again, other = (bootstrap_interval(np.mean, [np.arange(9.0)], seed) for seed in (-3, -3, 3))

    assert first == again != other
