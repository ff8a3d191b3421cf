"""Read checkpoint files of many forms, and find the weights in them; no code that a file may hold is run."""

import argparse
import codecs
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

MOST_LISTED = 5  # names in a message
_FIRST_LAYERS = ("shallow_feat1.0.weight", "stage1_encoder.body.0.conv_1.weight")  # of every published network
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_MAX_DEPTH = 4
_SIGNATURES = {
    b"version https://git-lfs": "a pointer of Git LFS instead of the file; fetch it with `git lfs pull`",
    b"\x93NUMPY": "a NumPy array; a checkpoint written by torch.save or a safetensors file is needed",
    b"\x89HDF": "an HDF5 file, as Keras writes; a checkpoint written by torch.save is needed",
    b"\x1f\x8b": "compressed with gzip; unpack it and import the file in it",
    b"BZh": "compressed with bzip2; unpack it and import the file in it",
    b"\xfd7zXZ": "compressed with xz; unpack it and import the file in it",
    b"7z\xbc\xaf": "a 7z archive; unpack it and import the checkpoint in it",
    b"Rar!": "a RAR archive; unpack it and import the checkpoint in it",
}


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Return what torch.save or safetensors wrote into a file.

    Raises:
        ValueError: with the path: the file cannot be read, is of another kind, or holds objects other than weights and
            plain values.
    """
    try:
        kind = _foreign_kind(path)
        if kind is not None:
            raise ValueError(kind)
        checkpoint = _load_safetensors(path) if _is_safetensors(path) else _load_torch(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path}: holds a {type(checkpoint).__name__} instead of a state dict")
    return checkpoint


def _load_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_harmless_types()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"refused, as it is damaged or holds objects other than weights{_classes(path)}; loading those could run "
            "code. If you trust it, load it in Python, save its state_dict() with torch.save, and import that file"
        ) from error
    except Exception as error:  # torch raises many types for damaged files; no code of the file has run
        if "TorchScript" in str(error):
            raise ValueError("a TorchScript program; import the checkpoint that it was made from") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"torch cannot read this checkpoint ({reason[:200]})") from error


def _harmless_types() -> list[Any]:
    """Return types that checkpoints hold beside weights (metrics, arguments) and that run no code when loaded."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined] # written by pickle, has no public name
    dtypes = [type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")]
    paths = [pathlib.PosixPath, pathlib.PurePosixPath]
    return [argparse.Namespace, *paths, *dtypes, np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar")]


def _classes(path: Path) -> str:
    """Return the names of the classes for which torch refuses a file, "" if it cannot say."""
    try:
        with torch.serialization.safe_globals(_harmless_types()):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # damaged, or written by an old torch
        return ""
    return f" ({few(names)})" if names else ""


def _is_safetensors(path: Path) -> bool:
    """Whether the file starts with the length of a header and the header."""
    with path.open("rb") as file:
        length, brace = file.read(8), file.read(1)
    return brace == b"{" and int.from_bytes(length, "little") <= path.stat().st_size - 8


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"a damaged safetensors file ({error})") from error


def _foreign_kind(path: Path) -> str | None:
    """Return why a file cannot be a checkpoint, and what to do; None if it may be one. Raises OSError."""
    if path.is_dir():
        return "a folder; give the checkpoint file. A model folder with config.json needs no import"
    if path.exists() and not path.is_file():
        return "not a regular file"
    with path.open("rb") as file:
        start = file.read(1024)
    if start.startswith(b"PK"):
        return _kind_of_zip(path)
    if path.suffix.lower() == ".onnx" or (start.startswith(b"\x08") and b"pytorch" in start[:64]):
        return "an ONNX model; import the checkpoint that it was made from"
    return _kind_by_content(start)


def _kind_by_content(start: bytes) -> str | None:
    if not start:
        return "an empty file; fetch it again"
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature):
            return kind
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # accepts an incomplete character at the end
    except UnicodeDecodeError:
        return None
    if re.match(r"\s*<(!doctype|html|\?xml)", text, re.IGNORECASE):
        return "a web page instead of the file, as servers send to ask for a login or a confirmation; fetch it again"
    is_text = text.translate({ord(character): None for character in "\n\r\t\ufeff"}).isprintable()
    return "a text file; a checkpoint written by torch.save or a safetensors file is needed" if is_text else None


