"""The statistics against published worked examples, brute force and resampling."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.calibration import calibration_curve as sklearn_calibration
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, roc_auc_score

from mst.statistics import (
    Calibration,
    auc,
    calibration_curve,
    delong,
    delong_test,
    fit_calibration,
    mcnemar_test,
    operating_point,
    proportion_ci95,
    wilcoxon_test,
    youden_point,
)

# 43 patients with ovarian cancer, of the example in DeLong, DeLong and Clarke-Pearson, Biometrics 44(3), 1988, as
# given in SAS/STAT's documentation (PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves"):
# albumin, total protein, K-G score, and whether the intestinal obstruction was relieved.
TABLE = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1
3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0
2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1
3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0
3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""
OVARIAN = np.array(TABLE.split(), float).reshape(-1, 4)
ALBUMIN, PROTEIN, KG = OVARIAN[:, 0], OVARIAN[:, 1], -OVARIAN[:, 2]
RELIEVED = OVARIAN[:, 3] == 1


def _scores(seed: int, n: int = 60, digits: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two related scores with ties."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.4
    common = truth + rng.normal(size=n)
    return truth, np.round(common, digits), np.round(common + rng.normal(size=n), digits)


@pytest.mark.parametrize(
    ("score", "area", "se", "interval"),
    [
        (ALBUMIN, 0.7366, 0.0927, (0.5549, 0.9182)),
        (KG, 0.7258, 0.1028, (0.5243, 0.9273)),
        (PROTEIN, 0.6478, 0.1000, (0.4518, 0.8439)),
    ],
)
def test_the_area_of_delongs_own_example(score: np.ndarray, area: float, se: float, interval) -> None:
    found = auc(RELIEVED, score)
    assert found.value == pytest.approx(area, abs=5e-5)
    assert found.se == pytest.approx(se, abs=5e-5)
    assert found.ci95 == pytest.approx(interval, abs=6e-5)


def test_the_paired_test_of_delongs_own_example() -> None:
    found = delong_test(RELIEVED, ALBUMIN, KG)
    assert found.value == pytest.approx(0.0108, abs=5e-5)
    assert found.ci95 == pytest.approx((-0.1761, 0.1976), abs=6e-5)
    assert found.z**2 == pytest.approx(0.0127, abs=5e-5)
    assert found.p == pytest.approx(0.9102, abs=5e-5)
    other = delong_test(RELIEVED, PROTEIN, KG)
    assert other.z**2 == pytest.approx(0.5554, abs=5e-5)
    assert other.p == pytest.approx(0.4561, abs=5e-5)


def test_the_area_of_hanley_and_mcneils_example() -> None:
    """Ratings of 109 CT scans (Radiology 143(1), 1982, table 1); DeLong's figures from Stata's manual, roctab."""
    ratings = [np.repeat(range(5), counts) for counts in ((33, 6, 6, 11, 2), (3, 2, 2, 11, 33))]
    found = auc(np.repeat([False, True], [58, 51]), np.concatenate(ratings))
    assert found.value == pytest.approx(0.8932, abs=5e-5)
    assert found.se == pytest.approx(0.0307, abs=5e-5)
    assert found.ci95 == pytest.approx((0.83295, 0.95339), abs=6e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_fast_algorithm_is_the_definition(seed: int) -> None:
    truth, *scores = _scores(seed)
    kernels = []
    for score in scores:
        above = score[truth][:, None] - score[~truth]
        kernels.append((above > 0) + 0.5 * (above == 0))
    expected = np.zeros((2, 2))
    for i in range(2):
        for j in range(2):
            for axis in (0, 1):
                a, b = kernels[i].mean(axis=axis), kernels[j].mean(axis=axis)
                expected[i, j] += ((a - a.mean()) * (b - b.mean())).sum() / (len(a) - 1) / len(a)
    areas, covariance = delong(truth, np.stack(scores))
    assert areas == pytest.approx([kernel.mean() for kernel in kernels], abs=1e-12)
    assert areas == pytest.approx([roc_auc_score(truth, score) for score in scores], abs=1e-12)
    assert covariance == pytest.approx(expected, abs=1e-12)


def test_the_interval_agrees_with_a_bootstrap() -> None:
    truth, first, second = _scores(11, n=300, digits=3)
    rng = np.random.default_rng(0)
    draws = []
    positive, negative = np.flatnonzero(truth), np.flatnonzero(~truth)
    for _ in range(1500):
        chosen = np.concatenate([rng.choice(positive, len(positive)), rng.choice(negative, len(negative))])
        draws.append(delong(truth[chosen], np.stack([first, second])[:, chosen])[0])
    areas = np.array(draws)
    assert auc(truth, first).ci95 == pytest.approx(np.percentile(areas[:, 0], (2.5, 97.5)), abs=0.012)
    difference = areas[:, 0] - areas[:, 1]
    found = delong_test(truth, first, second)
    assert found.ci95 == pytest.approx(np.percentile(difference, (2.5, 97.5)), abs=0.012)
    assert found.value / difference.std() == pytest.approx(found.z, rel=0.1)


def test_the_paired_test_keeps_its_level() -> None:
    """Of scores that are equally good, one in twenty comparisons is significant at 5%."""
    rng = np.random.default_rng(3)
    significant = 0
    for _ in range(600):
        truth = rng.permutation(np.repeat([False, True], [40, 40]))
        common = truth + rng.normal(size=80)
        first, second = (common + rng.normal(size=80) for _ in range(2))
        significant += delong_test(truth, first, second).p < 0.05
    assert 0.025 < significant / 600 < 0.085


def test_scores_that_separate_the_classes_still_have_an_interval() -> None:
    truth = np.repeat([False, True], [20, 10])
    found = auc(truth, truth.astype(float))
    assert found.value == found.ci95[1] == 1
    assert 0.7 < found.ci95[0] < 0.95
    mirrored = auc(truth, -truth.astype(float))
    assert mirrored.value == mirrored.ci95[0] == 0
    assert mirrored.ci95[1] == pytest.approx(1 - found.ci95[0])
    few = auc(truth[:21], np.arange(21) % 7)
    assert 0 < few.ci95[0] < few.value < few.ci95[1] < 1
    same = delong_test(truth, truth.astype(float), truth * 2.0)
    assert (same.value, same.z, same.p) == (0, 0, 1)


@pytest.mark.parametrize(
    ("truth", "score", "message"),
    [
        ([True, True], [0.1, 0.2], "one class only"),
        ([True, False], [0.1, np.nan], "finite"),
        ([True, False], [0.1], "truth is"),
    ],
)
def test_what_has_no_roc_curve_is_refused(truth, score, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        auc(np.array(truth), np.array(score))


def test_youdens_point_is_the_best_of_all_thresholds() -> None:
    truth, score, _ = _scores(5)
    point = youden_point(truth, score)
    best = max(
        operating_point(truth, score, t).sensitivity + operating_point(truth, score, t).specificity
        for t in score
    )
    assert point.sensitivity + point.specificity == pytest.approx(best)
    called = score >= point.threshold
    assert [list(row) for row in point.confusion] == confusion_matrix(truth, called).tolist()
    assert point.accuracy == pytest.approx((called == truth).mean())
    assert np.isfinite(youden_point(truth, -truth.astype(float)).threshold)


def test_calibration_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    probability = rng.random(200)
    truth = rng.random(200) < probability**2
    observed, predicted = sklearn_calibration(truth, probability, n_bins=10, strategy="quantile")
    curve = calibration_curve(truth, probability)
    assert [point.n for point in curve] == [20] * 10
    assert [point.observed for point in curve] == pytest.approx(observed)
    assert [point.predicted for point in curve] == pytest.approx(predicted)
    assert len(calibration_curve(truth[:12], probability[:12])) == 2


def test_a_calibration_makes_overconfident_probabilities_honest() -> None:
    rng = np.random.default_rng(0)
    honest = rng.uniform(0.02, 0.98, 4000)
    truth = rng.random(4000) < honest
    bold = Calibration(1 / 3, 0.4).of(honest)  # z becomes 3 z + 1.2
    found = fit_calibration(truth, bold)
    assert (found.temperature, found.offset) == pytest.approx((3, -1.2), rel=0.1, abs=0.15)
    assert Calibration(3, -1.2).of(bold) == pytest.approx(honest)
    assert Calibration(2, 0).of(np.array([0.0, 1.0])) == pytest.approx([0, 1], abs=1e-4)
    # Of predictions that are never wrong the bound is the answer, not infinity.
    found = fit_calibration(np.array([True, False]), np.array([0.9, 0.1]))
    assert found.temperature == pytest.approx(0.1, rel=0.01)
    assert found.offset == pytest.approx(0, abs=1e-6)


def test_a_calibration_is_scikit_learns_logistic_regression() -> None:
    rng = np.random.default_rng(2)
    log_odds = rng.normal(0.5, 1, 300)
    truth = rng.random(300) < 1 / (1 + np.exp(1 - 2 * log_odds))
    known = LogisticRegression(C=np.inf).fit(log_odds[:, None], truth)
    found = fit_calibration(truth, 1 / (1 + np.exp(-log_odds)))
    assert 1 / found.temperature == pytest.approx(known.coef_[0, 0], rel=1e-3)
    assert found.offset / found.temperature == pytest.approx(known.intercept_[0], rel=1e-3)


def test_a_proportions_interval_is_wilsons() -> None:
    centre, half = (
        (8 / 10 + 1.96**2 / 20) / (1 + 1.96**2 / 10),
        1.96 * (0.8 * 0.2 / 10 + 1.96**2 / 400) ** 0.5,
    )
    half /= 1 + 1.96**2 / 10
    assert proportion_ci95(8, 10) == pytest.approx((centre - half, centre + half), abs=1e-4)
    assert proportion_ci95(0, 0) == (0, 1)


def test_paired_tests_of_measures() -> None:
    # Ten pairs differ, nine of them one way: 2 * (1 + 10) / 2^10.
    first, second = [True] * 9 + [False] + [True] * 5, [False] * 9 + [True] + [True] * 5
    assert mcnemar_test(first, second) == pytest.approx(22 / 1024)
    assert mcnemar_test([True, False], [True, False]) == 1
    # All eight differences point one way: 2 / 2^8.
    low = np.arange(8.0)
    assert wilcoxon_test(low + 0.5 + low / 10, low) == pytest.approx(2 / 256)
    assert wilcoxon_test(low, low) == 1
    assert 0 < wilcoxon_test(norm.rvs(size=30, random_state=1), norm.rvs(size=30, random_state=2)) <= 1
