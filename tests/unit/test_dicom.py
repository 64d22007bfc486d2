"""What real archives put into one folder or series: one consistent scan comes out, or a sentence, never a mixture."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    RLELossless,
    RTDoseStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    generate_uid,
)
from scan_files import SHAPE, SPACING, dicom_series, enhanced_dicom, lps_affine, ras_affine, volume

from mst.scans import Scan, ScanError, read_mask, read_scan
from mst.scans.scan import Caution
from mst.scans.source import KEPT, DicomSource

VOXELS = volume().astype(np.float32)
OTHER = volume(3).astype(np.float32)
Change = Callable[[Dataset], None]


def change(paths: Iterable[Path], how: Change) -> None:
    for path in paths:
        data = pydicom.dcmread(path)
        how(data)
        data.save_as(path)


def series(folder: Path, how: Change = lambda data: None, **options: object) -> list[Path]:
    """A series with one slope for all slices, as CT has."""
    paths = dicom_series(folder, slope=1.0, **options)  # type: ignore[arg-type]
    change(paths, lambda data: _one_slope(data))
    change(paths, how)
    return paths


def _one_slope(data: Dataset) -> None:
    stored = data.pixel_array * float(data.RescaleSlope)
    data.RescaleSlope = 1.0
    data.SliceThickness = 2.5
    data.PixelData = np.round(stored).astype("<u2").tobytes()


def _tiled(data: Dataset) -> None:
    """Larger, as JPEG 2000 takes no picture of a few pixels."""
    data.PixelData = np.tile(data.pixel_array, (6, 6)).tobytes()
    data.Rows, data.Columns = 6 * data.Rows, 6 * data.Columns


def moved(data: Dataset, millimetres: float) -> None:
    x, y, z = data.ImagePositionPatient
    data.ImagePositionPatient = [x, y, z + millimetres]


def is_first(scan: Scan) -> bool:
    return bool(np.abs(scan.voxels - VOXELS).max() <= 1) if scan.voxels.shape == VOXELS.shape else False


# --- volumes in one series


@pytest.mark.parametrize(
    ("keyword", "values", "word"),
    [
        ("ConvolutionKernel", ("B31f", "B70f"), "kernel"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), "image type"),
        ("EchoTime", ("2.3", "4.6"), "echo time"),
        ("DiffusionBValue", (0.0, 1000.0), "b-value"),
        ("TemporalPositionIdentifier", (1, 2), "time point"),
        ("TriggerTime", ("10", "200"), "heart phase"),
        ("AcquisitionTime", ("101500", "101530"), "acquisition time"),
    ],
)
def test_of_two_volumes_in_a_series_one_is_taken_whole(
    keyword: str, values: tuple, word: str, tmp_path: Path
) -> None:
    """The numbers of the images do not tell them apart."""
    uid = generate_uid()
    series(tmp_path / "a", lambda d: setattr(d, keyword, values[0]), series=uid)
    series(tmp_path / "b", lambda d: setattr(d, keyword, values[1]), series=uid, seed=3)
    scan = read_scan(tmp_path)
    assert is_first(scan) or np.abs(scan.voxels - OTHER).max() <= 1
    assert any(word in note and "2 volumes" in note for note in scan.notes)


def test_volumes_that_differ_in_two_ways_are_told_apart(tmp_path: Path) -> None:
    uid = generate_uid()
    for number, (echo, phase) in enumerate([(1, 1), (1, 2), (2, 1), (2, 2)]):

        def tell(data: Dataset, echo: int = echo, phase: int = phase, number: int = number) -> None:
            data.EchoTime, data.TemporalPositionIdentifier = echo, phase
            data.InstanceNumber = int(data.InstanceNumber) + 100 * number

        series(tmp_path / str(number), tell, series=uid, seed=3 * number)
    scan = read_scan(tmp_path)
    assert is_first(scan)
    assert len(scan.notes) == 2


def test_volumes_whose_slices_each_have_a_time_of_their_own(tmp_path: Path) -> None:
    uid = generate_uid()

    def tell(start: int) -> Change:
        return lambda data: setattr(data, "AcquisitionTime", f"{start + int(data.InstanceNumber):06d}")

    series(tmp_path / "a", tell(101500), series=uid)
    series(tmp_path / "b", tell(101540), series=uid, seed=3)
    scan = read_scan(tmp_path)
    assert is_first(scan)


def test_phases_of_different_length(tmp_path: Path) -> None:
    uid = generate_uid()
    series(tmp_path / "a", lambda d: setattr(d, "AcquisitionNumber", 1), series=uid)
    series(tmp_path / "b", lambda d: setattr(d, "AcquisitionNumber", 2), series=uid, seed=3, count=8)
    assert is_first(read_scan(tmp_path))


def test_two_breath_holds_between_each_other_are_no_thin_scan(tmp_path: Path) -> None:
    uid = generate_uid()
    series(tmp_path / "a", lambda d: setattr(d, "AcquisitionNumber", 1), series=uid)

    def second(data: Dataset) -> None:
        data.AcquisitionNumber = 2
        data.InstanceNumber = int(data.InstanceNumber) + 100
        moved(data, 1.25)

    series(tmp_path / "b", second, series=uid, seed=3)
    scan = read_scan(tmp_path)
    assert is_first(scan)
    assert scan.spacing[2] == pytest.approx(2.5)


def test_slice_packages_that_make_up_one_volume_stay_one(tmp_path: Path) -> None:
    """Every other slice was taken first, as MRI does; a slice is as thick as slices lie apart."""
    paths = series(tmp_path)
    for path in paths:
        data = pydicom.dcmread(path)
        slot = round((float(data.ImagePositionPatient[2]) - lps_affine()[2, 3]) / SPACING[2])
        data.AcquisitionNumber = 1 + slot % 2
        data.save_as(path)
    scan = read_scan(tmp_path)
    assert is_first(scan)
    assert scan.notes == ()


def test_slices_that_were_sent_twice(tmp_path: Path) -> None:
    paths = series(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert is_first(read_scan(tmp_path)), "the very same files"
    change(
        (tmp_path / "b" / path.name for path in paths), lambda d: setattr(d, "SOPInstanceUID", generate_uid())
    )
    assert is_first(read_scan(tmp_path)), "the same slices with new names"


# --- enhanced files


def _frames(data: Dataset, how: Callable[[Dataset, int], None], voxels: np.ndarray) -> None:
    """Doubles the frames of an enhanced file, taking turns with a second volume's."""
    order = np.random.default_rng(1).permutation(SHAPE[2])
    groups, pictures = [], []
    for group, k in zip(data.PerFrameFunctionalGroupsSequence, order, strict=True):
        for which, source in enumerate((VOXELS, voxels)):
            made = Dataset()
            made.PlanePositionSequence = group.PlanePositionSequence
            how(made, which)
            groups.append(made)
            pictures.append(source[:, :, k].T + 1024)
    data.PerFrameFunctionalGroupsSequence, data.NumberOfFrames = Sequence(groups), len(groups)
    data.PixelData = np.stack(pictures).astype("<u2").tobytes()


