"""Import state dicts of the published code, in the forms in which they are saved: every name and shape must match.

Published names of the blind family count Φ, Φᵀ and ρ from 0, and the other parts from 1. For any K, they call a shared
stage stage 2 and the last stage after it stage 7. Those of the sensing family count the stages between the first and
the last from 0. Tensors that the published network never uses are required in the file, and ignored.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgunet.checkpoint import build_network
from dgunet.config import BLOCK_SIZE, DGUNetConfig
from dgunet.foreign_checkpoints import MOST_LISTED, few, find_weights, read_checkpoint
from dgunet.network import DGUNet
from dgunet.network.gradient import OPERATOR_WIDTH
from dgunet.network.proximal import NUM_LEVELS

PUBLISHED_NUM_STAGES = 7
SENSING_NAMES = ("Phi", "body.", "stage_model.", "r_final", "concat_final", "shallow_feat_final")
UNUSED_OPERATOR_CHANNELS = 3  # of the sensing family's unused `phi` and `phit`, although its images have one
Shape = tuple[int, ...]


def from_state_dict(
    state_dict: Mapping[str, Any], *, num_stages: int | None = None, full_image: bool = True, key: str | None = None
) -> DGUNet:
    """Return the network of a published checkpoint: on the CPU, in float32 and in evaluation mode.

    Family, sizes and sharing of stages follow from names and shapes. The number of uses of a shared stage and
    `full_image` do not.

    The weights may lie below keys (`state_dict`, `params_ema`, `model`, ...) and their names behind prefixes
    (`module.`, `_orig_mod.`, `model.`, ...), in any combination: they are found by the names of the network's first
    layers. What lies beside them, such as an optimizer or the weights of a loss, is ignored.

    Args:
        state_dict: a state dict, or a mapping that holds one.
        num_stages: K; None: from the names, or the published 7 with a shared stage.
        full_image: sensing only: False for a network that restores every 32×32 block on its own.
        key: which weights, where there are several sets, such as "params_ema" (averaged) beside "params".

    Raises:
        ValueError: there are no weights of a DGUNet, or several sets and no `key`, or names or shapes do not match; the
            message lists missing, unexpected and misshapen names.
    """
    tensors = find_weights(state_dict, key)
    config = _config(tensors, num_stages, full_image)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in DGUNet(config).state_dict().items()}
    modules = _modules(config)
    names = {name: _published_name(name, modules) for name in expected}
    _check_names(tensors, {names[name]: shape for name, shape in expected.items()} | _unused(config))
    # Copies, as published modules share some scalars, and the caller keeps its tensors.
    weights = {name: tensors[names[name]].detach().to(torch.float32, copy=True) for name in expected}
    return build_network(config, weights, "published state dict")


def load(path: str | Path, *, num_stages: int | None = None, full_image: bool = True, key: str | None = None) -> DGUNet:
    """Load a published checkpoint file without running code that it may hold.

    Args:
        path: a file written by torch.save, or a safetensors file.
        num_stages: as `from_state_dict`.
        full_image: as `from_state_dict`.
        key: as `from_state_dict`.

    Raises:
        ValueError: the file cannot be read, holds objects other than weights, or does not match; with its name.
    """
    checkpoint = read_checkpoint(Path(path))
    try:
        return from_state_dict(checkpoint, num_stages=num_stages, full_image=full_image, key=key)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _config(tensors: Mapping[str, Tensor], num_stages: int | None, full_image: bool) -> DGUNetConfig:
    sensing = any(name.startswith(SENSING_NAMES) for name in tensors)
    shared = any(name.startswith(("basic.", "stage_model.")) for name in tensors)
    required = {"shallow_feat1.0.weight": 4, "stage1_encoder.body.0.conv_1.weight": 4}
    head = "concat_final.weight" if sensing else "concat67.weight" if shared else None
    required |= ({head: 4} if head else {}) | ({"Phi": 2} if sensing else {})
    absent = [name for name, axes in required.items() if name not in tensors or tensors[name].dim() != axes]
    if absent:
        raise ValueError(
            "published state dict: not of a DGUNet, or incomplete; its sizes are unknown.\n"
            f"  missing or misshapen: {', '.join(absent)}\n  found: {few(tensors)}"
        )
    if shared:
        if num_stages is not None and num_stages < 3:
            raise ValueError(f"num_stages: must be at least 3 with a shared stage, is {num_stages}")
        num_stages = num_stages or PUBLISHED_NUM_STAGES
    else:
        num_named = _num_separate_stages(tensors, sensing)
        if num_stages not in (None, num_named):
            raise ValueError(f"num_stages: the state dict has {num_named} stages, not {num_stages}")
        num_stages = num_named
    width, image_channels = tensors["shallow_feat1.0.weight"].shape[:2]
    return DGUNetConfig(
        image_channels=image_channels,
        width=width,
        growth=tensors["stage1_encoder.body.0.conv_1.weight"].shape[0] - width,
        head_growth=tensors[head].shape[0] - width if head else 0,
        num_stages=num_stages,
        share_stages=shared,
        sensing_ratio_percent=_ratio_percent(tensors["Phi"].shape[0]) if sensing else None,
        full_image=full_image,
    )


def _num_separate_stages(tensors: Mapping[str, Tensor], sensing: bool) -> int:
    pattern = re.compile(r"body\.(\d+)\." if sensing else r"shallow_feat(\d+)\.")
    numbers = [int(match[1]) for name in tensors if (match := pattern.match(name))]
    # The sensing family numbers, from 0, only the stages between the first and the last.
    return max(numbers, default=-1) + 3 if sensing else max(2, *numbers)


def _ratio_percent(num_measurements: int) -> int | float:
    whole = num_measurements * 100 // BLOCK_SIZE**2
    if whole and math.ceil(whole * BLOCK_SIZE**2 / 100) == num_measurements:
        return whole
    return num_measurements * 100 / BLOCK_SIZE**2


def _stages(config: DGUNetConfig) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name of each stage, and the published names of its parts."""

    def blind(number: int, prefix: str = "") -> dict[str, str]:
        return {
            "step_size": f"{prefix}r{number - 1}",
            "degrade": f"{prefix}phi_{number - 1}",
            "adjoint": f"{prefix}phit_{number - 1}",
            "shallow": f"{prefix}shallow_feat{number}",
            "merge": f"{prefix}merge{number - 1}{number}",
            "encoder": f"{prefix}stage{number}_encoder",
            "decoder": f"{prefix}stage{number}_decoder",
            "end": f"{prefix}sam{number}{number + 1}",
        }

    def sensing(prefix: str) -> dict[str, str]:
        roles = ("shallow", "shallow_feat"), ("encoder", "stage_encoder"), ("decoder", "stage_decoder"), ("end", "sam")
        return {role: prefix + name for role, name in (("step_size", "r"), *roles, ("merge", "concat"))}

    num_between = 1 if config.share_stages else config.num_stages - 2
    if config.sensing_ratio_percent is not None:
        yield "first", blind(1)
        for index in range(num_between):
            yield f"between.{index}", sensing("stage_model." if config.share_stages else f"body.{index}.")
        yield "last", {"step_size": "r_final", "shallow": "shallow_feat_final", "merge": "concat_final"}
        return
    yield "first", blind(1)
    if config.share_stages:
        yield "between.0", blind(2, "basic.")
        yield "last", blind(PUBLISHED_NUM_STAGES) | {"merge": "concat67"}
        return
    for index in range(num_between):
        yield f"between.{index}", blind(index + 2)
    yield "last", blind(config.num_stages)


