"""From files, folders and zips to a `Scan`, or a `ScanError` that a clinician understands."""

from __future__ import annotations

import gzip
import logging
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError

from mst.errors import ScanError
from mst.scans.checks import check_count, check_shape, checked
from mst.scans.dicom import is_dicom, read_dicom
from mst.scans.resampling import onto
from mst.scans.scan import Scan

# Both libraries would otherwise print to standard error beside the one sentence that a user gets.
sitk.ProcessObject.SetGlobalWarningDisplay(False)
nib.imageglobals.logger.setLevel(logging.CRITICAL)

NIFTI, ITK = (".nii", ".nii.gz"), (".nrrd", ".nhdr", ".mha", ".mhd")
DATA_OF_HEADERS = (".raw", ".raw.gz", ".zraw")
FORMATS = (
    "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), DICOM, or a .zip of one of these"
)
MAX_UNZIPPED = 6 * 1024**3
GZIP_RATIO = 1100  # deflate cannot shrink data more than about 1,032 times


def read_scan(path: str | Path | Sequence[str | Path]) -> Scan:
    """Reads one 3D scan.

    Args:
        path: a NIfTI, NRRD, MetaImage or DICOM file, a folder, a .zip of any of these, or a list of files
            that belong together (the slices of a DICOM series, a header and its data).

    Returns:
        The scan, float32, with rescale slope and intercept applied. What had to be decided (which of several
        series, the first of several volumes) is in its `notes`.

    Raises:
        ScanError: there is no usable 3D scalar volume; the message is one sentence for the user.
    """
    given = [Path(p) for p in ([path] if isinstance(path, str | Path) else path)]
    if not given:
        raise ScanError("No file was given.")
    with tempfile.TemporaryDirectory(prefix="scan-") as folder:
        try:
            scan = _read_any(given, Path(folder))
        except ScanError:
            raise
        except MemoryError as error:
            raise ScanError(f"{_names(given)} needs more memory than this machine has.") from error
        except Exception as error:
            # Whatever a library makes of a damaged file, the user needs to know which file and what to do.
            raise ScanError(
                f"{_names(given)} could not be read: the file seems damaged or is not what its name says."
            ) from error
    return checked(scan, _names(given))


def read_mask(path: str | Path | Sequence[str | Path], scan: Scan, *, same_shape: bool = False) -> np.ndarray:
    """Reads a lesion mask and brings it to a scan's grid (nearest neighbour).

    Args:
        path: as for `read_scan`.
        scan: that it was drawn on.
        same_shape: refuse a mask that does not have the scan's number of voxels along each axis: among many
            cases, a mask of another shape is more often a mixed-up file than one to be resampled.

    Returns:
        bool, shape `scan.shape`; True where the file's value is above zero.

    Raises:
        ScanError: the file cannot be read, the mask is empty or of another shape, or it does not overlap the
            scan.
    """
    given = [Path(p) for p in ([path] if isinstance(path, str | Path) else path)]
    with tempfile.TemporaryDirectory(prefix="mask-") as folder:
        try:
            mask = _read_any(given, Path(folder))
        except ScanError as error:
            raise ScanError(f"The mask cannot be used: {error}") from error
        except Exception as error:
            raise ScanError(f"The mask {_names(given)} could not be read: the file seems damaged.") from error
    if not np.any(mask.voxels > 0):
        raise ScanError(f"The mask {_names(given)} is empty: it marks no voxel.")
    shapes = [" x ".join(map(str, volume.canonical().shape)) for volume in (mask, scan)]
    if same_shape and shapes[0] != shapes[1]:
        raise ScanError(
            f"The mask {_names(given)} has {shapes[0]} voxels, its scan {shapes[1]}; they must agree."
        )
    marked = onto(mask, scan, order=0) > 0
    if not marked.any():
        raise ScanError(f"The mask {_names(given)} does not overlap the scan; was it drawn on another one?")
    return marked


