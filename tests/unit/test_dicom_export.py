"""Saliency as DICOM: where its voxels lie, what it refers to, and what it says of itself."""

import zipfile
from dataclasses import replace
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import Dataset
from saliency_maps import saliency_map
from scan_files import AXIAL, SHAPE, dicom_series, enhanced_dicom, tilted

from mst.dicom_export import DicomExportError, why_not, write_dicom_saliency
from mst.findings import Finding, Spot
from mst.preprocess import locate
from mst.scans import Scan, ScanError, read_scan, subtract, write_nifti
from mst.tasks import Grid
from mst.words import DISCLAIMER, SHOWN_FROM

FLIP = np.diag([-1.0, -1.0, 1.0])  # RAS to LPS and back
SAGITTAL = np.array([[0, 1.0, 0], [0, 0, -1.0], [-1.0, 0, 0]])
CORONAL = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
DOWNWARDS = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, -1.0]])  # from slice to slice against their normal
GANTRY = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, np.sin(0.3), np.cos(0.3)]])  # slices sheared over each other
DIRECTIONS = pytest.mark.parametrize(
    "directions",
    [AXIAL, SAGITTAL, CORONAL, DOWNWARDS, tilted(), GANTRY],
    ids=["axial", "sagittal", "coronal", "downwards", "oblique", "gantry"],
)


def prediction(scan: Scan, method: str = "attention") -> Finding:
    """Random saliency in a region that leaves out slices at both ends."""
    canonical = scan.canonical()
    middle = np.array(canonical.shape) // 2
    grid = Grid((4, 6, 6), (2.0, 1.0, 1.0))
    region = locate(canonical, "axial", grid, canonical.voxel_to_world(middle))
    native = np.random.default_rng(1).random(region.shape, np.float32) * 7
    return Finding(
        checkpoint="a-checkpoint",
        title="",
        probabilities={"benign": 0.3, "malignant": 0.7},
        prediction="malignant",
        logits=np.zeros(2, np.float32),
        spot=Spot((0, 0, 0), "given", ""),
        seconds=0.1,
        maps=(saliency_map(scan, region, native, method),),
    )


def written(folder: Path, scan: Scan) -> tuple[Finding, dict[str, Dataset]]:
    """A result, and the objects written for it."""
    result = prediction(scan)
    files = write_dicom_saliency(folder, scan, {"mst": result})
    assert set(files) == {"mst_saliency.dcm", "mst_segmentation.dcm"}
    return result, {name: pydicom.dcmread(path) for name, path in files.items()}


def geometry(data: Dataset, frame: int) -> np.ndarray:
    """(column, row, 0, 1) of a frame -> LPS millimetres, from the attributes alone (PS3.3 C.7.6.2.1.1)."""
    shared, own = data.SharedFunctionalGroupsSequence[0], data.PerFrameFunctionalGroupsSequence[frame]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    rows, columns = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = cosines[0] * columns, cosines[1] * rows
    affine[:3, 2] = np.cross(*cosines)
    affine[:3, 3] = own.PlanePositionSequence[0].ImagePositionPatient
    return affine


def value_at(data: Dataset, pixels: np.ndarray, lps: np.ndarray) -> float | None:
    """The value of the frame that a point lies in; None where there is none."""
    for frame in range(int(data.NumberOfFrames)):
        column, row, off = (np.linalg.inv(geometry(data, frame)) @ (*lps, 1))[:3]
        if abs(off) < 1e-2:
            assert abs(column - round(column)) < 1e-3
            assert abs(row - round(row)) < 1e-3
            return float(pixels[frame, round(row), round(column)])
    return None


def check_places(folder: Path, scan: Scan, result: Finding, objects: dict[str, Dataset]) -> None:
    """Whether points in the patient have the same value in the NIfTI file and in both objects."""
    write_nifti(result.saliency, scan.affine, folder / "map.nii.gz")
    nifti = nib.load(folder / "map.nii.gz")
    values = nifti.get_fdata(dtype=np.float32)
    threshold = SHOWN_FROM * result.saliency.max()
    maps = objects["mst_saliency.dcm"], objects["mst_segmentation.dcm"]
    pixels = [data.pixel_array for data in maps]
    rng = np.random.default_rng(3)
    points = np.vstack([rng.integers(0, SHAPE, (60, 3)), np.argwhere(values > 0)[::9]])
    found = 0
    for index in points:
        lps = FLIP @ (nifti.affine @ (*index, 1))[:3]
        expected = values[tuple(index)]
        value, marked = (value_at(data, array, lps) for data, array in zip(maps, pixels, strict=True))
        if value is None:  # a slice that the model did not see
            assert expected == 0
            continue
        mapping = maps[0].SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
        assert value == expected
        assert value * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept == expected
        assert marked == (expected >= threshold)
        found += 1
    assert found > 20
    assert 0 < int(maps[0].NumberOfFrames) < SHAPE[2] or scan.orientation[2] not in "SI"


