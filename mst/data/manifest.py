"""The manifest of cases, to train on, to evaluate on or to classify: a CSV with a row a case.

Columns `image` and, unless cases are only classified, `label` must be there; `case`, `patient`, `mask`, `fold`,
`malignancy`, and `center_x`, `center_y`, `center_z` together (RAS millimetres) may be. Where there is no `case` column,
a case is named after its image; where there is no `patient` column, each case is taken for another patient. Files are
relative to the CSV's folder. Any further column that holds numbers is kept as a rating of the case;
`expected_malignancy` is what readers rate such a lesion on average, and is trained on in place of the one reader's
`malignancy`.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mst.errors import InputError

REQUIRED = ("image", "label")
TEXT = {*REQUIRED, "case", "patient", "mask", "fold"}
MALIGNANCY = ("malignancy", "expected_malignancy")
CENTER = ("center_x", "center_y", "center_z")
INDETERMINATE = "indeterminate"
HELD_OUT = "held-out-patients.txt"


class ManifestError(InputError):
    """A manifest that cannot be used; the message names the file, the row and what to do."""


@dataclass(frozen=True)
class Case:
    """One row of a manifest.

    Attributes:
        name: the case's name, unique in the manifest.
        patient: cases of one patient are never split between training and validation.
        image, mask: files; mask is None where the manifest names none.
        label: one of the study's classes, or "indeterminate"; any text, also "", where labels are not asked for.
        ratings: the row's numeric columns ("malignancy": 4.0, ...).
        center: (x, y, z) of the lesion in RAS millimetres; None where the manifest gives none.
        fold: the name of the fold that the case belongs to; "" where the manifest names none.
        source: "manifest.csv, row 7", for messages.
    """

    name: str
    patient: str
    image: Path
    mask: Path | None
    label: str
    ratings: dict[str, float] = field(default_factory=dict)
    source: str = ""
    center: tuple[float, float, float] | None = None
    fold: str = ""


def read_manifest(path: str | Path, classes: Sequence[str], labelled: bool = True) -> list[Case]:
    """Reads and checks a manifest.

    Args:
        path: a CSV, or a folder with `manifest.csv`, `nodules.csv` or one single CSV.
        classes: names of the study's classes; other labels than these and "indeterminate" are errors.
        labelled: whether labels are asked for; if not, they are taken as they are.

    Raises:
        ManifestError: no manifest; a column, file or label missing; a case named twice; a patient in two folds;
            one class only; no case at all.
    """
    path = _find(Path(path))
    try:
        cases = _read(path, classes if labelled else None)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path.name} is not a CSV file in UTF-8; save it as one.") from error
    names: dict[str, str] = {}
    folds: dict[str, Case] = {}
    for case in cases:
        if case.name in names:
            raise ManifestError(f"{case.source}: the case {case.name} is there already ({names[case.name]}).")
        names[case.name] = case.source
        other = folds.setdefault(case.patient, case)
        if other.fold != case.fold:
            raise ManifestError(
                f"{case.source}: the patient {case.patient} is in fold {case.fold or '(none)'}, but in fold "
                f"{other.fold or '(none)'} in {other.source.split(', ')[-1]}."
            )
    if not labelled:
        if not cases:
            raise ManifestError(f"{path.name} holds no case.")
        return cases
    found = sorted({case.label for case in cases} - {INDETERMINATE})
    if len(found) < 2:
        only = f"only the class {found[0]}" if found else "no labelled case"
        raise ManifestError(f"{path.name} holds {only}; cases of {' and of '.join(classes)} are needed.")
    return cases


def read_manifests(
    paths: Sequence[str | Path], classes: Sequence[str]
) -> tuple[list[Case], dict[str, list[Case]], list[Case], set[str]]:
    """Reads several manifests as one, without the patients who are held out.

    Args:
        paths: each as `read_manifest` takes it. A file held-out-patients.txt beside any of them, a patient a line,
            names patients whom no training may use: it binds the cases of all.
        classes: as there.

    Returns:
        all cases but those of held-out patients; the same, by the name of each manifest's folder; the cases of
        held-out patients; these patients.

    Raises:
        ManifestError: as `read_manifest`; a case that two manifests name.
    """
    held_out: set[str] = set()
    found: dict[str, list[Case]] = {}
    for path in paths:
        manifest = _find(Path(path))
        held_out |= read_held_out(manifest.parent)
        name = manifest.resolve().parent.name
        found[name if name not in found else f"{name}-{len(found) + 1}"] = read_manifest(manifest, classes)
    sources: dict[str, str] = {}
    for cases in found.values():
        for case in cases:
            if case.name in sources:
                raise ManifestError(
                    f"{case.source}: the case {case.name} is there already ({sources[case.name]})."
                )
            sources[case.name] = case.source
    kept = {name: [case for case in cases if case.patient not in held_out] for name, cases in found.items()}
    if not all(kept.values()):
        raise ManifestError(f"{HELD_OUT} names every patient of a manifest; there is nothing to train on.")
    left_out = [case for cases in found.values() for case in cases if case.patient in held_out]
    return [case for cases in kept.values() for case in cases], kept, left_out, held_out


def read_held_out(folder: Path) -> set[str]:
    """The patients whom held-out-patients.txt in a manifest's folder names; none where there is no such file."""
    path = folder / HELD_OUT
    if not path.is_file():
        return set()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path.name} is not a text file in UTF-8, with a patient a line.") from error
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def _read(path: Path, classes: Sequence[str] | None) -> list[Case]:
    required = _required(classes)
    # utf-8-sig: spreadsheet programs put a byte-order mark before the first column's name.
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if missing := [column for column in required if column not in columns]:
            raise ManifestError(
                f"{path.name} has no column {', '.join(missing)}; it needs {', '.join(required)} "
                "and may have case, patient, mask, fold, malignancy and center_x, center_y, center_z."
            )
        cases = [_case(row, path, reader.line_num, classes) for row in reader]
    return cases if "case" in columns else _numbered(cases)


