"""Saliency as DICOM, over the series that the scan was read from.

For each model a Parametric Map (PS3.3 A.75), which holds the map's values, and a Segmentation (PS3.3 A.51) of
its strongest part, which more viewers open. Both lie on the source's own slices: same frame of reference, same
rows and columns, each frame referring to the image that it lies over. Nothing is resampled.

Written by highdicom (Bridge et al., J Digit Imaging 2022, doi 10.1007/s10278-022-00683-y).
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

import mst
from mst.errors import InputError
from mst.findings import Finding
from mst.scans import Scan
from mst.words import DISCLAIMER, LABELS, METHOD_LABELS, PRINT_COLORS, SHOWN, SHOWN_FROM, short_label

if TYPE_CHECKING:
    from mst.scans.source import DicomSource

log = logging.getLogger(__name__)

SOFTWARE = "Medical Slice Transformer dashboard"
FIRST_SERIES_NUMBER = 9001  # beyond those of the scanner
NAMES = {
    "StudyInstanceUID": "study",
    "SeriesInstanceUID": "series",
    "FrameOfReferenceUID": "frame of reference",
    "SOPClassUID": "kind of image",
}
# (value, scheme, meaning) in DICOM PS3.16, context groups 7180 and 7150
SALIENCY = ("130404", "DCM", "Saliency")
CLASS_ACTIVATION = ("130403", "DCM", "Gradient-weighted class activation")
SPATIAL_CONCEPT = ("309825002", "SCT", "Spatial and Relational Concept")
# The models' own on the page.


class DicomExportError(InputError):
    """The saliency cannot be written as DICOM; the message is one sentence for the user."""


def write_dicom_saliency(folder: Path, scan: Scan, results: Mapping[str, Finding]) -> dict[str, Path]:
    """Writes <model>_saliency.dcm and <model>_segmentation.dcm for each model.

    Args:
        folder: where to; it exists.
        scan: read from DICOM.
        results: of `mst.predict` on that scan.

    Returns:
        The files by their names; no segmentation of a map that is zero everywhere.

    Raises:
        DicomExportError: the series lacks what an object needs to refer to it; no file is left then.
    """
    reason = why_not(scan)
    if reason:
        raise DicomExportError(f"The saliency was not written as DICOM: {reason}.")
    files: dict[str, Path] = {}
    number = FIRST_SERIES_NUMBER
    for name, result in results.items():
        for kind, make in (("saliency", parametric_map), ("segmentation", segmentation)):
            content = io.BytesIO()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of values that scanners write wrongly all the time
                    made = make(scan, name, result, number)
                    if made is not None:
                        # Not to the file at once: pydicom's error for a bad value is that of a full disk.
                        made.save_as(content)
            except Exception as error:
                # What a scanner wrote wrongly can fail anywhere in the library; the other results still count.
                # The library's words may hold what the header says of the patient.
                log.debug("no DICOM of the saliency", exc_info=True)
                for path in files.values():
                    path.unlink()
                raise DicomExportError(
                    "The saliency was not written as DICOM: the series has headers that do not allow to refer to it."
                ) from error
            if made is not None:
                path = folder / f"{name}_{kind}.dcm"
                path.write_bytes(content.getbuffer())
                files[path.name] = path
            number += 1
    return files


def why_not(scan: Scan) -> str | None:
    """What keeps other objects from referring to a scan's series, as part of a sentence; None: nothing."""
    if scan.source is None:
        return "the scan was not read from DICOM"
    slices = scan.source.slices
    for key in ("SOPInstanceUID", *NAMES):
        if not all(piece.identity[key] for piece in slices):
            return f"the series has no {key}"
    for key, name in NAMES.items():
        if len({piece.identity[key] for piece in slices}) > 1:
            return f"its slices do not have one {name} ({key}) in common"
    if slices[0].frame is not None and len({piece.identity["SOPInstanceUID"] for piece in slices}) > 1:
        return "the series is spread over several multi-frame files"
    return None