@DIRECTIONS
def test_voxels_lie_where_the_nifti_file_has_them(tmp_path: Path, directions: np.ndarray) -> None:
    dicom_series(tmp_path / "dicom", directions)
    scan = read_scan(tmp_path / "dicom")
    result, objects = written(tmp_path, scan)
    check_places(tmp_path, scan, result, objects)


@pytest.mark.parametrize("directions", [AXIAL, tilted(), DOWNWARDS], ids=["axial", "oblique", "downwards"])
def test_an_enhanced_multi_frame_file(tmp_path: Path, directions: np.ndarray) -> None:
    path = enhanced_dicom(tmp_path / "enhanced.dcm", directions)
    scan, source = read_scan(path), pydicom.dcmread(path)
    result, objects = written(tmp_path, scan)
    check_places(tmp_path, scan, result, objects)
    for data in objects.values():
        for frame, group in enumerate(data.PerFrameFunctionalGroupsSequence):
            reference = group.DerivationImageSequence[0].SourceImageSequence[0]
            assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
            original = source.PerFrameFunctionalGroupsSequence[int(reference.ReferencedFrameNumber) - 1]
            there = original.PlanePositionSequence[0].ImagePositionPatient
            assert np.allclose(geometry(data, frame)[:3, 3], there, atol=1e-4)


