"""Errors of training runs."""

from __future__ import annotations


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop. It has saved a checkpoint and can continue from it."""


class WorkersLost(OSError):
    """Workers died or hung more often than a run survives. The last checkpoint is kept."""


class StorageLost(OSError):
    """Checkpoints could not be stored or shards not read: at the start, on a stop, or for longer than a run waits."""


def storage_lost(meaning: str, error: OSError, waited: float) -> StorageLost:
    """Return the error to raise if a storage could not be used.

    Args:
        meaning: what failed, for the message.
        error: the last error.
        waited: seconds for which it was tried.
    """
    return StorageLost(
        f"{meaning}, tried for {waited:.0f} s: {error}. The last checkpoint is kept: the same command continues from it"
    )