@pytest.mark.parametrize(
    ("sequence", "keyword", "values"),
    [
        ("MREchoSequence", "EffectiveEchoTime", (2.3, 4.6)),
        ("MRDiffusionSequence", "DiffusionBValue", (0.0, 800.0)),
        ("FrameContentSequence", "FrameAcquisitionNumber", (1, 2)),
        ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", (0.0, 50.0)),
        ("MRImageFrameTypeSequence", "ComplexImageComponent", ("MAGNITUDE", "PHASE")),
    ],
)
def test_two_volumes_in_an_enhanced_file(sequence: str, keyword: str, values: tuple, tmp_path: Path) -> None:
    path = enhanced_dicom(tmp_path / "e.dcm")

    def tell(group: Dataset, which: int) -> None:
        item = Dataset()
        setattr(item, keyword, values[which])
        setattr(group, sequence, Sequence([item]))

    change([path], lambda data: _frames(data, tell, OTHER))
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    assert any("2 volumes" in note for note in scan.notes)


def test_two_enhanced_files_of_one_series(tmp_path: Path) -> None:
    first, second = enhanced_dicom(tmp_path / "a.dcm"), enhanced_dicom(tmp_path / "b.dcm")
    uid = pydicom.dcmread(first).SeriesInstanceUID

    def other(data: Dataset) -> None:
        data.SeriesInstanceUID = uid
        data.PixelData = (data.pixel_array + 300).astype("<u2").tobytes()

    change([second], other)
    scan = read_scan(tmp_path)
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    assert any("a.dcm" in note for note in scan.notes)


# --- what lies beside a scan


