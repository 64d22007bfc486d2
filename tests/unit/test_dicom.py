"""Which volume of which series a DICOM upload gives, with which values, and what is said of it."""

import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from scan_files import SHAPE, dicom_series, enhanced_dicom, tilted

from mst.scans import Scan, ScanError
from mst.scans import dicom_pixels as pixels_module
from mst.scans.dicom import is_dicom, preload, read_dicom, read_dicom_mask
from mst.scans.source import KEPT, DicomSource

COUNT, ROWS, COLUMNS, STEP = 12, 8, 10, 2.5
RTDOSE, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.2", "1.2.840.10008.5.1.4.1.1.481.3"
Each = Callable[[int], dict[str, Any]]


def picture(seed: int = 0, count: int = COUNT) -> np.ndarray:
    """Hounsfield units [slices, rows, columns]; neighbouring slices resemble each other."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(-900, 500, (1, ROWS, COLUMNS))
    return ground + rng.integers(-20, 20, (count, ROWS, COLUMNS)) + 100 * seed


FIRST, SECOND = picture(0), picture(3)


def image(kind: str = CTImageStorage, **values: Any) -> FileDataset:
    """An image without pixels; values by keyword, or by tag for those of a maker; None: not there."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    data.Modality, data.SeriesDescription, data.SeriesNumber = "CT", "THORAX", 4
    data.PatientName, data.PatientID = "Secret^Name", "12345"
    data.ImageOrientationPatient, data.PixelSpacing = [1, 0, 0, 0, 1, 0], [1.1, 0.8]
    data.SliceThickness = STEP
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    put(data, values)
    return data


def put(data: Dataset, values: dict[str, Any]) -> None:
    for keyword, value in values.items():
        if value is None:
            if keyword in data:
                delattr(data, keyword)
        elif keyword.startswith("tag "):
            group, element, vr = keyword.split()[1:]
            data.add_new((int(group, 16), int(element, 16)), vr, value)
        else:
            setattr(data, keyword, value)


def stored(data: Dataset, array: np.ndarray) -> None:
    data.Rows, data.Columns = array.shape[-2:]
    data.PixelData = np.ascontiguousarray(array).astype("<i2" if array.min() < 0 else "<u2").tobytes()