def parametric_map(scan: Scan, name: str, result: Finding, series_number: int) -> Dataset:
    """A model's saliency as a Parametric Map of the slices that the model saw.

    Pixels are float32 and the values of the NIfTI file, which have no unit; the window reaches from 0 to the
    map's maximum. The real world value mapping (PS3.3 C.7.6.16.2.11) is the identity: viewers that ignore it, and
    there are many, then show the same numbers as those that apply it.

    Args:
        scan: with a source that `why_not` finds nothing against.
        name: "mst" or "resnet".
        result: the model's.
        series_number: of the new series.
    """
    from highdicom import VOILUTTransformation
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    source = _source_of(scan)
    frames, slices = _frames(scan, result)
    most = float(frames.max()) or 1.0
    middle = float(f"{most / 2:.6g}")  # a decimal string has no room for more digits
    label = METHOD_LABELS[result.map.method]
    mapping = RealWorldValueMapping(
        lut_label="SALIENCY",
        lut_explanation=_text(f"{label} of {result.checkpoint}"),
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, most),
        quantity_definition=CodedConcept(*_concept(result)),
    )
    made = ParametricMap(
        source_images=_images(source, slices),
        pixel_array=frames,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(window_center=middle, window_width=2 * middle)],
        content_label="SALIENCY",
        **_common(name, result, "", series_number),
        contains_recognizable_visual_features=False,
    )
    return _finished(made, source, slices)


def segmentation(scan: Scan, name: str, result: Finding, series_number: int) -> Dataset | None:
    """Where a model's saliency is strongest, as a binary Segmentation.

    It holds the voxels from `mst.words.SHOWN_FROM` of the map's maximum up: what the viewer shows first. It is not a
    lesion's outline, and says so.

    Args:
        scan, name, result, series_number: as for `parametric_map`.

    Returns:
        None where the map is zero everywhere.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import Segmentation, SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    source = _source_of(scan)
    frames, slices = _frames(scan, result)
    if not frames.any():
        return None
    strongest = (frames > 0) & (frames >= SHOWN_FROM * frames.max())
    segment = SegmentDescription(
        segment_number=1,
        segment_label=_text(f"{_label(name, result)}, {SHOWN}"),
        segmented_property_category=CodedConcept(*SPATIAL_CONCEPT),
        segmented_property_type=CodedConcept(*_concept(result)),
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=_text(result.checkpoint),
            family=codes.DCM.ArtificialIntelligence,
            version=mst.__version__,
            source=SOFTWARE,
            parameters={"method": result.map.method, "part of maximum": f"{SHOWN_FROM:g}"},
        ),
        display_color=CIELabColor.from_rgb(*bytes.fromhex(PRINT_COLORS[name][1:])),
    )
    segment.SegmentDescription = "Where the model looked, not a lesion's outline. " + DISCLAIMER
    made = Segmentation(
        source_images=_images(source, slices),
        pixel_array=strongest.astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        # Slices between two that hold a part of it are wanted, or readers would not see one volume.
        omit_empty_frames=False,
        content_label="SALIENCY",
        **_common(name, result, f", {SHOWN}", series_number),
    )
    return _finished(made, source, slices)


def _source_of(scan: Scan) -> DicomSource:
    assert scan.source is not None
    return scan.source


def _frames(scan: Scan, result: Finding) -> tuple[np.ndarray, slice]:
    """The map on whole slices as frames [slices, rows, columns], and which slices: those that the region crosses."""
    values, (i, j, k) = result.map.in_scan()
    frames = np.zeros((k.stop - k.start, scan.shape[1], scan.shape[0]), np.float32)
    frames[:, j, i] = values.transpose(2, 1, 0)
    return frames, k


def _images(source: DicomSource, which: slice) -> list[Dataset]:
    """The source's slices as highdicom wants them: images of one series, or one multi-frame image.

    Of a multi-frame image only the frames that are referred to are listed; `_finished` gives the references the
    frames' own numbers.
    """
    slices = source.slices[which]
    if slices[0].frame is not None:
        image = _header(source)
        image.update(_of(slices[0].identity))
        image.NumberOfFrames = len(slices)
        shared = Dataset()
        shared.PlaneOrientationSequence = [_of({"ImageOrientationPatient": _numbers(source.orientation)})]
        shared.PixelMeasuresSequence = [_measures(source)]
        image.SharedFunctionalGroupsSequence = [shared]
        image.PerFrameFunctionalGroupsSequence = [
            _of({"PlanePositionSequence": [_of({"ImagePositionPatient": _numbers(piece.position)})]})
            for piece in slices
        ]
        return [image]
    images = []
    for index, piece in enumerate(slices):
        # Patient and study are taken from the first image, so only that one needs them.
        image = _header(source) if index == 0 else _of({"Rows": source.shape[0], "Columns": source.shape[1]})
        image.update(_of(piece.identity))
        image.update(_measures(source))
        image.ImagePositionPatient = _numbers(piece.position)
        # One for all: slices whose directions differ by rounding would not be taken for one series.
        image.ImageOrientationPatient = _numbers(source.orientation)
        images.append(image)
    return images


def _header(source: DicomSource) -> Dataset:
    """Patient, study and series, with what the standard lets be empty filled in, and made valid where it is not."""
    header = deepcopy(source.header)
    header.Rows, header.Columns = source.shape
    for keyword in ("PatientID", "PatientName", "AccessionNumber", "StudyID", "ReferringPhysicianName"):
        if keyword not in header:
            setattr(header, keyword, "")
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        value = header.get(keyword)
        try:
            kind(value or "")
        except ValueError:
            value = None
        setattr(header, keyword, value or None)
    if header.get("PatientSex") not in ("M", "F", "O"):
        header.PatientSex = ""
    return header


def _measures(source: DicomSource) -> Dataset:
    """Spacing within and between the source's slices (PS3.3 C.7.6.16.2.1)."""
    across = np.cross(*source.orientation)
    step = abs(float(across @ (source.slices[-1].position - source.slices[0].position)))
    step /= max(len(source.slices) - 1, 1)
    return _of(
        {
            "PixelSpacing": _numbers(np.array(source.spacing)),
            "SliceThickness": _number(step),
            "SpacingBetweenSlices": _number(step),
        }
    )


