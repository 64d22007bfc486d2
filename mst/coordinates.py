"""Points in the patient as people write them: "X,Y,Z" in RAS millimetres."""

from __future__ import annotations

import math
import re

from mst.errors import InputError


def parse_center(text: str | None) -> tuple[float, float, float] | None:
    """Three numbers separated by commas, semicolons or spaces; None for empty text.

    Raises:
        InputError: the text is something else.

    >>> parse_center("12.5, -40, 88")
    (12.5, -40.0, 88.0)
    """
    if not text or not text.strip():
        return None
    try:
        x, y, z = (float(part) for part in re.split(r"[,;\s]+", text.strip().strip("()[]").strip()))
    except ValueError:
        x = y = z = math.nan
    if not all(map(math.isfinite, (x, y, z))):
        raise InputError(
            f"The centre must be three numbers X,Y,Z in millimetres, such as 12.5,-40,88, not {text.strip()!r}."
        )
    return x, y, z