def _modules(config: DGUNetConfig) -> dict[str, str]:
    """Return the published name of each module, step size and Φ; some may not be part of this network."""
    found = {"sensing.matrix": "Phi", "last.tail": "tail"}
    for stage, parts in _stages(config):
        found[f"{stage}.gradient.step_size"] = parts["step_size"]
        for operator in {"degrade", "adjoint"} & set(parts):
            found |= _sequence(f"{stage}.gradient.learned.{operator}", f"{parts[operator]}.body")
        proximal = stage if stage == "last" else f"{stage}.proximal"
        found[f"{proximal}.shallow.embed"] = f"{parts['shallow']}.0"
        found |= _sequence(f"{proximal}.shallow.attention", f"{parts['shallow']}.1.body")
        found[f"{proximal}.shallow.attention.squeeze"] = f"{parts['shallow']}.1.CA.conv_du.0"
        found[f"{proximal}.shallow.attention.excite"] = f"{parts['shallow']}.1.CA.conv_du.2"
        subspace = parts["merge"].rpartition(".")[2].startswith("merge")
        found[f"{proximal}.merge.conv"] = parts["merge"] + (".conv_block" if subspace else "")
        found[f"{proximal}.merge.basis"] = f"{parts['merge']}.subnet"
        if stage != "last":
            found |= _encoder(f"{proximal}.encoder", f"{parts['encoder']}.body")
            found |= _decoder(f"{proximal}.decoder", parts["decoder"])
            for name, published in (("attend", "conv1"), ("correct", "conv2"), ("gate", "conv3")):
                found[f"{proximal}.end.{name}"] = f"{parts['end']}.{published}"
    return found


