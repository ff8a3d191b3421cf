"""Properties of every degradation: shape, range, determinism, identity at zero strength, strict fields."""

import hashlib
import json
import os
import re
import subprocess
import sys
from typing import Annotated, Any

import cv2
import numpy as np
import pytest
import yaml
from factories import PROJECT, pythonpath
from numpy._core._multiarray_umath import __cpu_features__
from pydantic import Field, TypeAdapter, ValidationError

from pipeline.degradations import degrade, regenerate
from pipeline.degradations.compose import Degradation

EXAMPLES: dict[str, Any] = yaml.safe_load((PROJECT / "infra" / "degradations.yaml").read_text())
ADAPTER: TypeAdapter[Degradation] = TypeAdapter(Annotated[Degradation, Field(discriminator="kind")])
NOT_CLIPPED = {"gaussian_noise", "blur_and_noise"}  # Gaussian noise is not clipped

IDENTITY = {"kind": "sequence", "steps": []}
ZERO_STRENGTH: dict[str, dict[str, Any]] = {
    "none": {},
    "gaussian_noise": {"sigma": [0, 0]},
    "camera_noise": {"shot_noise": [0, 0]},
    "camera_noise_bayer": {"shot_noise": [0, 0]},
    "jpeg": {"quality": [100, 100], "chroma": "4:4:4"},
    "camera_shake": {"length": [0, 0]},
    "defocus": {"radius": [0, 0]},
    "gaussian_blur": {"sigma": [0, 0]},
    "gaussian_blur_anisotropic": {"sigma": [0, 0]},
    "light_rain": {"opacity": [0, 0], "veil": [0, 0]},
    "heavy_rain": {"density": [0, 0], "veil": [0, 0]},
    "haze": {"beta": [0, 0]},
    "snow": {"opacity": [0, 0], "veil": [0, 0]},
    "low_light": {"stops": [0, 0], "gamma": [1, 1]},
    "bicubic_x2": {"scale": 1},
    "bicubic_x3": {"scale": 1},
    "bicubic_x4": {"scale": 1},
    "night": {"steps": []},
    "blur_and_noise": {"steps": [{"kind": "gaussian_noise", "sigma": [0, 0], "per_channel": True}]},
    "weather": {"choices": [IDENTITY], "weights": [1]},
    "perhaps_rain": {"probability": 0},
    "second_order": {"step": IDENTITY},
}
ROUNDING = {"jpeg": 5 / 255}  # error at zero strength; 2e-6 for all others, the rounding of float32
NOT_RANDOM = {"none", "bicubic_x2", "bicubic_x3", "bicubic_x4"}

every_example = pytest.mark.parametrize("name", EXAMPLES)


def example(name: str, **changes: Any) -> Degradation:
    return ADAPTER.validate_python({**EXAMPLES[name], **changes})


