"""Patterns of file names, as in a source of kind `pairs`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeAlias

from pipeline.sources.places import split_member

Key: TypeAlias = tuple[str, ...]


def place_of(pattern: str) -> str:
    """Return the folder, archive or URL that holds what matches a pattern (as in `Pairs`)."""
    return Pattern.parse(pattern).place


@dataclass(frozen=True)
class Pattern:
    """One side of `Pairs`: the place to list, and the pattern of names below it."""

    place: str
    names: re.Pattern[str] | None  # None: any name, its suffix apart
    weight: int  # number of literal characters: the pattern with more of them is more specific

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Split `text` into place and name pattern."""
        wildcard = re.search(r"\{\}|\*", text)
        if wildcard is None:
            return cls(text, None, 0)
        cut = max(text.rfind("/", 0, wildcard.start()), text.rfind("!", 0, wildcard.start()))
        place, names = (text[:cut], text[cut + 1 :]) if cut >= 0 else (".", text)
        archive, below = split_member(place)
        if below is not None:
            place, names = archive, f"{below}/{names}"
        pieces = re.split(r"(\{\}|\*)", names)
        wild = {"{}": "(.+)", "*": "[^/]*"}
        expression = "".join(wild.get(piece) or re.escape(piece) for piece in pieces)
        return cls(place or "/", re.compile(expression), sum(len(piece) for piece in pieces if piece not in wild))

    @property
    def num_shared(self) -> int:
        """Number of parts that partners have in common."""
        return self.names.groups if self.names else 1

    def key(self, name: str) -> Key | None:
        """What `name` shares with its partner; None if it does not match."""
        if self.names is None:
            return (without_suffix(name),)
        match = self.names.fullmatch(name)
        return match.groups() if match else None


def without_suffix(name: str) -> str:
    """Return a file name without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))
