"""Reference implementation of the network: plain functions on state dicts in the published format.

Independent of `dgunet`, with the names of the published files. Tests compare with it, benchmarks measure against it.
`shapes` lists every tensor of a published file of given sizes, `random_weights` fills them by a formula.

`reference_outputs.npz` holds the float64 outputs of all CASES, rounded to float32. After a deliberate change of the
formula or the cases, `python tests/reference_network.py` writes it again; hold the reference network against the
published outputs first (`DGUNET_PARITY`, tests/dgunet/test_parity.py).
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as the field writes it

Weights = Mapping[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
OUTPUTS = Path(__file__).with_name("reference_outputs.npz")
_BLIND = {"width": 12, "growth": 6, "head_growth": 4, "num_stages": 4}
_SENSING = {"width": 12, "growth": 6, "head_growth": 4, "num_stages": 4, "image_channels": 1}
# One case of each family and of each way to share stages: sizes as `shapes` takes them, and `full_image`.
CASES: dict[str, dict[str, Any]] = {
    "dgunet": {**_BLIND, "share_stages": True},
    "dgunet_plus": {"width": 8, "growth": 4, "num_stages": 3, "share_stages": False},
    "dgunet_plus_gray": {"width": 8, "growth": 2, "num_stages": 4, "share_stages": False, "image_channels": 1},
    "cs_dgunet_deblock": {**_SENSING, "share_stages": True, "num_measurements": 41},
    "cs_dgunet": {**_SENSING, "share_stages": True, "num_measurements": 41, "full_image": False},
    "cs_dgunet_plus_deblock": {**_SENSING, "num_stages": 3, "share_stages": False, "num_measurements": 103},
    "cs_dgunet_plus": {
        **_SENSING, "num_stages": 3, "share_stages": False, "num_measurements": 103, "full_image": False,
    },
}  # fmt: skip


def conv(w: Weights, name: str, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), stride=stride, padding=padding)


def operator(w: Weights, name: str, x: Tensor) -> Tensor:
    hidden = F.prelu(conv(w, f"{name}.body.0", x), w[f"{name}.body.1.weight"])
    return conv(w, f"{name}.body.2", hidden) + x


def shallow(w: Weights, name: str, x: Tensor) -> Tensor:
    f = conv(w, f"{name}.0", x)
    r = conv(w, f"{name}.1.body.2", F.prelu(conv(w, f"{name}.1.body.0", f), w[f"{name}.1.body.1.weight"]))
    pooled = F.adaptive_avg_pool2d(r, 1)
    squeezed = torch.relu(conv(w, f"{name}.1.CA.conv_du.0", pooled, padding=0))
    return f + r * torch.sigmoid(conv(w, f"{name}.1.CA.conv_du.2", squeezed, padding=0))


def block(w: Weights, name: str, x: Tensor, norm: bool) -> Tensor:
    out = conv(w, f"{name}.conv_1", x)
    if norm:
        first, second = out.chunk(2, dim=1)
        first = F.instance_norm(first, weight=w[f"{name}.norm.weight"], bias=w[f"{name}.norm.bias"], eps=1e-5)
        out = torch.cat([first, second], dim=1)
    out = F.leaky_relu(conv(w, f"{name}.conv_2", F.leaky_relu(out, 0.2)), 0.2)
    return out + conv(w, f"{name}.identity", x, padding=0)


def encoder(w: Weights, name: str, x: Tensor, enc: list[Tensor] | None, dec: list[Tensor] | None) -> list[Tensor]:
    outputs = []
    for i in range(3):
        level = f"{name}.body.{i}"
        x = block(w, level, x, norm=True)
        if enc is not None and dec is not None:
            t = conv(w, f"{level}.csff_enc", enc[i]) + conv(w, f"{level}.csff_dec", dec[2 - i])
            if f"{level}.phi.weight" in w:
                t = F.leaky_relu(t, 0.1)
                x = x * torch.sigmoid(conv(w, f"{level}.phi", t)) + conv(w, f"{level}.gamma", t) + x
            else:
                x = x + t
        outputs.append(x)
        x = conv(w, f"{level}.downsample", x, stride=2)
    return [*outputs, block(w, f"{name}.body.3", x, norm=True)]


def decoder(w: Weights, name: str, encoded: list[Tensor]) -> list[Tensor]:
    x, outputs = encoded[3], []
    for i in range(3):
        up = F.conv_transpose2d(x, w[f"{name}.body.{i}.up.weight"], w[f"{name}.body.{i}.up.bias"], stride=2)
        x = torch.cat([up, conv(w, f"{name}.skip_conv.{i}", encoded[2 - i])], dim=1)
        x = block(w, f"{name}.body.{i}.conv_block", x, norm=False)
        outputs.append(x)
    return outputs


def merge(w: Weights, name: str, a: Tensor, g: Tensor) -> Tensor:
    v = conv(w, f"{name}.subnet", torch.cat([a, g], dim=1)).flatten(2)
    v = v / (1e-6 + v.abs().sum(dim=2, keepdim=True))
    gram = v @ v.transpose(1, 2)
    projected = v.transpose(1, 2) @ (torch.linalg.inv(gram) @ (v @ g.flatten(2).transpose(1, 2)))
    return a + conv(w, f"{name}.conv_block", torch.cat([a, projected.transpose(1, 2).reshape(g.shape)], dim=1))


def blind(w: Weights, y: Tensor, num_stages: int) -> list[Tensor]:
    """All estimates of the degraded image `y`; sides are multiples of 8."""
    shared = "concat67.weight" in w

    def stage(prefix: str, k: int, x: Tensor, previous: tuple[Tensor, list[Tensor], list[Tensor]] | None):
        v = x - w[f"{prefix}r{k - 1}"] * operator(
            w, f"{prefix}phit_{k - 1}", operator(w, f"{prefix}phi_{k - 1}", x) - y
        )
        a = shallow(w, f"{prefix}shallow_feat{k}", v)
        enc = dec = None
        if previous is not None:
            g, enc, dec = previous
            a = merge(w, f"{prefix}merge{k - 1}{k}", a, g)
        encoded = encoder(w, f"{prefix}stage{k}_encoder", a, enc, dec)
        decoded = decoder(w, f"{prefix}stage{k}_decoder", encoded)
        f, end = decoded[-1], f"{prefix}sam{k}{k + 1}"
        x = v + conv(w, f"{end}.conv2", f, padding=0)
        return x, (f + conv(w, f"{end}.conv1", f, padding=0), encoded, decoded)

    x, previous = stage("", 1, y, None)
    estimates = [x]
    for k in range(2, num_stages):
        x, previous = stage("basic.", 2, x, previous) if shared else stage("", k, x, previous)
        estimates.append(x)
    k = 7 if shared else num_stages
    v = x - w[f"r{k - 1}"] * operator(w, f"phit_{k - 1}", operator(w, f"phi_{k - 1}", x) - y)
    a = shallow(w, f"shallow_feat{k}", v)
    g = previous[0]
    a = conv(w, "concat67", torch.cat([a, g], dim=1)) if shared else merge(w, f"merge{k - 1}{k}", a, g)
    return [*estimates, y + conv(w, "tail", a)]


def measure(phi: Tensor, image: Tensor) -> Tensor:
    """Measurements y = Φx of every 32×32 block, blocks and their pixels in row-major order: B (h·w) M."""
    return F.unfold(image, 32, stride=32).transpose(1, 2) @ phi.T


def back_project(phi: Tensor, y: Tensor, size: tuple[int, int]) -> Tensor:
    """Φᵀy of every block, joined to an image."""
    return F.fold((y @ phi).transpose(1, 2), size, 32, stride=32)


def sensing(w: Weights, image: Tensor, num_stages: int, full_image: bool) -> list[Tensor]:
    """All estimates from the measurements of the clean `image`; sides are multiples of 32."""
    phi = w["Phi"]
    if not full_image:
        batch, _, height, width = image.shape
        blocks = F.unfold(image, 32, stride=32).transpose(1, 2).reshape(-1, 1, 32, 32)
        return [
            F.fold(e.reshape(batch, -1, 1024).transpose(1, 2), (height, width), 32, stride=32)
            for e in sensing(w, blocks, num_stages, full_image=True)
        ]
    size = (image.shape[2], image.shape[3])
    back_projection = back_project(phi, measure(phi, image), size)

    def gradient(x: Tensor, r: Tensor) -> Tensor:
        return x - r * (back_project(phi, measure(phi, x), size) - back_projection)

    def stage(names: Callable[[str], str], sam: str, x: Tensor, previous):
        v = gradient(x, w[names("r")])
        a = shallow(w, names("shallow_feat"), v)
        enc = dec = None
        if previous is not None:
            g, enc, dec = previous
            a = conv(w, names("concat"), torch.cat([a, g], dim=1))
        encoded = encoder(w, names("stage_encoder"), a, enc, dec)
        decoded = decoder(w, names("stage_decoder"), encoded)
        f = decoded[-1]
        x = v + conv(w, f"{sam}.conv2", f, padding=0)
        gate = torch.sigmoid(conv(w, f"{sam}.conv3", x, padding=0))
        return x, (f + conv(w, f"{sam}.conv1", f, padding=0) * gate, encoded, decoded)

    first = {"r": "r0", "shallow_feat": "shallow_feat1"}
    first |= {"stage_encoder": "stage1_encoder", "stage_decoder": "stage1_decoder"}
    x, previous = stage(first.__getitem__, "sam12", back_projection, None)
    estimates = [x]
    for i in range(num_stages - 2):
        prefix = "stage_model." if "stage_model.r" in w else f"body.{i}."
        x, previous = stage(prefix.__add__, f"{prefix}sam", x, previous)
        estimates.append(x)
    v = gradient(x, w["r_final"])
    a = shallow(w, "shallow_feat_final", v)
    return [*estimates, v + conv(w, "tail", conv(w, "concat_final", torch.cat([a, previous[0]], dim=1)))]


def shapes(
    *,
    width: int,
    growth: int,
    head_growth: int = 0,
    num_stages: int = 7,
    share_stages: bool,
    image_channels: int = 3,
    num_measurements: int = 0,
) -> Shapes:
    """Every tensor of a published file of these sizes; sensing if `num_measurements`."""
    n, c, found = width, image_channels, Shapes()
    levels = [(n + i * growth, n + (i + 1) * growth) for i in range(3)]
    bottom = n + 3 * growth

    def weight(name: str, *shape: int, bias: int = 0) -> None:
        found[f"{name}.weight"] = shape
        if bias:
            found[f"{name}.bias"] = (bias,)

    def put_operator(name: str, channels: int) -> None:
        weight(f"{name}.body.0", 64, channels, 3, 3, bias=64)
        weight(f"{name}.body.1", 1)
        weight(f"{name}.body.2", channels, 64, 3, 3, bias=channels)

    def put_shallow(name: str) -> None:
        weight(f"{name}.0", n, c, 3, 3)
        weight(f"{name}.1.CA.conv_du.0", n // 4, n, 1, 1)
        weight(f"{name}.1.CA.conv_du.2", n, n // 4, 1, 1)
        weight(f"{name}.1.body.0", n, n, 3, 3)
        weight(f"{name}.1.body.1", 1)
        weight(f"{name}.1.body.2", n, n, 3, 3)

    def put_block(name: str, narrow: int, wide: int, norm: bool) -> None:
        weight(f"{name}.identity", wide, narrow, 1, 1, bias=wide)
        weight(f"{name}.conv_1", wide, narrow, 3, 3, bias=wide)
        weight(f"{name}.conv_2", wide, wide, 3, 3, bias=wide)
        if norm:
            weight(f"{name}.norm", wide // 2, bias=wide // 2)

    def put_encoder_decoder(encoder: str, decoder: str, fused: bool, gated: bool) -> None:
        for i, (narrow, wide) in enumerate(levels):
            put_block(f"{encoder}.body.{i}", narrow, wide, norm=True)
            weight(f"{encoder}.body.{i}.downsample", wide, wide, 4, 4)
            if fused:
                weight(f"{encoder}.body.{i}.csff_enc", wide, wide, 3, 3, bias=wide)
                weight(f"{encoder}.body.{i}.csff_dec", wide, narrow, 3, 3, bias=wide)
            if fused and gated:
                weight(f"{encoder}.body.{i}.phi", wide, wide, 3, 3, bias=wide)
                weight(f"{encoder}.body.{i}.gamma", wide, wide, 3, 3, bias=wide)
            weight(f"{decoder}.body.{2 - i}.up", wide, narrow, 2, 2, bias=narrow)
            put_block(f"{decoder}.body.{2 - i}.conv_block", 2 * narrow, narrow, norm=False)
            weight(f"{decoder}.skip_conv.{2 - i}", narrow, wide, 3, 3, bias=narrow)
        put_block(f"{encoder}.body.3", bottom, bottom, norm=True)

    def put_merge(name: str) -> None:
        weight(f"{name}.conv_block", n, 2 * n, 3, 3, bias=n)
        weight(f"{name}.subnet", 16, 2 * n, 3, 3, bias=16)

    def put_sam(name: str, gated: bool) -> None:
        weight(f"{name}.conv1", n, n, 1, 1)
        weight(f"{name}.conv2", c, n, 1, 1)
        if gated:
            weight(f"{name}.conv3", n, c, 1, 1)

    if num_measurements:
        found |= {"Phi": (num_measurements, 1024), "r0": (1,), "r_final": (1,)}
        put_shallow("shallow_feat1")
        put_encoder_decoder("stage1_encoder", "stage1_decoder", fused=True, gated=False)
        put_sam("sam12", gated=True)
        for stage in ["stage_model"] if share_stages else [f"body.{i}" for i in range(num_stages - 2)]:
            found[f"{stage}.r"] = (1,)
            put_shallow(f"{stage}.shallow_feat")
            put_encoder_decoder(f"{stage}.stage_encoder", f"{stage}.stage_decoder", fused=True, gated=False)
            put_sam(f"{stage}.sam", gated=True)
            put_operator(f"{stage}.phi", 3)
            put_operator(f"{stage}.phit", 3)
            weight(f"{stage}.concat", n, 2 * n, 3, 3)
        put_shallow("shallow_feat_final")
        weight("concat_final", n + head_growth, 2 * n, 3, 3)
        weight("tail", c, n + head_growth, 3, 3)
        return found

    last = 7 if share_stages else num_stages
    for k in [1, 2, last] if share_stages else range(1, num_stages + 1):
        prefix = "basic." if share_stages and k == 2 else ""
        found[f"{prefix}r{k - 1}"] = (1,)
        put_operator(f"{prefix}phi_{k - 1}", c)
        put_operator(f"{prefix}phit_{k - 1}", c)
        put_shallow(f"{prefix}shallow_feat{k}")
        if k > 1 and not (share_stages and k == last):
            put_merge(f"{prefix}merge{k - 1}{k}")
        if k < last:
            put_encoder_decoder(f"{prefix}stage{k}_encoder", f"{prefix}stage{k}_decoder", fused=k > 1, gated=True)
            put_sam(f"{prefix}sam{k}{k + 1}", gated=False)
    if share_stages:
        weight("basic.concat12", n, 2 * n, 3, 3)
        weight("concat67", n + head_growth, 2 * n, 3, 3)
    weight("tail", c, n + head_growth if share_stages else n, 3, 3)
    return found


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers of mean 0 and variance 1, uniform, computed from `name`: the same on any machine and in any version."""
    digest = hashlib.shake_128(name.encode()).digest(4 * math.prod(shape))
    codes = np.frombuffer(digest, "<u4").astype(np.float64).reshape(shape)
    return torch.from_numpy((codes / 2**31 - 1) * math.sqrt(3))


