"""How good a score is, how sure one can be of that, and whether two scores differ on the same cases.

`truth` is bool [n], True for the positive class; a score is float [n], higher meaning more positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit
from scipy.stats import binomtest, norm, rankdata, wilcoxon
from sklearn.metrics import roc_curve

LEVEL = 0.95
Z = float(norm.ppf(0.5 + LEVEL / 2))


@dataclass(frozen=True)
class Auc:
    """An area under the ROC curve.

    Attributes:
        value: 0 to 1.
        se: DeLong's standard error.
        ci95: its 95% confidence interval, within 0..1.
    """

    value: float
    se: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class AucDifference:
    """Two scores' areas under the ROC curve on the same cases, the first minus the second.

    Attributes:
        value: -1 to 1.
        ci95: 95% confidence interval of the difference.
        z: the difference in standard errors; infinite where two scores differ without any variance.
        p: two-sided.
    """

    value: float
    ci95: tuple[float, float]
    z: float
    p: float


@dataclass(frozen=True)
class Calibration:
    """What makes a two-class model's probabilities honest: its log odds z become (z + offset) / temperature.

    Attributes:
        temperature: above 1 where the model is too sure of itself.
        offset: above 0 where it gives the second class too little.
    """

    temperature: float
    offset: float = 0.0

    def of(self, probability: np.ndarray) -> np.ndarray:
        """A model's probabilities of the second class -> calibrated ones."""
        return expit((_log_odds(probability) + self.offset) / self.temperature)


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold makes of a score: positive where score >= threshold.

    Attributes:
        threshold: in the score's unit.
        confusion: ((true negatives, false positives), (false negatives, true positives)): a row for each
            class, a column for each decision.
    """

    threshold: float
    confusion: tuple[tuple[int, int], tuple[int, int]]

    @property
    def sensitivity(self) -> float:
        """The part of the positive cases that are called positive."""
        return self.confusion[1][1] / sum(self.confusion[1])

    @property
    def specificity(self) -> float:
        """The part of the negative cases that are called negative."""
        return self.confusion[0][0] / sum(self.confusion[0])

    @property
    def accuracy(self) -> float:
        """The part of all cases that are called right."""
        (negative, _), (_, positive) = self.confusion
        return (negative + positive) / sum(map(sum, self.confusion))


@dataclass(frozen=True)
class CalibrationBin:
    """Cases of similar probability: what was predicted of them and what was found.

    Attributes:
        predicted: their mean probability.
        observed: the part of them that is positive.
        ci95: 95% confidence interval of `observed` (Wilson).
        n: how many.
    """

    predicted: float
    observed: float
    ci95: tuple[float, float]
    n: int


def delong(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the ROC curves of one or more scores, and their covariance, in O(n log n).

    DeLong et al., Biometrics 44(3), 1988, by the algorithm of Sun and Xu, "Fast implementation of DeLong's
    algorithm for comparing the areas under correlated ROC curves", IEEE Signal Processing Letters 21(11), 2014:
    the structural components are differences of midranks, so that no pair of cases is ever formed.

    Args:
        truth: bool [n].
        scores: float [k, n], k scores of the same cases.

    Returns:
        Areas, float [k]; their covariance, float [k, k]. The variance is NaN where a class has one case.

    Raises:
        ValueError: shapes differ, a score is not finite, or a class has no case.
    """
    scores = np.atleast_2d(np.asarray(scores, float))
    truth = _checked(truth, scores)
    positive, negative = scores[:, truth], scores[:, ~truth]
    m, n = positive.shape[1], negative.shape[1]
    ordered = np.concatenate([positive, negative], axis=1)
    ranks = rankdata(ordered, axis=1)  # midranks: ties share their mean rank
    # V10: for each positive case, the part of the negative ones below it; V01 the other way round.
    v10 = (ranks[:, :m] - rankdata(positive, axis=1)) / n
    v01 = 1 - (ranks[:, m:] - rankdata(negative, axis=1)) / m
    areas = v10.mean(axis=1)
    if min(m, n) < 2:
        return areas, np.full((len(areas), len(areas)), np.nan)
    covariance = np.atleast_2d(np.cov(v10)) / m + np.atleast_2d(np.cov(v01)) / n
    return areas, covariance


def auc(truth: np.ndarray, score: np.ndarray) -> Auc:
    """The area under a score's ROC curve with DeLong's 95% confidence interval.

    The interval is the plain one, value ± 1.96 standard errors, cut off at 0 and 1, as pROC, SAS and Stata give
    it. Where DeLong's variance is zero or unknown (the classes do not overlap at all, or one of them has a single
    case), it is Newcombe's instead, which does not shrink to a point: Statistics in Medicine 25(4), 2006, part 2,
    method 5.

    Raises:
        ValueError: as `delong`.
    """
    areas, covariance = delong(truth, score)
    value, variance = float(areas[0]), float(covariance[0, 0])
    if not variance > 1e-15:
        positives = int(np.sum(truth))
        return Auc(
            value,
            0.0 if variance == variance else float("nan"),
            _newcombe(value, positives, len(truth) - positives),
        )
    se = variance**0.5
    return Auc(value, se, (max(0.0, value - Z * se), min(1.0, value + Z * se)))


