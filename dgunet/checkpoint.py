"""Save and load a model folder: model.safetensors (the weights) and config.json (sizes, task, provenance).

config.json = {"model_type": "dgunet", "config": {the fields of DGUNetConfig}, "statistics": {those of LocalStatistics},
"weights_sha256": that of model.safetensors, "task": …, "provenance": …}; `statistics` is left out where all are of the
whole image. Folders without `weights_sha256`, as older versions wrote them, are read too.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dgunet.config import CARD_FILE, WEIGHTS_FILE, LocalStatistics
from dgunet.network import DGUNet, DGUNetConfig
from dgunet.network.unfolding import in_channels_last

MODEL_TYPE = "dgunet"
WRITTEN_KEYS = ("model_type", "config", "statistics", "weights_sha256")  # of config.json, by `save_model` itself


def save_model(network: DGUNet, folder: str | Path, card: Mapping[str, Any]) -> None:
    """Write the network and its card into a model folder. The same network and card give the same bytes.

    Args:
        network: its weights, sizes and local statistics are written.
        folder: a new folder is written as a whole; in an existing one each file is replaced as a whole.
        card: further content of config.json: `task`, and `provenance` with commit, data and metrics.

    Raises:
        ValueError: the card has a key that save_model writes itself, or a value that JSON cannot hold; or the folder
            cannot be written.
    """
    folder = Path(folder)
    reserved = set(WRITTEN_KEYS) & set(card)
    if reserved:
        raise ValueError(f"card: {', '.join(sorted(reserved))} is written by save_model itself; leave it out")
    local = {} if network.local_statistics is None else {"statistics": asdict(network.local_statistics)}
    document = {"model_type": MODEL_TYPE, "config": asdict(network.config), **local, **card}
    try:
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"card: JSON cannot hold it ({error})") from error
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        save_file(weights, staging / WEIGHTS_FILE, metadata={"format": "pt"})
        document["weights_sha256"] = _sha256(staging / WEIGHTS_FILE)
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (staging / CARD_FILE).write_text(text, encoding="utf-8")
        if folder.is_dir():
            for name in (WEIGHTS_FILE, CARD_FILE):
                (staging / name).replace(folder / name)
        else:
            staging.replace(folder)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: the model could not be written ({error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_card(folder: str | Path) -> dict[str, Any]:
    """Return the content of config.json of a model folder.

    Raises:
        ValueError: the file is missing, not valid JSON, or not of a DGUNet.
    """
    path = Path(folder) / CARD_FILE
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{folder}: not a model folder, {CARD_FILE} cannot be read ({error.strerror}). Training or `dgunet import` "
            f"write model folders, with {WEIGHTS_FILE} and {CARD_FILE}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(card, dict) or card.get("model_type") != MODEL_TYPE or not isinstance(card.get("config"), dict):
        raise ValueError(
            f'{path}: not the card of a DGUNet, which has "model_type": "{MODEL_TYPE}" and "config": {{…}}'
        )
    return card


def load_model(source: str | Path) -> DGUNet:
    """Load a network from a model folder or an address, on the CPU and in evaluation mode.

    Args:
        source: a model folder, or an address such as `models:/derain@champion`; `dgunet.hub.model_folder` lists the
            forms.

    Raises:
        ValueError: a file is missing or damaged, the weights are not those that config.json describes, weights and
            sizes do not fit, or there is no model at the address.
        ImportError: `source` is an address, and the package that reads it is not installed.
    """
    is_fetched = isinstance(source, str) and ("://" in source or source.startswith("models:/"))
    if is_fetched:
        from dgunet.hub import model_folder  # training and measuring do not depend on where models are fetched from

        source = model_folder(source)
    folder = Path(source)
    card = read_card(folder)
    config = _config(card["config"], folder / CARD_FILE)
    local = _local_statistics(card.get("statistics"), folder / CARD_FILE)
    path = folder / WEIGHTS_FILE
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: the weights cannot be read ({error})") from error
    declared = card.get("weights_sha256")
    if declared is not None and declared != _sha256(path):
        remedy = "remove the folder, so that it is fetched again" if is_fetched else "write the folder again"
        raise ValueError(f"{path}: not the weights that {CARD_FILE} was written for, their sha256 differs; {remedy}")
    network = build_network(config, weights, str(path))
    network.local_statistics = local
    return network


def build_network(config: DGUNetConfig, weights: Mapping[str, Tensor], origin: str) -> DGUNet:
    """Return a network of these sizes with these weights, in evaluation mode; uses no random numbers.

    Args:
        config: the sizes.
        weights: a state dict with all names and no others.
        origin: where the weights come from, for the error message.

    Raises:
        ValueError: names or shapes do not fit, and the message lists all of them; or weights are not finite.
    """
    with torch.device("meta"):
        network = DGUNet(config)
    expected = network.state_dict()
    faults = [f"missing {name}" for name in expected if name not in weights]
    faults += [f"unexpected {name}" for name in weights if name not in expected]
    faults += [
        f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if faults:
        raise ValueError(f"{origin}: the weights do not fit the sizes in {CARD_FILE}:\n  " + "\n  ".join(faults))
    not_finite = [name for name, tensor in weights.items() if not (tensor.is_meta or torch.isfinite(tensor).all())]
    if not_finite:
        more = f" and {len(not_finite) - 1} more" if len(not_finite) > 1 else ""
        raise ValueError(
            f"{origin}: weights that are infinite or not numbers, as after training that diverged: "
            f"{not_finite[0]}{more}"
        )
    network.load_state_dict(dict(weights), assign=True)
    in_channels_last(network)
    return network.eval()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config(values: Mapping[str, Any], path: Path) -> DGUNetConfig:
    unknown = set(values) - {field.name for field in fields(DGUNetConfig)}
    if unknown:
        raise ValueError(f"{path}: unknown field {', '.join(sorted(unknown))} in config")
    missing = {field.name for field in fields(DGUNetConfig)} - set(values)
    if missing:
        raise ValueError(f"{path}: config lacks {', '.join(sorted(missing))}")
    try:
        return DGUNetConfig(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _local_statistics(values: Any, path: Path) -> LocalStatistics | None:
    if values is None:
        return None
    if not isinstance(values, dict) or set(values) != {"window", "of"} or not isinstance(values["of"], list):
        raise ValueError(f'{path}: statistics must be {{"window": pixels, "of": [kinds]}}, is {values!r}')
    try:
        return LocalStatistics(values["window"], tuple(values["of"]))
    except ValueError as error:
        raise ValueError(f"{path}: statistics: {error}") from error
