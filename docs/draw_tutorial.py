"""Makes the pictures of docs/tutorial.md: `python docs/draw_tutorial.py`, in a checkout that has followed it.

stages.jpg is what the first Python block of the tutorial draws, preview.jpg the contact sheet of `make preview`,
gallery.jpg a screenshot of the report. The screenshot needs `chromium` on the PATH.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PROJECT = Path(__file__).parents[1]
DOCS = PROJECT / "docs"
TASK = "old_photos"
WINDOW = (1180, 1150)  # pixels
MAX_WIDTH = 1000
PREVIEW_SHARE = 0.755  # of the sheet's height: without the fourth photograph, which has no stated licence


def main() -> None:
    """Make the three pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, default=PROJECT, help="where models, reports and preview lie")
    checkout = parser.parse_args().checkout.resolve()
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)[0]
    subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True)
    save(checkout / "stages.jpg", "stages.jpg")
    save(checkout / "preview" / f"{TASK}.png", "preview.jpg", PREVIEW_SHARE)
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "gallery.png"
        command = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--screenshot={shot}"]
        window = f"--window-size={WINDOW[0]},{WINDOW[1]}"
        page = (checkout / "reports" / TASK / "gallery.html").as_uri()
        subprocess.run([*command, window, page], check=True, capture_output=True)
        save(shot, "gallery.jpg")


def save(source: Path, name: str, share: float = 1.0) -> None:
    """Write this share of a picture, from the top, into docs/ as a JPEG that is no wider than `MAX_WIDTH`."""
    with Image.open(source) as image:
        shown = image.convert("RGB").crop((0, 0, image.width, round(share * image.height)))
        shown.thumbnail((MAX_WIDTH, 10_000))
        shown.save(DOCS / name, quality=85, optimize=True)


if __name__ == "__main__":
    main()