def picture(height: int = 45, width: int = 70, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth shapes with texture, black and white, quantised to 8 bits as a photograph."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 9 + 2, width // 9 + 2, channels), dtype=np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    textured = 1.3 * smooth - 0.15 + 0.05 * rng.standard_normal(smooth.shape)
    return np.rint(np.clip(textured, 0, 1) * 255).astype(np.float32) / np.float32(255)


def test_every_kind_has_an_example_and_a_zero_strength() -> None:
    kinds = {text["kind"] for text in EXAMPLES.values()}
    known = set(ADAPTER.json_schema()["discriminator"]["mapping"])
    assert kinds == known
    assert set(ZERO_STRENGTH) == set(EXAMPLES)


@every_example
@pytest.mark.parametrize("shape", [(45, 70, 3), (64, 64, 1), (33, 17, 3), (1, 1, 1), (1, 1, 3), (1, 40, 3), (2, 3, 1)])
def test_shape_and_type_are_kept_and_values_are_finite_and_in_range(name: str, shape: tuple[int, int, int]) -> None:
    clean = picture(*shape)
    for seed in range(4):
        image = degrade(clean, example(name), [seed]).image
        assert image.shape == clean.shape
        assert image.dtype == np.float32
        assert image.flags.c_contiguous
        assert np.isfinite(image).all()
        if name not in NOT_CLIPPED:
            assert image.min() >= -1e-6
            assert image.max() <= 1 + 1e-6


@every_example
def test_regenerate_gives_the_same_bits_after_a_json_round_trip_of_the_record(name: str) -> None:
    clean = picture()
    for seed in range(8):
        degraded = degrade(clean, example(name), [seed, 5])
        record = json.loads(json.dumps(degraded.record, allow_nan=False))
        assert record == degraded.record
        assert np.array_equal(regenerate(clean, record), degraded.image)


@every_example
def test_the_same_seed_gives_the_same_image_and_other_seeds_other_parameters(name: str) -> None:
    clean = picture()
    first, same = degrade(clean, example(name), [1, 2]), degrade(clean, example(name), [1, 2])
    assert np.array_equal(first.image, same.image)
    assert first.record == same.record
    others = [degrade(clean, example(name), [1, seed]) for seed in range(3, 9)]
    assert name in NOT_RANDOM or any(other.record["steps"] != first.record["steps"] for other in others)


@every_example
def test_zero_strength_is_the_identity(name: str) -> None:
    for channels in (1, 3):
        clean = picture(channels=channels)
        for seed in range(3):
            image = degrade(clean, example(name, **ZERO_STRENGTH[name]), [seed]).image
            np.testing.assert_allclose(image, clean, rtol=0, atol=ROUNDING.get(name, 2e-6))


@every_example
def test_the_example_changes_the_image_unless_it_is_none(name: str) -> None:
    clean = picture()
    assert (name != "none") == any(
        not np.array_equal(degrade(clean, example(name), [seed]).image, clean) for seed in range(4)
    )


@every_example
def test_input_and_global_random_states_are_not_changed(name: str) -> None:
    def global_random_numbers() -> tuple[float, list[float]]:
        return np.random.random(), cv2.randu(np.zeros((2, 2)), 0.0, 1.0).tolist()  # noqa: NPY002

    def set_global_seeds() -> None:
        np.random.seed(3)  # noqa: NPY002
        cv2.setRNGSeed(3)

    clean = picture()
    original = clean.copy()
    clean.flags.writeable = False
    set_global_seeds()
    for seed in range(4):
        degrade(clean, example(name), [seed])
    after = global_random_numbers()
    set_global_seeds()
    assert after == global_random_numbers()
    assert np.array_equal(clean, original)


def test_no_degradation_uses_the_random_module_of_python() -> None:
    # Reads the sources: the shape checker of the tests itself uses that module.
    sources = (PROJECT / "pipeline" / "degradations").glob("*.py")
    assert not [source.name for source in sources if re.search(r"^\s*(import|from) random\b", source.read_text(), re.M)]


@every_example
def test_the_result_does_not_depend_on_the_number_of_threads_of_opencv(name: str) -> None:
    clean = picture(300, 301)
    threads = cv2.getNumThreads()
    try:
        results = []
        for count in (1, 4):
            cv2.setNumThreads(count)
            results.append([degrade(clean, example(name), [seed]).image for seed in range(3)])
    finally:
        cv2.setNumThreads(threads)
    for one, several in zip(*results, strict=True):
        assert np.array_equal(one, several)


OTHER_CPUS = {  # environment that switches CPU features off, and a feature that it switches off
    "no AVX-512": ({"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"}, "X86_V4"),
    "no AVX2": (
        {
            "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
            "OPENCV_CPU_DISABLE": "SSSE3,SSE4_1,AVX,FP16,FMA3,AVX2,AVX512-SKX,AVX512-ICL",
            "OPENCV_IPP": "disabled",
            "OPENBLAS_CORETYPE": "Nehalem",
        },
        "X86_V3",
    ),
}
DIGESTS = "import json, test_degradations; print(json.dumps(test_degradations.digests()))"


def digests() -> dict[str, str]:
    """SHA-256 of the degraded images of each example."""
    coarse = np.random.default_rng(1).random((8, 8, 3))
    noise = np.random.default_rng(2).standard_normal((96, 96, 3))
    clean = np.rint(np.clip(1.3 * np.kron(coarse, np.ones((12, 12, 1))) - 0.15 + 0.05 * noise, 0, 1) * 255)
    clean = clean.astype(np.float32) / np.float32(255)
    return {
        name: hashlib.sha256(
            b"".join(degrade(clean, example(name), [seed]).image.tobytes() for seed in range(4))
        ).hexdigest()
        for name in EXAMPLES
    }


@pytest.mark.parametrize("cpu", OTHER_CPUS)
def test_the_bytes_do_not_depend_on_cpu_features(cpu: str) -> None:
    settings, feature = OTHER_CPUS[cpu]
    if not __cpu_features__.get(feature):
        pytest.skip(f"NumPy cannot switch off {feature} on this machine")
    environment = {**os.environ, **settings, "PYTHONPATH": pythonpath(__file__)}
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS], env=environment, check=True, capture_output=True, text=True, timeout=120
    )
    assert json.loads(done.stdout.splitlines()[-1]) == digests()


@every_example
def test_an_unknown_or_a_missing_field_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="strenght"):
        example(name, strenght=1)
    text = dict(EXAMPLES[name])
    del text[list(text)[-1]]
    with pytest.raises(ValidationError, match=r"Field required|Unable to extract tag"):
        ADAPTER.validate_python(text)


@every_example
def test_a_reversed_range_or_one_out_of_bounds_is_named(name: str) -> None:
    ranges = [key for key, value in EXAMPLES[name].items() if isinstance(value, list) and key != "weights"]
    for key in (key for key in ranges if all(isinstance(bound, int | float) for bound in EXAMPLES[name][key])):
        for wrong in ([1e9, 1e9], [-1e9, 1], EXAMPLES[name][key][::-1]):
            if wrong == EXAMPLES[name][key]:
                continue
            with pytest.raises(ValidationError, match=key):
                example(name, **{key: wrong})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gaussian_noise", {"sigma": ["0", 50]}),
        ("gaussian_noise", {"sigma": [0, 25, 50]}),
        ("gaussian_noise", {"sigma": 25}),
        ("gaussian_noise", {"sigma": [0, float("nan")]}),
        ("gaussian_noise", {"per_channel": 1}),
        ("light_rain", {"layers": True}),
        ("light_rain", {"layers": 2.0}),
        ("jpeg", {"quality": [10.5, 20]}),
        ("jpeg", {"chroma": "4:1:1"}),
        ("perhaps_rain", {"probability": "0.5"}),
    ],
)
def test_values_of_other_types_are_not_converted(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        example(name, **changes)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.float32), np.zeros((0, 4, 3), np.float32)],
    ids=["float64", "two channels", "empty"],
)
def test_an_invalid_clean_image_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(Exception, match=r"H W C|float32"):  # the shape checker of the tests may raise first
        degrade(wrong, example("gaussian_noise"), [0])


def test_a_record_of_unknown_kind_is_refused_with_the_known_kinds() -> None:
    with pytest.raises(ValueError, match=r"'fog'.*gaussian_noise"):
        regenerate(picture(), {"seed": [0], "steps": [{"kind": "fog"}]})
