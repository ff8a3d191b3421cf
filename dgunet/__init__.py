"""DGUNet, deep generalized unfolding networks for image restoration: the face of the package.

Names are imported on first use, so that `dgunet --help` costs no import of torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dgunet.checkpoint import load_model
    from dgunet.network import DGUNet, DGUNetConfig
    from dgunet.restore import restore

__all__ = ["DGUNet", "DGUNetConfig", "load_model", "restore"]

_ROOMS = {
    "DGUNet": "dgunet.network",
    "DGUNetConfig": "dgunet.network",
    "load_model": "dgunet.checkpoint",
    "restore": "dgunet.restore",
}


class _Face(ModuleType):
    """The package's module type: `dgunet.restore` stays the function when its module of that name is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_ROOMS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
