"""Renders a report as one self-contained HTML page: degraded and restored images, crops, scores, plots."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32

from dgunet.config import LocalStatistics
from dgunet.images import quantise
from dgunet.network import DGUNetConfig
from pipeline.evaluation.baselines import Baseline
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.quality import Quality
from pipeline.evaluation.scores import Evaluation, ImageScores, Restoration
from pipeline.preparation.leaks import Leak
from pipeline.reporting.contact_sheet import describe
from pipeline.reporting.plots import ON_DARK, ON_LIGHT, Plot, svg

TEMPLATE = Path(__file__).with_suffix(".html")
LONGEST_SIDE = 768  # longest side of an image on the page; larger images are reduced
JPEG_QUALITY = 90
CROP_SIDE = 72
Image = Float32[np.ndarray, "H W C"]


@dataclass(frozen=True)
class GalleryItem:
    """One test image on the page: why it is shown, its scores and its images.

    `sampled` is the record of `degrade`, empty for a real pair.
    """

    reason: str
    scores: ImageScores
    images: Restoration
    sampled: Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """Content of the page; `degradation` is as in params.yaml."""

    task: str
    evaluation: Evaluation
    benchmarks: Mapping[str, Evaluation]
    not_measured: Mapping[str, Leak]
    items: Sequence[GalleryItem]
    plots: Mapping[str, Plot]
    degradation: Mapping[str, Any]
    model: DGUNetConfig
    num_parameters: int
    baseline: Baseline
    local_statistics: LocalStatistics | None


def choose(evaluation: Evaluation, number: int) -> dict[str, str]:
    """Return the keys of `number` images and why each is shown, from the smallest gain to the largest.

    The worst, the best and the median are chosen first, then the quartiles, then images between them.
    """
    ranked = sorted(evaluation.images, key=lambda image: (image.gain_db, image.key))
    last = len(ranked) - 1
    ranks: list[int] = []
    for fraction in _fractions():
        if len(ranks) == min(number, len(ranked)):
            break
        rank = round(fraction * last)
        if rank not in ranks:
            ranks.append(rank)
    names = {0: "smallest gain", round(last / 2): "median gain", last: "largest gain"}
    return {ranked[r].key: names.get(r, f"rank {r + 1} of {last + 1} by gain") for r in sorted(ranks)}


def _fractions() -> Iterable[float]:
    """Yield 0, 1, 1/2, then 1/4, 3/4, 1/8, 3/8, ..."""
    yield from (0.0, 1.0)
    parts = 2
    while True:
        yield from (odd / parts for odd in range(1, parts, 2))
        parts *= 2


def render(page: Page) -> str:
    """Return the page as HTML."""
    evaluation, baseline = page.evaluation, asdict(page.baseline)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        task=_text(page.task),
        num_images=len(evaluation.images),
        num_shown=len(page.items),
        degraded=_decibels(evaluation.degraded.psnr),
        baseline=_decibels(evaluation.baseline.psnr),
        restored=_decibels(evaluation.restored.psnr),
        gain=f"{evaluation.gain_db:+.2f}",
        interval=_interval(evaluation.gain_interval),
        degraded_ssim=_ssim(evaluation.degraded),
        baseline_ssim=_ssim(evaluation.baseline),
        restored_ssim=_ssim(evaluation.restored),
        measuring=_definitions(
            {
                "protocol": str(evaluation.protocol),
                "statistics": str(page.local_statistics or "of the whole image"),
                "baseline": baseline.pop("kind"),
                **baseline,
            }
        ),
        plots="".join(_plot(name, plot) for name, plot in page.plots.items()),
        benchmarks=_benchmarks(page.benchmarks, page.not_measured),
        degradation=_definitions(page.degradation),
        facts=_definitions({"parameters": page.num_parameters, **asdict(page.model)}),
        items="".join(_item(number, item) for number, item in enumerate(page.items, 1)),
    )


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "one photograph: no interval"
    return (
        f"{interval.level:.0%} between {interval.low:+.2f} and {interval.high:+.2f}, of {interval.num_photographs} "
        "photographs"
    )


def most_different_crop(images: Restoration) -> tuple[slice, slice]:
    """Return the square (rows, columns) in which network and baseline differ most."""
    height, width = images.clean.shape[:2]
    side = min(CROP_SIDE, height, width)
    difference = np.square(images.restored - images.baseline).sum(axis=2, dtype=np.float64)
    totals = np.pad(difference, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    sums = totals[side:, side:] - totals[:-side, side:] - totals[side:, :-side] + totals[:-side, :-side]
    top, left = (int(place) for place in np.unravel_index(np.argmax(sums), sums.shape))
    return slice(top, top + side), slice(left, left + side)


def _item(number: int, item: GalleryItem) -> str:
    images, scores = item.images, item.scores
    crop = most_different_crop(images)
    height, width = images.clean.shape[:2]
    frame = (crop[1].start / width, crop[0].start / height, _length(crop[1]) / width, _length(crop[0]) / height)
    crops = (
        ("degraded", images.degraded, scores.degraded),
        ("baseline", images.baseline, scores.baseline),
        ("restored", images.restored, scores.restored),
        ("clean", images.clean, None),
    )
    stages = list(zip(images.estimates, scores.stages, strict=True))
    if len(stages) == 1:  # restored in tiles or by self-ensemble: only the final estimate exists
        stages = []
    return _ITEM.substitute(
        number=number,
        key=_text(scores.key),
        sampled=_sampled(item.sampled),
        reason=_text(item.reason),
        gain=f"{scores.gain_db:+.2f}",
        width=width,
        height=height,
        frame="".join(f"--{name}:{100 * part:.3f}%;" for name, part in zip("xywh", frame, strict=True)),
        degraded=_photograph(images.degraded),
        restored=_photograph(images.restored),
        clean=_photograph(images.clean),
        crops="".join(_crop(name, image[crop], _quality(quality)) for name, image, quality in crops),
        stages="".join(
            _crop(f"stage {k}", estimate[crop], f"{_decibels(quality.psnr)} dB")
            for k, (estimate, quality) in enumerate(stages, 1)
        ),
    )


def _sampled(record: Mapping[str, Any]) -> str:
    if not record.get("steps"):  # a real pair, or one that a sensing network measures
        return ""
    steps = "; ".join(f"{note.name} {', '.join(note.items)}" for note in describe(record))
    return f'<p class="key">{_text(steps)}</p>'


_ITEM = Template("""
<article class="item" aria-labelledby="e$number">
<header><h3 id="e$number">$reason <span class="gain">$gain dB</span></h3>
<p class="key">$key, $width × $height</p>$sampled</header>
<div class="views">
<div class="compare" style="--ratio:$width/$height;$frame">
<img class="degraded" alt="degraded" src="$degraded" width="$width" height="$height">
<img class="restored" alt="restored" src="$restored" width="$width" height="$height">
<img class="clean" alt="clean" src="$clean" width="$width" height="$height">
<span class="frame" aria-hidden="true"></span><span class="handle" aria-hidden="true"></span>
<span class="tag left" aria-hidden="true">degraded</span><span class="tag right" aria-hidden="true">restored</span>
<input type="range" min="0" max="100" step="0.5" value="50" aria-label="part shown degraded, in percent">
<button type="button" aria-pressed="false">clean</button>
</div>
<div class="crops">$crops</div>
</div>
<div class="stages" aria-label="estimate after each stage">$stages</div>
</article>
""")


def _crop(name: str, image: Image, scores: str) -> str:
    picture = f'<img alt="{name}, detail" src="{_data_uri("image/png", _encode(image, ".png"))}">'
    return f"<figure>{picture}<figcaption><b>{name}</b> {scores}</figcaption></figure>"


def _photograph(image: Image) -> str:
    longest = max(image.shape[:2])
    if longest > LONGEST_SIDE:
        size = [max(1, round(side * LONGEST_SIDE / longest)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return _data_uri("image/jpeg", _encode(image, ".jpg", options))


def _encode(image: Image, suffix: str, options: Sequence[int] = ()) -> bytes:
    pixels = quantise(image, np.uint8)[:, :, ::-1]
    done, encoded = cv2.imencode(suffix, np.ascontiguousarray(pixels), list(options))
    assert done, "OpenCV encodes every array of 8 bits with 1 or 3 channels"
    return encoded.tobytes()


def _plot(name: str, plot: Plot) -> str:
    light, dark = (_data_uri("image/svg+xml", svg(plot, palette)) for palette in (ON_LIGHT, ON_DARK))
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    return f'<picture>{source}<img alt="plot: {name}" src="{light}"></picture>'


def _benchmarks(benchmarks: Mapping[str, Evaluation], not_measured: Mapping[str, Leak]) -> str:
    if not benchmarks and not not_measured:
        return ""
    head = "".join(f"<th scope=col>{name}</th>" for name in ("images", "degraded", "baseline", "restored", "gain"))
    rows = "".join(
        f"<tr><th scope=row>{_text(name)}<small>{_text(str(found.protocol))}</small></th><td>{len(found.images)}</td>"
        + "".join(
            f"<td>{_decibels(quality.psnr)} / {_ssim(quality)}</td>"
            for quality in (found.degraded, found.baseline, found.restored)
        )
        + f"<td>{found.gain_db:+.2f}</td></tr>"
        for name, found in benchmarks.items()
    ) + "".join(
        f"<tr><th scope=row>{_text(name)}</th><td colspan=5>not measured: {_text(leak.reason)}</td></tr>"
        for name, leak in not_measured.items()
    )
    return (
        '<section><h2>Benchmarks</h2><div class="scroll"><table>'
        f"<thead><tr><th scope=col>PSNR in dB / SSIM</th>{head}</tr></thead><tbody>{rows}</tbody>"
        "</table></div></section>"
    )


def _definitions(values: Mapping[str, Any]) -> str:
    return (
        "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_value(value)}</dd>" for name, value in values.items()) + "</dl>"
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return _definitions(value)
    if isinstance(value, list | tuple):
        plain = not any(isinstance(item, Mapping | list | tuple) for item in value)
        return ", ".join(_value(item) for item in value) if plain else "".join(_value(item) for item in value)
    if isinstance(value, bool) or value is None:
        return "none" if value is None else str(value).lower()
    return f"{value:,}" if isinstance(value, int) else _text(str(value))


def _decibels(psnr: float) -> str:
    return f"{psnr:.2f}" if math.isfinite(psnr) else "∞"


def _quality(quality: Quality | None) -> str:
    return "" if quality is None else f"{_decibels(quality.psnr)} dB · SSIM {_ssim(quality)}"


def _ssim(quality: Quality) -> str:
    return f"{quality.ssim:.4f}".removeprefix("0")


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _text(value: str) -> str:
    return html.escape(value)
