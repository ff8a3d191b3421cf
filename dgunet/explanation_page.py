"""An explanation as one self-contained HTML page: images as data URIs, plots as SVG."""

import base64
import html
from collections.abc import Sequence
from string import Template

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from dgunet.explanation import Explanation, StageExplanation
from dgunet.images import quantise

GREY_LEVELS = 255
MAX_PIXELS = 1_000_000  # of a larger image, only a part is explained
SIDE = 768  # of this part, in pixels
JPEG_QUALITY = 92
PERCENTILE = 99.5  # of the absolute changes, the end of the colour scale
Image = Float32[np.ndarray, "H W C"]


def central(height: int, width: int) -> tuple[slice, slice]:
    """Return the (rows, columns) to explain: the whole image up to a megapixel, else a square in the middle."""
    if height * width <= MAX_PIXELS:
        return slice(0, height), slice(0, width)
    side = min(SIDE, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)


def render_explanation(
    explanation: Explanation, *, title: str, facts: Sequence[str], clean: Image | None = None
) -> str:
    """Return the page.

    Args:
        explanation: what to show.
        title: name of the photograph.
        facts: sentences below the title: the model, the part of the photograph.
        clean: the clean image, shown beside the restored one.
    """
    stages = explanation.stages
    is_blind = stages[0].degraded_again is not None
    first = [
        _figure("photograph y" if is_blind else "start Φᵀy", explanation.start, _decibels(explanation.start_psnr)),
        _figure("restored", stages[-1].estimate, _decibels(stages[-1].psnr)),
        _heat("where it changed", explanation.change),
    ]
    if clean is not None:
        first.append(_figure("clean", clean, ""))
    curves = [_residual_plot(stages)]
    if explanation.start_psnr is not None:
        curves.append(_psnr_plot(explanation))
    return _PAGE.substitute(
        title=html.escape(title),
        facts="".join(f"<p>{html.escape(fact)}</p>" for fact in facts),
        first="".join(first),
        curves="".join(curves),
        reading=_READING_BLIND if is_blind else _READING_SENSING,
        stages="".join(_stage(number, stage, explanation.start) for number, stage in enumerate(stages, 1)),
    )


def _stage(number: int, stage: StageExplanation, start: Image) -> str:
    figures = [
        _figure(f"x<sub>{number}</sub>, estimate", stage.estimate, _decibels(stage.psnr)),
        _signed("change by the gradient step", stage.gradient_change),
        _signed("change by the proximal mapping", stage.proximal_change),
    ]
    if stage.degraded_again is not None:
        name = f"Φ<sub>{number}</sub>(x<sub>{number}</sub>)"
        figures += [
            _figure(name, stage.degraded_again, "should resemble y"),
            _signed(f"{name} − y", stage.degraded_again - start),
        ]
    numbers = [
        f"step size ρ = {stage.step_size:.3f}",
        f"change: {_rms(stage.gradient_change)} by the gradient step, {_rms(stage.proximal_change)} by the mapping",
        f"residual ‖Φx − y‖: {_levels(stage.residual_before)} before the gradient step, "
        f"{_levels(stage.residual_after_gradient)} after it, {_levels(stage.residual)} at the end of the stage",
    ]
    if stage.psnr is not None:
        numbers.append(
            f"PSNR {_decibels(stage.gradient_psnr)} after the gradient step, {_decibels(stage.psnr)} at the end"
        )
    rows = "".join(f"<li>{text}</li>" for text in numbers)
    return f'<section><h2>Stage {number}</h2><ul>{rows}</ul><div class="row">{"".join(figures)}</div></section>'


def _range(change: Float32[np.ndarray, "H W *C"]) -> float:
    return max(float(np.percentile(np.abs(change), PERCENTILE)), 0.5 / GREY_LEVELS)


def _figure(name: str, image: Image, note: str) -> str:
    return _shown(name, quantise(image, np.uint8), note)


def _signed(name: str, change: Image) -> str:
    """Return a figure of a change: gray where nothing changed, brighter, darker or tinted where something did."""
    limit = _range(change)
    shown = quantise((0.5 + change / (2 * limit)).astype(np.float32), np.uint8)
    return _shown(name, shown, f"±{GREY_LEVELS * limit:.1f} grey levels; gray: none")


def _heat(name: str, change: Float32[np.ndarray, "H W"]) -> str:
    limit = _range(change)
    levels = quantise((change / limit)[..., None].astype(np.float32), np.uint8)
    coloured = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return _shown(name, coloured, f"black 0 to yellow {GREY_LEVELS * limit:.1f} grey levels or more")


