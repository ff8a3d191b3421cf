"""The section `promote` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.params import Section


class Promote(Section):
    """By how much a candidate must beat the champion, in dB of mean PSNR on the test split."""

    margin_db: Annotated[float, Field(ge=0)]
