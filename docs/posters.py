"""Take a picture of each replay that docs/replays.py has made, for its card in the gallery: docs/assets/posters.

    python docs/posters.py [start digits ...]

It needs a Chromium, and is run by hand when a lab looks another way.
"""

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from replays import CARDS, ROOT, replay_of

SIZE = (640, 400)
"""Pixels of a poster."""
MARGIN = 16
"""Pixels of the page around what is shown."""


def main() -> None:
    """Take the pictures."""
    sys.path.insert(0, str(ROOT / "tests"))
    from browser_server import chromium

    folder: Path = ROOT / "docs" / "assets" / "posters"
    folder.mkdir(exist_ok=True)
    with chromium() as browser:
        for name in sys.argv[1:] or CARDS:
            page = browser.new_page(viewport={"width": 1240, "height": 1600}, color_scheme="light")
            page.goto(replay_of(name).as_uri())
            page.wait_for_timeout(2500)
            boxes = [one.bounding_box() for one in page.query_selector_all(".p4-replay-pictures > *")]
            shown = [box for box in boxes if box and box["height"] > 200]
            left, top = min(box["x"] for box in shown), min(box["y"] for box in shown)
            right = max(box["x"] + box["width"] for box in shown)
            width = min(right - left, 700)
            left, top, width = left - MARGIN, top - MARGIN, width + 2 * MARGIN
            clip = {"x": left, "y": top, "width": width, "height": width * SIZE[1] / SIZE[0]}
            picture = Image.open(BytesIO(page.screenshot(clip=clip))).convert("RGB")
            picture.resize(SIZE, Image.Resampling.LANCZOS).save(folder / f"{name}.webp", quality=80)
            page.close()


if __name__ == "__main__":
    main()
