"""Result of one trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """Result of one trial; `best_psnr` in dB on the val split, nan if it reported nothing.

    outcome: finished; stopped (by successive halving, or at the end of the time budget); diverged; failed.
    """

    number: int
    id: str
    values: dict[str, Any]
    outcome: str
    best_psnr: float
    steps: int
    seconds: float
    failure: str
