"""Patterns of file names, as in a source of kind `pairs`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import PurePosixPath
from typing import TypeAlias

from dgunet.images import SUFFIXES
from pipeline.sources.places import split_member

Key: TypeAlias = tuple[str, ...]
MOST_WAYS = 1000
WILD = {"{}": "(.+)", "*": "[^/]*"}


def place_of(pattern: str) -> str:
    """Return the folder, archive or URL in which the files of a pattern (as in `Pairs`) are."""
    return Pattern.parse(pattern).place


@dataclass(frozen=True)
class Pattern:
    """One side of `Pairs`: the place to list, and the pattern of names below it.

    Attributes:
        place: folder, archive or URL.
        pieces: the name pattern, split into literal text, `{}` and `*`; None matches any name, without its suffix.
        weight: number of literal characters; the pattern with more of them is more specific.
    """

    place: str
    pieces: tuple[str, ...] | None
    weight: int

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
        pieces = tuple(piece for piece in re.split(r"(\{\}|\*)", names) if piece)
        return cls(place or "/", pieces, sum(len(piece) for piece in pieces if piece not in WILD))

    @property
    def num_shared(self) -> int:
        """Number of parts that partners have in common."""
        return 1 if self.pieces is None else self.pieces.count("{}")

    def keys(self, name: str) -> list[Key]:
        """Return what `name` may share with its partner: a key for every way in which it matches, longest parts first.

        `a_1_2.jpg` matches `{}_*.jpg` with a_1 and with a. With several adjacent wildcards only the first MOST_WAYS
        ways are tried: their number grows with a power of the length of the name. The case of the suffix does not
        matter. If the pattern ends in `{}`, the whole name comes first, then the name without the suffix of a photo.
        """
        if self.pieces is None:
            return [(without_suffix(name),)]
        keys = self._whole_keys(name)
        if keys and self.pieces[-1] == "{}" and PurePosixPath(name).suffix.lower() in SUFFIXES:
            keys += [(*key[:-1], without_suffix(key[-1])) for key in keys]
        return keys

    def _whole_keys(self, name: str) -> list[Key]:
        assert self.pieces is not None
        greedy, lazy = _expressions(self.pieces)
        longest, shortest = greedy.fullmatch(name), lazy.fullmatch(name)
        if longest is None or shortest is None:
            return []
        if longest.groups() == shortest.groups():
            return [longest.groups()]
        found = {longest.groups(), *islice(_all_keys(name, self.pieces), MOST_WAYS)}
        return sorted(found, key=lambda key: ([-len(part) for part in key], key))


@lru_cache
def _expressions(pieces: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return two regular expressions of the pattern: with parts as long and as short as possible."""
    literals = [re.escape(piece) for piece in pieces]
    stem, dot, suffix = pieces[-1].rpartition(".")
    if dot and "/" not in suffix:
        literals[-1] = f"{re.escape(stem)}(?i:{re.escape(dot + suffix)})"
    greedy, lazy = (
        "".join(wild.get(piece) or literal for piece, literal in zip(pieces, literals, strict=True))
        for wild in (WILD, {"{}": "(.+?)", "*": "[^/]*?"})
    )
    return re.compile(greedy), re.compile(lazy)


def _all_keys(name: str, pieces: tuple[str, ...]) -> Iterator[Key]:
    """Yield the parts of every way in which a name matches, some of them more than once."""
    if not pieces:
        if not name:
            yield ()
        return
    piece, *rest = pieces
    if piece not in WILD:
        is_last = not rest
        if name.startswith(piece) or (is_last and name.lower() == piece.lower()):
            yield from _all_keys(name[len(piece) :], tuple(rest))
        return
    for length in _lengths(name, tuple(rest), least=1 if piece == "{}" else 0):
        part = name[:length]
        if piece == "*":
            if "/" in part:
                return
            yield from _all_keys(name[length:], tuple(rest))
        else:
            yield from ((part, *key) for key in _all_keys(name[length:], tuple(rest)))


def _lengths(name: str, rest: tuple[str, ...], *, least: int) -> Iterator[int]:
    """Yield the lengths that the match of a wildcard at the start of `name` may have, given the next piece."""
    if not rest:
        yield len(name)
    elif rest[0] in WILD:
        yield from range(least, len(name) + 1)
    elif len(rest) == 1:
        if len(name) - len(rest[0]) >= least:
            yield len(name) - len(rest[0])
    else:
        found = name.find(rest[0], least)
        while found >= 0:
            yield found
            found = name.find(rest[0], found + 1)


def without_suffix(name: str) -> str:
    """Return a file name without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))
