"""DGUNet: deep generalized unfolding networks for image restoration.

The public names are imported on first use, so that `dgunet --help` and `dgunet.images` do not import torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dgunet.checkpoint import load_model
    from dgunet.config import DGUNetConfig
    from dgunet.inference import restore
    from dgunet.network import DGUNet

__all__ = ["DGUNet", "DGUNetConfig", "load_model", "restore"]

_MODULES = {
    "DGUNet": "dgunet.network",
    "DGUNetConfig": "dgunet.config",
    "load_model": "dgunet.checkpoint",
    "restore": "dgunet.inference",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
