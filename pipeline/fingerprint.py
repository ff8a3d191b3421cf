"""What a result depends on, as one short name: so that a run is resumed only by its equal.

DVC knows which results are stale; it does not know which half-finished work may be continued. That is this.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
PACKAGES = ("dgunet", "pipeline")


def fingerprint(*parts: Any) -> str:
    """Return 16 hexadecimal digits of the sha256 over JSON-able `parts` and the project's code loaded so far."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for path in loaded_code():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def loaded_code() -> list[Path]:
    """List the project's own files among the loaded modules, sorted: the door that runs and all it imported."""
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] in (*PACKAGES, "__main__")]
    files = {Path(file) for module in modules if (file := getattr(module, "__file__", None))}
    return sorted(file for file in files if file.is_relative_to(PROJECT) and file.parent.name != "tests")
