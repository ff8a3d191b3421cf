"""How the OpenMP threads of PyTorch wait for each other."""

from __future__ import annotations

from collections.abc import Mapping

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def thread_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return variables to set before a computing process starts; none if the user has set one of VARIABLES.

    By default a thread that waits for another keeps its core busy. If other processes use the machine, the other thread
    may have no core, and a training step takes several times as long. OpenMP reads the variables when torch is loaded.
    """
    return {} if any(name in environ for name in VARIABLES) else {"OMP_WAIT_POLICY": "passive"}