def delong_test(truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> AucDifference:
    """Whether two scores of the same cases have different areas under the ROC curve (paired, two-sided).

    Raises:
        ValueError: as `delong`.
    """
    areas, covariance = delong(truth, np.stack([first, second]))
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance != variance:
        return AucDifference(difference, (-1.0, 1.0), float("nan"), float("nan"))
    se = max(variance, 0.0) ** 0.5
    if se < 1e-12:
        # Two scores that order all cases alike, or two that are both without error.
        alike = abs(difference) < 1e-12
        z = 0.0 if alike else float(np.copysign(np.inf, difference))
        return AucDifference(difference, (difference, difference), z, 1.0 if alike else 0.0)
    z = difference / se
    interval = (max(-1.0, difference - Z * se), min(1.0, difference + Z * se))
    return AucDifference(difference, interval, z, float(2 * norm.sf(abs(z))))


def operating_point(truth: np.ndarray, score: np.ndarray, threshold: float) -> OperatingPoint:
    """What a threshold makes of a score."""
    truth = _checked(truth, np.atleast_2d(score))
    called = np.asarray(score) >= threshold
    table = [[int(np.sum((truth == t) & (called == c))) for c in (False, True)] for t in (False, True)]
    return OperatingPoint(float(threshold), ((table[0][0], table[0][1]), (table[1][0], table[1][1])))


def youden_point(truth: np.ndarray, score: np.ndarray) -> OperatingPoint:
    """The threshold with the largest sensitivity + specificity - 1 (Youden, Cancer 3(1), 1950).

    Of several, the highest one. A threshold that is chosen on the very cases it is judged on flatters.
    """
    truth = _checked(truth, np.atleast_2d(score))
    false_alarms, hits, thresholds = roc_curve(truth, score, drop_intermediate=False)
    # The first threshold is infinite: no case is called positive.
    best = 1 + int(np.argmax(np.round(hits - false_alarms, 12)[1:]))
    return operating_point(truth, score, float(thresholds[best]))


def proportion_ci95(count: int, n: int) -> tuple[float, float]:
    """Wilson's 95% confidence interval of count / n; (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(count, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def fit_calibration(truth: np.ndarray, probability: np.ndarray) -> Calibration:
    """The calibration that minimises the log loss of two-class predictions.

    (Platt, Probabilistic outputs for support vector machines, 1999; Guo et al., On calibration of modern neural
    networks, ICML 2017, section 4.) It cannot change which case ranks before which.

    Args:
        truth: bool [N].
        probability: float [N], of a model that was not calibrated.

    Returns:
        a temperature from 0.1 to 10, and at most 10 for offset / temperature.

    Raises:
        ValueError: as for `auc`.
    """
    truth = _checked(truth, probability)
    log_odds = _log_odds(probability)
    sign = np.where(truth, -1.0, 1.0)

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        """The log loss, and its gradient."""
        wrong = sign * (at[0] * log_odds + at[1])
        push = sign * expit(wrong)
        return float(np.logaddexp(0, wrong).mean()), np.array([(push * log_odds).mean(), push.mean()])

    exact = {"ftol": 1e-14, "gtol": 1e-12}
    bounds = [(0.1, 10), (-10, 10)]
    slope, intercept = minimize(loss, (1.0, 0.0), jac=True, bounds=bounds, method="L-BFGS-B", options=exact).x
    return Calibration(1 / float(slope), float(intercept / slope))


def _log_odds(probability: np.ndarray) -> np.ndarray:
    return logit(np.clip(np.asarray(probability, float), 1e-9, 1 - 1e-9))


def calibration_curve(
    truth: np.ndarray, probability: np.ndarray, bins: int | None = None
) -> list[CalibrationBin]:
    """Predicted against observed frequency, in bins that hold equally many cases.

    Args:
        bins: how many; None: ten, or fewer where they would hold less than ten cases each.
    """
    truth, probability = np.asarray(truth, bool), np.asarray(probability, float)
    count = bins or int(np.clip(len(truth) // 10, 2, 10))
    curve = []
    for members in np.array_split(np.argsort(probability, kind="stable"), min(count, len(truth))):
        positives = int(truth[members].sum())
        curve.append(
            CalibrationBin(
                float(probability[members].mean()),
                positives / len(members),
                proportion_ci95(positives, len(members)),
                len(members),
            )
        )
    return curve


def mcnemar_test(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> float:
    """p of McNemar's exact test: whether one of two paired yes-or-no measures says yes more often."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def wilcoxon_test(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """p of Wilcoxon's signed-rank test (two-sided): whether one of two paired measures is larger.

    Pairs that do not differ count by Pratt's method. 1.0 where none differs.
    """
    difference = np.asarray(first, float) - np.asarray(second, float)
    if not np.any(difference):
        return 1.0
    return float(wilcoxon(difference, zero_method="pratt").pvalue)


def _checked(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    truth = np.asarray(truth, bool)
    if truth.ndim != 1 or scores.shape[-1] != len(truth):
        raise ValueError(f"truth is {list(truth.shape)}, the scores are {list(scores.shape)}")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not a finite number")
    if truth.all() or not truth.any():
        raise ValueError("there are cases of one class only, so that no ROC curve can be drawn")
    return truth


def _newcombe(value: float, m: int, n: int) -> tuple[float, float]:
    """The areas whose own standard error would put `value` 1.96 of them away."""
    extra = (m + n) / 2 - 1

    def distance(area: float) -> float:
        inner = 1 + extra * ((1 - area) / (2 - area) + area / (1 + area))
        return (value - area) ** 2 - Z**2 * area * (1 - area) * inner / (m * n)

    # Beyond its roots the distance is positive, at `value` it is zero or negative.
    low = 0.0 if value <= 0 else brentq(distance, 0.0, _inner(value))
    high = 1.0 if value >= 1 else brentq(distance, _inner(value), 1.0)
    return float(low), float(high)


def _inner(value: float) -> float:
    return float(np.clip(value, 1e-9, 1 - 1e-9))
