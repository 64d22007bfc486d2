"""From an upload's files to the one volume in them: what the decoding process runs.

Nothing here is trusted with more than the files that it is given; `mst.scans.reading` is what others call.
"""

from __future__ import annotations

import contextlib
import encodings
import importlib
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from mst.errors import ScanError
from mst.scans.archives import is_zip, unpack
from mst.scans.checks import checked, lean
from mst.scans.dicom import is_dicom, read_dicom, read_dicom_mask
from mst.scans.dicom import preload as preload_dicom
from mst.scans.metaimage import read_metaimage
from mst.scans.nifti import read_nifti
from mst.scans.nrrd import read_nrrd
from mst.scans.scan import Scan, suffix
from mst.words import clipped

FORMATS = (
    "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), DICOM, or a .zip of one of these"
)
READERS: dict[str, Callable[[Path, Sequence[Path]], Scan]] = {
    **dict.fromkeys((".nii", ".nii.gz", ".hdr"), read_nifti),
    **dict.fromkeys((".nrrd", ".nhdr"), read_nrrd),
    **dict.fromkeys((".mha", ".mhd"), read_metaimage),
}
HEADERS = (".nhdr", ".nrrd", ".mhd", ".mha", ".hdr")  # whose data may lie in another file
# Words in the names of masks, between what is no letter.
MASK_WORDS = re.compile(
    r"(?<![a-z])(masks?|seg|segs|segmentations?|labels?|labelmap|roi|rois|lesions?|annotations?|contours?|gt|"
    r"groundtruth|tumou?r)(?![a-z])"
)
MAX_NAME = 64  # letters, as many as a DICOM series description may have
LEAST_LEAN = 1.0  # degrees: less is rounding
# Modules that the standard library and numpy import when one of their functions is first called.
LATE = (
    "numpy.ma heapq bisect _strptime calendar copy copyreg ctypes datetime decimal difflib dis "
    "fractions gettext gzip hashlib inspect json linecache locale lzma numbers pickle platform pprint "
    "random secrets shutil statistics string stringprep tempfile textwrap tokenize traceback "
    "unicodedata uuid weakref xml.etree.ElementTree"
)
MASK_VALUES = 32  # a mask holds at most as many different values; a scan holds more


@dataclass(frozen=True)
class Upload:
    """An upload's files, zips unpacked: those that are volumes by their names, and DICOM."""

    volumes: list[Path]
    dicom: list[Path]
    files: list[Path]
    name: str  # what to call all of it


def decode_scan(given: Sequence[Path], staging: Path, thin: bool = False) -> Scan:
    """The scan in files, folders and zips.

    A mask beside a scan is known by its name and by its values, and never taken for the scan.

    Args:
        given: what was uploaded.
        staging: an empty folder, for what has to be unpacked.
        thin: whether a volume of one to three slices is usable too.

    Raises:
        ScanError: there is no usable 3D scalar volume; the message is one sentence for the user.
    """
    return _guarded(given, lambda: _described(checked(_best(_upload(given, staging)), names(given), thin)))


def decode_mask(given: Sequence[Path], staging: Path, segment: str | None = None) -> Scan:
    """The mask in files, folders and zips, on its own grid; voxels above zero are marked.

    Args:
        given, staging: as for `decode_scan`.
        segment: of a DICOM segmentation the label or number of the segment that counts; None: all.

    Raises:
        ScanError: as `decode_scan`.
    """

    def read() -> Scan:
        upload = _upload(given, staging)
        if upload.volumes:
            # Of several the one that looks like a mask.
            found = [_read(path, upload) for path in upload.volumes]
            return min(found, key=lambda scan: not _is_mask(scan))
        return read_dicom_mask(upload.dicom, segment)

    return _guarded(given, read)


def preload() -> None:
    """Imports what decoding would otherwise import when it is first needed.

    The decoding process cannot open Python's own files once it is restricted to an upload's.
    """
    preload_dicom()
    for name in LATE.split():
        importlib.import_module(name)
    for module in pkgutil.iter_modules(encodings.__path__):
        with contextlib.suppress(ImportError):  # those of other systems
            importlib.import_module(f"encodings.{module.name}")


def names(paths: Iterable[Path]) -> str:
    """What a message calls these files; never a path."""
    paths = list(paths)
    return paths[0].name if len(paths) == 1 else f"The upload of {len(paths)} files"


