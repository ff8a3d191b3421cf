"""Named folders of test images beside the test split: read from anywhere, absent ones are not an error."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from dgunet.images import SUFFIXES, read_photo, to_array, to_float, to_tensor
from dgunet.metrics import luma
from pipeline.degradations import Degradation, degrade
from pipeline.loader import LoadedPair
from pipeline.protocol import Protocol

Image = Float32[np.ndarray, "H W C"]


@dataclass(frozen=True)
class Benchmark:
    """A test set of the field.

    clean, degraded: folders, relative to where the pipeline runs; an image and its partner have the same name but for
    the suffix. With `degraded` null the clean images are degraded by `degradation`, with a seed that depends on the
    image's name alone; with both null by the task's own degradation.
    """

    name: str
    clean: str
    degraded: str | None
    degradation: Degradation | None
    protocol: Protocol

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.degraded is not None and self.degradation is not None:
            raise ValueError(f"benchmark {self.name}: give degraded or degradation, not both")

    def absent(self) -> str | None:
        """Return the folder that is missing, None if all is there."""
        folders = [folder for folder in (self.clean, self.degraded) if folder is not None]
        return next((folder for folder in folders if not Path(folder).is_dir()), None)

    def pairs(self, task_degradation: Degradation, channels: int, seed: int) -> Iterator[LoadedPair]:
        """Yield the pairs in the order of their names, as RGB (`channels` 3) or as gray images or luma (1).

        Raises ValueError for an image without partner or of another size than its partner: a part of a benchmark is
        not the benchmark.
        """
        degraded = None if self.degraded is None else _images(Path(self.degraded))
        for stem, path in _images(Path(self.clean)).items():
            clean = _read(path, channels)
            if degraded is None:
                drawn = degrade(clean, self.degradation or task_degradation, [seed, zlib.crc32(stem.encode())])
                yield LoadedPair(stem, clean, drawn.image, drawn.record)
            elif stem not in degraded:
                raise ValueError(f"benchmark {self.name}: {path} has no partner in {self.degraded}")
            else:
                partner = _read(degraded[stem], channels)
                if partner.shape != clean.shape:
                    raise ValueError(f"benchmark {self.name}: {path} and {degraded[stem]} differ in size")
                yield LoadedPair(stem, clean, partner, {"clean": path.name, "degraded": degraded[stem].name})


def _images(folder: Path) -> dict[str, Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return {path.stem: path for path in paths}


def _read(path: Path, channels: int) -> Image:
    image = to_float(read_photo(path).pixels)
    if image.shape[2] == channels:
        return image
    return to_array(luma(to_tensor(image)).float()) if channels == 1 else np.repeat(image, 3, axis=2)
