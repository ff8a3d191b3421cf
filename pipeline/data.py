"""Lists the published image sets, their licences, and which are on this machine; --name fetches one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipeline.runtime.entry_point import run_command
from pipeline.runtime.environment import variable_name
from pipeline.sources import datasets
from pipeline.sources.registry import ALL, DataSet, data_set, data_sets, shared_images


def main(arguments: Sequence[str] | None = None) -> None:
    """List all sets, or fetch one, compare it with the registry and describe it."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.data", description=__doc__)
    parser.add_argument("--name", help="fetch this set if it is absent, and compare its checksums")
    args = parser.parse_args(arguments)
    if args.name:
        datasets.fetch(args.name)
        print(describe(data_set(args.name)))
        return
    print(f"{variable_name('data')}: {datasets.root()}")
    for found in data_sets().values():
        print(f"\n{describe(found)}")


def describe(found: DataSet) -> str:
    """Return the facts about a set and its state on this machine, one per line."""
    shares = [
        f"{'all' if shared == ALL else len(shared)} images show scenes of {other}"
        for other in data_sets()
        if other != found.name and (shared := shared_images(found.name, other))
    ]
    facts = {
        "here": _state(found),
        "for": f"{', '.join(found.tasks)}; {found.use}",
        "splits": ", ".join(found.splits),
        "licence": found.licence,
        "terms": found.terms and f"{found.terms} Accept: {variable_name('accept_terms')}={found.name}",
        "cite": found.cite,
        "from": found.page + ("" if found.verified else " (this address was not verified)"),
        "overlap": "; ".join(shares),
    }
    return "\n".join([f"{found.name}: {found.about}", *(f"  {key:<8}{text}" for key, text in facts.items() if text)])


def _state(found: DataSet) -> str:
    if "://" in datasets.root():
        return f"not checked: {variable_name('data')} is a URL"
    status = datasets.inspect(found.name)
    files = len(found.all_files())
    if status.wrong:
        return f"WRONG: {status.wrong[0]}" + (f" and {len(status.wrong) - 1} more" if len(status.wrong) > 1 else "")
    if not status.present:
        return "no" if all(file.url for file in found.all_files()) else "no; can only be fetched by hand"
    if status.missing:
        return f"partly: {status.present} of {files} files"
    if status.unchecked:
        return f"yes, but {status.unchecked} of {files} files have no known checksum and are not verified"
    return "yes, checksums agree"


if __name__ == "__main__":
    run_command(main)
