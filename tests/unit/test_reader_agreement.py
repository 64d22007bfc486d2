"""The tool that tells how well radiologists agree on malignancy."""

from types import ModuleType

import numpy as np
import pytest
from tool_modules import load_tool

from mst.data.outlines import RATINGS, Outline


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("reader_agreement")


def square(middle: tuple[float, float], height: float, side: float, malignancy: int, patient: str) -> Outline:
    """Of five slices of 2 mm, in pixels of half a millimetre; middle, height and side are in millimetres."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * side / 2
    polygon = ((corners + middle) / 0.5).astype(np.float32)
    contours = tuple((height + z, True, polygon) for z in (-4.0, -2.0, 0.0, 2.0, 4.0))
    return Outline(patient, dict.fromkeys(RATINGS, 3) | {"malignancy": malignancy}, contours, 0.5, 2.0)


def test_outlines_of_one_nodule_are_found_by_their_middles(tool: ModuleType) -> None:
    scan = [
        square((100, 80), -50, 10, 4, "a"),
        square((101, 80), -51, 11, 5, "a"),
        square((100, 80), -20, 10, 1, "a"),
        square((130, 80), -50, 10, 2, "a"),
    ]
    assert tool.others_of(scan) == [[1], [0], [], []]
    assert tool.others_of([]) == []
    assert tool.middle(scan[0]) == pytest.approx([100, 80, -50])


def test_each_reader_is_held_against_the_others(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = {
        name: [square((90, 90), 0, size, rating, name) for rating in ratings]
        for name, size, ratings in [
            ("a", 8, (1, 2, 2)),
            ("b", 20, (5, 4, 3)),
            ("c", 20, (4, 4)),
            ("d", 14, (1, 5, 5)),
        ]
    }
    monkeypatch.setattr(tool, "read_outlines_by_series", lambda database: scans)
    found = tool.agreement()
    # An indeterminate rating is not asked for but counts among the others'; two readers are too few.
    assert found.patient.tolist() == ["a"] * 3 + ["b"] * 2 + ["d"] * 3
    assert found.rated.tolist() == [1, 2, 2, 5, 4, 1, 5, 5]
    assert found.scores["the others' malignancy, mean"].tolist() == [2, 1.5, 1.5, 3.5, 4, 5, 3, 3]
    low, high = tool.interval(found, found.scores["the others' malignancy, mean"])
    assert 0 <= low < high <= 1
