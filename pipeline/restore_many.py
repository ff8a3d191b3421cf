"""Restores millions of photographs on all GPUs or cores of a cluster: shards or a folder in, shards or a folder out.

    python -m pipeline.restore_many photos/ restored/ --model models:/denoise@champion
    python -m pipeline.restore_many s3://bucket/shards s3://bucket/restored --model … [--to folder]

IN is one folder, archive or URL of photographs, or one or more places of WebDataset shards: .tar files, folders of them
or patterns with *. Photographs in a shard are restored, its other members are copied; keys do not change. If shards are
made from a folder, each holds --block photographs, in the order of their names.

The same command continues after an interruption: it skips photographs that exist in OUT, and shards whose record says
that they were made from the same inputs. OUT/.restore_many/card.json records model, options and inputs; a run with
others is refused, except with --skip-existing or --overwrite.

Exit status: 0 all restored or skipped, 1 some refused, or an error, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dgunet.batch import NAMED_PHOTOS, count_lines, note_lines
from dgunet.checkpoint import load_model
from dgunet.commands.arguments import add_restoring, count, not_empty, restore_options
from dgunet.config import CARD_FILE, WEIGHTS_FILE
from dgunet.console import signals_interrupt, write_line
from dgunet.hub import model_folder
from dgunet.images.names import describe_unread
from dgunet.inference import restore
from pipeline.cluster import checkpoints, tasks
from pipeline.cluster.lease import hold_lease
from pipeline.cluster.session import nodes_without
from pipeline.restoration.blocks import Block, count_photos, find_shards, photo_blocks, shard_blocks
from pipeline.restoration.output import CARD, Output
from pipeline.restoration.restorer import Existing, Job, Restorer, Result
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.environment import read_environment
from pipeline.sources.places import File, is_archive

MOST_LISTED = 10_000  # refused photographs that --json names


@dataclass
class Totals:
    """What became of the photographs of all blocks; of those refused, MOST_LISTED are kept."""

    done: int = 0
    skipped: int = 0
    refused: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    listed: list[tuple[str, str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    lost_workers: int = 0

    def add(self, result: Result) -> None:
        """Add the result of a block."""
        self.done += result.done
        self.skipped += result.skipped
        self.dropped.update(result.dropped)
        self.lost_workers += result.num_deaths
        self.listed += result.refused[: MOST_LISTED - len(self.listed)]
        for photo, reason in result.refused:
            number, photos = self.refused.get(reason, (0, []))
            self.refused[reason] = (number + 1, photos if len(photos) >= NAMED_PHOTOS else [*photos, photo])

    @property
    def counts(self) -> dict[str, int]:
        """How many photographs were restored, skipped and refused."""
        return {
            "restored": self.done,
            "skipped": self.skipped,
            "refused": sum(number for number, _ in self.refused.values()),
        }


@dataclass(frozen=True)
class Input:
    """What is to be restored: a place of photographs, or shards."""

    place: str
    shards: Sequence[File]

    @property
    def folders(self) -> set[str]:
        """The places that are read: that of the photographs, or the folders of the shards."""
        return {shard.uri.rpartition("/")[0] for shard in self.shards} or {self.place}

    def blocks(self, size: int, file_format: str | None) -> Callable[[], Iterable[Block]]:
        """Return the function that lists the blocks, to be called in another process."""
        if self.shards:
            return partial(shard_blocks, self.shards)
        return partial(photo_blocks, self.place, size, file_format)


def main(arguments: Sequence[str] | None = None) -> None:
    """Restore all photographs that are not restored yet, and print a table."""
    args = _parse(arguments)
    started = time.monotonic()
    given = find_input([absolute(place) for place in args.places])
    output = Output(absolute(args.out))
    check_apart(given, output)
    to_shards = (args.to or ("shards" if given.shards else "folder")) == "shards"
    model = read_model(args.model, restore_options(args))
    existing: Existing = "replace" if args.overwrite else "skip" if args.skip_existing else "continue"
    card = {
        "model": hashlib.sha256(model[CARD_FILE] + model[WEIGHTS_FILE]).hexdigest(),
        "options": {**restore_options(args), "format": args.format, "page": args.page},
        "inputs": sorted(given.folders),
        "to": "shards" if to_shards else "folder",
        "block": args.block if to_shards and not given.shards else None,
    }
    job = Job(
        output=output,
        to_shards=to_shards,
        options=restore_options(args),
        file_format=args.format,
        page=args.page,
        existing=existing,
        made_by=hashlib.sha256(json.dumps([card["model"], card["options"]]).encode()).hexdigest(),
        most_deaths=max(1, read_environment().max_failures),
    )
    with one_interrupt(), signals_interrupt(), held(output, card, existing):
        totals, unread = run(job, given.blocks(args.block, args.format), given, model)
    report(totals, unread, time.monotonic() - started, as_json=args.json)
    if totals.refused:
        sys.exit(1)


def run(
    job: Job, blocks: Callable[[], Iterable[Block]], given: Input, model: Mapping[str, bytes]
) -> tuple[Totals, dict[str, int]]:
    """Restore the blocks, and return what became of the photographs and how many other files have each suffix."""
    totals, unread = Totals(), dict[str, int]()
    check_nodes(job.output, given)
    from pipeline.cluster.map_blocks import block_session, map_blocks, plan_actors  # imports Ray Data: seconds

    unit = "shard" if given.shards else "photo"
    with block_session(), tqdm(unit=unit, disable=None, smoothing=0.1) as bar:
        resources = plan_actors()
        restorer = partial(
            Restorer,
            job,
            model,
            device="cuda" if resources.gpus_per_worker else "cpu",
            num_threads=max(1, int(resources.cpus_per_worker)),
        )
        bar.total = len(given.shards) or None
        counted = None if given.shards else tasks.start_task(partial(count_photos, given.place))
        num_blocks = 0
        for result in map_blocks(restorer, blocks, resources):
            totals.add(result)
            num_blocks += 1
            if result.num_deaths:
                bar.write(f"block {result.block}: restored again, as its process died", file=sys.stderr)
            if counted and bar.total is None and (found := counted(False)):
                bar.total = found[0]
            bar.update(1 if given.shards else result.done + result.skipped + len(result.refused))
        if counted:
            found = counted(True)
            assert found is not None
            num_photos, unread = found
            if not num_photos:
                others = describe_unread(unread)
                raise ValueError(f"{given.place}: no photographs there" + (f"; {others}" if others else ""))
    if job.to_shards and not given.shards and job.output.size(f"{num_blocks:06d}.tar") is not None:
        write_line(
            f"{job.output.address}: also holds shards of an earlier run, from {num_blocks:06d}.tar; remove them",
            to_stderr=True,
        )
    return totals, unread


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Ignore Ctrl-C after the first, while processes are stopped: Ray Data's threads cannot be interrupted twice."""

    def interrupt(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def find_input(places: Sequence[str]) -> Input:
    """Return the shards that places name, or the one place of photographs. Raises ValueError for a mixture."""
    shards = {place: find_shards([place]) for place in places if not _is_archive_of_photos(place)}
    if len(places) == 1 and not shards.get(places[0]):
        return Input(places[0], ())
    if lacking := [place for place in places if not shards.get(place)]:
        raise ValueError(
            f"{lacking[0]}: no shards there; several places must all hold shards, photographs are restored from one"
        )
    return Input("", find_shards(places))


def _is_archive_of_photos(place: str) -> bool:
    return is_archive(place) and not place.endswith(".tar")


def absolute(place: str) -> str:
    """Return a path as an absolute one, which other processes can use; a URL without a slash at its end."""
    return place.rstrip("/") if "://" in place else str(Path(place).expanduser().absolute())


def check_apart(given: Input, output: Output) -> None:
    """Raise ValueError where OUT lies in a folder that is read, or the other way round."""
    for folder in given.folders:
        if f"{output.address}/".startswith(f"{folder}/") or f"{folder}/".startswith(f"{output.address}/"):
            raise ValueError(f"{output.address}: choose a folder to write to beside {folder}, not in it or above it")


def read_model(source: str, options: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of a model, after it restored a small image with the options.

    All processes get the same files, also if an alias changes meanwhile. Raises ValueError where that fails.
    """
    folder = model_folder(source)
    restore(load_model(folder), np.zeros((8, 8, 3), np.uint8), **options)
    return {name: (folder / name).read_bytes() for name in (CARD_FILE, WEIGHTS_FILE)}


@contextmanager
def held(output: Output, card: Mapping[str, Any], existing: Existing) -> Iterator[None]:
    """Keep other processes off OUT, and its card up to date.

    Raises:
        ValueError: another process writes there, or OUT holds something else than what the card says.
    """
    remedy = "choose another folder, or decide with --skip-existing or --overwrite what becomes of the files in it"
    is_new = output.is_empty()
    checkpoints.create_run_dir(output.run_folder)
    with hold_lease(output.run_folder, remedy="choose another folder"):
        found = output.read_json(CARD)
        if existing == "continue":
            if found is None and not is_new:
                raise ValueError(f"{output.address}: holds files that are not of this command: {remedy}")
            if found is not None and (other := [name for name in card if found.get(name) != card[name]]):
                raise ValueError(f"{output.address}: was restored with other {', '.join(other)}: {remedy}")
            if found is not None and found["overwriting"]:
                raise ValueError(f"{output.address}: --overwrite was interrupted here: give it again, to start again")
        output.remove_partial()
        output.write_json(CARD, {**card, "overwriting": existing == "replace"})
        try:
            yield
            output.write_json(CARD, {**card, "overwriting": False})
        finally:
            output.remove_partial()


def check_nodes(output: Output, given: Input) -> None:
    """Raise ValueError for a folder that is not on all nodes of the cluster."""
    address = os.environ.get("RAY_ADDRESS")
    folders = [given.shards[0].uri if given.shards else given.place, f"{output.address}/{CARD}"]
    for folder in folders if address else ():
        if "://" not in folder and (lacking := nodes_without(str(address), Path(folder))):
            raise ValueError(f"{folder}: not on the nodes {', '.join(lacking)}: give a shared folder, or a URL")


def report(totals: Totals, unread: dict[str, int], seconds: float, *, as_json: bool) -> None:
    """Print the table, or one JSON object."""
    if as_json:
        content = {
            "counts": {**totals.counts, "unread": sum(unread.values())},
            "refused": [{"photo": photo, "reason": reason} for photo, reason in totals.listed],
            "unread": unread,
            "dropped": totals.dropped,
            "lost_workers": totals.lost_workers,
            "seconds": round(seconds, 3),
        }
        write_line(json.dumps(content))
        return
    counts = {name: number for name, number in totals.counts.items() if number or name == "restored"}
    for line in (*count_lines(counts, totals.refused, seconds), *note_lines(unread, totals.dropped)):
        write_line(line)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.restore_many",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("places", nargs="+", type=not_empty, metavar="IN", help="photographs, or shards")
    parser.add_argument("out", type=not_empty, metavar="OUT", help="folder or URL to write to")
    parser.add_argument("--to", choices=("shards", "folder"), help="what to write (default: as IN)")
    parser.add_argument(
        "--block",
        type=count,
        default=64,
        metavar="N",
        help="if IN is a folder: number of photographs that a process is given at a time, and number in each shard if "
        "shards are written (default: 64)",
    )
    add_restoring(parser)
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--skip-existing", action="store_true", help="pass over what exists in OUT, whatever it was made with"
    )
    existing.add_argument("--overwrite", action="store_true", help="restore all, also what exists in OUT")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