def _sequence(module: str, published: str) -> dict[str, str]:
    names = ("conv1", "activation", "conv2")
    return {f"{module}.{name}": f"{published}.{index}" for index, name in enumerate(names)}


def _block(module: str, published: str) -> dict[str, str]:
    names = {"conv1": "conv_1", "norm": "norm", "conv2": "conv_2", "shortcut": "identity"}
    return {f"{module}.{name}": f"{published}.{part}" for name, part in names.items()}


def _encoder(module: str, published: str) -> dict[str, str]:
    found = _block(f"{module}.bottom", f"{published}.{NUM_LEVELS}")
    fusion = {"from_encoder": "csff_enc", "from_decoder": "csff_dec", "gate": "phi", "shift": "gamma"}
    for level in range(NUM_LEVELS):
        found |= _block(f"{module}.levels.{level}", f"{published}.{level}")
        found[f"{module}.downsamples.{level}"] = f"{published}.{level}.downsample"
        found |= {f"{module}.fusions.{level}.{name}": f"{published}.{level}.{part}" for name, part in fusion.items()}
    return found


def _decoder(module: str, published: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for level in range(NUM_LEVELS):
        found |= _block(f"{module}.levels.{level}", f"{published}.body.{level}.conv_block")
        found[f"{module}.upsamples.{level}"] = f"{published}.body.{level}.up"
        found[f"{module}.skips.{level}"] = f"{published}.skip_conv.{level}"
    return found


def _published_name(name: str, modules: Mapping[str, str]) -> str:
    """Return the published name of a tensor."""
    if name in modules:
        return modules[name]
    module, _, leaf = name.rpartition(".")
    return f"{modules[module]}.{leaf}"


def _unused(config: DGUNetConfig) -> dict[str, Shape]:
    """Return names and shapes of tensors that the published network holds and never uses."""
    if config.sensing_ratio_percent is None:
        return {"basic.concat12.weight": (config.width, 2 * config.width, 3, 3)} if config.share_stages else {}
    found: dict[str, Shape] = {}
    channels, hidden = UNUSED_OPERATOR_CHANNELS, OPERATOR_WIDTH
    for stage, parts in _stages(config):
        if stage.startswith("between"):
            prefix = parts["step_size"].removesuffix("r")
            for operator in ("phi", "phit"):
                at = f"{prefix}{operator}.body"
                found |= {f"{at}.0.weight": (hidden, channels, 3, 3), f"{at}.0.bias": (hidden,), f"{at}.1.weight": (1,)}
                found |= {f"{at}.2.weight": (channels, hidden, 3, 3), f"{at}.2.bias": (channels,)}
    for level in range(NUM_LEVELS):
        narrow, wide = (config.width + step * config.growth for step in (level, level + 1))
        for name, inputs in (("csff_enc", wide), ("csff_dec", narrow)):
            at = f"stage1_encoder.body.{level}.{name}"
            found |= {f"{at}.weight": (wide, inputs, 3, 3), f"{at}.bias": (wide,)}
    return found


def _check_names(tensors: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> None:
    faults = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "wrong shape": [
            f"{name} is {tuple(tensors[name].shape)}, must be {shape}"
            for name, shape in expected.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ],
    }
    lines = []
    for fault, names in faults.items():
        lines += [f"{fault}: {name}" for name in names[:MOST_LISTED]]
        lines += [f"{fault}: {len(names) - MOST_LISTED} more"] if len(names) > MOST_LISTED else []
    if lines:
        raise ValueError("published state dict: does not match a DGUNet.\n  " + "\n  ".join(lines))