def _required(classes: Sequence[str] | None) -> tuple[str, ...]:
    """The columns that must be there; labels are not asked for where there are no classes."""
    return REQUIRED if classes is not None else ("image",)


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


def _case(row: dict[str, str | None], path: Path, line: int, classes: Sequence[str] | None) -> Case:
    source = f"{path.name}, row {line}"
    values = {
        key: (value or "").strip() for key, value in row.items() if key and isinstance(value, str | None)
    }
    for column in ("case", *_required(classes)):
        if values.get(column) == "":
            raise ManifestError(f"{source}: the column {column} is empty.")
    label = values.get("label", "")
    if classes is not None and label not in (*classes, INDETERMINATE):
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
                if column in (*MALIGNANCY, *CENTER):
                    raise ManifestError(f"{source}: the {column} {value!r} is not a number.") from None
    for column in MALIGNANCY:
        if not 1 <= ratings.get(column, 1.0) <= 5:
            raise ManifestError(f"{source}: the {column} is {ratings[column]:g}, not a rating from 1 to 5.")
    name = values.get("case") or _without_suffix(values["image"])
    return Case(
        name=name,
        patient=values.get("patient") or name,
        image=image,
        mask=files["mask"],
        label=label,
        ratings=ratings,
        source=source,
        center=_center(ratings, source),
        fold=values.get("fold", ""),
    )


def _center(ratings: dict[str, float], source: str) -> tuple[float, float, float] | None:
    """Takes the centre out of a row's numbers."""
    given = [ratings.pop(column) for column in CENTER if column in ratings]
    if not given:
        return None
    if len(given) < 3 or not all(map(math.isfinite, given)):
        raise ManifestError(f"{source}: a centre needs a number each in {', '.join(CENTER)}.")
    return given[0], given[1], given[2]


def _without_suffix(image: str) -> str:
    """The image as the manifest names it, so that p1/ct.nii.gz and p2/ct.nii.gz are two patients."""
    return re.sub(r"(\.nii)?\.\w+$", "", image.rstrip("/"))


def _numbered(cases: list[Case]) -> list[Case]:
    """Cases that were named after their image, several of one image told apart by a number."""
    counts: dict[str, int] = {}
    named = []
    for case in cases:
        counts[case.name] = counts.get(case.name, 0) + 1
        again = f"{case.name}-{counts[case.name]}" if counts[case.name] > 1 else case.name
        named.append(replace(case, name=again))
    return named
