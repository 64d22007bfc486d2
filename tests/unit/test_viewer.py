"""What is sent to the viewers: size, truth and bounds."""

import json
import re

import numpy as np
import pytest

from mst.preprocess import locate
from mst.scans import Scan
from mst.scans.boxes import on_box
from mst.tasks import Grid
from mst.viewer import Layer, NativeMap, scan_payload, viewer_html, viewer_payload
from mst.viewer.packing import unpack
from mst.viewer.scripts import HERE, MODULES, script


def _scan(shape: tuple[int, int, int], spacing: tuple[float, float, float] = (0.7, 0.7, 1.25)) -> Scan:
    rng = np.random.default_rng(0)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-100, -50, 10)
    return Scan(np.round(rng.normal(-600, 250, shape)).astype(np.float32), affine)


def _map(shape: tuple[int, int, int], at: int = 7) -> np.ndarray:
    volume = np.zeros(shape, np.float32)
    volume[10:20, 10:20, at - 2 : at + 3] = 0.002
    volume[14, 14, at] = 0.004
    return volume


def test_what_is_unpacked_is_what_was_packed() -> None:
    scan = _scan((30, 28, 20))
    payload = viewer_payload(scan, [Layer("mst", "m", _map(scan.shape))], plane="axial", window=(-1000, 200))
    assert payload["shape"] == [30, 28, 20]
    assert np.abs(unpack(payload["scan"], scan.shape) - scan.voxels).max() < 0.05
    assert np.abs(unpack(payload["layers"][0], scan.shape) - _map(scan.shape)).max() < 0.004 / 255
    assert payload["layers"][0]["max"] == pytest.approx(0.004)


def test_the_region_is_shown_with_a_margin_and_keeps_its_place() -> None:
    scan = _scan((100, 100, 60))
    bounds = np.array([(40, 60), (30, 50), (20, 40)])
    payload = viewer_payload(scan, [], plane="axial", window=(-1000, 200), bounds=bounds)
    assert payload["first"] == [36, 26, 16]
    assert payload["shape"] == [28, 28, 28]
    assert np.allclose(np.array(payload["affine"])[:3, 3], scan.voxel_to_world((36, 26, 16)), atol=1e-3)
    assert payload["region"] == [[4, 24], [4, 24], [4, 24]]


@pytest.mark.parametrize("shape", [(224, 224, 32), (512, 512, 300), (51, 51, 51)])
def test_a_payload_stays_below_two_and_a_half_megabytes(shape: tuple[int, int, int]) -> None:
    scan = _scan(shape)
    smooth = np.outer(np.hanning(shape[0]), np.hanning(shape[1]))[..., None] * np.hanning(shape[2])
    maps = [Layer("mst", "m", smooth.astype(np.float32)), Layer("resnet", "r", smooth.astype(np.float32))]
    mask = np.zeros(shape, bool)
    mask[10:20, 10:20, 5:15] = True
    maps.append(Layer("mask", "Lesion mask", mask))
    payload = viewer_payload(scan, maps, plane="axial", window=(-1350, 150), unit="HU")
    # Slices, surfaces and projection are all made from this.
    assert len(viewer_html(payload)) <= 2_500_000
    small = scan_payload(scan, plane="axial", window=(-1350, 150), unit="HU")
    assert len(json.dumps(small)) <= 2_500_000


def test_the_top_slice_is_the_most_weighted_one() -> None:
    scan = _scan((30, 28, 20))
    profile = np.zeros(20)
    profile[11] = 1
    layers = [Layer("mst", "m", _map(scan.shape), profile), Layer("resnet", "r", _map(scan.shape, at=4))]
    payload = viewer_payload(scan, layers, plane="axial", window=(-1000, 200))
    assert [layer["top"] for layer in payload["layers"]] == [11, 4]


def test_eight_bits_cover_the_whole_range_where_no_windows_are_named() -> None:
    scan = _scan((224, 224, 32))
    payload = viewer_payload(scan, [], plane="axial", window=(-1600, 400))
    assert payload["scan"]["bits"] == 8
    assert payload["scan"]["low"] == pytest.approx(scan.voxels.min())
    assert payload["scan"]["high"] == pytest.approx(scan.voxels.max())