def series(
    folder: Path,
    values: np.ndarray = FIRST,
    each: Each = lambda k: {},
    heights: np.ndarray | None = None,
    start: int = 1,
    kind: str = CTImageStorage,
    skip: tuple[int, ...] = (),
    **common: Any,
) -> list[Path]:
    """A classic series under names that say nothing of the order; `each` gives what one slice has of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k, plane in enumerate(values):
        z = k * STEP if heights is None else float(heights[k])
        own = {"InstanceNumber": start + k, "ImagePositionPatient": [-9, 14, z]} | common | each(k)
        data = image(kind, **own)
        stored(data, plane + 1024)
        paths.append(folder / f"{zlib.crc32(f'{folder.name} {start} {k}'.encode()):08x}")
        if k not in skip:
            data.save_as(paths[-1], enforce_file_format=True)
    return [path for path in paths if path.exists()]


def read(folder: Path) -> Scan:
    return read_dicom([p for p in sorted(folder.rglob("*")) if p.is_file() and is_dicom(p)])


def shows(scan: Scan, values: np.ndarray, tolerance: float = 0.5) -> bool:
    """Whether a scan holds just these slices."""
    expected = values.transpose(2, 1, 0)
    return scan.shape == expected.shape and bool(np.abs(scan.voxels - expected).max() <= tolerance)


def said(scan: Scan) -> str:
    assert all(note.endswith(".") for note in scan.notes)
    assert "Secret" not in repr(scan)
    return " ".join(scan.notes)


def refusal(folder: Path) -> str:
    with pytest.raises(ScanError) as caught:
        read(folder)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert str(folder) not in message
    return message


# Which series


def test_what_is_no_scan_never_wins_over_one(tmp_path: Path) -> None:
    segmentation(tmp_path / "seg", sources_of(tmp_path), {"a": np.ones((COUNT, ROWS, COLUMNS), bool)})
    for name, kind, modality in (("dose", RTDOSE, "RTDOSE"), ("map", "1.2.840.10008.5.1.4.1.1.30", "MR")):
        data = image(kind, SeriesInstanceUID=generate_uid(), Modality=modality, NumberOfFrames=40)
        data.ImagePositionPatient = [0, 0, 0]
        stored(data, np.zeros((40, ROWS, COLUMNS), int))
        data.save_as(tmp_path / name, enforce_file_format=True)
    for number in range(20):
        shot = image(SecondaryCaptureImageStorage, SeriesInstanceUID="1.2.9", SamplesPerPixel=3)
        shot.PhotometricInterpretation, shot.PlanarConfiguration = "RGB", 0
        stored(shot, np.zeros((ROWS, COLUMNS), int))
        shot.save_as(tmp_path / f"shot{number}", enforce_file_format=True)
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    for words in ("1 segmentation", "1 dose distribution", "1 parametric map", "20 colour pictures"):
        assert words in said(scan)


@pytest.mark.parametrize("turning", [True, False], ids=["rotating", "flat"])
def test_projections_do_not_win_over_a_scan(tmp_path: Path, turning: bool) -> None:
    series(tmp_path / "scan")

    def each(k: int) -> dict[str, Any]:
        angle = np.deg2rad(10 * k)
        turned = [np.cos(angle), np.sin(angle), 0, 0, 0, -1]
        return {"ImageOrientationPatient": turned} if turning else {}

    series(
        tmp_path / "mip",
        picture(5, 18),
        each,
        SeriesInstanceUID="1.2.7",
        SeriesDescription="Projected",
        ImageType=["DERIVED", "SECONDARY", "MIP"],
    )
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "Projected (18 slices) was left out" in said(scan)


def test_the_next_usable_series_is_taken(tmp_path: Path) -> None:
    series(tmp_path / "large", picture(5, 16), skip=(7,), SeriesInstanceUID="1.2.7", SeriesDescription="THIN")
    series(tmp_path / "small")
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "THORAX (12 slices) was taken" in said(scan)
    assert "THIN (15 slices) was left out: The DICOM series THIN has a gap" in said(scan)


def test_a_localizer_does_not_stand_in_for_a_damaged_scan(tmp_path: Path) -> None:
    series(tmp_path / "scan", skip=(5,))
    kinds = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    series(tmp_path / "scout", picture(5, 6), SeriesInstanceUID="1.2.7", ImageType=kinds)
    assert "has a gap" in refusal(tmp_path)


def test_a_scan_of_another_modality_is_left_for_ct(tmp_path: Path) -> None:
    series(
        tmp_path / "pet", picture(5, 20), SeriesInstanceUID="1.2.7", Modality="PT", SeriesDescription="PET"
    )
    series(tmp_path / "ct")
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "PET (20 slices) was left out: it is of another kind (PT)" in said(scan)


def test_equally_long_series_are_named(tmp_path: Path) -> None:
    series(tmp_path / "a", SECOND, SeriesInstanceUID="1.2.7", SeriesNumber=5, SeriesDescription="LUNG")
    series(tmp_path / "b", SeriesNumber=4, SeriesDescription="SOFT")
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "2 have equally many slices (SOFT, LUNG); taken was SOFT (12 slices)" in said(scan)


ODD = {
    "localizer": {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "ImagePositionPatient": [0, 0, 11.25]},
    "no place": {"ImagePositionPatient": None, "SOPClassUID": SecondaryCaptureImageStorage},
    "bad number": {},
    "broken position": {},
    "another size": {},
}


@pytest.mark.parametrize("kind", ODD)
def test_one_odd_file_does_not_spoil_a_series(tmp_path: Path, kind: str) -> None:
    series(tmp_path)
    size = 20 if kind == "another size" else ROWS
    odd = image(**{"ImagePositionPatient": [-9, 14, 90], "InstanceNumber": 99} | ODD[kind])
    stored(odd, np.zeros((size, COLUMNS), int))
    if kind == "bad number":
        odd._dict[pydicom.tag.Tag("NumberOfFrames")] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag("NumberOfFrames"), "IS", 2, b"1A", 0, False, True
        )
    if kind == "broken position":
        tag = pydicom.tag.Tag("ImagePositionPatient")
        odd._dict[tag] = pydicom.dataelem.RawDataElement(tag, "DS", 6, b"a\\b\\c ", 0, False, True)
    odd.save_as(tmp_path / "odd", enforce_file_format=True)
    (tmp_path / "broken").write_bytes(b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0" + b"\xff" * 9)
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "left out" in said(scan).lower()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "mixes slices of different directions"),
        ({"PixelSpacing": [2, 2]}, "mixes slices of different pixel spacing"),
        ({"ImagePositionPatient": None}, "does not say where its slices lie"),
    ],
)
def test_a_slice_of_the_volume_itself_is_missed(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    series(tmp_path, each=lambda k: change if k == 6 else {})
    assert words in refusal(tmp_path)


@pytest.mark.parametrize("part", [0.75, 0.97], ids=["header", "pixels"])
@pytest.mark.parametrize("at", [5, COUNT - 1])
def test_a_slice_that_is_cut_off_is_missed(tmp_path: Path, part: float, at: int) -> None:
    path = series(tmp_path)[at]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    assert "cut off" in refusal(tmp_path)


def test_a_file_of_which_too_little_is_left_to_tell_its_series(tmp_path: Path) -> None:
    paths = series(tmp_path)
    paths[-1].write_bytes(paths[-1].read_bytes()[:300])
    scan = read(tmp_path)
    assert shows(scan, FIRST[:-1])
    assert "1 file is damaged or cut off and was left out; if it is one of the scan" in said(scan)
    paths[5].write_bytes(paths[5].read_bytes()[:300])
    assert "has a gap" in refusal(tmp_path)


def test_slices_that_each_claim_to_be_a_series_are_joined(tmp_path: Path) -> None:
    series(tmp_path, each=lambda k: {"SeriesInstanceUID": generate_uid()})
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "Each of 12 slices is a series of its own" in said(scan)
    series(tmp_path / "other", each=lambda k: {"SeriesInstanceUID": generate_uid(), "PatientID": "another"})
    assert shows(read(tmp_path), FIRST), "slices of two patients were joined"


def test_copies_count_once_and_the_whole_one_is_read(tmp_path: Path) -> None:
    for path in series(tmp_path):
        copy = tmp_path / f"{path.name} (1)"
        copy.write_bytes(path.read_bytes())
        path.write_bytes(path.read_bytes()[:-60])
    assert shows(read(tmp_path), FIRST)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, "mosaic"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "in colour"),
        ({"NumberOfFrames": 2}, "film of 2 frames"),
        ({"SOPClassUID": RTDOSE}, "hold a dose distribution"),
        ({"ImageOrientationPatient": None}, "does not say where its slices lie"),
    ],
)
def test_what_cannot_be_a_scan_is_called_by_its_name(
    tmp_path: Path, kind: dict[str, Any], words: str
) -> None:
    series(tmp_path, **kind)
    assert words in refusal(tmp_path)


# Which volume of a series

TOLD_APART: dict[str, tuple[Each, Each]] = {
    "kernel": (lambda k: {"ConvolutionKernel": "B30f"}, lambda k: {"ConvolutionKernel": "B70f"}),
    "echo": (lambda k: {"EchoTime": 4.9}, lambda k: {"EchoTime": 9.8}),
    "b-value": (lambda k: {"DiffusionBValue": 0.0}, lambda k: {"DiffusionBValue": 800.0}),
    "time point": (
        lambda k: {"TemporalPositionIdentifier": 1},
        lambda k: {"TemporalPositionIdentifier": 2},
    ),
    "acquisition": (lambda k: {"AcquisitionNumber": 1}, lambda k: {"AcquisitionNumber": 2}),
    "trigger time": (lambda k: {"TriggerTime": k % 3}, lambda k: {"TriggerTime": 350 + k % 4}),
    "in and out of phase": (
        lambda k: {"ImageType": ["ORIGINAL", "PRIMARY", "M", "IN_PHASE"]},
        lambda k: {"ImageType": ["ORIGINAL", "PRIMARY", "M", "OUT_PHASE"]},
    ),
    "acquisition time": (
        lambda k: {"AcquisitionTime": "101500.5"},
        lambda k: {"AcquisitionTime": "101712.5"},
    ),
    "acquisition times": (
        lambda k: {"AcquisitionTime": f"1015{k:02d}.5"},
        lambda k: {"AcquisitionTime": f"1017{k:02d}.5"},
    ),
    "content times": (
        lambda k: {"ContentTime": f"0959{11 - k:02d}"},
        lambda k: {"ContentTime": f"1003{k * 3:02d}"},
    ),
    "times of one alone": (lambda k: {}, lambda k: {"AcquisitionTime": f"1000{k:02d}"}),
    "study": (lambda k: {}, lambda k: {"StudyInstanceUID": "1.2.3.9"}),
    "series number": (lambda k: {"SeriesNumber": 4}, lambda k: {"SeriesNumber": 5}),
    "a property of no list": (lambda k: {"FilterType": "A"}, lambda k: {"FilterType": "B"}),
    "a maker's property": (
        lambda k: {"tag 0019 0010 LO": "MAKER", "tag 0019 100c LO": "1"},
        lambda k: {"tag 0019 0010 LO": "MAKER", "tag 0019 100c LO": "2"},
    ),
}


@pytest.mark.parametrize("how", TOLD_APART)
def test_two_volumes_at_the_same_places_are_not_mixed(tmp_path: Path, how: str) -> None:
    first, second = TOLD_APART[how]
    numbers = np.random.default_rng(1).permutation(2 * COUNT) + 1  # that follow neither volume
    numbers[0] = 1
    series(tmp_path / "a", FIRST, lambda k: {"InstanceNumber": int(min(numbers[k], 24))} | first(k))
    series(tmp_path / "b", SECOND, lambda k: {"InstanceNumber": int(numbers[COUNT + k])} | second(k))
    scan = read(tmp_path)
    assert shows(scan, FIRST) or shows(scan, SECOND)
    assert "The series holds 2 volumes at the same place" in said(scan)


def test_numbers_alone_tell_volumes_apart(tmp_path: Path) -> None:
    series(tmp_path / "a", FIRST)
    series(tmp_path / "b", SECOND, start=101)
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "2 volumes at the same place; the first one was taken" in said(scan)


def test_a_note_names_what_was_taken(tmp_path: Path) -> None:
    series(tmp_path / "a", FIRST, start=101, ConvolutionKernel="B70f")
    series(tmp_path / "b", SECOND, start=1, ConvolutionKernel="B31f")
    scan = read(tmp_path)
    assert shows(scan, SECOND)
    assert "(kernels B31f, B70f); the first one was taken (B31f)" in said(scan)


@pytest.mark.parametrize(
    ("phase", "magnitude"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "M"]}),
        (
            {"ImageType": ["ORIGINAL", "PRIMARY", "PHASE MAP"]},
            {"ImageType": ["ORIGINAL", "PRIMARY", "M_FFE"]},
        ),
        ({"ComplexImageComponent": "REAL"}, {"ComplexImageComponent": "MAGNITUDE"}),
        ({"tag 0043 102f SS": 3}, {"tag 0043 102f SS": 0}),
    ],
)
def test_magnitude_is_taken_rather_than_phase(
    tmp_path: Path, phase: dict[str, Any], magnitude: dict[str, Any]
) -> None:
    series(tmp_path / "a", SECOND, kind=MRImageStorage, Modality="MR", **phase)
    series(tmp_path / "b", FIRST, start=101, kind=MRImageStorage, Modality="MR", **magnitude)
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "2 volumes" in said(scan)


@pytest.mark.parametrize("how", ["acquisition", "acquisition times", "numbers"])
def test_phases_of_uneven_length_are_not_mixed(tmp_path: Path, how: str) -> None:
    first, second = TOLD_APART.get(how, (lambda k: {}, lambda k: {}))
    longer = picture(3, COUNT + 2)
    series(tmp_path / "a", FIRST, first)
    series(tmp_path / "b", longer, second, (np.arange(COUNT + 2) - 1) * STEP, start=13)
    scan = read(tmp_path)
    assert shows(scan, FIRST) or shows(scan, longer)
    assert "2 volumes at the same place" in said(scan)


@pytest.mark.parametrize("how", ["acquisition", "acquisition times", "numbers"])
@pytest.mark.parametrize("shift", [0.5, 0.3])
def test_two_breath_holds_do_not_become_one_thin_scan(tmp_path: Path, how: str, shift: float) -> None:
    first, second = TOLD_APART.get(how, (lambda k: {}, lambda k: {}))
    series(tmp_path / "a", FIRST, first)
    series(tmp_path / "b", SECOND, second, (np.arange(COUNT) + shift) * STEP, start=101)
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "2 volumes" in said(scan)


def test_packages_of_thin_slices_are_one_volume(tmp_path: Path) -> None:
    both = picture(0, 2 * COUNT)
    thin = {"SliceThickness": STEP, "kind": MRImageStorage, "Modality": "MR"}
    for part in (0, 1):
        heights = (2 * np.arange(COUNT) + part) * STEP
        series(
            tmp_path / str(part),
            both[part::2],
            heights=heights,
            start=1 + 100 * part,
            AcquisitionNumber=part,
            **thin,
        )
    scan = read(tmp_path)
    assert shows(scan, both)
    assert not scan.notes


def test_two_ranges_of_one_helix_are_one_volume(tmp_path: Path) -> None:
    series(tmp_path, each=lambda k: {"AcquisitionNumber": 1 + k // 6, "AcquisitionTime": f"1000{k:02d}"})
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert not scan.notes


def test_a_missing_slice_is_no_reason_to_take_half_a_scan(tmp_path: Path) -> None:
    series(tmp_path, each=lambda k: {"AcquisitionNumber": 1 + k // 6, "FilterType": "AB"[k % 2]}, skip=(3,))
    assert "has a gap" in refusal(tmp_path)


def test_slices_that_were_sent_again_count_once(tmp_path: Path) -> None:
    series(tmp_path / "a")
    series(tmp_path / "b")
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "24 slices at 12 places" in said(scan)
    series(tmp_path / "b", SECOND)
    assert "different pictures at the same place" in refusal(tmp_path)


def enhanced(
    path: Path,
    order: list[tuple[int, int]],
    volumes: list[np.ndarray],
    group: Callable[[int, int], Dataset],
    **common: Any,
) -> Path:
    """An enhanced MR file; each frame is slice k of volume v, and `group` gives what is said of it."""
    data = image(EnhancedMRImageStorage, Modality="MR", **common)
    measures, scaling, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.1, 0.8], STEP
    scaling.RescaleSlope, scaling.RescaleIntercept, scaling.RescaleType = 1, -1024, "US"
    shared.PixelMeasuresSequence, shared.PixelValueTransformationSequence = [measures], [scaling]
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for v, k in order:
        place, turn, one = Dataset(), Dataset(), group(v, k)
        place.ImagePositionPatient = [-9, 14, k * STEP]
        turn.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.PlanePositionSequence, one.PlaneOrientationSequence = [place], [turn]
        groups.append(one)
    data.PerFrameFunctionalGroupsSequence, data.NumberOfFrames = Sequence(groups), len(order)
    stored(data, np.stack([volumes[v][k] for v, k in order]) + 1024)
    data.save_as(path, enforce_file_format=True)
    return path


def inside(sequence: str, **values: Any) -> Dataset:
    inner, outer = Dataset(), Dataset()
    put(inner, values)
    setattr(outer, sequence, [inner])
    return outer


BOTH = [(v, k) for v in (0, 1) for k in range(COUNT)]
SHUFFLED = [BOTH[i] for i in np.random.default_rng(2).permutation(len(BOTH))]
IN_FRAMES: dict[str, Callable[[int, int], Dataset]] = {
    "echo": lambda v, k: inside("MREchoSequence", EffectiveEchoTime=4.9 * (v + 1)),
    "acquisition": lambda v, k: inside("FrameContentSequence", FrameAcquisitionNumber=v + 1),
    "time point": lambda v, k: inside("FrameContentSequence", StackID="1", TemporalPositionIndex=v + 1),
    "b-value": lambda v, k: inside("MRDiffusionSequence", DiffusionBValue=800.0 * v),
    "frame type": lambda v, k: inside(
        "MRImageFrameTypeSequence", FrameType=["ORIGINAL", "PRIMARY", ["WATER", "FAT"][v]]
    ),
    "heart phase": lambda v, k: inside(
        "CardiacSynchronizationSequence", NominalCardiacTriggerDelayTime=90.0 * v
    ),
    "dimension": lambda v, k: inside("FrameContentSequence", DimensionIndexValues=[k + 1, v + 1]),
    "times": lambda v, k: inside("FrameContentSequence", FrameAcquisitionDateTime=f"202001011{v}00{k:02d}.5"),
}


@pytest.mark.parametrize("how", IN_FRAMES)
def test_two_volumes_of_an_enhanced_file_are_not_mixed(tmp_path: Path, how: str) -> None:
    dimensions = [Dataset(), Dataset()]
    for dimension, tag, label in zip(dimensions, (0x00200032, 0x00189079), ("Place", "Delay"), strict=True):
        dimension.DimensionIndexPointer, dimension.DimensionDescriptionLabel = tag, label
    common = {"DimensionIndexSequence": Sequence(dimensions)} if how == "dimension" else {}
    enhanced(tmp_path / "e", SHUFFLED, [FIRST, SECOND], IN_FRAMES[how], **common)
    scan = read(tmp_path)
    assert shows(scan, FIRST) or shows(scan, SECOND)
    assert "2 volumes at the same place (" in said(scan)


def test_two_enhanced_files_of_one_series(tmp_path: Path) -> None:
    one = BOTH[:COUNT]
    content = lambda v, k: inside("FrameContentSequence", StackID="1", TemporalPositionIndex=1)  # noqa: E731
    enhanced(tmp_path / "1", one, [FIRST], content)
    enhanced(tmp_path / "2", one[::-1], [SECOND], content)
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "files 1, 2" in said(scan)


def test_stacks_of_an_enhanced_file_that_interleave_are_one_volume(tmp_path: Path) -> None:
    order = [(0, k) for part in range(3) for k in range(part, COUNT, 3)]
    enhanced(
        tmp_path / "e", order, [FIRST], lambda v, k: inside("FrameContentSequence", StackID=str(k % 3 + 1))
    )
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert not scan.notes


def test_stacks_of_an_enhanced_file_that_lie_apart_are_told(tmp_path: Path) -> None:
    def content(v: int, k: int) -> Dataset:
        return inside("FrameContentSequence", StackID="L" if k < COUNT else "R")

    order = [(0, k) for k in (*range(COUNT), *range(2 * COUNT, 3 * COUNT))]
    enhanced(tmp_path / "e", order, [np.concatenate([FIRST, FIRST, SECOND])], content)
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "2 volumes (stacks L, R); the first one was taken (L)" in said(scan)


def test_numbers_in_a_jpeg_2000_stream_that_says_unsigned(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-900, 900, (COUNT, 64, 64))  # what the encoder needs at least
    for path in series(tmp_path, values, RescaleIntercept=0):
        data = pydicom.dcmread(path)
        data.PixelData = (np.frombuffer(data.PixelData, "<i2") - 1024).astype("<i2").tobytes()
        data.compress(JPEG2000Lossless, generate_instance_uid=False)
        data.PixelRepresentation = 1
        data.save_as(path)
    assert shows(read(tmp_path), values)


def test_a_multi_frame_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (0, 1):
        order = [(0, k) for k in range(part, COUNT, 2)]
        enhanced(tmp_path / str(part), order, [FIRST], lambda v, k: Dataset())
    opened = []
    whole = pixels_module.read_whole
    monkeypatch.setattr(
        pixels_module, "read_whole", lambda path, count: opened.append(path.name) or whole(path, count)
    )
    assert shows(read(tmp_path), FIRST)
    assert sorted(opened) == ["0", "1"]


# Distances


@pytest.mark.parametrize("step", [0.05, 0.09, 0.625, 5.0])
def test_a_missing_slice_is_noticed_at_any_distance(tmp_path: Path, step: float) -> None:
    series(tmp_path, heights=np.arange(COUNT) * step, skip=(5,))
    message = refusal(tmp_path)
    assert "slices 5 and 6 are" in message
    assert "has a gap" in message


def test_positions_that_are_rounded_are_even(tmp_path: Path) -> None:
    series(tmp_path, heights=np.round(np.arange(COUNT) * 0.625, 1))
    assert shows(read(tmp_path), FIRST)


def test_uneven_slices_of_which_none_is_missing_are_interpolated(tmp_path: Path) -> None:
    heights = np.array([0, 2.5, 5, 7.5, 10, 15, 20, 25])
    values = FIRST[: len(heights)]
    series(tmp_path, values, heights=heights)
    scan = read(tmp_path)
    assert "2.5 to 5.0 mm apart; the scan was interpolated to even distances of 2.5 mm" in said(scan)
    assert scan.source is None
    assert scan.shape[2] == 11
    for k in range(11):
        expected = np.array([np.interp(k * 2.5, heights, column) for column in values.reshape(8, -1).T])
        assert np.allclose(scan.voxels[:, :, k].T.ravel(), expected, atol=0.1)
        assert scan.voxel_to_world((0, 0, k))[2] == pytest.approx(k * 2.5)


def test_uneven_slices_that_may_be_missing_are_refused_truly(tmp_path: Path) -> None:
    heights = np.array([0, 2.5, 5, 7.5, 10, 15, 20, 25])
    series(tmp_path, FIRST[: len(heights)], lambda k: {"InstanceNumber": None}, heights)
    message = refusal(tmp_path)
    assert "unevenly, 2.5 to 5.0 mm apart" in message
    assert "all slices" not in message


def test_a_tilted_gantry_keeps_its_shear(tmp_path: Path) -> None:
    series(tmp_path, each=lambda k: {"ImagePositionPatient": [-9, 14 + k, k * STEP]})
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "the slices lean by 22 degrees" in said(scan)
    assert np.allclose(scan.affine[:3, 2], [0, -1, STEP])


@pytest.mark.parametrize("apart", [(100, 0, 0), (0, 0, 200)], ids=["beside", "behind"])
def test_stacks_of_two_sides_are_not_mixed(tmp_path: Path, apart: tuple[int, int, int]) -> None:
    series(tmp_path / "left")
    corner = np.array([-9, 14, 0]) + apart
    series(
        tmp_path / "right",
        SECOND,
        lambda k: {"ImagePositionPatient": [*corner[:2].tolist(), float(corner[2] + k * STEP)]},
        start=13,
    )
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "2 volumes" in said(scan) or "2 stacks" in said(scan)


# Values


def test_a_ct_without_rescaling_is_told(tmp_path: Path) -> None:
    series(tmp_path, RescaleIntercept=None, RescaleSlope=None)
    scan = read(tmp_path)
    assert shows(scan, FIRST + 1024)
    assert "no RescaleIntercept" in said(scan)
    assert "do not trust the result" in said(scan)
    series(tmp_path, FIRST - 1024, RescaleIntercept=None, RescaleSlope=None, PixelRepresentation=1)
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "they look like Hounsfield units" in said(scan)


@pytest.mark.parametrize("intercept", [None, 0, -2048])
def test_slices_whose_rescaling_is_missing_or_wrong_are_judged_by_their_values(
    tmp_path: Path, intercept: int | None
) -> None:
    series(tmp_path, each=lambda k: {"RescaleIntercept": intercept} if k in (0, 3, 4) else {})
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert "3 slices do not say rightly" in said(scan)


def test_rescaling_that_differs_rightly_is_kept(tmp_path: Path) -> None:
    values = FIRST.copy()
    values[3] += 1024
    series(tmp_path, values, lambda k: {"RescaleIntercept": -2048} if k == 3 else {})
    scan = read(tmp_path)
    assert shows(scan, FIRST)
    assert not scan.notes


@pytest.mark.parametrize(
    ("padding", "tags"),
    [
        (-2000, {"tag 0028 0120 SS": -2000}),
        (-2000, {"tag 0028 0120 US": 63536}),
        (-2000, {}),
        (3000, {"tag 0028 0120 SS": 3000}),
        (-1990, {"tag 0028 0120 SS": -2000, "tag 0028 0121 SS": -1980}),
    ],
)
def test_padding_becomes_air(tmp_path: Path, padding: int, tags: dict[str, Any]) -> None:
    values = np.maximum(FIRST, -1024)
    round_field = values.copy()
    round_field[:, :2] = round_field[:, -2:] = padding - 1024
    series(tmp_path, round_field, PixelRepresentation=1, **tags)
    scan = read(tmp_path)
    air = values[:, 2:-2].min()
    expected = values.copy()
    expected[:, :2] = expected[:, -2:] = np.clip(air, -1024, -1000)
    assert shows(scan, expected)
    assert "was set to air" in said(scan)


def test_a_padding_value_within_tissue_is_not_believed(tmp_path: Path) -> None:
    values = FIRST.copy()
    values[:, 4, 4] = 0
    series(tmp_path, values, **{"tag 0028 0120 US": 1024})
    assert shows(read(tmp_path), values)


def test_a_negative_is_inverted_but_hounsfield_units_keep_their_meaning(tmp_path: Path) -> None:
    series(tmp_path / "ct", PhotometricInterpretation="MONOCHROME1")
    assert shows(read(tmp_path / "ct"), FIRST)
    mr = {"kind": MRImageStorage, "Modality": "MR", "RescaleIntercept": None, "RescaleSlope": None}
    series(tmp_path / "mr", PhotometricInterpretation="MONOCHROME1", **mr)
    scan = read(tmp_path / "mr")
    numbers = FIRST + 1024
    assert shows(scan, numbers.max() + numbers.min() - numbers)
    assert "MONOCHROME1" in said(scan)


def test_signs_that_were_not_carried_on(tmp_path: Path) -> None:
    for path in series(tmp_path, BitsStored=12, HighBit=11, PixelRepresentation=1, RescaleIntercept=0):
        data = pydicom.dcmread(path)
        numbers = np.frombuffer(data.PixelData, "<i2") - 1024
        data.PixelData = (numbers & 0xFFF).astype("<u2").tobytes()
        data.save_as(path)
    assert shows(read(tmp_path), FIRST)


def test_negative_numbers_that_are_said_to_be_unsigned(tmp_path: Path) -> None:
    for path in series(tmp_path, RescaleIntercept=0):
        data = pydicom.dcmread(path)
        data.PixelData = (np.frombuffer(data.PixelData, "<i2") - 1024).astype("<i2").tobytes()
        data.save_as(path)
    assert shows(read(tmp_path), FIRST)


def test_drawings_in_spare_bits_are_no_part_of_the_picture(tmp_path: Path) -> None:
    for path in series(tmp_path, BitsStored=12, HighBit=11, **{"tag 6000 0102 US": 12}):
        data = pydicom.dcmread(path)
        data.PixelData = (np.frombuffer(data.PixelData, "<u2") | 0x1000).astype("<u2").tobytes()
        data.save_as(path)
    assert shows(read(tmp_path), FIRST)


def test_values_that_are_no_hounsfield_units_are_told(tmp_path: Path) -> None:
    series(tmp_path, RescaleType="Z_EFF")
    assert "no Hounsfield units (Z_EFF)" in said(read(tmp_path))


# Files and decoders


@pytest.mark.parametrize(
    "syntax", [ExplicitVRBigEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
)
def test_transfer_syntaxes_without_compression(tmp_path: Path, syntax: str) -> None:
    for path in series(tmp_path):
        data = pydicom.dcmread(path)
        if syntax == ExplicitVRBigEndian:
            data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
        little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
        meta, data.file_meta = data.file_meta, FileMetaDataset()
        plain = Dataset(data)
        plain.file_meta = meta
        meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, plain, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
        if syntax == ImplicitVRLittleEndian:  # neither preamble nor meta information
            content = path.read_bytes()
            path.write_bytes(
                content[144 + int(pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength) :]
            )
    assert shows(read(tmp_path), FIRST)


COMPRESSED = [RLELossless, JPEG2000Lossless, JPEGLSLossless]


def compressed(folder: Path, syntax: str, change: Callable[[bytes], bytes]) -> None:
    """A series whose sixth slice's compressed data are changed."""
    # Noise, so that the data are long enough to lose a part.
    values = np.random.default_rng(0).integers(-900, 900, (COUNT, 64, 64))
    for k, path in enumerate(series(folder, values)):
        data = pydicom.dcmread(path)
        data.compress(syntax, generate_instance_uid=False)
        if k == 5:
            frame = get_frame(data.PixelData, 0, number_of_frames=1)
            data.PixelData = encapsulate([change(frame)])
        data.save_as(path)


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["cut", "cut and ended"])
@pytest.mark.parametrize("part", [0.5, 0.98])
def test_a_compressed_slice_that_is_cut_off_is_refused(
    tmp_path: Path, syntax: str, part: float, end: bytes, capfd: pytest.CaptureFixture
) -> None:
    compressed(tmp_path, syntax, lambda frame: frame)
    assert read(tmp_path).shape == (64, 64, COUNT)
    compressed(tmp_path, syntax, lambda frame: frame[: int(len(frame) * part)] + end)
    assert "cut off, damaged or compressed" in refusal(tmp_path)
    assert capfd.readouterr().err == ""


