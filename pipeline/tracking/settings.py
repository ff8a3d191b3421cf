"""The section `promote` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.params import Section


class Promote(Section):
    """When a candidate becomes the champion.

    Attributes:
        margin_db: by how much it must beat the champion, in dB of mean PSNR on the test split.
        require_approval: a candidate that does waits as `challenger` until `make approve`.
    """

    margin_db: Annotated[float, Field(ge=0)]
    require_approval: bool