def test_a_zip_of_the_series(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for path in dicom_series(tmp_path / "dicom", tilted()):
            archive.write(path, path.name)
    scan = read_scan(tmp_path / "d.zip")
    result, objects = written(tmp_path, scan)
    check_places(tmp_path, scan, result, objects)


@pytest.mark.parametrize("directions", [AXIAL, SAGITTAL, tilted()], ids=["axial", "sagittal", "oblique"])
def test_other_readers_see_the_same_volume(tmp_path: Path, directions: np.ndarray) -> None:
    dicom_series(tmp_path / "dicom", directions)
    scan = read_scan(tmp_path / "dicom")
    result, _ = written(tmp_path, scan)
    volume = highdicom.imread(tmp_path / "mst_saliency.dcm").get_volume()
    image = sitk.ReadImage(str(tmp_path / "mst_segmentation.dcm"))  # ITK reads no floating point pixels
    threshold = SHOWN_FROM * result.saliency.max()
    for index in np.argwhere(result.saliency > 0)[::5]:
        lps = FLIP @ scan.voxel_to_world(index)
        expected = result.saliency[tuple(index)]
        at = np.round(volume.map_reference_to_indices(lps[None])[0]).astype(int)
        assert volume.array[tuple(at)] == pytest.approx(expected, rel=1e-6)
        assert (image[image.TransformPhysicalPointToIndex(lps.tolist())] > 0) == (expected >= threshold)


def test_both_objects_refer_to_the_series(tmp_path: Path) -> None:
    paths = dicom_series(tmp_path / "dicom", tilted())
    sources = {data.SOPInstanceUID: data for data in map(pydicom.dcmread, paths)}
    first = next(iter(sources.values()))
    scan = read_scan(tmp_path / "dicom")
    _, objects = written(tmp_path, scan)
    assert len({data.SeriesInstanceUID for data in objects.values()} | {first.SeriesInstanceUID}) == 3
    for data in objects.values():
        for key in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID", "Rows", "Columns"):
            assert data[key].value == first[key].value
        series = data.ReferencedSeriesSequence[0]
        assert series.SeriesInstanceUID == first.SeriesInstanceUID
        named = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
        assert named <= set(sources)
        assert len(named) == int(data.NumberOfFrames) < len(sources)
        for frame, group in enumerate(data.PerFrameFunctionalGroupsSequence):
            reference = group.DerivationImageSequence[0].SourceImageSequence[0]
            original = sources[reference.ReferencedSOPInstanceUID]
            assert reference.SpatialLocationsPreserved == "YES"
            assert np.allclose(geometry(data, frame)[:3, 3], original.ImagePositionPatient, atol=1e-4)


def test_what_the_objects_say_of_themselves(tmp_path: Path) -> None:
    dicom_series(tmp_path / "dicom")
    scan = read_scan(tmp_path / "dicom")
    write_dicom_saliency(tmp_path, scan, {"mst": prediction(scan), "resnet": prediction(scan, "gradcam++")})
    for name, code in (("mst", "130404"), ("resnet", "130403")):
        mapped = pydicom.dcmread(tmp_path / f"{name}_saliency.dcm")
        assert "FloatPixelData" in mapped
        assert mapped.ContentQualification == "RESEARCH"
        mapping = mapped.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
        assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
        assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == code
        assert "a-checkpoint" in mapping.LUTExplanation
        marked = pydicom.dcmread(tmp_path / f"{name}_segmentation.dcm")
        segment = marked.SegmentSequence[0]
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == code
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmName == "a-checkpoint"
        assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
        for data in (mapped, marked):
            assert data.SeriesDescription.startswith("Research only")
            assert data.ContentDescription.startswith("Research only, not for diagnosis")
            assert data.ImageComments == DISCLAIMER


@pytest.mark.parametrize("enhanced", [False, True], ids=["series", "multi-frame"])
def test_each_mandatory_module_is_whole(tmp_path: Path, enhanced: bool) -> None:
    """Type 1 attributes have a value and type 2 attributes are there, as in the tables of PS3.3."""
    source = tmp_path / "dicom"
    if enhanced:
        source.mkdir()
        enhanced_dicom(source / "e.dcm")
    else:
        dicom_series(source)
    _, objects = written(tmp_path, read_scan(source))
    for data in objects.values():
        modules = get_iod_module_map()[get_sop_class_iod_map()[data.SOPClassUID]]
        needed = [module["key"] for module in modules if module["usage"] == "M"]
        assert len(needed) > 10
        for module in needed:
            for attribute in get_module_attribute_map()[module]:
                keyword = attribute["keyword"]
                # Of the three modules for pixels, the object has the one of its kind.
                if attribute["path"] or (keyword.endswith("PixelData") and module != "segmentation-image"):
                    continue
                if attribute["type"] in ("1", "2"):
                    assert keyword in data, (module, keyword)
                if attribute["type"] == "1":
                    assert data[keyword].value not in (None, ""), (module, keyword)
        assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID


def test_of_two_phases_the_frames_that_were_read_are_named(tmp_path: Path) -> None:
    path = enhanced_dicom(tmp_path / "enhanced.dcm")
    data = pydicom.dcmread(path)
    groups = []
    for group in data.PerFrameFunctionalGroupsSequence:
        for phase in (1, 2):  # taking turns: the first phase is every other frame
            content = Dataset()
            content.StackID, content.TemporalPositionIndex = "1", phase
            groups.append(Dataset())
            groups[-1].PlanePositionSequence = group.PlanePositionSequence
            groups[-1].FrameContentSequence = [content]
    data.PixelData = np.repeat(data.pixel_array, 2, axis=0).tobytes()
    data.PerFrameFunctionalGroupsSequence, data.NumberOfFrames = groups, len(groups)
    data.save_as(path)
    scan = read_scan(path)
    assert "2 volumes at the same place" in scan.notes[0]
    _, objects = written(tmp_path, scan)
    for made in objects.values():
        named = {
            int(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber) - 1
            for group in made.PerFrameFunctionalGroupsSequence
        }
        assert max(named) >= 10
        assert all(number % 2 == 0 for number in named)


def change(paths: list[Path], keyword: str, value: str | int | None, only: int | None = None) -> None:
    """Rewrites an attribute of a series' files; None: removes it."""
    for path in paths if only is None else [paths[only]]:
        data = pydicom.dcmread(path)
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
        data.save_as(path)


@pytest.mark.parametrize(
    ("keyword", "value", "only", "message"),
    [
        ("FrameOfReferenceUID", None, None, "has no FrameOfReferenceUID"),
        ("StudyInstanceUID", None, 2, "has no StudyInstanceUID"),
        ("FrameOfReferenceUID", "1.2.3.4", 3, "do not have one frame of reference"),
    ],
)
def test_a_series_that_cannot_be_referred_to(
    tmp_path: Path, keyword: str, value: str | None, only: int | None, message: str
) -> None:
    change(dicom_series(tmp_path / "dicom"), keyword, value, only)
    scan = read_scan(tmp_path / "dicom")
    assert why_not(scan)
    with pytest.raises(DicomExportError, match=message) as refusal:
        write_dicom_saliency(tmp_path, scan, {"mst": prediction(scan)})
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.glob("*.dcm"))


def test_mixed_sizes_are_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    paths = dicom_series(tmp_path / "dicom")
    change(paths, "Rows", 6, only=1)
    with pytest.raises(ScanError, match="mixes slices of different sizes"):
        read_scan(tmp_path / "dicom")


def test_headers_that_scanners_write_wrongly_do_no_harm(tmp_path: Path) -> None:
    paths = dicom_series(tmp_path / "dicom")
    for path in paths:
        data = pydicom.dcmread(path)
        del data.PatientName, data.PatientID, data.SliceThickness
        with pydicom.config.disable_value_validation():
            data.PatientSex, data.PatientBirthDate, data.StudyDate = "unknown", "01.02.1950", "today"
            data.SeriesDescription = "THORAX 1.0"
        block = data.private_block(0x0009, "A maker", create=True)
        block.add_new(1, "UN", b"x" * 1000)
        data.add_new(0x60003000, "OW", b"\0" * 21)  # an overlay
        data.save_as(path)
    scan = read_scan(tmp_path / "dicom")
    assert scan.source is not None
    assert all(not entry.tag.is_private and entry.tag.group < 0x5000 for entry in scan.source.header)
    _, objects = written(tmp_path, scan)
    for data in objects.values():
        assert data.PatientSex == ""
        assert not data.PatientBirthDate


