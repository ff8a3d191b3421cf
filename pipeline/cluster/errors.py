"""Errors of training runs."""

from __future__ import annotations


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, has saved a checkpoint, and can go on from there."""


class WorkersLost(OSError):
    """Workers died or hung more often than a run survives; its last checkpoint is kept."""


class StorageLost(OSError):
    """Checkpoints could not be stored, or shards not be read, for longer than a run waits."""


def storage_lost(meaning: str, error: OSError, waited: float) -> StorageLost:
    """Return the error to raise when a storage could not be used for `waited` seconds."""
    return StorageLost(
        f"{meaning}, tried for {waited:.0f} s: {error}. What was done up to the last checkpoint is kept: the same "
        "command goes on from there"
    )
