"""Memory that restoring a large photo takes, beside that of the network."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
from factories import PROJECT
from photo_files import page, tiff

import dgunet
from dgunet.network import DGUNet, DGUNetConfig

SHAPE = (2000, 3000, 3)
READ = """
import re, sys
from dgunet.images import read_photo
def peak():  # of this process; ru_maxrss counts its parent too
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
read_photo(sys.argv[1])
before = peak()
photo = read_photo(sys.argv[2])
print(peak() - before, photo.pixels.nbytes)
"""


def test_a_tiff_is_read_without_further_copies_of_its_bytes_and_pixels(tmp_path: Path) -> None:
    for name, height in (("small.tif", 8), ("large.tif", 4000)):
        tags = page(3000, height, 16, 3, 2)
        (tmp_path / name).write_bytes(tiff([(tags, [bytes(3000 * height * 6)])]))
    paths = [str(tmp_path / name) for name in ("small.tif", "large.tif")]
    done = subprocess.run([sys.executable, "-c", READ, *paths], cwd=PROJECT, capture_output=True, text=True, check=True)
    taken, size = map(int, done.stdout.split())
    assert taken < 2.5 * size, "the file and the pixels are each of this size"


def test_blending_tiles_takes_the_memory_of_the_result_and_of_a_row_of_tiles(monkeypatch) -> None:
    monkeypatch.setattr(DGUNet, "forward", lambda _, degraded: (degraded,))
    model = DGUNet(DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=2)).eval()
    array = np.zeros(SHAPE, np.uint8)
    tracemalloc.start()  # NumPy reports its arrays, torch does not
    dgunet.restore(model, array, tile=256, statistics="tile")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    row = 256 * SHAPE[1] * SHAPE[2] * np.float32().nbytes
    assert peak < array.nbytes + 5 * row