def _made_one_file(path: Path, kind: str, frames: int, **values: object) -> Path:
    enhanced_dicom(path)
    data = pydicom.dcmread(path)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = kind
    data.SeriesInstanceUID = generate_uid()
    for key, value in values.items():
        setattr(data, key, value)
    data.NumberOfFrames = frames
    data.PixelData = bytes(frames * 2 * data.Rows * data.Columns)
    data.save_as(path)
    return path


def test_of_a_scan_and_what_lies_over_it_the_scan_is_taken(tmp_path: Path) -> None:
    series(tmp_path)
    _made_one_file(tmp_path / "dose.dcm", RTDoseStorage, 90, Modality="RTDOSE")
    segmentation(tmp_path / "seg.dcm", {"lesion": (slice(2, 5), slice(2, 5), slice(1, 9))}, copies=4)
    scan = read_scan(tmp_path)
    assert is_first(scan)
    assert any("segmentation" in note and "RTDOSE" in note for note in scan.notes)


def test_screenshots_and_a_projection_are_no_scan(tmp_path: Path) -> None:
    series(tmp_path / "ct")

    def shot(data: Dataset) -> None:
        data.SOPClassUID = SecondaryCaptureImageStorage
        del data.ImagePositionPatient

    series(tmp_path / "shots", shot, series=generate_uid(), seed=3)
    spin = series(tmp_path / "spin", series=generate_uid(), seed=3)
    series(tmp_path / "more", series=pydicom.dcmread(spin[0]).SeriesInstanceUID, seed=3)
    angles = iter(np.linspace(0, 3, 40))

    def turned(data: Dataset) -> None:
        angle = next(angles)
        data.ImageOrientationPatient = [float(np.cos(angle)), float(np.sin(angle)), 0, 0, 0, -1]

    change([*spin, *sorted((tmp_path / "more").iterdir())], turned)
    scan = read_scan(tmp_path)
    assert is_first(scan)
    assert any("no usable scan" in note for note in scan.notes)


def test_two_series_of_equally_many_slices_are_named(tmp_path: Path) -> None:
    series(tmp_path / "a", description="LUNG B31f")
    series(tmp_path / "b", lambda d: setattr(d, "SeriesNumber", 9), description="LUNG B70f", seed=3)
    scan = read_scan(tmp_path)
    assert is_first(scan), "the lower number"
    assert any("equally many have LUNG B70f" in note for note in scan.notes)


def test_an_odd_image_in_a_series_is_left_out(tmp_path: Path) -> None:
    """A localizer, a dose page without a place, and a header with a number that is none."""
    paths = series(tmp_path)
    uid = pydicom.dcmread(paths[0]).SeriesInstanceUID
    odd = series(tmp_path / "odd", lambda d: moved(d, 200), series=uid, seed=5, count=3)
    change(odd[:1], lambda d: setattr(d, "ImageOrientationPatient", [0, 1, 0, 0, 0, -1]))
    change(odd[1:2], lambda d: delattr(d, "ImagePositionPatient"))
    data = pydicom.dcmread(odd[2])
    data.add_new("NumberOfFrames", "IS", "1")
    data.save_as(odd[2])
    raw = odd[2].read_bytes()
    place = raw.index(b"\x28\x00\x08\x00IS")
    odd[2].write_bytes(raw[: place + 8] + b"1A" + raw[place + 10 :])
    scan = read_scan(tmp_path)
    assert is_first(scan)
    assert any("localizer" in note and "unknown place" in note for note in scan.notes)


def test_slices_that_an_anonymiser_made_series_of_their_own(tmp_path: Path) -> None:
    series(tmp_path, lambda d: setattr(d, "SeriesInstanceUID", generate_uid()))
    scan = read_scan(tmp_path)
    assert is_first(scan)
    assert any("series of its own" in note for note in scan.notes)


# --- spacing


@pytest.mark.parametrize("spacing", [0.09, 0.5, 2.5])
def test_a_missing_slice_is_noticed_at_any_spacing(spacing: float, tmp_path: Path) -> None:
    def thin(data: Dataset) -> None:
        x, y, z = data.ImagePositionPatient
        bottom = lps_affine()[2, 3]
        data.ImagePositionPatient = [x, y, bottom + (float(z) - bottom) * spacing / 2.5]
        data.SliceThickness = spacing

    series(tmp_path / "whole", thin)
    assert read_scan(tmp_path / "whole").spacing[2] == pytest.approx(spacing, rel=1e-3)
    series(tmp_path / "gap", thin, skip=(4,))
    with pytest.raises(ScanError, match="has a gap"):
        read_scan(tmp_path / "gap")