def test_an_rle_frame_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    compressed(tmp_path, RLELossless, lambda frame: frame + b"\x81\0" * 4000)
    assert "cut off, damaged or compressed" in refusal(tmp_path)
    assert capfd.readouterr().err == "", "a decoder panicked"


def test_a_decoder_that_panics_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    def panics(*_: Any, **__: Any) -> None:
        raise Panic

    series(tmp_path)
    monkeypatch.setattr(pixels_module, "get_decoder", panics)
    assert "cut off, damaged or compressed" in refusal(tmp_path)


def test_a_jpeg_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    source = pydicom.dcmread(pydicom.data.get_testdata_file("JPGExtended.dcm"))
    frame = get_frame(source.PixelData, 0, number_of_frames=1)
    for content in (frame, frame[: len(frame) // 2], frame[: len(frame) // 2] + b"\xff\xd9" + frame[-900:]):
        for k in range(COUNT):
            data = image(ImagePositionPatient=[0, 0, k * STEP], InstanceNumber=k, SOPInstanceUID=f"1.9.{k}")
            for key in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"):
                data[key] = source[key]
            data.file_meta.TransferSyntaxUID = source.file_meta.TransferSyntaxUID
            data.PixelData = encapsulate([content])
            data.save_as(tmp_path / str(k), enforce_file_format=True)
        if content is frame:
            assert read(tmp_path).shape == (256, 1024, COUNT)
        else:
            assert "cut off, damaged or compressed" in refusal(tmp_path)


@pytest.mark.parametrize("change", [lambda p: p[:-2], lambda p: p + p])
def test_more_or_fewer_pixels_than_promised_are_refused(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path = series(tmp_path)[4]
    data = pydicom.dcmread(path)
    data.PixelData = change(data.PixelData)
    data.save_as(path)
    assert "cut off, damaged or compressed" in refusal(tmp_path)


def test_what_promises_too_much_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels_module, "get_decoder", lambda *_: pytest.fail("decoded"))
    series(tmp_path, each=lambda k: {})
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        data.Rows = data.Columns = 65_000
        data.save_as(path)
    assert "more than this tool reads" in refusal(tmp_path)


def test_a_deflated_file_unpacks_no_further_than_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = []

    class Counting:
        def __init__(self, bits: int) -> None:
            self.real = zlib.decompressobj(bits)

        def decompress(self, data: bytes, limit: int) -> bytes:
            unpacked.append(self.real.decompress(data, limit))
            return unpacked[-1]

        @property
        def eof(self) -> bool:
            return self.real.eof

        error = zlib.error

    for path in series(tmp_path):
        data = pydicom.dcmread(path)
        data.PixelData += bytes(64 * 1024**2)
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        data.save_as(path)
        assert path.stat().st_size < 200_000
    module = type(sys)("zlib")
    module.MAX_WBITS, module.decompressobj = zlib.MAX_WBITS, Counting  # type: ignore[attr-defined]
    monkeypatch.setattr("mst.scans.dicom_files.zlib", module)
    assert "unpacks to more than it says" in refusal(tmp_path)
    assert max(map(len, unpacked)) < 33 * 1024**2


CHECK = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import pydicom
from mst.errors import ScanError
from mst.scans import decoding, dicom, dicom_files, dicom_pixels
folder = Path(pydicom.__file__).parent / "data" / "test_files"
paths = [p for p in folder.rglob("*") if p.is_file()]
given = Path(sys.argv[1])
series, marks = [p for p in given.rglob("*") if p.parent.name == "ct"], [given / "seg"]
decoding.preload()
before, found = set(sys.modules), []

def hook(event, args):
    if event == "open" and not str(args[0]).startswith((str(folder), str(given))):
        found.append(f"opened {args[0]}")
    if event == "import" and args[0] not in before:
        found.append(f"imported {args[0]}")

sys.addaudithook(hook)
decoded = set()
for path in paths:
    try:
        file = dicom_files.read_header(path)
    except Exception:
        continue
    for tag in list(file.header.keys()):
        dicom_files.text(file.header, int(tag))
    try:
        if list(dicom_pixels.frames(file, [0])):
            decoded.add(dicom_files.transfer_syntax(file.header).name)
    except ScanError:
        continue
scan = dicom.read_dicom(series)
dicom.DicomSource.unpack(scan.source.pack())
dicom.read_dicom_mask(marks)
print(sorted(found), sorted(set(sys.modules) - before), len(decoded))
"""


def test_nothing_is_loaded_once_everything_was(tmp_path: Path) -> None:
    """What the decoders need is there after `preload`, for a process that can open no other file then."""
    preload()
    segmentation(tmp_path / "seg", sources_of(tmp_path / "ct"), boxes())
    run = subprocess.run(
        [sys.executable, "-c", CHECK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[] [] 9", run.stdout


# Masks


def segmentation(
    path: Path, sources: list[Dataset], masks: dict[str, np.ndarray], kind: str = "BINARY", **options: Any
) -> None:
    """A SEG as highdicom writes it; masks [slices, rows, columns] by label, in the sources' order."""
    descriptions = [
        highdicom.seg.SegmentDescription(
            number, label, codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion, "MANUAL"
        )
        for number, label in enumerate(masks, start=1)
    ]
    made = highdicom.seg.Segmentation(
        sources,
        np.stack(list(masks.values()), axis=-1).astype(np.uint8 if kind == "BINARY" else float),
        kind,
        descriptions,
        generate_uid(),
        9,
        generate_uid(),
        1,
        "Maker",
        "Model",
        "1",
        "2",
        **options,
    )
    made.save_as(path)


def sources_of(folder: Path) -> list[Dataset]:
    paths = series(folder, StudyDate="20200101", StudyTime="1000", AccessionNumber="", StudyID="1")
    for path in paths:
        data = pydicom.dcmread(path)
        data.PatientBirthDate = data.PatientSex = data.ReferringPhysicianName = ""
        data.save_as(path)
    return [pydicom.dcmread(path) for path in paths]


def boxes() -> dict[str, np.ndarray]:
    masks = {name: np.zeros((COUNT, ROWS, COLUMNS), bool) for name in ("part 1", "part 2", "part 3")}
    masks["part 1"][2:5, 1:4, 2:7] = True
    masks["part 2"][4:9, 3:6, 1:4] = True  # overlaps the first, and has slices that it has not
    masks["part 3"][8, 6:8, 6:9] = True
    return masks


def same_place(mask: Scan, scan: Scan, expected: np.ndarray) -> bool:
    """Whether a mask marks just these voxels of a scan, [slices, rows, columns]."""
    marked = np.argwhere(mask.voxels > 0)
    index = np.round(scan.world_to_voxel(mask.voxel_to_world(marked))).astype(int)
    found = np.zeros(scan.shape, bool)
    found[tuple(index.T)] = True
    return len(marked) == expected.sum() and np.array_equal(found, expected.transpose(2, 1, 0))


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
@pytest.mark.parametrize("omit", [True, False], ids=["without empty frames", "all frames"])
def test_a_segmentation_marks_all_its_segments(tmp_path: Path, kind: str, omit: bool) -> None:
    sources, masks = sources_of(tmp_path / "ct"), boxes()
    options = {"fractional_type": "PROBABILITY"} if kind == "FRACTIONAL" else {}
    segmentation(tmp_path / "seg", sources, masks, kind, omit_empty_frames=omit, **options)
    scan, mask = read(tmp_path / "ct"), read_dicom_mask([tmp_path / "seg"])
    assert set(np.unique(mask.voxels)) == {0, 1}
    assert same_place(mask, scan, np.any(list(masks.values()), axis=0))
    assert "3 segments (part 1, part 2, part 3); all of them were taken" in mask.notes[0]
    for wanted, label in (("part 2", "part 2"), ("PART 2 ", "part 2"), ("3", "part 3")):
        one = read_dicom_mask([tmp_path / "seg"], wanted)
        assert same_place(one, scan, masks[label])
    with pytest.raises(ScanError, match="no segment part 4; it holds part 1, part 2, part 3"):
        read_dicom_mask([tmp_path / "seg"], "part 4")


def test_a_segmentation_over_several_files_and_of_one_frame(tmp_path: Path) -> None:
    sources, masks = sources_of(tmp_path / "ct"), boxes()
    paths = []
    for label, mask in masks.items():
        paths.append(tmp_path / f"{label}.dcm")
        segmentation(paths[-1], sources, {label: mask})
    scan = read(tmp_path / "ct")
    assert same_place(read_dicom_mask(paths), scan, np.any(list(masks.values()), axis=0))
    assert same_place(read_dicom_mask(paths, "part 3"), scan, masks["part 3"])
    alone = read_dicom_mask(paths[2:])
    assert same_place(alone, scan, masks["part 3"])
    assert alone.spacing[2] == pytest.approx(STEP)
    assert not alone.notes


def test_contours_are_refused_as_a_mask_and_as_a_scan(tmp_path: Path) -> None:
    data = image(RTSTRUCT, Modality="RTSTRUCT")
    data.save_as(tmp_path / "rt.dcm", enforce_file_format=True)
    with pytest.raises(ScanError, match="is an RTSTRUCT: it holds contours, which are not read; save"):
        read_dicom_mask([tmp_path / "rt.dcm"])
    with pytest.raises(ScanError, match="only contours"):
        read_dicom([tmp_path / "rt.dcm"])


def test_a_series_of_images_as_a_mask(tmp_path: Path) -> None:
    series(tmp_path, (FIRST > 0).astype(int) - 1024, RescaleIntercept=0)
    mask = read_dicom_mask(list(tmp_path.iterdir()))
    assert np.array_equal(mask.voxels, (FIRST > 0).transpose(2, 1, 0))


# The source


@pytest.mark.parametrize("multi_frame", [False, True])
def test_a_source_is_packed_and_unpacked(tmp_path: Path, multi_frame: bool) -> None:
    if multi_frame:
        enhanced_dicom(tmp_path / "e.dcm", tilted())
    else:
        dicom_series(tmp_path, tilted())
    source = read(tmp_path).source
    assert source is not None
    again = DicomSource.unpack(json.loads(json.dumps(source.pack())))
    assert again.header == source.header
    assert (again.spacing, again.shape) == (source.spacing, source.shape)
    assert np.array_equal(again.orientation, source.orientation)
    assert len(again.slices) == SHAPE[2]
    for one, other in zip(again.slices, source.slices, strict=True):
        assert (one.identity, one.frame) == (other.identity, other.frame)
        assert np.array_equal(one.position, other.position)


def test_a_source_keeps_letters_of_any_script(tmp_path: Path) -> None:
    name = "Müller^Zoë"
    series(tmp_path, SpecificCharacterSet="ISO_IR 192", PatientName=name, SeriesDescription="Schädel")
    source = read(tmp_path).source
    assert source is not None
    again = DicomSource.unpack(source.pack())
    assert again.header.PatientName == name
    assert {element.keyword for element in again.header} <= set(KEPT)
