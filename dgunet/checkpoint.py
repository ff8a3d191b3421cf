"""A model folder: model.safetensors (the weights) and config.json (sizes, task, provenance). Save, load.

config.json = {"model_type": "dgunet", "config": {the fields of DGUNetConfig}, "task": …, "provenance": …}
"""

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

from dgunet.network import DGUNet, DGUNetConfig
from dgunet.network.unfolding import in_channels_last

MODEL_TYPE = "dgunet"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "config.json"


def save_model(network: DGUNet, folder: str | Path, card: Mapping[str, Any]) -> None:
    """Write the network and its card (`task`, `provenance`: commit, data, metrics) into `folder`.

    The same network and card give the same bytes. A new folder appears complete or not at all; in one that is there,
    each file is replaced at once.

    Raises:
        ValueError: the card has a key of ours or something that JSON cannot hold, or the folder cannot be written.
    """
    folder = Path(folder)
    reserved = {"model_type", "config"} & set(card)
    if reserved:
        raise ValueError(f"card: {', '.join(sorted(reserved))} is written by save_model itself, leave it out")
    document = {"model_type": MODEL_TYPE, "config": asdict(network.config), **card}
    try:
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"card: not plain JSON ({error})") from error
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        save_file(weights, staging / WEIGHTS_FILE, metadata={"format": "pt"})
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
    """The whole config.json of a model folder.

    Raises:
        ValueError: the file is missing, no JSON, or not of a DGUNet.
    """
    path = Path(folder) / CARD_FILE
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{folder}: no model folder, {CARD_FILE} cannot be read ({error.strerror}); a model folder holds "
            f"{WEIGHTS_FILE} and {CARD_FILE}, as training and `dgunet import` write them"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(card, dict) or card.get("model_type") != MODEL_TYPE or not isinstance(card.get("config"), dict):
        raise ValueError(f'{path}: not of a DGUNet, it needs "model_type": "{MODEL_TYPE}" and "config": {{…}}')
    return card


def load_model(source: str | Path) -> DGUNet:
    """The network in a model folder, or in a registry (`models:/derain@champion`), on the CPU and in evaluation mode.

    Raises:
        ValueError: the folder lacks a file, a file is damaged, or weights and sizes disagree; the registry has no such.
        ConnectionError: the registry gives no answer. ImportError: it needs MLflow, which is not installed.
    """
    if isinstance(source, str) and source.startswith("models:/"):
        from dgunet.hub import pull  # MLflow is an optional dependency

        source = pull(source)
    folder = Path(source)
    config = _config(read_card(folder)["config"], folder / CARD_FILE)
    path = folder / WEIGHTS_FILE
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: the weights cannot be read ({error})") from error
    return build_network(config, weights, str(path))


def build_network(config: DGUNetConfig, weights: Mapping[str, Tensor], origin: str) -> DGUNet:
    """A network of these sizes that holds exactly these weights, in evaluation mode; draws no random numbers.

    Raises:
        ValueError: names or shapes disagree; `origin` says in the message where the weights come from.
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
    network.load_state_dict(dict(weights), assign=True)
    in_channels_last(network)
    return network.eval()


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
