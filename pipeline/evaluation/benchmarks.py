"""Named folders of test images beside the test split: read from anywhere, absent ones are not an error."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from dgunet.images import UnreadableImage, in_channels, read_photo, to_float
from pipeline.dataloader.pairs import EvaluationPair
from pipeline.degradations import degrade
from pipeline.degradations.compose import Degradation
from pipeline.evaluation.protocol import Protocol
from pipeline.sources import listing, patterns, places, storage

Image = Float32[np.ndarray, "H W C"]


@dataclass(frozen=True)
class Benchmark:
    """A test set of the field.

    clean, degraded: folders (relative to where the pipeline runs), archives, URLs, or patterns of names, as
    `sources.Pairs` takes them. With `degraded` null the clean images are degraded by `degradation`, with a seed that
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
        """Return the folder, archive or URL that is missing or empty (an unmounted disk), None if all is there.

        Raises StorageError if an archive is damaged.
        """
        sides = (side for side in (self.clean, self.degraded) if side)
        return next((missing for side in sides if (missing := _missing(patterns.place_of(side)))), None)

    def pairs(self, task_degradation: Degradation, channels: int, seed: int) -> Iterator[EvaluationPair]:
        """Yield the pairs in the order of their names, as RGB (`channels` 3) or as gray (1).

        Raises ValueError for an image that cannot be read, has no partner, several, or one of another size: a part of
        a benchmark is not the benchmark.
        """
        for name, image in self._images().items():
            clean, was_gray = _read(image.uri, channels)
            if image.degraded is None:
                sampled = degrade(clean, self.degradation or task_degradation, [seed, zlib.crc32(name.encode())])
                yield EvaluationPair(name, clean, sampled.image, sampled.record, was_gray)
            else:
                partner, _ = _read(image.degraded, channels)
                if partner.shape != clean.shape:
                    raise ValueError(f"benchmark {self.name}: {image.uri} and {image.degraded} differ in size")
                yield EvaluationPair(name, clean, partner, {"clean": image.uri, "degraded": image.degraded}, was_gray)

    def _images(self) -> dict[str, listing.Candidate]:
        """By name, sorted."""
        source = listing.Pairs(clean=self.clean, degraded=self.degraded) if self.degraded else None
        try:
            images, left_out = listing.require_images(source or listing.Folder(path=self.clean))
        except ValueError as error:
            raise ValueError(f"benchmark {self.name}: {error}") from error
        for item in left_out:
            if not item.ignored:
                raise ValueError(f"benchmark {self.name}: {item.uri}: {item.reason}")
        named: dict[str, listing.Candidate] = {}
        for image in sorted(images, key=lambda image: image.name):
            if (other := named.setdefault(image.name, image)) is not image:
                one, two = other.degraded or other.uri, image.degraded or image.uri
                raise ValueError(f"benchmark {self.name}: {one} and {two} differ in their suffix alone: remove one")
        return named


def _missing(place: str) -> str | None:
    try:
        return None if any(not file.is_hidden for file in storage.list_files(place)) else place
    except places.NotThere:
        return place
    except places.StorageError as error:
        if "://" in place:  # out of reach, as where there is no network
            return f"{place} ({str(error).removeprefix(f'{place}: ')})"
        raise


def _read(uri: str, channels: int) -> tuple[Image, bool]:
    """Return an image in the task's channels, and whether it came as gray where they are three."""
    try:
        pixels = read_photo(storage.read(uri)).pixels
    except (UnreadableImage, places.UnreadableFile) as error:
        raise ValueError(f"{uri}: {error}") from error
    return to_float(in_channels(pixels, channels)), pixels.shape[2] < channels
