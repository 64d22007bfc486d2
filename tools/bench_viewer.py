"""Measures the viewer in the real browser: from key press to drawn frame, with three, five and six panels.

A 32 x 224 x 224 region with both maps and a mask, as in the paper, in headless Chromium. Prints the bytes that are
sent, and median, 95th percentile and maximum in milliseconds. A frame of a 60 Hz screen takes 16.7 ms.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright
from scipy.ndimage import gaussian_filter, zoom

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT))

from serving import chromium_options  # noqa: E402

from mst.scans import Scan  # noqa: E402
from mst.viewer import Layer, NativeMap, report_html, viewer_html, viewer_payload  # noqa: E402

RECORD = {
    "task": "chest-ct",
    "scan": {"name": "bench", "shape": [224, 224, 32], "spacing_mm": [1, 1, 1]},
    "models": {},
}
PANELS = {
    3: ("Scan", "MST", "ResNet"),
    5: ("Scan", "MST", "ResNet", "Difference", "Agreement"),
    6: ("Scan", "MST", "ResNet", "Lesion mask", "Difference", "Agreement"),
}
# From the key's event to the first task after the frame that shows what the viewer drew: it is then committed.
WATCH = """() => {
  window.times = [];
  const root = document.querySelector('[data-testid=viewer]');
  addEventListener('keydown', (event) => {
    const start = event.timeStamp;
    const watcher = new MutationObserver(() => {
      watcher.disconnect();
      requestAnimationFrame(() => {
        const channel = new MessageChannel();
        channel.port1.onmessage = () => times.push(performance.now() - start);
        channel.port2.postMessage(null);
      });
    });
    watcher.observe(root, { attributes: true, attributeFilter: ['data-drawn'] });
  }, true);
}"""


def bench_payload(shape: tuple[int, int, int] = (224, 224, 32)) -> dict:
    """A scan with the noise of a CT, and a map of 16 x 16 patches a slice for each model."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(0, 1, shape), 6)
    voxels = np.round(
        -600 + 250 * smooth / smooth.std() + gaussian_filter(rng.normal(0, 60, shape), (0.6, 0.6, 0))
    )
    scan = Scan(voxels.astype(np.float32), np.diag([0.7, 0.7, 1.25, 1.0]), name="bench")
    layers = []
    for key, label, cells in (
        ("mst", "MST: attention", (16, 16, shape[2])),
        ("resnet", "3D ResNet: Grad-CAM", (14, 14, 8)),
    ):
        native = gaussian_filter(rng.random(cells), 1.5).astype(np.float32)
        native -= native.min()
        size = np.divide(shape, cells)
        volume = np.maximum(zoom(native, size, order=1, grid_mode=True, mode="nearest"), 0)
        layers.append(Layer(key, label, volume, native=NativeMap(native, (-0.5, -0.5, -0.5), size)))
    mask = np.zeros(shape, bool)
    mask[90:130, 90:130, 12:20] = True
    layers.append(Layer("mask", "Lesion mask", mask))
    return viewer_payload(scan, layers, plane="axial", window=(-1350, 150), unit="HU", title="bench")


def show_panels(page: Page, names: Sequence[str]) -> None:
    """Switches the viewer's panels on and off until these are shown."""
    for button in page.get_by_role("group", name="Panels").get_by_role("button").all():
        if (button.inner_text() in names) != (button.get_attribute("aria-pressed") == "true"):
            button.click()
    page.wait_for_timeout(500)


def measure(page: Page, keys: int) -> np.ndarray:
    """Milliseconds from each key press to its drawn frame; keys are pressed one at a time."""
    page.locator("[data-panel=mst] .mstv-frame").hover()
    page.evaluate("window.times ? times.length = 0 : (" + WATCH + ")()")
    for number in range(keys):
        page.keyboard.press("ArrowRight" if number // 12 % 2 else "ArrowLeft")
        page.wait_for_function("count => times.length >= count", arg=number + 1, timeout=5000)
    return np.array(page.evaluate("times")[5:])  # the first ones compile the script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=205)
    parser.add_argument("--panels", type=int, choices=sorted(PANELS), nargs="*", default=sorted(PANELS))
    args = parser.parse_args()
    payload = bench_payload()
    print(
        f"sent: {len(viewer_html(payload)):,} bytes for 32 x 224 x 224 with both maps and a mask, intensities in "
        f"{payload['scan']['bits']} bits"
    )
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        report = Path(folder) / "report.html"
        report.write_text(report_html(RECORD, payload, title="Bench"), encoding="utf-8")
        browser = playwright.chromium.launch(**chromium_options())
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(report.as_uri())
        page.wait_for_selector("[data-testid=viewer][data-ready=true]")
        for count in args.panels:
            show_panels(page, PANELS[count])
            times = measure(page, args.keys)
            figures = {
                "panels": page.locator(".mstv-panel:visible").count(),
                "keys": len(times),
                "median_ms": round(float(np.median(times)), 1),
                "p95_ms": round(float(np.percentile(times, 95)), 1),
                "max_ms": round(float(times.max()), 1),
            }
            print("key press to drawn frame:", json.dumps(figures), flush=True)
        browser.close()


if __name__ == "__main__":
    main()
