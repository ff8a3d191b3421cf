"""The section `promote` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.params import Section


class Promote(Section):
    """When a candidate becomes the champion.

    Attributes:
        margin_db: what the lower bound of its gain over the champion must exceed, in dB of mean PSNR on the test split.
        min_scenes: with fewer test photographs no candidate replaces a champion by itself; at least 2, for an interval.
        require_approval: a candidate that passes waits as `challenger` until `make approve`.
    """

    margin_db: Annotated[float, Field(ge=0)]
    min_scenes: Annotated[int, Field(ge=2)]
    require_approval: bool
