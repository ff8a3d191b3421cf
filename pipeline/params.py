"""params.yaml, section by section: no defaults, no unknown keys, and errors that say where a value is wrong.

A door reads the sections it uses and imports no others, so that touching the code behind one section does not make the
results of another stale. `pipeline.mirror` is the whole file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML  # YAML 1.2, as DVC reads and writes it: PyYAML takes 1e-06 for a string
from ruamel.yaml.error import YAMLError

from pipeline.degradations import Degradation

PARAMS_FILE = Path("params.yaml")

Fraction = Annotated[float, Field(ge=0, lt=1)]


class ParamsError(ValueError):
    """params.yaml is not what it must be; one line per mistake."""


class Section(BaseModel):
    """A mapping of params.yaml: every key is required, none may be added, nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Synthesize(Section):
    """How pairs are made from photographs; lengths in pixels.

    Tiles of the train split may overlap (`stride`); those of val and test, `held_out_tile_size` wide, overlap only
    where the image's side is no multiple.

    online: shards hold the clean tile alone and the loader degrades it anew each epoch (needed where the
    degradation must not be quantised, such as Gaussian noise). `copies` is then 1.
    real_pairs: which of the `prepare.sources` of kind `pairs` this task is made of, each by its `clean`, the degraded
    images as they came; `degradation` is then `none`. Empty: every clean image there is, degraded by `degradation`.
    """

    degradation: Annotated[Degradation, Field(discriminator="kind")]
    real_pairs: list[str]
    channels: Literal[1, 3]
    tile_size: Annotated[int, Field(ge=16)]
    stride: PositiveInt
    held_out_tile_size: Annotated[int, Field(ge=16)]
    copies: PositiveInt
    online: bool
    tiles_per_shard: PositiveInt

    @model_validator(mode="after")
    def _real_pairs_are_taken_as_they_came(self) -> Synthesize:
        if self.real_pairs and (self.degradation.kind != "none" or self.copies != 1):
            raise ValueError("real_pairs are taken as they came: set degradation to {kind: none} and copies to 1")
        return self

    @model_validator(mode="after")
    def _copies_differ(self) -> Synthesize:
        if self.online and self.copies != 1:
            raise ValueError(
                f"copies must be 1 where online is true, not {self.copies}: the loader degrades anew each epoch, "
                "and shards would hold the same tile so many times"
            )
        return self


class Network(Section):
    """Sizes of the DGUNet, as `dgunet.DGUNetConfig` (image channels follow from `synthesize.channels`)."""

    width: PositiveInt
    growth: Annotated[int, Field(ge=0)]
    head_growth: Annotated[int, Field(ge=0)]
    num_stages: Annotated[int, Field(ge=2)]
    share_stages: bool
    sensing_ratio_percent: Annotated[float, Field(gt=0, le=100)] | None
    full_image: bool


class Compute(Section):
    """How a training step is computed: its speed and memory, its result but for rounding.

    precision: `bfloat16` is autocast where the device has units for it, float32 elsewhere.
    accumulate: a worker's share of the batch goes through the network in so many parts: less memory, the same step.
    recompute_activations: those inside of a stage are computed again in the backward pass instead of kept (activation
        checkpointing, Chen et al. 2016): memory of one stage instead of all, for a second forward pass.
    compile: by torch.compile; needs a C++ compiler, on a GPU Triton, and some minutes at the start.
    """

    precision: Literal["float32", "bfloat16"]
    accumulate: PositiveInt
    recompute_activations: bool
    compile: bool


class Train(Section):
    """The recipe; `batch_size` is global, each worker's share is derived.

    mixup_alpha: each pair becomes w·itself + (1 − w)·another of its batch, w ~ Beta(α, α) (Zhang et al., ICLR 2018);
    0 does not mix.
    """

    network: Network
    loss: Literal["charbonnier", "charbonnier_edge", "charbonnier_clamped", "mse_clamped"]
    mixup_alpha: Annotated[float, Field(ge=0)]
    patch_size: Annotated[int, Field(ge=16)]
    batch_size: PositiveInt
    num_steps: PositiveInt
    warmup_steps: Annotated[int, Field(ge=0)]
    learning_rate: PositiveFloat
    final_learning_rate: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0)]
    gradient_clip: PositiveFloat
    average_decay: Fraction
    validate_every: PositiveInt
    max_skipped_steps: Annotated[int, Field(ge=0)]
    compute: Compute

    @model_validator(mode="after")
    def _schedule_fits(self) -> Train:
        if self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be smaller than num_steps ({self.num_steps})")
        if self.final_learning_rate > self.learning_rate:
            raise ValueError("final_learning_rate must not exceed learning_rate")
        return self


class Promote(Section):
    """What a candidate must show; margins in dB of mean PSNR on the test split."""

    margin_db: Annotated[float, Field(ge=0)]


Kind = TypeVar("Kind")
_DEGRADATION: TypeAdapter[Degradation] = TypeAdapter(Annotated[Degradation, Field(discriminator="kind")])


def read_params(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """Return params.yaml as it stands; ParamsError when it is missing or no mapping."""
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing: run from the root of the checkout") from None
    except YAMLError as error:
        raise ParamsError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ParamsError(f"{path} must be a mapping of sections")
    return content


def load_section(name: str, kind: type[Kind], path: Path = PARAMS_FILE) -> Kind:
    """Return the value at the dotted `name` ("derain.train", "seed") of params.yaml, as a `kind`.

    Raises ParamsError with one line per mistake, each with its place and what is allowed.
    """
    value: Any = read_params(path)
    for depth, part in enumerate(parts := name.split(".")):
        if not isinstance(value, dict) or part not in value:
            there = ", ".join(map(str, value)) if isinstance(value, dict) else repr(value)
            place = ".".join(parts[:depth]) or str(path)
            raise ParamsError(f"{place} has no `{part}`; there is: {there}")
        value = value[part]
    return validated(value, kind, name)


def validated(value: Any, kind: type[Kind], name: str = "") -> Kind:
    """Return `value` as a `kind`; ParamsError names each wrong place below `name`."""
    try:
        result: Kind = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        mistakes = [_mistake(name, dict(mistake)) for mistake in error.errors(include_url=False)]
        raise ParamsError("\n".join(dict.fromkeys(mistakes))) from None
    return result


def _mistake(name: str, mistake: Mapping[str, Any]) -> str:
    place = ".".join(filter(None, (name, *map(str, mistake["loc"]))))
    if mistake["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{place}: no such key; check the spelling, or remove it"
    if mistake["type"] in ("missing", "missing_argument"):
        return f"{place}: missing"
    what = mistake["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{place}: {what}, not {mistake['input']!r}" if what.startswith("should") else f"{place}: {what}"


def parse_degradation(content: Mapping[str, Any]) -> Degradation:
    """Return the degradation that a mapping of params.yaml, or the recipe of a folder of shards, describes."""
    return _DEGRADATION.validate_python(content)