def _read_any(given: list[Path], staging: Path) -> Scan:
    """The scan in files, folders and zips; unpacked into an empty staging folder where need be."""
    files: list[Path] = []
    for index, path in enumerate(given):
        if path.is_dir():
            files += [p for p in sorted(path.rglob("*")) if p.is_file()]
        elif not path.is_file():
            raise ScanError(f"There is no file {path.name}.")
        elif path.stat().st_size == 0:
            raise ScanError(f"{path.name} is empty (0 bytes); export or download it again.")
        elif path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
            files += _unzip(path, staging / str(index))
        else:
            files.append(path)
    files = [p for p in files if not p.name.startswith((".", "__")) and "__MACOSX" not in p.parts]

    volumes = [p for p in files if _suffix(p) in NIFTI + ITK]
    if volumes:
        return _largest(volumes, files, staging)
    slices = [p for p in files if is_dicom(p)]
    if slices:
        return read_dicom(slices)
    if len(given) == 1 and given[0].is_file() and not zipfile.is_zipfile(given[0]):
        raise ScanError(f"{given[0].name} is not a scan that can be read; give {FORMATS}.")
    raise ScanError(f"{_names(given)} holds no scan; give {FORMATS}.")


def _largest(volumes: list[Path], files: list[Path], staging: Path) -> Scan:
    """Reads the only volume, or the largest of several."""
    if len(volumes) == 1:
        return _read_volume(volumes[0], files, staging)
    scans, errors = [], []
    for path in volumes:
        try:
            scans.append(_read_volume(path, files, staging))
        except ScanError as error:
            errors.append(error)
    if not scans:
        raise errors[0]
    best = max(scans, key=lambda scan: scan.voxels.size)
    note = f"Of {len(volumes)} volumes, the largest was taken: {best.name}."
    return replace(best, notes=(note, *best.notes))


def _read_volume(path: Path, files: list[Path], staging: Path) -> Scan:
    if path.stat().st_size == 0:
        raise ScanError(f"{path.name} is empty (0 bytes); export or download it again.")
    return _read_nifti(path) if _suffix(path) in NIFTI else _read_itk(path, files, staging)


def _read_nifti(path: Path) -> Scan:
    broken = ScanError(
        f"{path.name} is cut off or damaged: its data end too early; download or export it again."
    )
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            start = file.read(540)
    except (EOFError, zlib.error) as error:
        raise broken from error
    except gzip.BadGzipFile as error:
        raise ScanError(f"{path.name} is not a compressed NIfTI file, although its name says so.") from error
    try:
        image = nib.load(path)
    except (ImageFileError, ValueError, nib.spatialimages.HeaderDataError) as error:
        raise ScanError(f"{path.name} is not a NIfTI file, although its name says so.") from error
    assert isinstance(image, nib.nifti1.Nifti1Pair)
    header, proxy = image.header, image.dataobj
    assert isinstance(proxy, nib.arrayproxy.ArrayProxy)
    dtype = header.get_data_dtype()
    if dtype.fields:
        raise ScanError(f"{path.name} is a colour (RGB) image; a scan with one grey value a voxel is needed.")
    if dtype.kind == "c":
        raise ScanError(f"{path.name} holds complex numbers; export its magnitude.")
    shape = image.shape
    check_shape(path.name, shape)
    size = int(np.prod(shape[:3])) * dtype.itemsize
    at_most = path.stat().st_size * (GZIP_RATIO if path.suffix == ".gz" else 1)
    if at_most < proxy.offset + size:
        raise broken
    if any(not np.isfinite(zoom) or zoom <= 0 for zoom in _nifti_zooms(start)):
        raise ScanError(f"{path.name} gives a voxel size of zero or less; export it again with its spacing.")
    notes: list[str] = []
    if int(np.prod(shape[3:])) > 1:
        notes.append(f"The file holds {int(np.prod(shape[3:]))} volumes (4D); the first one was read.")
    try:
        voxels = np.asarray(proxy[(..., *([0] * (len(shape) - 3)))], np.float32)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise broken from error
    affine = np.array(image.affine, float)
    affine[:3] *= {"meter": 1000.0, "micron": 0.001}.get(header.get_xyzt_units()[0], 1.0)
    if not header["sform_code"] and not header["qform_code"]:
        notes.append("The file does not say how the scan lies in the patient; left and right may be swapped.")
    return Scan(voxels, affine, name=_stem(path), notes=tuple(notes))