def random_weights(found: Shapes, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Weights by `seed` and name: kernels scaled by their fan-in, norms near 1, slopes and step sizes near 0.3."""
    weights = {}
    for name, shape in found.items():
        values = uniform(f"{seed}:{name}", shape)
        if len(shape) >= 2:
            values *= 0.7 / math.sqrt(math.prod(shape[1:]))
        elif "norm" in name or shape == (1,):
            values = 0.1 * values + (0.3 if shape == (1,) else float(name.endswith("weight")))
        else:
            values *= 0.05
        weights[name] = values.to(dtype)
    return weights


def case_weights(case: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights of one of the CASES."""
    sizes = {name: value for name, value in CASES[case].items() if name != "full_image"}
    return random_weights(shapes(**sizes), seed=0, dtype=dtype)


def case_image(case: str, batch: int, height: int, width: int) -> Tensor:
    """An image in [0, 1] for one of the CASES, float64."""
    shape = (batch, CASES[case].get("image_channels", 3), height, width)
    return uniform(f"image:{case}", shape) / (2 * math.sqrt(3)) + 0.5


def case_estimates(case: str, weights: Weights, image: Tensor) -> list[Tensor]:
    """What the reference network makes of the image: degraded in the blind family, clean in the sensing family."""
    sizes = CASES[case]
    with torch.inference_mode():
        if "num_measurements" in sizes:
            return sensing(weights, image, sizes["num_stages"], sizes.get("full_image", True))
        return blind(weights, image, sizes["num_stages"])


def exact_outputs(case: str) -> np.ndarray:
    """All estimates of a small image in float64, one after the other, as `reference_outputs.npz` holds them."""
    height, width = (32, 64) if "num_measurements" in CASES[case] else (16, 24)
    image = case_image(case, 1, height, width)
    return torch.cat(case_estimates(case, case_weights(case, torch.float64), image)).numpy()


if __name__ == "__main__":
    np.savez_compressed(OUTPUTS, **{case: exact_outputs(case).astype(np.float32) for case in CASES})
