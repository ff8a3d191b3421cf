"""Makes a registered version the champion by hand: one that waits for approval, or any other."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipeline.runtime.entry_point import run_command
from pipeline.tracking import registry, runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Move the alias `champion` of one task to a version."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.approve", description=__doc__)
    parser.add_argument("--task", required=True, help="name of the registered model")
    parser.add_argument("--version", required=True, type=int, help="number of the version")
    args = parser.parse_args(arguments)
    with runs.connected():
        version = registry.version(args.task, args.version)
        with registry.exclusive(args.task):
            champion = registry.champion(args.task)
            if champion is not None and champion.number == version.number:
                print(f"{args.task}: version {version.number} is the champion already")
                return
            registry.set_champion(version, "approved by hand", champion)
    before = f", after version {champion.number}" if champion else ""
    print(f"{args.task}: version {version.number} is the champion{before}")


if __name__ == "__main__":
    run_command(main)