def test_values_that_are_no_numbers_are_noted_and_zero() -> None:
    scan = _scan((30, 28, 20))
    volume = _map(scan.shape)
    volume[0, 0, 0] = np.nan
    payload = viewer_payload(scan, [Layer("mst", "MST", volume)], plane="axial", window=(-1000, 200))
    assert "not numbers" in payload["notes"][0]
    assert unpack(payload["layers"][0], scan.shape)[0, 0, 0] == 0
    json.loads(json.dumps(payload, allow_nan=False))


@pytest.mark.parametrize(
    ("shape", "start"), [((10, 9, 9), (0, 0, 0)), ((8, 9, 9), (2, 0, 0)), ((8, 9, 9), (-1, 0, 0))]
)
def test_a_map_that_leaves_the_scan_is_refused(
    shape: tuple[int, int, int], start: tuple[int, int, int]
) -> None:
    layer = Layer("mst", "m", np.zeros(shape, np.float32), start=start)
    with pytest.raises(ValueError, match="layer mst"):
        viewer_payload(_scan((9, 9, 9)), [layer], plane="axial", window=(0, 1))


@pytest.mark.parametrize("bounds", [None, [[8, 14], [2, 9], [3, 8]]])
def test_a_map_on_a_box_is_the_map_on_the_whole_scan(bounds: list | None) -> None:
    scan = _scan((30, 28, 20))
    box = np.array([[6, 19], [0, 12], [5, 20]])
    part = np.random.default_rng(3).random([13, 12, 15], np.float32)
    whole = np.zeros(scan.shape, np.float32)
    whole[6:19, :12, 5:] = part
    assert np.array_equal(on_box(part, box[:, 0], np.array([(0, n) for n in scan.shape])), whole)
    usual: dict = {"plane": "axial", "window": (-1000, 200), "bounds": bounds}
    expected = viewer_payload(scan, [Layer("mst", "m", whole)], **usual)
    assert viewer_payload(scan, [Layer("mst", "m", part, start=box[:, 0])], **usual) == expected


def test_a_name_cannot_become_markup() -> None:
    payload = viewer_payload(
        _scan((9, 9, 9)), [], plane="axial", window=(0, 1), title="</template><img src=x>&lt;"
    )
    html = viewer_html(payload)
    assert html.count("<img") == 0
    assert html.count("</template>") == 1


def test_weights_for_another_number_of_slices_are_refused() -> None:
    scan = _scan((30, 28, 20))
    with pytest.raises(ValueError, match="20 slices"):
        viewer_payload(
            scan,
            [Layer("mst", "m", _map(scan.shape), np.ones(30))],
            plane="axial",
            window=(-1000, 200),
        )


def test_sixteen_bits_keep_whole_numbers_exactly() -> None:
    scan = _scan((40, 40, 20))
    payload = viewer_payload(scan, [], plane="axial", window=(-1000, 200), unit="HU")
    assert payload["scan"]["bits"] == 16
    assert np.array_equal(np.round(unpack(payload["scan"], scan.shape)), scan.voxels)


def test_eight_bits_leave_the_first_window_a_hundred_levels() -> None:
    scan = _scan((224, 224, 32))
    scan.voxels[0, 0, :2] = (-3000, 12_000)
    for window in ((-160.0, 240.0), (0.0, 900.0), (-1350.0, 150.0)):
        payload = viewer_payload(
            scan, [], plane="axial", window=window, windows=[("Wide", -2000, 8000)], unit="HU"
        )
        packed = payload["scan"]
        assert packed["bits"] == 8
        assert (window[1] - window[0]) / (packed["high"] - packed["low"]) * 255 >= 100


def test_a_coarser_map_keeps_its_slices() -> None:
    rng = np.random.default_rng(0)
    scan = _scan((224, 224, 32))
    noise = rng.random(scan.shape).astype(np.float32)
    payload = viewer_payload(scan, [Layer("mst", "m", noise)], plane="axial", window=(-1350, 150))
    sent = payload["layers"][0]
    assert sent["shape"] == [112, 112, 32]
    assert unpack(sent, payload["shape"]).shape == (112, 112, 32)
    assert len(sent["profile"]) == 32


