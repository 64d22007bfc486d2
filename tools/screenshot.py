"""Takes the README's picture of the real page: make screenshot.

Starts the dashboard, opens a simulated example, runs both models and saves docs/dashboard.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from serving import chromium_options, serve_dashboard  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "dashboard.png")
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--height", type=int, default=1180)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--scan", type=Path, help="a scan of your own instead of the example")
    parser.add_argument("--task", default="chest-ct")
    parser.add_argument("--example", default="spiculated")
    parser.add_argument("--stop", choices=("empty", "scan", "results"), default="results")
    parser.add_argument("--mask", type=Path, help="a lesion mask beside the scan")
    parser.add_argument("--view", choices=("2D", "3D", "MIP"), default="2D")
    parser.add_argument("--touch", action="store_true", help="as a phone shows it")
    parser.add_argument("--full", action="store_true", help="the whole page instead of one screen")
    args = parser.parse_args()
    with serve_dashboard() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(**chromium_options())
        page = browser.new_page(
            viewport={"width": args.width, "height": args.height},
            color_scheme="dark" if args.dark else "light",
            has_touch=args.touch,
            is_mobile=args.touch,
        )
        page.on("console", lambda m: print("console:", m.text) if m.type == "error" else None)
        page.goto(f"{url}?example=none")
        page.wait_for_selector("#run")
        if args.task != "chest-ct":
            page.locator(f"#task input[value='{args.task}']").check()
            page.wait_for_timeout(1500)
        if args.stop != "empty":
            if args.scan:
                page.set_input_files("#scan input[type=file]", args.scan)
            else:
                page.locator("#examples button:visible").filter(has_text=args.example).first.click()
            page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=60_000)
            page.wait_for_timeout(1500)
            if args.mask:
                page.set_input_files("#mask input[type=file]", args.mask)
                page.wait_for_timeout(1500)
        if args.stop == "results":
            page.click("#run")
            page.wait_for_selector("[data-testid=viewer][data-ready=true]", timeout=120_000)
            if args.view != "2D":
                page.get_by_role("tab", name=args.view).click()
                page.wait_for_timeout(4000)
            page.locator("#results").scroll_into_view_if_needed()
            page.wait_for_timeout(2500)
        page.screenshot(path=args.out, full_page=args.full)
        browser.close()
    print(args.out)


if __name__ == "__main__":
    main()
