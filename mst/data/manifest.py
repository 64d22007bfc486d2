"""The training manifest: a CSV with a row a case.

Columns `case`, `image` and `label` must be there; `patient`, `mask` and `malignancy` may be. Where there is no
`patient` column, each case is taken for another patient. Files are relative to the CSV's folder. Any further
column that holds numbers is kept as a rating of the case.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

REQUIRED = ("case", "image", "label")
TEXT = {*REQUIRED, "patient", "mask"}
INDETERMINATE = "indeterminate"


class ManifestError(ValueError):
    """A manifest that cannot be used; the message names the file, the row and what to do."""


@dataclass(frozen=True)
class Case:
    """One row of a manifest.

    Attributes:
        name: the case's name, unique in the manifest.
        patient: cases of one patient are never split between training and validation.
        image, mask: files; mask is None where the manifest names none.
        label: one of the study's classes, or "indeterminate".
        ratings: the row's numeric columns ("malignancy": 4.0, ...).
        source: "manifest.csv, row 7", for messages.
    """

    name: str
    patient: str
    image: Path
    mask: Path | None
    label: str
    ratings: dict[str, float] = field(default_factory=dict)
    source: str = ""


def read_manifest(path: str | Path, classes: Sequence[str]) -> list[Case]:
    """Reads and checks a manifest.

    Args:
        path: a CSV, or a folder with `manifest.csv`, `nodules.csv` or one single CSV.
        classes: names of the study's classes; other labels than these and "indeterminate" are errors.

    Raises:
        ManifestError: no manifest; a column, file or label missing; a case named twice; one class only.
    """
    path = _find(Path(path))
    # utf-8-sig: spreadsheet programs put a byte-order mark before the first column's name.
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if missing := [column for column in REQUIRED if column not in columns]:
            raise ManifestError(
                f"{path.name} has no column {', '.join(missing)}; it needs {', '.join(REQUIRED)} "
                "and may have patient, mask and malignancy."
            )
        cases = [_case(row, path, reader.line_num, classes) for row in reader]
    names: dict[str, str] = {}
    for case in cases:
        if case.name in names:
            raise ManifestError(f"{case.source}: the case {case.name} is there already ({names[case.name]}).")
        names[case.name] = case.source
    found = sorted({case.label for case in cases} - {INDETERMINATE})
    if len(found) < 2:
        only = f"only the class {found[0]}" if found else "no labelled case"
        raise ManifestError(f"{path.name} holds {only}; training needs cases of {' and of '.join(classes)}.")
    return cases


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ManifestError(f"There is no manifest {path}; give a CSV file or the folder it lies in.")
    for name in ("manifest.csv", "nodules.csv"):
        if (path / name).is_file():
            return path / name
    tables = sorted(path.glob("*.csv"))
    if len(tables) != 1:
        raise ManifestError(f"{path} holds {len(tables)} CSV files; name the manifest itself.")
    return tables[0]


def _case(row: dict[str, str | None], path: Path, line: int, classes: Sequence[str]) -> Case:
    source = f"{path.name}, row {line}"
    values = {
        key: (value or "").strip() for key, value in row.items() if key and isinstance(value, str | None)
    }
    for column in REQUIRED:
        if not values[column]:
            raise ManifestError(f"{source}: the column {column} is empty.")
    label = values["label"]
    if label not in (*classes, INDETERMINATE):
        raise ManifestError(
            f"{source}: the label {label!r} is none of {', '.join(classes)} or {INDETERMINATE}."
        )
    files = {}
    for column in ("image", "mask"):
        name = values.get(column)
        if name and not (path.parent / name).exists():
            raise ManifestError(f"{source}: the {column} file {name} does not exist.")
        files[column] = path.parent / name if name else None
    image = files["image"]
    assert image is not None
    ratings = {}
    for column, value in values.items():
        if column not in TEXT and value:
            try:
                ratings[column] = float(value)
            except ValueError:
                if column == "malignancy":
                    raise ManifestError(f"{source}: the malignancy {value!r} is not a number.") from None
    malignancy = ratings.get("malignancy", 1.0)
    if not 1 <= malignancy <= 5:
        raise ManifestError(f"{source}: the malignancy is {malignancy:g}, not a rating from 1 to 5.")
    patient = values.get("patient") or values["case"]
    return Case(values["case"], patient, image, files["mask"], label, ratings, source)