@pytest.mark.parametrize(("plane", "axis"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_the_planes_slices_run_along_its_axis(plane: str, axis: int) -> None:
    scan = _scan((24, 26, 20))
    volume = np.zeros(scan.shape, np.float32)
    volume[3, 5, 7] = 1
    payload = viewer_payload(
        scan,
        [Layer("mst", "m", volume)],
        plane=plane,
        window=(-1000, 200),  # type: ignore[arg-type]
    )
    assert payload["layers"][0]["top"] == (3, 5, 7)[axis]
    assert len(payload["layers"][0]["profile"]) == scan.shape[axis]


def test_a_very_flat_scan_can_be_shown() -> None:
    scan = _scan((1600, 1600, 4), (0.1, 0.1, 5.0))
    payload = viewer_payload(scan, [], plane="axial", window=(-1000, 200))
    assert payload["shape"][2] == 4
    assert payload["factors"][0] == payload["factors"][1] > 1


def test_a_regions_cells_lie_where_the_map_does() -> None:
    scan = _scan((60, 50, 40), (1.0, 1.0, 2.0))
    region = locate(scan, "axial", Grid((16, 32, 24), (2.0, 1.0, 1.0)), scan.voxel_to_world((30, 20, 15)))
    native = np.zeros((16, 4, 3), np.float32)
    native[5, 0, 2] = 1  # row 0 is at the front, column 2 to the patient's left
    values, start, size = region.cells(native)
    assert values.shape == (3, 4, 16)
    assert size.tolist() == [8, 8, 1]
    cell = np.argwhere(values == 1)[0]
    assert cell.tolist() == [0, 3, 5]
    centre = np.asarray(start) + (cell + 0.5) * size
    smooth = region.to_scan(np.kron(native, np.ones((1, 8, 8), np.float32)))
    middle = [
        np.average(np.arange(n), weights=smooth.sum(axis=axes))
        for n, axes in zip(smooth.shape, ((1, 2), (0, 2), (0, 1)), strict=True)
    ]
    assert middle == pytest.approx(centre, abs=0.3)  # voxels at the edge repeat


def test_a_models_own_grid_is_sent_with_its_place() -> None:
    scan = _scan((100, 100, 60))
    native = np.zeros((2, 4, 5), np.float32)
    native[1, 2, 3] = 0.5
    layer = Layer("mst", "m", _map(scan.shape), native=NativeMap(native, (39.5, 29.5, 19.5), (10, 5, 4)))
    bounds = np.array([(40, 60), (30, 50), (20, 40)])
    payload = viewer_payload(scan, [layer], plane="axial", window=(-1000, 200), bounds=bounds)
    sent = payload["layers"][0]["native"]
    assert (sent["start"], sent["size"], sent["max"]) == ([4, 4, 4], [10, 5, 4], 0.5)
    assert np.abs(unpack(sent, native.shape) - native).max() < 0.01


def test_a_ct_region_of_the_papers_size_keeps_every_hounsfield_unit() -> None:
    rng = np.random.default_rng(0)
    voxels = np.round(
        -600 + rng.normal(0, 30, (224, 224, 32)) + 200 * np.sin(np.arange(224) / 9)[:, None, None]
    )
    scan = Scan(voxels.astype(np.float32), np.diag([0.7, 0.7, 1.25, 1.0]))
    smooth = np.einsum("i,j,k->ijk", *(np.hanning(n).astype(np.float32) for n in scan.shape))
    maps = [Layer("mst", "m", smooth), Layer("resnet", "r", smooth)]
    payload = viewer_payload(scan, maps, plane="axial", window=(-1350, 150), unit="HU")
    assert len(viewer_html(payload)) <= 2_500_000
    assert np.array_equal(np.round(unpack(payload["scan"], payload["shape"])), scan.voxels)


def test_all_modules_are_in_the_pages_script_and_nothing_is_left_to_load() -> None:
    assert {path.stem for path in HERE.glob("*.js")} == set(MODULES)
    text = script()
    assert not re.search(r"^\s*(import|export)\b", text, re.MULTILINE)
    for name in MODULES:
        assert f"modules.{name} = " in text
        # A module is there before the first that uses it.
        assert f"modules.{name};" not in text[: text.index(f"modules.{name} = ")]
