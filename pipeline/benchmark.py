"""Named folders of test images beside the test split: read from anywhere, absent ones are not an error."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from dgunet.images import SUFFIXES, UnreadableImage, in_channels, read_photo, to_float
from pipeline import storage
from pipeline.degradations import Degradation, degrade
from pipeline.loader import LoadedPair
from pipeline.protocol import Protocol

Image = Float32[np.ndarray, "H W C"]


@dataclass(frozen=True)
class Benchmark:
    """A test set of the field.

    clean, degraded: folders (relative to where the pipeline runs), archives or URLs; an image and its partner have the
    same name but for the suffix. With `degraded` null the clean images are degraded by `degradation`, with a seed that
    depends on the image's name alone; with both null by the task's own degradation.
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
        """Return the folder, archive or URL that is missing, None if all is there."""
        return next((place for place in (self.clean, self.degraded) if place and not _is_there(place)), None)

    def pairs(self, task_degradation: Degradation, channels: int, seed: int) -> Iterator[LoadedPair]:
        """Yield the pairs in the order of their names, as RGB (`channels` 3) or as gray (1).

        Raises ValueError for an image without partner or of another size than its partner: a part of a benchmark is
        not the benchmark.
        """
        degraded = None if self.degraded is None else _images(self.degraded)
        for stem, path in _images(self.clean).items():
            clean, was_gray = _read(path, channels)
            if degraded is None:
                drawn = degrade(clean, self.degradation or task_degradation, [seed, zlib.crc32(stem.encode())])
                yield LoadedPair(stem, clean, drawn.image, drawn.record, was_gray)
            elif stem not in degraded:
                raise ValueError(f"benchmark {self.name}: {path} has no partner in {self.degraded}")
            else:
                partner, _ = _read(degraded[stem], channels)
                if partner.shape != clean.shape:
                    raise ValueError(f"benchmark {self.name}: {path} and {degraded[stem]} differ in size")
                yield LoadedPair(stem, clean, partner, {"clean": path, "degraded": degraded[stem]}, was_gray)


def _is_there(place: str) -> bool:
    if "://" not in place:
        return Path(place).expanduser().exists()
    try:
        return next(storage.list_files(place), None) is not None
    except storage.StorageError:
        return False


def _images(place: str) -> dict[str, str]:
    """Return what `storage.read` takes of each image, by its name below `place` without the suffix, sorted."""
    files = [file for file in storage.list_files(place) if PurePosixPath(file.name).suffix.lower() in SUFFIXES]
    named = {str(PurePosixPath(file.name).with_suffix("")): file.where for file in files if not file.is_hidden}
    return dict(sorted(named.items()))


def _read(where: str, channels: int) -> tuple[Image, bool]:
    """Return an image in the task's channels, and whether it came as gray where they are three."""
    try:
        pixels = read_photo(storage.read(where)).pixels
    except (UnreadableImage, storage.UnreadableFile) as error:
        raise ValueError(f"{where}: {error}") from error
    return to_float(in_channels(pixels, channels)), pixels.shape[2] < channels