def _kind_of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "incomplete or damaged: its end is missing; fetch it again"
    files = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in files:
        return "a TorchScript program; import the checkpoint that it was made from"
    if "data.pkl" in files:
        return None
    if files and all(name.endswith(".npy") for name in files):
        return "NumPy arrays (npz); a checkpoint written by torch.save or a safetensors file is needed"
    return f"a zip archive of other files ({few(names)}); unpack it and import the checkpoint in it"


def find_weights(checkpoint: Mapping[str, Any], key: str | None) -> dict[str, Tensor]:
    """Return the weights of the network in a checkpoint, without prefixes of their names.

    They are found by the names of the network's first layers. Args and errors as `published.from_state_dict`.
    """
    found = dict(_find_weights(checkpoint, ()))
    if key is not None:
        chosen = [label for label in found if label == key or label.startswith(f"{key}.")]
        if len(chosen) != 1:
            raise ValueError(f"published state dict: no weights under {key}; available: {_labels(found)}")
    elif len(found) > 1:
        raise ValueError(
            f"published state dict: several sets of weights: {_labels(found)}; choose one with --key, "
            f"such as --key {min(found, key=_preference)}"
        )
    else:
        chosen = list(found)
    bare = found[chosen[0]] if chosen else _most_tensors(checkpoint)
    wrong = [name for name, value in bare.items() if not _is_dense_float(value)]
    if wrong:
        raise ValueError(f"published state dict: not floating-point tensors, or sparse: {few(wrong)}")
    return bare


def _is_dense_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided


def _labels(found: Mapping[str, Any]) -> str:
    return few([label or '""' for label in found]) or "none"


def _preference(label: str) -> tuple[bool, str]:
    """Return a sort key: averaged weights first, because published results were measured with them."""
    return "ema" not in label.lower(), label


def _find_weights(mapping: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each set of weights at any depth with its label: its keys and the prefix of its names, joined by dots."""
    entries = _unwrapped(mapping)
    prefixes = {
        name.removesuffix(first)
        for name in entries
        for first in _FIRST_LAYERS
        if name == first or name.endswith(f".{first}")
    }
    for prefix in sorted(prefixes):
        others = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        names = [name for name in entries if name.startswith(prefix) and not (others and name.startswith(others))]
        label = ".".join([*keys, *([prefix.rstrip(".")] if prefix else [])])
        yield label, {name.removeprefix(prefix): entries[name] for name in names}
    if len(keys) < _MAX_DEPTH:
        for name, value in mapping.items():
            if isinstance(value, Mapping):
                yield from _find_weights(value, (*keys, str(name)))


def _unwrapped(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries without the names of torch's wrappers, which may stand anywhere in a name."""
    entries = {str(name): value for name, value in mapping.items()}
    short = {_WRAPPERS.sub("", name): value for name, value in entries.items()}
    return short if len(short) == len(entries) else entries


def _most_tensors(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping with the most tensors, for an error that says what is missing in it. Raises ValueError."""

    def mappings(mapping: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
        yield mapping
        for value in mapping.values() if depth < _MAX_DEPTH else ():
            if isinstance(value, Mapping):
                yield from mappings(value, depth + 1)

    def num_tensors(mapping: Mapping[str, Any]) -> int:
        return sum(isinstance(value, Tensor) for value in mapping.values())

    best = max(mappings(checkpoint, 0), key=num_tensors)
    if num_tensors(best) == 0:
        kinds = [f"{name} ({type(value).__name__})" for name, value in checkpoint.items()]
        raise ValueError(f"published state dict: {'no tensors, but ' + few(kinds) if kinds else 'empty'}")
    return _unwrapped(best)


def few(names: Iterable[str], most: int = MOST_LISTED) -> str:
    """Return the names for a message, such as "a, b and 7 more"."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
