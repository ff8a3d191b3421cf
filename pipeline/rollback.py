"""Makes the previous champion of a task the champion again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipeline.runtime.entry_point import run_command
from pipeline.tracking import registry, runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Swap the aliases `champion` and `previous` of one task."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.rollback", description=__doc__)
    parser.add_argument("--task", required=True, help="name of the registered model")
    args = parser.parse_args(arguments)
    with runs.connected():
        if registry.champion(args.task) is None:
            raise ValueError(f"{args.task} has no champion in the registry")
        with registry.exclusive(args.task):
            champion, before = registry.roll_back(args.task)
    print(f"{args.task}: version {champion.number} is the champion again; version {before.number} was rolled back")


if __name__ == "__main__":
    run_command(main)