def _label(name: str, result: Finding) -> str:
    return f"{short_label(name, result.title)} {METHOD_LABELS[result.map.method]}"


def _common(name: str, result: Finding, part: str, series_number: int) -> dict[str, Any]:
    """What both kinds of object say of themselves; `part` is which part of the map it is, after its name."""
    label = _label(name, result)
    return {
        "series_instance_uid": generate_uid(),
        "series_number": series_number,
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": SOFTWARE,
        "manufacturer_model_name": _text(result.title or LABELS[name]),
        "software_versions": mst.__version__,
        # Which of the models that could stand here it is: for software the standard leaves the number open.
        "device_serial_number": _text(result.checkpoint),
        "series_description": _text(f"Research only: {label}{part}"),
        "content_description": _text(f"Research only, not for diagnosis: {label}"),
    }


def _finished(made: Dataset, source: DicomSource, which: slice) -> Dataset:
    """Adds the disclaimer, and each frame's own number where the source is a multi-frame image."""
    made.ImageComments = DISCLAIMER
    made.ContentCreatorName = ""  # nobody's, but the attribute has to be there
    slices = source.slices[which]
    if slices[0].frame is not None:
        for group in made.PerFrameFunctionalGroupsSequence:
            for derivation in group.DerivationImageSequence:
                for image in derivation.SourceImageSequence:
                    piece = slices[int(image.ReferencedFrameNumber) - 1]
                    assert piece.frame is not None
                    image.ReferencedFrameNumber = piece.frame + 1
    return made


def _concept(result: Finding) -> tuple[str, str, str]:
    return CLASS_ACTIVATION if result.map.method.startswith("gradcam") else SALIENCY


def _of(values: Mapping[str, Any]) -> Dataset:
    """A data set of values by keyword."""
    data = Dataset()
    for keyword, value in values.items():
        setattr(data, keyword, value)
    return data


def _numbers(values: np.ndarray) -> list[str]:
    return [_number(value) for value in values.ravel()]


def _number(value: float) -> str:
    """A decimal string (PS3.5 6.2), which may have 16 characters."""
    for digits in range(15, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(f"{value} does not fit a decimal string")


def _text(text: str) -> str:
    """A long string (PS3.5 6.2): at most 64 characters, none of them a backslash or a control character."""
    return re.sub(r"[\\\x00-\x1f\x7f]", " ", text)[:64].strip()
