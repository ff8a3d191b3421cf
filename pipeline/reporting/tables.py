"""Writes an evaluation as metrics.json, CSV tables for DVC's plots, and scores per image; equal scores, equal bytes."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.evaluation.local_statistics import Candidate, choose
from pipeline.evaluation.quality import Quality
from pipeline.evaluation.scores import Evaluation
from pipeline.preparation.leaks import Leak
from pipeline.reporting.plots import Curve
from pipeline.shards.format import PARTIAL

DECIMALS = 4  # of dB and of SSIM: finer than a relevant difference, coarser than float32 errors


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; at the end, unless there was an exception, its files replace those in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.glob(f".*{PARTIAL}"):  # left by a killed process; DVC runs only one at a time
        shutil.rmtree(abandoned)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=PARTIAL) as name:
        yield Path(name)
        for path in sorted(Path(name).iterdir()):
            path.replace(folder / path.name)


def metrics(
    evaluation: Evaluation,
    benchmarks: Mapping[str, Evaluation],
    test_index_sha256: str,
    candidates: Sequence[Candidate] = (),
    *,
    not_measured: Mapping[str, Leak] | None = None,
) -> dict[str, Any]:
    """Return the content of metrics.json: mean PSNR in dB and mean SSIM over images.

    Args:
        evaluation: scores on the test split.
        benchmarks: scores on the benchmarks, by name.
        test_index_sha256: checksum of the test shards' index, which identifies the test split.
        candidates: windows that were measured on the val split.
        not_measured: why benchmarks were refused, by name; benchmarks whose images are absent are not listed.
    """
    chosen = choose(candidates)
    return {
        **_means(evaluation),
        "local_statistics": None if chosen is None else asdict(chosen),
        "local_statistics_on_val": [candidate.as_json() for candidate in candidates],
        "stages": {str(k): _number(stage.psnr) for k, stage in enumerate(evaluation.stages, 1)},
        "benchmarks": {name: _means(found) for name, found in benchmarks.items()},
        "not_measured": {
            name: {"reason": leak.reason, "pairs": [list(pair) for pair in leak.pairs]}
            for name, leak in (not_measured or {}).items()
        },
        "test_index_sha256": test_index_sha256,
    }


def write_tables(
    folder: Path,
    evaluation: Evaluation,
    benchmarks: Mapping[str, Evaluation],
    test_index_sha256: str,
    candidates: Sequence[Candidate] = (),
    *,
    not_measured: Mapping[str, Leak] | None = None,
) -> None:
    """Write metrics.json, per_image.csv, stages.csv and gains.csv into `folder`; arguments as `metrics`."""
    content = metrics(evaluation, benchmarks, test_index_sha256, candidates, not_measured=not_measured)
    (folder / "metrics.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    kinds = ("degraded", "baseline", "restored")
    header = ["set", "key", *(f"{kind}_{part}" for kind in kinds for part in Quality._fields), "gain_db"]
    rows = (
        [name, image.key, *(value for kind in kinds for value in getattr(image, kind)), image.gain_db]
        for name, found in {"test": evaluation, **benchmarks}.items()
        for image in found.images
    )
    (folder / "per_image.csv").write_text(_csv(header, rows))
    stages = ([k, *stage] for k, stage in enumerate(evaluation.stages, 1))
    (folder / "stages.csv").write_text(_csv(["stage", *Quality._fields], stages))
    (folder / "gains.csv").write_text(_csv(["key", "gain_db"], ([i.key, i.gain_db] for i in evaluation.images)))


def read_curve(path: Path) -> Curve:
    """Return the rows of train.csv (step, loss, learning_rate, val_psnr; blank becomes None), none if it is absent."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{name: float(value) if value else None for name, value in row.items()} for row in csv.DictReader(file)]


def _means(evaluation: Evaluation) -> dict[str, Any]:
    interval = evaluation.gain_interval
    kinds = {kind: getattr(evaluation, kind) for kind in ("degraded", "baseline", "restored")}
    return {
        **{kind: {part: _number(value) for part, value in mean._asdict().items()} for kind, mean in kinds.items()},
        "gain_db": _number(evaluation.gain_db),
        "gain_interval": None
        if interval is None
        else {**asdict(interval), "low": _number(interval.low), "high": _number(interval.high)},
        "num_images": len(evaluation.images),
    }


def _number(value: float) -> float | None:
    return round(value, DECIMALS) if math.isfinite(value) else None


def _csv(header: Sequence[str], rows: Iterable[Sequence[str | float]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{value:.{DECIMALS}f}" if isinstance(value, float) else value for value in row] for row in rows)
    return buffer.getvalue()
