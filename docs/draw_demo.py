"""Draw docs/demo.jpg, a screenshot of `dgunet demo` with a noisy photograph.

    python docs/draw_demo.py models/denoise

Needs `chromium` on the PATH and a denoiser, such as `make repro` trains.
"""

import asyncio
import sys
import tempfile
import threading
from pathlib import Path

import cv2
import numpy as np
import skimage.data

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
from browser import opened  # noqa: E402

from dgunet.checkpoint import load_model  # noqa: E402
from dgunet.demo import Demo, Limits, server  # noqa: E402
from dgunet.images import Photo, write_photo  # noqa: E402


async def draw(address: str, folder: Path) -> None:
    """Restore the photograph on the page and write the screenshot."""
    async with opened(address, folder / "profile", width=1000, height=1000) as page:
        await page.choose_file("#file", folder / "cat.png")
        await page.wait_for("!document.getElementById('restore').disabled")
        await page.value("document.getElementById('restore').click()")
        await page.wait_for("document.querySelector('.restored').naturalWidth > 0")
        (folder / "page.png").write_bytes(await page.screenshot())
    cv2.imwrite(str(HERE / "demo.jpg"), cv2.imread(str(folder / "page.png")), [cv2.IMWRITE_JPEG_QUALITY, 80])


def main() -> None:
    """Serve the page and draw it."""
    cat = skimage.data.chelsea().astype(float)
    noisy = np.clip(cat + np.random.default_rng(0).normal(0, 25, cat.shape), 0, 255).astype(np.uint8)
    demo = Demo({"models:/denoise@champion": load_model(sys.argv[1])}, Limits())
    with tempfile.TemporaryDirectory() as folder, server(demo, "127.0.0.1", 0) as serving:
        write_photo(Path(folder) / "cat.png", Photo(noisy))
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        asyncio.run(draw(f"http://127.0.0.1:{serving.server_port}/", Path(folder)))
        serving.shutdown()


if __name__ == "__main__":
    main()
