"""What `mst prepare` does alike for every public data set: cases on disk, whole, resumable and listed in one CSV.

A unit (a patient, an exam) is made in memory and then written: its images, then its record in `done/`, then, when all
units are through, `cases.csv`. A run that is cut off goes on from the records; a record counts only as long as
everything that it was made from (its key) is the same and its files are there.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mst.errors import InputError
from mst.files import write_whole
from mst.scans import nifti_image

Progress = Callable[[int, int], None]
Tell = Callable[[str], None]
MANIFEST = "cases.csv"


class PrepareError(InputError):
    """A download that cannot be prepared; the message is one line and names the file, and its row if any."""


@dataclass(frozen=True)
class Volume:
    """A NIfTI file to be written.

    Attributes:
        path: relative to the output folder.
        voxels: [I, J, K]; a bool or integer type is kept, whole numbers become int16, all else float32.
        affine: voxel index -> RAS millimetres.
    """

    path: str
    voxels: np.ndarray
    affine: np.ndarray


@dataclass
class Made:
    """What a unit gave.

    Attributes:
        rows: of the manifest.
        volumes: the files that the rows name.
        left_out: what the rules leave out, counted by reason ("indeterminate").
        problems: what could not be used, a sentence each; a unit with problems is tried again by the next run.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[Volume] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Unit:
    """A piece of work.

    Attributes:
        name: unique, and a file name.
        key: everything besides the images that decides what is written; plain JSON values.
        make: reads and computes; an `InputError` or `OSError` of it is told, and the unit is skipped.
    """

    name: str
    key: dict[str, Any]
    make: Callable[[], Made]


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    Attributes:
        manifest: the CSV.
        labels: how many cases of each label it lists.
        left_out: what the rules left out, counted by reason.
        problems: how many problems were told.
    """

    manifest: Path
    labels: Counter[str]
    left_out: Counter[str]
    problems: int


def write_cases(
    folder: Path,
    units: Sequence[Unit],
    columns: Sequence[str],
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Summary:
    """Makes and writes all units that are not there yet, then the manifest.

    Args:
        folder: gets the volumes, `done/` and `cases.csv`.
        columns: of the manifest, in order.
        progress: called with how many units are through, and of how many.
        tell: called with a sentence for each problem.

    Raises:
        PrepareError: no unit gave a case.
        OSError: a file cannot be written; what was written before stays and is not made again.
    """
    manifest = folder / MANIFEST
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    problems = 0
    for number, unit in enumerate(units, start=1):
        record = _record(folder, unit)
        if record is None:
            try:
                made = unit.make()
            except (InputError, OSError) as error:
                made = Made(problems=[f"{unit.name}: {_text(error)}"])
            if made.volumes and manifest.exists() and _differs(folder, unit):
                # It describes files that are about to change, and must not outlive them if this run is cut off.
                manifest.unlink()
            for volume in made.volumes:
                write_whole(folder / volume.path, nifti_bytes(volume.voxels, volume.affine))
            record = {"key": unit.key, "rows": made.rows, "left_out": dict(made.left_out)}
            if not made.problems:
                write_whole(_record_path(folder, unit), json.dumps(record, indent=1))
            for problem in made.problems:
                problems += 1
                if tell:
                    tell(problem)
        rows += record["rows"]
        left_out.update(record["left_out"])
        if progress:
            progress(number, len(units))
    if not rows:
        reasons = [f"{reason} ({count})" for reason, count in left_out.items()]
        reasons += [f"problems told above ({problems})"] if problems else []
        raise PrepareError(
            "Nothing in the download gave a case: " + (", ".join(reasons) or "it is empty") + "."
        )
    write_whole(manifest, _csv(columns, rows))
    return Summary(manifest, Counter(row["label"] for row in rows), left_out, problems)


def nifti_bytes(voxels: np.ndarray, affine: np.ndarray) -> bytes:
    """A volume [I, J, K] as a .nii.gz file's bytes, the same each time; in the smallest type that loses nothing."""
    if voxels.dtype == bool:
        voxels = voxels.astype(np.uint8)
    elif voxels.dtype.kind == "f":
        whole = np.abs(voxels).max(initial=0) <= np.iinfo(np.int16).max and not np.any(voxels % 1)
        voxels = voxels.astype(np.int16 if whole else np.float32)
    # Level 6 of gzip takes three times as long for a hundredth less.
    return gzip.compress(nifti_image(voxels, affine).to_bytes(), compresslevel=4, mtime=0)