def test_uneven_but_complete_spacing_is_resampled_with_a_note(tmp_path: Path) -> None:
    """Thin slices below, thick ones above, as in CT of the head: slices 6 and 8 are not missing."""
    paths = series(tmp_path)
    for path in paths:
        data = pydicom.dcmread(path)
        slot = round((float(data.ImagePositionPatient[2]) - lps_affine()[2, 3]) / 2.5)
        if slot in (6, 8):
            path.unlink()
        elif slot >= 5:
            data.SliceThickness = 5.0
            data.save_as(path)
    scan = read_scan(tmp_path)
    assert scan.shape == (14, 12, 10)
    assert any("resampled" in note and "2.5 to 5 mm" in note for note in scan.notes)
    np.testing.assert_allclose(scan.voxels[:, :, 6], (VOXELS[:, :, 5] + VOXELS[:, :, 7]) / 2, atol=1)
    assert scan.source is None


def test_a_tilted_gantry_is_told_and_places_are_right(tmp_path: Path) -> None:
    lean = np.tan(np.radians(15))

    def tilt(data: Dataset) -> None:
        x, y, z = (float(v) for v in data.ImagePositionPatient)
        data.ImagePositionPatient = [x, y + (z - lps_affine()[2, 3]) * lean, z]

    series(tmp_path, tilt)
    scan = read_scan(tmp_path)
    assert any("15 degrees" in note for note in scan.notes)
    expected = ras_affine()
    expected[1, 2] = -2.5 * lean
    np.testing.assert_allclose(scan.affine, expected, atol=1e-4)


# --- values


def test_a_ct_without_rescale_is_a_reason_for_caution(tmp_path: Path) -> None:
    series(tmp_path, lambda d: (delattr(d, "RescaleIntercept"), delattr(d, "RescaleSlope"))[0])
    scan = read_scan(tmp_path)
    assert any(isinstance(note, Caution) and "RescaleIntercept" in note for note in scan.notes)


def test_slices_that_lack_the_rescale_of_the_others_are_judged_by_their_values(tmp_path: Path) -> None:
    paths = series(tmp_path)
    change(paths[2:5], lambda d: delattr(d, "RescaleIntercept"))
    scan = read_scan(tmp_path)
    assert is_first(scan)
    assert any(isinstance(note, Caution) and "3 of 10 slices" in note for note in scan.notes)


@pytest.mark.parametrize("tagged", [True, False])
def test_padding_becomes_air(tagged: bool, tmp_path: Path) -> None:
    """-3024 HU outside the circle, told by its tag, as unsigned though the pixels are signed, or not at all."""

    def pad(data: Dataset) -> None:
        stored = data.pixel_array.astype(np.int16)
        stored[:3, :3] = -2000
        data.PixelRepresentation = 1
        data.PixelData = stored.astype("<i2").tobytes()
        if tagged:
            data.add_new("PixelPaddingValue", "US", 65536 - 2000)

    series(tmp_path, pad)
    scan = read_scan(tmp_path)
    assert scan.voxels.min() >= -1024
    np.testing.assert_allclose(scan.voxels[:3, :3], -1000 if tagged else -1024)
    np.testing.assert_allclose(scan.voxels[3:], VOXELS[3:], atol=1)
    assert any("padding" in note for note in scan.notes)


def test_colours_by_palette_are_no_intensities(tmp_path: Path) -> None:
    series(tmp_path, lambda d: setattr(d, "PhotometricInterpretation", "PALETTE COLOR"))
    with pytest.raises(ScanError, match="colour"):
        read_scan(tmp_path)


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_a_negative_is_inverted_where_its_numbers_mean_brightness(modality: str, tmp_path: Path) -> None:
    """Hounsfield units mean the same, however they are to be shown."""

    def negative(data: Dataset) -> None:
        data.Modality, data.PhotometricInterpretation = modality, "MONOCHROME1"
        if modality == "MR":
            data.PixelData = (4095 - data.pixel_array).astype("<u2").tobytes()

    series(tmp_path, negative)
    scan = read_scan(tmp_path)
    correlation = np.corrcoef(scan.voxels.ravel(), VOXELS.ravel())[0, 1]
    assert correlation > 0.999
    assert any("MONOCHROME1" in note for note in scan.notes) == (modality == "MR")


def test_a_mosaic_is_named(tmp_path: Path) -> None:
    paths = series(tmp_path, lambda d: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]))
    with pytest.raises(ScanError, match="mosaic"):
        read_scan(paths[0])


# --- pixels that are not whole