def _shown(name: str, pixels: UInt8[np.ndarray, "H W C"], note: str) -> str:
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.shape[2] == 3 else pixels
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    uri = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
    height, width = pixels.shape[:2]
    label = html.escape(name.replace("<sub>", "").replace("</sub>", ""))
    return (
        f'<figure><a href="{uri}" download="{label}.jpg"><img src="{uri}" alt="{label}" width="{width}" '
        f'height="{height}"></a><figcaption><b>{name}</b> {note}</figcaption></figure>'
    )


def _residual_plot(stages: Sequence[StageExplanation]) -> str:
    labels, values = [], []
    for number, stage in enumerate(stages, 1):
        labels += [f"x{number - 1}", f"v{number}", f"x{number}"]
        values += [stage.residual_before, stage.residual_after_gradient, stage.residual]
    return _plot("‖Φx − y‖ in grey levels, each with the Φ of its stage", labels, [GREY_LEVELS * v for v in values], 3)


def _psnr_plot(explanation: Explanation) -> str:
    labels, values = ["x0"], [explanation.start_psnr or 0.0]
    for number, stage in enumerate(explanation.stages, 1):
        labels += [f"v{number}", f"x{number}"]
        values += [stage.gradient_psnr or 0.0, stage.psnr or 0.0]
    return _plot("PSNR in dB against the clean image", labels, values, len(values))


def _plot(name: str, labels: Sequence[str], values: Sequence[float], run: int) -> str:
    """Return a plot as SVG, with one line through each `run` of values."""
    width, height, left, bottom, top = 52 * len(values) + 60, 190, 46, 160, 16
    low, high = min(values), max(values)
    margin = 0.1 * (high - low) or 1.0
    low, high = max(low - margin, 0.0) if low >= 0 else low - margin, high + margin
    points = [
        (left + 26 + 52 * index, bottom - (value - low) / (high - low) * (bottom - top))
        for index, value in enumerate(values)
    ]
    lines = "".join(
        f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points[start : start + run])}"/>'
        for start in range(0, len(points), run)
    )
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points)
    texts = "".join(
        f'<text x="{x:.1f}" y="{y - 8:.1f}">{value:.1f}</text>'
        f'<text class="axis" x="{x:.1f}" y="{bottom + 18}">{label}</text>'
        for (x, y), value, label in zip(points, values, labels, strict=True)
    )
    return (
        f'<figure class="plot"><svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{name}">'
        f'<line x1="{left}" y1="{bottom}" x2="{width - 8}" y2="{bottom}"/>{lines}{dots}{texts}</svg>'
        f"<figcaption>{name}</figcaption></figure>"
    )


def _levels(value: float) -> str:
    return f"{GREY_LEVELS * value:.2f}"


def _rms(change: Image) -> str:
    return f"{_levels(float(np.sqrt(np.square(change, dtype=np.float64).mean())))} grey levels (root mean square)"


def _decibels(psnr: float | None) -> str:
    return "" if psnr is None else f"{psnr:.2f} dB"


_READING_BLIND = (
    "Each stage takes a gradient step on ½‖Φx − y‖² with its own learned Φ and Φᵀ, v = x − ρΦᵀ(Φx − y), then a learned "
    "proximal mapping. Φ and Φᵀ are learned from the loss on the restored image; unless a term of it asks for more, "
    "Φ need not be the true degradation, and the residual need not fall from stage to stage."
)
_READING_SENSING = (
    "The photograph was measured by the network's sensing matrix Φ. Each stage takes a gradient step on ½‖Φx − y‖², "
    "v = x − ρΦᵀ(Φx − y), then a learned proximal mapping. Φ is known here, and Φᵀ is its transpose."
)
_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title, stage by stage</title>
<style>
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;padding:24px;max-width:1500px;background:Canvas;color:CanvasText}
h1{font-size:1.5rem;margin:0 0 .3rem}h2{font-size:1.15rem;margin:2.2rem 0 .3rem}p{margin:.2rem 0;max-width:75ch}
ul{margin:.2rem 0 .8rem;padding-left:1.2rem}
.row{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,270px),1fr));gap:14px}
.row.large{grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));margin:1rem 0}
figure{margin:0}img{width:100%;height:auto;display:block;border-radius:3px;background:#8883}
figcaption{font-size:.85rem;margin-top:.25rem}.plots{display:flex;flex-wrap:wrap;gap:24px}
.plot{overflow-x:auto}svg polyline{fill:none;stroke:#2a78d6;stroke-width:2}svg circle{fill:#2a78d6}
svg line{stroke:currentColor;opacity:.4}svg text{font:11px system-ui,sans-serif;fill:currentColor;text-anchor:middle}
svg text.axis{opacity:.7}
</style></head><body>
<h1>$title, stage by stage</h1>
$facts
<p>$reading</p>
<div class="row large">$first</div>
<div class="plots">$curves</div>
$stages
</body></html>
""")
