"""Parse the degradation of params.yaml or of a shard index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from pipeline.degradations.compose import Degradation

_DEGRADATION: TypeAdapter[Degradation] = TypeAdapter(Annotated[Degradation, Field(discriminator="kind")])


def parse_degradation(content: Mapping[str, Any]) -> Degradation:
    """Return the degradation of a mapping from params.yaml or from the recipe of a shard index.

    Raises:
        pydantic.ValidationError: a field is missing, unknown, of a wrong type or out of its bounds.
    """
    return _DEGRADATION.validate_python(content)