def test_an_rle_frame_that_unpacks_too_long_is_damaged(tmp_path: Path) -> None:
    paths = series(tmp_path)
    data = pydicom.dcmread(paths[3])
    data.compress(RLELossless)
    header = (2).to_bytes(4, "little") + (64).to_bytes(4, "little") + (400).to_bytes(4, "little")
    frame = header.ljust(64, b"\0") + b"\x81\x07" * 4000
    data.PixelData = encapsulate([frame])
    data.save_as(paths[3])
    with pytest.raises(ScanError, match="cut off, damaged"):
        read_scan(tmp_path)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_compressed_picture_that_is_cut_off_is_damaged(syntax: str, part: float, tmp_path: Path) -> None:
    """Decoders fill what is missing with grey, or with what lay in memory."""
    paths = series(tmp_path)
    data = pydicom.dcmread(paths[3])
    rng = np.random.default_rng(0)
    data.Rows = data.Columns = 64
    data.PixelData = rng.integers(0, 4096, (64, 64)).astype("<u2").tobytes()
    data.compress(syntax)
    (frame,) = generate_frames(data.PixelData, number_of_frames=1)
    data.PixelData = encapsulate([frame[: int(len(frame) * part)]])
    data.save_as(tmp_path / "cut.dcm")
    change([tmp_path / "cut.dcm"], lambda d: None)
    only = tmp_path / "cut"
    for index, path in enumerate(paths):
        other = pydicom.dcmread(path)
        other.Rows = other.Columns = 64
        other.PixelData = rng.integers(0, 4096, (64, 64)).astype("<u2").tobytes()
        only.mkdir(exist_ok=True)
        other.save_as(only / f"{index}.dcm")
    assert read_scan(only).shape[2] == 10
    shutil.copy(tmp_path / "cut.dcm", only / "3.dcm")
    with pytest.raises(ScanError, match="cut off, damaged"):
        read_scan(only)


DECODE_ALL = """
import sys, tempfile
from pathlib import Path
from mst.scans.decoding import decode_scan, preload
from mst.errors import ScanError
preload()
folder = Path(sys.argv[1])
opened, imported = [], []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and not arguments[0].startswith((str(folder), "/tmp")):
        opened.append(arguments[0])
    if event == "import" and arguments[0] not in sys.modules:
        imported.append(arguments[0])
staging = tempfile.mkdtemp()
sys.addaudithook(hook)
for path in sorted(folder.iterdir()):
    try:
        decode_scan([path], Path(staging))
    except ScanError:
        pass
print(sorted(set(opened)), sorted(set(imported)))
"""


def test_decoding_imports_nothing_once_all_is_loaded(tmp_path: Path) -> None:
    """The decoding process cannot open Python's own files: what is imported late would be a file that is refused."""
    shipped = Path(pydicom.__file__).parent / "data" / "test_files"
    for path in shipped.glob("*.dcm"):
        if path.stat().st_size < 400_000:
            shutil.copy(path, tmp_path / path.name)
    for name, syntax in (("j2k", JPEG2000Lossless), ("rle", RLELossless)):
        for path in series(tmp_path / name, _tiled)[:1]:
            data = pydicom.dcmread(path)
            data.compress(syntax)
            data.save_as(tmp_path / f"{name}.dcm")
    assert len(list(tmp_path.glob("*.dcm"))) > 30
    done = subprocess.run(
        [sys.executable, "-c", DECODE_ALL, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[] []"


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, JPEG2000Lossless, RLELossless])
def test_transfer_syntaxes_in_the_decoding_process(syntax: str, tmp_path: Path) -> None:
    def written(data: Dataset) -> None:
        if syntax == ExplicitVRBigEndian:
            data.PixelData = data.pixel_array.astype(">u2").tobytes()
            data["PixelData"].VR = "OW"
            data.file_meta.TransferSyntaxUID = syntax
        else:
            data.compress(syntax)

    paths = series(tmp_path, _tiled)
    for path in paths:
        data = pydicom.dcmread(path)
        written(data)
        pydicom.dcmwrite(path, data, enforce_file_format=True)
    np.testing.assert_allclose(read_scan(tmp_path).voxels, np.tile(VOXELS, (6, 6, 1)), atol=1)


# --- masks


