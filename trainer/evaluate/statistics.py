"""Intervals and distances of the evaluation.

Letters: n pictures, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from apl_guard.errors import ExtraMissing

Array = npt.NDArray[np.float64]
CONFIDENCE = 0.95


def effective(hits: Sequence[bool] | npt.NDArray[np.bool_], of: Sequence[Hashable]) -> tuple[float, float]:
    """Successes and trials of as many independent pictures as tell as much as these.

    Pictures of one person are alike: who is drawn badly once is drawn badly again. So they tell less of other people
    than as many pictures of as many people would. How much less is estimated from how the shares of the people differ.
    Where all came out alike, or all are of one, that cannot be seen, and pictures count as independent.

    Args:
        hits: What is counted, n entries.
        of: Whom, or what, each is of, n entries.

    Returns:
        Both may be fractions, for `clopper_pearson`; their ratio is that of the counts.

    Raises:
        ExtraMissing: scipy is not installed.

    Source:
        Korn and Graubard, Survey Methodology 24 (1998).

    Example:
        >>> effective([True, False, True, False], "abcd")
        (2.0, 4.0)
        >>> [round(x, 2) for x in effective([True] * 50 + [False] * 50, [k // 10 for k in range(100)])]
        [3.5, 6.99]
    """
    _, group = np.unique([str(one) for one in of], return_inverse=True)
    n, successes = len(group), float(np.sum(hits))
    own = np.bincount(group)  # pictures of each
    if len(own) in (1, n) or successes in (0, n):
        return successes, float(n)
    p, G = successes / n, len(own)
    apart = np.bincount(group, weights=np.asarray(hits, dtype=np.float64)) - p * own
    variance = G / (G - 1) * float((apart**2).sum()) / n**2
    design = variance / (p * (1 - p) / (n - 1)) * (_t_quantile(G - 1) / _t_quantile(n - 1)) ** 2
    independent = n / max(1.0, design)
    return p * independent, independent


def _t_quantile(freedom: int) -> float:
    """How many standard errors an interval reaches, by Student's law."""
    return float(_laws().t.ppf((1 + CONFIDENCE) / 2, freedom))


def _laws() -> Any:
    """scipy's laws of chance."""
    try:
        from scipy import stats
    except ImportError as error:
        raise ExtraMissing("eval", needs="scipy") from error
    return stats


def clopper_pearson(successes: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval of a rate: those rates under which what was seen is not too rare on either side.

    Args:
        successes: How often it happened.
        n: Out of how many independent trials; 0 gives (0, 1). Of trials that are not independent see `effective`.
        confidence: How often such an interval holds the true rate, at least.

    Raises:
        ExtraMissing: scipy is not installed.

    Source:
        Clopper and Pearson, Biometrika 26 (1934).

    Example:
        >>> [round(x, 4) for x in clopper_pearson(0, 100)]
        [0.0, 0.0362]
    """
    beta = _laws().beta
    if not n:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def frechet_distance(x: Array, y: Array) -> float:
    """The Fréchet distance of two sets of features, each taken as a Gaussian.

        ‖μ_x − μ_y‖² + tr(Σ_x + Σ_y − 2 (Σ_x^½ Σ_y Σ_x^½)^½)

    It is larger for small sets than for large ones, so compare only sets of one size.

    Args:
        x: Shape (n, F), n ≥ 2.
        y: Shape (n′, F).

    Source:
        Dowson and Landau (1982); as a measure of pictures Heusel et al., arXiv:1706.08500.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 3))
        >>> round(frechet_distance(x, x + np.array([3.0, 0.0, 4.0])), 6)
        25.0
    """
    mean_x, mean_y = x.mean(0), y.mean(0)
    cov_x, cov_y = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (x, y))
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T  # Σ_x^½
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_y @ root).clip(min=0)).sum()
    distance = float(((mean_x - mean_y) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross)
    return max(distance, 0.0)  # in this order, what is no number stays none


def bootstrap_interval(
    statistic: Callable[..., float],
    samples: Sequence[Array],
    seed: int = 0,
    repetitions: int = 200,
    *,
    paired: bool = False,
    lowest: float | None = 0.0,
) -> tuple[float, float]:
    """A bootstrap interval of a statistic of one or more sets of pictures.

    Pictures that are drawn twice make two sets look farther apart than they are, so the spread of the
    repetitions is used and their mean is moved to the value of the sets themselves.

    Args:
        statistic: Takes as many arrays as there are sets.
        samples: The sets, each of shape (n, …); each is drawn from by itself.
        seed: Of the draws.
        repetitions: How many.
        paired: Whether row k of each set is of one thing, such as one prompt, and rows are drawn together.
        lowest: The least value that the statistic can have, if there is one.

    Example:
        >>> low, high = bootstrap_interval(lambda x: x.mean(), [np.arange(100.0)])
        >>> bool(low < 49.5 < high)
        True
    """
    rng = np.random.default_rng(seed if seed >= 0 else [1, -seed])  # numpy takes no negative seed
    value = statistic(*samples)
    drawn = []
    for _ in range(repetitions):
        together = rng.integers(len(samples[0]), size=len(samples[0])) if paired else None
        rows = [rng.integers(len(one), size=len(one)) if together is None else together for one in samples]
        drawn.append(statistic(*(one[row] for one, row in zip(samples, rows, strict=True))))
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(x) for x in np.quantile(drawn, [tail, 1 - tail]) - np.mean(drawn) + value)
    return (low if lowest is None else max(lowest, low)), high
