"""What the tests of the viewers share: a marked scan with maps, and how a panel is read off the screen."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page

from mst.scans import Scan
from mst.viewer import Layer, NativeMap, report_html, viewer_payload

Open = Callable[..., Page]
SHAPE = (40, 30, 20)
ORIGIN = (-20.0, 40.0, -100.0)
PREDICTION = {
    "task": "chest-ct",
    "scan": {
        "name": "marked <b>scan</b>",
        "shape": list(SHAPE),
        "spacing_mm": [1, 1, 2],
        "notes": ["A note."],
    },
    "models": {
        "mst": {"checkpoint": "m", "probabilities": {"benign": 0.25, "malignant": 0.75}, "seconds": 0.1},
        "resnet": {"checkpoint": "r", "probabilities": {"benign": 0.5, "malignant": 0.5}, "seconds": 0.1},
    },
}


def marked_scan() -> Scan:
    """Grey, with a white block to the patient's right, at the front, near the head."""
    voxels = np.full(SHAPE, -600, np.float32)
    voxels[30:38, 20:28, 14:18] = 100
    affine = np.diag([1.0, 1, 2, 1])
    affine[:3, 3] = ORIGIN
    return Scan(voxels, affine, name="marked")


def layers() -> list[Layer]:
    hot = np.zeros(SHAPE, np.float32)
    hot[2:8, 2:8, 5] = 1
    late = np.zeros(SHAPE, np.float32)
    late[2:8, 2:8, 12] = 3
    mask = np.zeros(SHAPE, bool)
    mask[28:40, 18:30, 13:19] = True
    return [
        Layer("mst", "MST: attention", hot),
        Layer("resnet", "3D ResNet: Grad-CAM", late),
        Layer("mask", "Mask", mask),
    ]


def write_report(
    folder: Path,
    scan: Scan | None = None,
    shown: list[Layer] | None = None,
    change: Callable[[dict[str, Any]], None] = lambda payload: None,
    **options: Any,
) -> str:
    """A report of the marked scan, or of another; gives its address. `change` may spoil what is sent."""
    usual: dict[str, Any] = {
        "plane": "axial",
        "window": (-1000, 200),
        "windows": [("Lung", -1000, 200), ("Bone", -500, 1300)],
        "unit": "HU",
        "title": "marked",
        **options,
    }
    payload = viewer_payload(scan or marked_scan(), coarse_layers() if shown is None else shown, **usual)
    change(payload)
    path = folder / "report.html"
    page = report_html(PREDICTION, payload, title=usual["title"] if "title" in options else "A report")
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


def picture(page: Page, panel: str) -> np.ndarray:
    """A panel's slice as shown, float [rows, columns, 3]."""
    frame = page.locator(f"[data-panel={panel}] .mstv-frame")
    return np.asarray(Image.open(io.BytesIO(frame.screenshot())).convert("RGB"), float)


def current(page: Page) -> int:
    return int(page.locator("[data-testid=viewer]").get_attribute("data-slice") or -1)


def coarse_layers() -> list[Layer]:
    """The usual layers; the MST's also at its own resolution of 5 x 5 voxels a patch."""
    mst, *others = layers()
    patches = np.zeros((8, 6, 20), np.float32)
    patches[0:2, 0:2, 5] = 1
    native = NativeMap(patches, (-0.5, -0.5, -0.5), (5, 5, 1))
    return [Layer(mst.key, mst.label, mst.volume, native=native), *others]


def viewer_of(page: Page) -> Any:
    return page.locator("[data-testid=viewer]")


def settle(page: Page) -> None:
    page.mouse.move(0, 0)
    page.wait_for_timeout(350)


def choose(page: Page, label: str, value: str) -> None:
    """Sets something of the display menu, which is opened and closed again."""
    button = page.get_by_role("button", name="Display")
    button.click()
    menu = page.get_by_role("group", name="Display")
    field = menu.get_by_label(
        label, exact=label not in ("Level", "Width")
    ).first  # whose labels end with the unit
    if field.evaluate("node => node.tagName") == "SELECT":
        field.select_option(value)
    else:
        field.fill(value)
        field.press("Tab")
    button.click()
    settle(page)


def colourful(shown: np.ndarray, least: float = 25) -> np.ndarray:
    return np.ptp(shown, axis=2) > least