def _nifti_zooms(start: bytes) -> tuple[float, ...]:
    """The voxel size as the file has it; nibabel silently makes a zero a one."""
    for order in "<>":
        if start[:4] == struct.pack(order + "i", 348):
            return tuple(abs(z) for z in struct.unpack_from(order + "3f", start, 80))
        if start[:4] == struct.pack(order + "i", 540):
            return tuple(abs(z) for z in struct.unpack_from(order + "3d", start, 112))
    return ()


def _read_itk(path: Path, files: list[Path], staging: Path) -> Scan:
    """Reads NRRD or MetaImage; a header's data file is looked for among the given files only."""
    broken = ScanError(
        f"{path.name} is cut off or damaged: its data end too early; download or export it again."
    )
    header = _itk_header(path)
    source = path
    names = _data_files(path, header)
    if names:
        # An upload may put each file into a folder of its own; the reader wants them side by side.
        together = staging / "together"
        together.mkdir(parents=True, exist_ok=True)
        at_hand = {p.name: p for p in files} | {p.name: p for p in path.parent.iterdir() if p.name in names}
        for name in names:
            if name not in at_hand:
                raise ScanError(f"{path.name} needs its data file {name}; upload both together, or as a zip.")
            shutil.copy(at_hand[name], together / name)
        shutil.copy(path, together / path.name)
        source = together / path.name
    check_count(path.name, _header_shape(header))
    if _bytes_promised(header) > sum(p.stat().st_size for p in [source, *(source.parent / n for n in names)]):
        raise broken
    spacing = header.get("elementspacing") or header.get("spacings") or ""
    if any(float(s) == 0 for s in spacing.split() if re.fullmatch(r"[-+.\deE]+", s)):
        raise ScanError(f"{path.name} gives a voxel size of zero; export it again with its spacing.")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(source))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if "spacing" in str(error).lower():
            raise ScanError(
                f"{path.name} gives a voxel size of zero; export it again with its spacing."
            ) from error
        raise ScanError(f"{path.name} is not a {_kind(path)} file that can be read.") from error
    if reader.GetNumberOfComponents() > 1:
        raise ScanError(f"{path.name} is a colour (RGB) or vector image; one grey value a voxel is needed.")
    size = reader.GetSize()
    check_shape(path.name, size)
    notes: tuple[str, ...] = ()
    count = int(np.prod(size[3:]))
    if count > 1:
        notes = (f"The file holds {count} volumes (4D); the first one was read.",)
    if len(size) > 3:
        reader.SetExtractSize([*size[:3], *([0] * (len(size) - 3))])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise broken from error
    array = sitk.GetArrayFromImage(image)
    if np.iscomplexobj(array):
        raise ScanError(f"{path.name} holds complex numbers; export its magnitude.")
    voxels = np.ascontiguousarray(array.T, dtype=np.float32)
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return Scan(voxels, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, name=_stem(path), notes=notes)


def _itk_header(path: Path) -> dict[str, str]:
    """The text fields of an NRRD or MetaImage header, names in lower case without spaces."""
    with path.open("rb") as file:
        text = file.read(64 * 1024).decode("latin-1")
    if _suffix(path) in (".nrrd", ".nhdr"):
        if not text.startswith("NRRD"):
            raise ScanError(f"{path.name} is not an NRRD file, although its name says so.")
        text = re.split(r"\r?\n\r?\n", text)[0]
        pairs = re.findall(r"^([^:#\n]+):=?\s*(.*?)\s*$", text, flags=re.MULTILINE)
    else:
        pairs = re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", text, flags=re.MULTILINE)
        if not any(name.lower() == "elementdatafile" for name, _ in pairs):
            raise ScanError(f"{path.name} is not a MetaImage file, although its name says so.")
    header: dict[str, str] = {}
    for name, value in pairs:
        name = re.sub(r"\s", "", name).lower()
        header.setdefault(name, value)
        if name == "elementdatafile":
            break
    return header


