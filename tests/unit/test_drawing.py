"""Matplotlib's settings, which belong to the whole process, under several threads."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from matplotlib import rcParams

from mst.drawing import drawing


def test_each_drawing_has_its_own_settings_and_leaves_none() -> None:
    before = dict(rcParams)
    together = Barrier(4)

    def draw(kind: int) -> bool:
        together.wait()
        kept = True
        for _ in range(50):
            with drawing({"pdf.fonttype": kind, "svg.hashsalt": str(kind)}):
                time.sleep(0)  # lets the others go on
                kept &= rcParams["pdf.fonttype"] == kind and rcParams["svg.hashsalt"] == str(kind)
        return kept

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(draw, (3, 42, 3, 42)))
    assert dict(rcParams) == before


def test_a_drawing_that_fails_keeps_nobody_waiting() -> None:
    for _ in range(2):
        try:
            with drawing({"pdf.fonttype": 42}):
                raise RuntimeError("a figure that cannot be drawn")
        except RuntimeError:
            assert rcParams["pdf.fonttype"] != 42