def find_folder(data: Path, fits: Callable[[Path], bool], depth: int = 3) -> list[Path]:
    """All folders that fit, in the shallowest level below (or at) a folder that has any; sorted by name.

    Raises:
        PrepareError: there is no such folder as `data`.
    """
    if not data.is_dir():
        raise PrepareError(f"There is no folder {data}.")
    level = [data]
    for _ in range(depth + 1):
        if found := sorted((path for path in level if fits(path)), key=lambda path: path.name):
            return found
        level = [child for path in level for child in path.iterdir() if child.is_dir()]
    return []


def rows_of(path: Path) -> Iterable[tuple[int, list[str]]]:
    """The rows of a table, with their numbers from 1 as a spreadsheet program shows them.

    Args:
        path: .csv in UTF-8, or the first sheet of an .xlsx.

    Raises:
        PrepareError: it cannot be read, or openpyxl is needed and not installed.
    """
    if path.suffix.lower() == ".csv":
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                yield from enumerate(csv.reader(file), start=1)
        except (UnicodeDecodeError, csv.Error) as error:
            raise PrepareError(f"{path.name} is not a CSV file in UTF-8; save it as one.") from error
        return
    try:
        import openpyxl
    except ImportError as error:
        raise PrepareError(
            f"To read {path.name}, install openpyxl (pip install openpyxl==3.1.5), or save it as {path.stem}.csv."
        ) from error
    try:
        # Read-only: a table of 770,000 rows would otherwise take gigabytes.
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # zip, XML and openpyxl errors of many kinds
        raise PrepareError(
            f"{path.name} is not an Excel file that can be read; download it again."
        ) from error
    try:
        for number, cells in enumerate(book.worksheets[0].iter_rows(values_only=True), start=1):
            yield number, ["" if cell is None else str(cell) for cell in cells]
    finally:
        book.close()


def table(path: Path, columns: Sequence[str], header_within: int = 3) -> Iterable[tuple[int, dict[str, str]]]:
    """The named columns of a table, row by row; both stripped of blanks.

    The header is the first of `header_within` rows that has all columns, since some tables have a row of group titles
    above it. Of columns with the same name, the first is taken.

    Raises:
        PrepareError: a column is missing; the message names the file and the columns.
    """
    places: dict[str, int] = {}
    best: list[str] = list(columns)
    for number, row in rows_of(path):
        cells = [" ".join(cell.split()) for cell in row]
        if not places:
            missing = [column for column in columns if column not in cells]
            best = min(best, missing, key=len)
            if not missing:
                places = {column: cells.index(column) for column in columns}
            elif number >= header_within:
                break
            continue
        if any(cells):
            yield number, {c: cells[i] if i < len(cells) else "" for c, i in places.items()}
    if not places:
        raise PrepareError(f"{path.name} has no column {', '.join(best)}; it needs {', '.join(columns)}.")


def _record_path(folder: Path, unit: Unit) -> Path:
    return folder / "done" / f"{unit.name}.json"


def _stored(folder: Path, unit: Unit) -> dict[str, Any] | None:
    try:
        return json.loads(_record_path(folder, unit).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _record(folder: Path, unit: Unit) -> dict[str, Any] | None:
    """A unit's record, if it still holds."""
    record = _stored(folder, unit)
    if record is None or record.get("key") != unit.key:
        return None
    names = [row[column] for row in record["rows"] for column in ("image", "mask") if row.get(column)]
    return record if all((folder / name).is_file() for name in names) else None


def _differs(folder: Path, unit: Unit) -> bool:
    record = _stored(folder, unit)
    return record is not None and record.get("key") != unit.key


def _csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split())