def segmentation(
    path: Path, segments: dict[str, tuple[slice, slice, slice]], copies: int = 1, empty: bool = True
) -> Path:
    """A SEG over the volume: a box for each segment [columns, rows, slices]; frames in no order."""
    enhanced_dicom(path)
    data = pydicom.dcmread(path)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    data.SeriesInstanceUID, data.Modality = generate_uid(), "SEG"
    data.SegmentationType, data.SamplesPerPixel = "BINARY", 1
    data.BitsAllocated = data.BitsStored = 1
    data.HighBit, data.PixelRepresentation = 0, 0
    items, groups, pictures = [], [], []
    affine = lps_affine()
    for number, (label, box) in enumerate(segments.items(), 1):
        item = Dataset()
        item.SegmentNumber, item.SegmentLabel = number, label
        items.append(item)
        marked = np.zeros(SHAPE, bool)
        marked[box] = True
        for k in range(SHAPE[2]):
            if not empty and not marked[:, :, k].any():
                continue
            group, place, which = Dataset(), Dataset(), Dataset()
            place.ImagePositionPatient = [float(v) for v in affine[:3, 3] + k * affine[:3, 2]]
            which.ReferencedSegmentNumber = number
            group.PlanePositionSequence = Sequence([place])
            group.SegmentIdentificationSequence = Sequence([which])
            groups.append(group)
            pictures.append(marked[:, :, k].T)
    order = np.random.default_rng(2).permutation(len(groups))
    data.SegmentSequence = Sequence(items)
    data.PerFrameFunctionalGroupsSequence = Sequence([groups[i] for i in order] * copies)
    data.NumberOfFrames = len(groups) * copies
    bits = np.stack([pictures[i] for i in order] * copies).ravel()
    packed = np.packbits(bits, bitorder="little").tobytes()
    data.PixelData = packed + b"\0" * (len(packed) % 2)
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        if keyword in data:
            delattr(data, keyword)
    data.save_as(path)
    return path


BOXES = {
    "Tumour": (slice(1, 4), slice(2, 5), slice(2, 5)),
    "Oedema": (slice(5, 9), slice(2, 5), slice(4, 8)),
    "Vessel": (slice(10, 12), slice(6, 9), slice(3, 6)),
}


def marked(*names: str) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for name in names:
        mask[BOXES[name]] = True
    return mask


@pytest.mark.parametrize("empty", [True, False])
def test_a_segmentation_counts_all_its_segments_or_the_one_that_is_named(empty: bool, tmp_path: Path) -> None:
    series(tmp_path / "ct")
    scan = read_scan(tmp_path / "ct")
    path = segmentation(tmp_path / "seg.dcm", BOXES, empty=empty)
    told: list[str] = []
    np.testing.assert_array_equal(read_mask(path, scan, tell=told.append), marked(*BOXES))
    assert "Tumour (1), Oedema (2), Vessel (3)" in told[0]
    np.testing.assert_array_equal(read_mask(path, scan, segment="oedema"), marked("Oedema"))
    np.testing.assert_array_equal(read_mask(path, scan, segment="3"), marked("Vessel"))
    with pytest.raises(ScanError, match=r"no segment 'bone'; it has Tumour \(1\)"):
        read_mask(path, scan, segment="bone")


def test_a_segmentation_of_one_frame(tmp_path: Path) -> None:
    series(tmp_path / "ct")
    path = segmentation(tmp_path / "seg.dcm", {"spot": (slice(2, 5), slice(2, 5), slice(4, 5))}, empty=False)
    mask = read_mask(path, read_scan(tmp_path / "ct"))
    assert mask.sum() == 9
    assert mask[:, :, 4].sum() == 9


def test_a_segmentation_alone_is_no_scan(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="a segmentation; upload the CT or MRI series itself"):
        read_scan(segmentation(tmp_path / "seg.dcm", BOXES))


# --- what is kept of the patient


def test_only_what_identifies_patient_study_and_series_is_kept(tmp_path: Path) -> None:
    def tell(data: Dataset) -> None:
        data.Allergies = data.MedicalAlerts = data.ReasonForVisit = "MARK"
        data.PatientComments = data.AccessionNumber = data.ReferringPhysicianName = "MARK"
        data.InstitutionName = data.PatientAddress = data.OperatorsName = "MARK"

    series(tmp_path, tell)
    source = read_scan(tmp_path).source
    assert source is not None
    assert "MARK" not in str(source.header)
    assert {element.keyword for element in source.header} <= set(KEPT)
    assert source.header.PatientID == "12345"
    again = DicomSource.unpack(source.pack())
    assert again.header == source.header
    assert [piece.identity for piece in again.slices] == [piece.identity for piece in source.slices]