@pytest.mark.parametrize("multi_frame", [False, True], ids=["series", "multi-frame"])
def test_a_result_says_no_more_of_the_patient_than_who_it_is(tmp_path: Path, multi_frame: bool) -> None:
    """Every text of the standard is marked in the source; only what names patient and study may come out."""
    if multi_frame:
        paths = [enhanced_dicom(tmp_path / "e.dcm")]
    else:
        paths = dicom_series(tmp_path / "dicom")
    marked = set()
    for path in paths:
        data = pydicom.dcmread(path)
        for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
            if (
                vr in ("LO", "SH", "PN", "ST", "LT", "UT", "UC")
                and 0x0008 <= tag >> 16 < 0x5000
                and not retired
            ):
                data.add_new(tag, vr, f"MARK{tag:08x}")
                marked.add(keyword)
        data.save_as(path)
    assert {"Allergies", "MedicalAlerts", "PatientComments", "ReasonForVisit", "AccessionNumber"} < marked
    scan = read_scan(paths)
    _, objects = written(tmp_path, scan)
    for made in objects.values():
        carried = {element.keyword for element in made.iterall() if "MARK" in str(element.value)}
        carried -= {element.keyword for element in made.iterall() if element.VR == "SQ"}
        assert carried == {"PatientName", "PatientID", "StudyID"}


def test_a_library_that_gives_up_is_one_sentence(tmp_path: Path) -> None:
    change(dicom_series(tmp_path / "dicom"), "SOPClassUID", "1.2.3.4")
    scan = read_scan(tmp_path / "dicom")
    with pytest.raises(DicomExportError, match="do not allow to refer to it"):
        write_dicom_saliency(tmp_path, scan, {"mst": prediction(scan)})


def test_half_the_objects_are_none(tmp_path: Path) -> None:
    dicom_series(tmp_path / "dicom")
    scan = read_scan(tmp_path / "dicom")
    result = prediction(scan)
    broken = replace(result, maps=(replace(result.map, values=np.zeros((2, 2, 2), np.float32)),))
    with pytest.raises(DicomExportError):
        write_dicom_saliency(tmp_path, scan, {"mst": prediction(scan), "resnet": broken})
    assert not list(tmp_path.glob("*.dcm"))


def test_a_map_that_is_zero_everywhere_has_no_segmentation(tmp_path: Path) -> None:
    dicom_series(tmp_path / "dicom")
    scan = read_scan(tmp_path / "dicom")
    result = prediction(scan)
    result.map.values[:] = 0
    assert set(write_dicom_saliency(tmp_path, scan, {"mst": result})) == {"mst_saliency.dcm"}


def test_a_scan_keeps_its_source_only_while_its_slices_are_the_sources(tmp_path: Path) -> None:
    dicom_series(tmp_path / "dicom")
    scan = read_scan(tmp_path / "dicom")
    assert scan.source is not None
    assert len(scan.source.slices) == scan.shape[2]
    assert "PixelData" not in scan.source.header
    assert "Secret" not in repr(scan) + repr(scan.source)
    assert scan.canonical().source is None
    before = Scan(0.5 * scan.voxels, scan.affine)
    assert subtract(scan, before).source is scan.source
    assert why_not(before) == "the scan was not read from DICOM"


def test_the_objects_name_the_model_and_the_part_that_they_show(tmp_path: Path) -> None:
    dicom_series(tmp_path / "dicom")
    scan = read_scan(tmp_path / "dicom")
    result = replace(prediction(scan, "gradcam++"), title="Medical Slice Transformer with a 2D ResNet")
    write_dicom_saliency(tmp_path, scan, {"mst": result})
    saliency, shown = (pydicom.dcmread(tmp_path / f"mst_{kind}.dcm") for kind in ("saliency", "segmentation"))
    name = "MST (2D ResNet) Grad-CAM++"
    assert saliency.SeriesDescription == f"Research only: {name}"
    # All of it fits: no word is cut off.
    assert shown.SeriesDescription == f"Research only: {name}, above 40% of maximum"
    assert shown.SegmentSequence[0].SegmentLabel == f"{name}, above 40% of maximum"
    for data in (saliency, shown):
        assert data.ManufacturerModelName == result.title
        assert data.ContentDescription == f"Research only, not for diagnosis: {name}"
