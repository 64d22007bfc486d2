"""Any number of models and methods at one spot, and what a large scan costs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mst
from mst.data.examples import example_scan
from mst.errors import InputError
from mst.models.loading import save_model
from mst.saliency import METHODS, fitting_methods
from mst.saliency.metrics import saliency_metrics
from mst.scans import Scan


@pytest.fixture(scope="module")
def scan() -> Scan:
    return example_scan("chest-round")


@pytest.fixture
def folders(small_mst, small_mst_resnet, small_resnet, tmp_path: Path) -> list[Path]:
    models = {"first": small_mst, "second": small_mst_resnet, "third": small_resnet}
    return [Path(save_model(model, tmp_path / name)) for name, model in models.items()]


def kinds(finding: mst.Finding) -> list[tuple[str, str | None]]:
    return [(made.method, made.target) for made in finding.maps]


def test_without_names_it_is_the_pair_of_predict(scan: Scan) -> None:
    center = tuple(scan.center + (4, -3, 6))
    findings = mst.find(scan, center=center)
    expected = mst.predict(scan, center=center)
    assert [finding.checkpoint for finding in findings] == [r.checkpoint for r in expected.values()]
    for finding, result in zip(findings, expected.values(), strict=True):
        assert isinstance(result, mst.Finding)
        assert finding.probabilities == result.probabilities
        assert np.array_equal(finding.saliency, result.saliency)
        assert kinds(finding) == kinds(result)


def test_each_model_gets_the_methods_that_fit_it(scan: Scan, folders: list[Path]) -> None:
    asked: list[str] = []
    findings = mst.find(scan, folders, list(METHODS), on_model=asked.append)
    assert asked == [str(folder) for folder in folders]
    assert [finding.checkpoint for finding in findings] == ["first", "second", "third"]
    cams = [("gradcam", None), ("gradcam++", None)]
    assert [kinds(finding) for finding in findings] == [[("attention", None)], cams, cams]
    # The answer does not depend on the method.
    alone = mst.find(scan, folders[2:], ["gradcam++"])[0]
    assert alone.probabilities == findings[2].probabilities
    assert np.array_equal(alone.map.values, findings[2].maps[1].values)
    one = mst.find(scan, folders[0], "attention")
    assert [kinds(finding) for finding in one] == [[("attention", None)]]
    # A model that no method fits still answers, with its own map.
    assert kinds(mst.find(scan, folders, ["attention"])[2]) == [("gradcam++", None)]


def test_a_class_is_explained_where_that_makes_a_difference(scan: Scan, folders: list[Path]) -> None:
    both = ["benign", "malignant"]
    findings = mst.find(scan, folders, targets=both)
    assert [kinds(finding) for finding in findings] == [
        [("attention", None)],
        [("gradcam++", None)],
        [("gradcam++", target) for target in both],
    ]
    benign, malignant = findings[2].maps
    assert not np.array_equal(benign.values, malignant.values)
    predicted = mst.find(scan, folders[2:])[0]
    assert np.array_equal(predicted.map.values, findings[2].maps[both.index(predicted.prediction)].values)


def test_each_map_is_compared_with_the_mask(scan: Scan, folders: list[Path]) -> None:
    mask = np.zeros(scan.shape, bool)
    mask[40:50, 50:60, 20:26] = True
    center = tuple(scan.center)
    maps = mst.find(scan, folders[2:], ["gradcam", "gradcam++"], center=center, mask=mask)[0].maps
    spacing = scan.canonical().spacing
    lesion = Scan(mask, scan.affine).canonical().voxels
    for made in maps:
        whole = Scan(made.on_scan(), scan.affine).canonical().voxels
        expected = saliency_metrics(whole, lesion, spacing, made.profile)
        assert made.metrics is not None
        # The quantile is of the region, so what is taken of the map depends on what is seen as the whole.
        for measure in ("pointing_game", "share_inside", "top_slice_in_lesion"):
            assert made.metrics[measure] == pytest.approx(expected[measure])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["telepathy"]}, "no saliency method 'telepathy'; choose of attention"),
        ({"methods": []}, "name at least one method"),
        ({"targets": []}, "name at least one class"),
        ({"methods": ["attention"], "keep": slice(1, 3)}, "attention fits none of these models"),
        ({"targets": ["maybe"]}, "first has no class maybe; it has benign, malignant"),
        ({"keep": slice(0)}, "name at least one model"),
    ],
)
def test_what_cannot_be_asked_is_said(scan: Scan, folders: list[Path], arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mst.find(scan, folders[arguments.pop("keep", slice(None))], **arguments)


def test_methods_know_what_they_fit(small_mst, small_mst_resnet, small_resnet) -> None:
    assert fitting_methods(small_mst) == ["attention"]
    assert fitting_methods(small_mst_resnet) == fitting_methods(small_resnet) == ["gradcam", "gradcam++"]


def test_a_map_knows_its_place_in_the_scan(scan: Scan) -> None:
    made = mst.predict(scan, center=tuple(scan.center + (4, -3, 6)))["resnet"].map
    values, box = made.in_scan()
    whole = made.on_scan()
    assert np.array_equal(whole[box], values)
    assert whole.sum() == pytest.approx(made.values.sum(), rel=1e-5)
    along = made.profile
    assert along.max() == made.values.max()
    # The place of the maximum, by its millimetres.
    peak = np.array(np.unravel_index(whole.argmax(), whole.shape))
    on_canonical = np.unravel_index(made.values.argmax(), made.values.shape) + made.region.bounds[:, 0]
    assert np.allclose(scan.voxel_to_world(peak), scan.canonical().voxel_to_world(on_canonical))


def test_nothing_of_a_result_is_as_large_as_the_scan(scan: Scan) -> None:
    result = mst.predict(scan, center=tuple(scan.center))["mst"]
    sizes = [made.values.size + made.native.size for made in result.maps]
    assert max(sizes) < scan.voxels.size
    other = replace(result, title="another")
    assert other.map.values is result.map.values