def _data_files(path: Path, header: dict[str, str]) -> list[str]:
    """The names of the files that hold a header's data; none where the data follow the header.

    A name that leads elsewhere is refused: an upload must not make the server read its other files.
    """
    name = header.get("elementdatafile") or header.get("datafile") or ""
    if not name or name.upper() == "LOCAL":
        return []
    if name.upper().startswith("LIST") or "%" in name:
        raise ScanError(f"{path.name} spreads its data over many files; save it as one file.")
    plain = name.removeprefix("./")
    if "/" in plain or "\\" in plain or plain in ("", ".", ".."):
        raise ScanError(f"{path.name} points to data in another folder; put both files into one.")
    return [plain]


ITEM_BYTES = {
    **dict.fromkeys(("met_char", "met_uchar", "int8", "uint8", "uchar", "signedchar", "unsignedchar"), 1),
    **dict.fromkeys(("met_short", "met_ushort", "int16", "uint16", "short", "ushort", "unsignedshort"), 2),
    **dict.fromkeys(("met_int", "met_uint", "met_float", "int32", "uint32", "int", "uint", "float"), 4),
    **dict.fromkeys(("met_double", "double", "int64", "uint64", "met_long_long", "met_ulong_long"), 8),
}


def _header_shape(header: dict[str, str]) -> tuple[int, ...]:
    text = header.get("dimsize") or header.get("sizes") or ""
    return tuple(int(n) for n in text.split() if n.isdigit())


def _bytes_promised(header: dict[str, str]) -> int:
    """The least size in bytes of the data that a header promises; 0 for a type not known here."""
    compressed = header.get("compresseddata", "").lower() == "true" or header.get("encoding", "raw") != "raw"
    if header.get("compresseddatasize", "").isdigit():
        return int(header["compresseddatasize"])
    kind = (header.get("elementtype") or header.get("type") or "").lower().replace(" ", "").removesuffix("_t")
    shape = _header_shape(header)
    if not shape:
        return 0
    return int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES.get(kind, 0) // (GZIP_RATIO if compressed else 1)


def _unzip(path: Path, folder: Path) -> list[Path]:
    """Unpacks a zip's files; never outside the folder, never more than `MAX_UNZIPPED` bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if any(entry.flag_bits & 1 for entry in entries):
                raise ScanError(f"{path.name} is protected by a password; zip it again without one.")
            if sum(entry.file_size for entry in entries) > MAX_UNZIPPED:
                raise ScanError(
                    f"{path.name} unpacks to more than {MAX_UNZIPPED // 1024**3} GB; zip one series only."
                )
            files = []
            for index, entry in enumerate(entries):
                name = PurePosixPath(entry.filename.replace("\\", "/"))
                if "__MACOSX" in name.parts or name.name.startswith("."):
                    continue
                # Folders are numbered, so that no name in the archive decides where a file goes.
                parent = folder / f"{zlib.crc32(str(name.parent).encode()):08x}"
                parent.mkdir(parents=True, exist_ok=True)
                target = parent / name.name
                if target.exists():
                    target = parent / f"{index}-{name.name}"
                with archive.open(entry) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1024 * 1024)
                files.append(target)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise ScanError(f"{path.name} is a damaged zip file; download or zip it again.") from error
    return files


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _stem(path: Path) -> str:
    return path.name[: -len(_suffix(path))] or path.name


def _kind(path: Path) -> str:
    return "NRRD" if _suffix(path) in (".nrrd", ".nhdr") else "MetaImage"


def _names(paths: Iterable[Path]) -> str:
    paths = list(paths)
    return paths[0].name if len(paths) == 1 else f"The upload of {len(paths)} files"