def _guarded(given: Sequence[Path], read: Callable[[], Scan]) -> Scan:
    """Whatever a library makes of a damaged file, the user needs to know which file and what to do."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except (ScanError, KeyboardInterrupt, SystemExit):
        raise
    except MemoryError as error:
        raise ScanError(f"{names(given)} needs more memory than there is for reading one scan.") from error
    except BaseException as error:  # a decoder written in Rust panics with what is no Exception
        raise ScanError(
            f"{names(given)} could not be read: the file seems damaged or is not what its name says."
        ) from error


def _upload(given: Sequence[Path], staging: Path) -> Upload:
    files: list[Path] = []
    for index, path in enumerate(given):
        if path.is_dir():
            files += [p for p in sorted(path.rglob("*")) if p.is_file()]
        elif not path.is_file():
            raise ScanError(f"There is no file {path.name}.")
        elif path.stat().st_size == 0:
            raise ScanError(f"{path.name} is empty (0 bytes); export or download it again.")
        elif is_zip(path):
            files += unpack(path, staging / str(index))
        else:
            files.append(path)
    files = [p for p in files if not p.name.startswith((".", "__")) and "__MACOSX" not in p.parts]
    volumes = [p for p in files if suffix(p.name) in READERS]
    dicom = [p for p in files if p not in volumes and is_dicom(p)]
    if not volumes and not dicom:
        if inner := next((p for p in files if is_zip(p)), None):
            raise ScanError(
                f"{names(given)} holds another zip, {inner.name}; unpack it, and upload what is in it."
            )
        if len(given) == 1 and given[0].is_file() and not is_zip(given[0]):
            raise ScanError(f"{given[0].name} is not a scan that can be read; give {FORMATS}.")
        raise ScanError(f"{names(given)} holds no scan; give {FORMATS}.")
    return Upload(volumes, dicom, files, names(given))


def _best(upload: Upload) -> Scan:
    """The scan among an upload's volumes and DICOM files, with a note where there was a choice.

    One candidate at a time is in memory beside the best so far. A mask gives way to a scan, and a smaller scan to a
    larger one.
    """
    if upload.dicom and not upload.volumes:
        return read_dicom(upload.dicom)
    best: tuple[tuple[bool, int, bool], Scan, str] | None = None
    errors: list[ScanError] = []
    readers: list[tuple[str, Callable[[], Scan]]] = []
    if upload.dicom:
        readers.append(("the DICOM series", partial(read_dicom, upload.dicom)))
    readers += [(path.name, partial(_read, path, upload)) for path in upload.volumes]
    for named, read in readers:
        try:
            scan = _guarded([Path(named)], read)
        except ScanError as error:
            errors.append(error)
            continue
        # With equal sizes a name that speaks of a mask decides, else the first.
        rank = (not _is_mask(scan), scan.voxels.size, not MASK_WORDS.search(named.lower()))
        if best is None or rank > best[0]:
            best = (rank, scan, named)
    if best is None:
        raise errors[0]
    _, scan, named = best
    # Of a scan that is damaged and its mask, the mask is no answer.
    if errors and _is_mask(scan):
        raise errors[0]
    others = len(readers) - 1
    if not others:
        return scan
    rest = "the other is" if others == 1 else "the others are each"
    note = f"Of {len(readers)} volumes, {named} was taken; {rest} a mask, smaller, or cannot be read."
    return replace(scan, notes=(note, *scan.notes))


def _described(scan: Scan) -> Scan:
    """The scan with a name that fits a line, and a note where its planes lean (DICOM's reader says so itself)."""
    scan = replace(scan, name=clipped(scan.name, MAX_NAME) or "scan")
    if scan.source is not None or (angle := lean(scan.affine)) < LEAST_LEAN:
        return scan
    note = (
        f"The scan's planes lean by {angle:.0f} degrees (a tilted gantry); places in millimetres take that into "
        "account, but slices are shown as they were taken."
    )
    return replace(scan, notes=(*scan.notes, note))


def _read(path: Path, upload: Upload) -> Scan:
    if path.stat().st_size == 0:
        raise ScanError(f"{path.name} is empty (0 bytes); export or download it again.")
    return READERS[suffix(path.name)](path, upload.files)


def _is_mask(scan: Scan) -> bool:
    """Whether a volume's values are those of a mask: a few whole numbers from zero on."""
    voxels = scan.voxels
    if not (voxels.min() >= 0 and voxels.max() < 1 << 16):
        return False
    seen = np.zeros(1 << 16, bool)
    # Slice by slice: a whole CT would be copied, and a scan is told by its first slices.
    for k in range(voxels.shape[2]):
        values = voxels[:, :, k].astype(np.uint16)
        if np.any(values != voxels[:, :, k]):
            return False
        seen[values.ravel()] = True
        if np.count_nonzero(seen) > MASK_VALUES:
            return False
    return True
