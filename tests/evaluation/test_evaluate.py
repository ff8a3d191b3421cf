"""Scores equal those computed by hand, and reports have the same bytes every time."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import image_set

from dgunet.images import write_image
from dgunet.inference import restore
from dgunet.network import DGUNet, DGUNetConfig
from pipeline.dataloader.pairs import EvaluationPair
from pipeline.degradations.noise import GaussianNoise
from pipeline.evaluation import scores
from pipeline.evaluation.baselines import Median, NoBaseline, PseudoInverse
from pipeline.evaluation.benchmarks import Benchmark, load_benchmark
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.quality import Quality, gain, measure
from pipeline.evaluation.scores import Evaluation, ImageScores, evaluate, restore_pair
from pipeline.reporting.tables import metrics, read_curve, replacing, write_tables
from pipeline.sources import storage

RGB = Protocol("rgb", quantise=False, crop=None, border=0, self_ensemble=False)
NOISE = GaussianNoise(sigma=(25.0, 25.0), per_channel=True)


def network(**sizes) -> DGUNet:
    torch.manual_seed(0)
    return DGUNet(DGUNetConfig(**{"width": 8, "growth": 4, "head_growth": 4, "num_stages": 2, **sizes})).eval()


def pair(key: str, size: tuple[int, int, int] = (24, 20, 3), noise: float = 0.1) -> EvaluationPair:
    rng = np.random.default_rng(int(key))
    clean = rng.random(size, np.float32)
    return EvaluationPair(key, clean, clean + noise * rng.standard_normal(size, np.float32), {})


def by_hand(image: np.ndarray, clean: np.ndarray) -> float:
    return -10 * math.log10(np.square(image.astype(np.float64) - clean.astype(np.float64)).mean())


def evaluation_of(gains: dict[str, float]) -> Evaluation:
    return Evaluation(
        tuple(
            ImageScores(k, Quality(20.0, 0.5), Quality(21.0, 0.6), (Quality(20 + g, 0.7),)) for k, g in gains.items()
        ),
        RGB,
    )


def test_psnr_is_minus_ten_log_of_the_mean_square_over_all_channels():
    one = pair("1")
    assert measure(RGB, one.degraded, one.clean).psnr == pytest.approx(by_hand(one.degraded, one.clean))


def test_quantising_clips_and_rounds_both_images():
    clean, image = np.full((16, 16, 3), 0.5, np.float32), np.full((16, 16, 3), 1.7, np.float32)
    quality = measure(Protocol("rgb", quantise=True, crop=None, border=0, self_ensemble=False), image, clean)
    assert quality.psnr == pytest.approx(-20 * math.log10((255 - 128) / 255))


def test_luma_weighs_the_channels_as_matlab_does_and_leaves_gray_images_unchanged():
    clean, image = np.zeros((16, 16, 3), np.float32), np.zeros((16, 16, 3), np.float32)
    image[..., 1] = 0.5
    luma = Protocol("luma", quantise=False, crop=None, border=0, self_ensemble=False)
    assert measure(luma, image, clean).psnr == pytest.approx(-20 * math.log10(0.5 * 128.553 / 255), abs=1e-4)
    gray = pair("2", (16, 16, 1))
    assert measure(luma, gray.degraded, gray.clean) == measure(RGB, gray.degraded, gray.clean)
    thrice = [np.repeat(image, 3, axis=2) for image in (gray.degraded, gray.clean)]
    assert measure(luma, *thrice, was_gray=True).psnr == pytest.approx(measure(RGB, gray.degraded, gray.clean).psnr)
    assert measure(luma, *thrice).psnr > measure(RGB, gray.degraded, gray.clean).psnr + 1.3


@pytest.mark.parametrize("size", [(20, 30, 3), (30, 20, 3)])
def test_the_crop_turns_with_the_image(size):
    one = pair("3", size)
    rows, columns = (16, 24) if size[0] < size[1] else (24, 16)
    quality = measure(
        Protocol("rgb", quantise=False, crop=(16, 24), border=0, self_ensemble=False), one.degraded, one.clean
    )
    assert quality.psnr == pytest.approx(by_hand(one.degraded[:rows, :columns], one.clean[:rows, :columns]))


def test_the_border_is_left_out():
    one = pair("5", (20, 30, 3))
    quality = measure(
        Protocol("rgb", quantise=False, crop=None, border=4, self_ensemble=False), one.degraded, one.clean
    )
    assert quality.psnr == pytest.approx(by_hand(one.degraded[4:-4, 4:-4], one.clean[4:-4, 4:-4]))


def test_the_mean_over_flips_and_turns_is_measured_if_the_protocol_says_so() -> None:
    model, one = network(), pair("1", (20, 24, 3))
    ensembled = Protocol("rgb", quantise=False, crop=None, border=0, self_ensemble=True)
    (found,) = evaluate(model, [one], NoBaseline("none"), ensembled).images
    expected = restore(model, one.degraded, self_ensemble=True).clip(0, 1)
    assert found.stages == (measure(RGB, expected, one.clean),)
    assert found.restored != evaluate(model, [one], NoBaseline("none"), RGB).images[0].restored
    assert "flips and quarter turns" in str(ensembled)
    assert "flips" not in str(RGB)


def test_a_sensing_network_is_not_measured_on_flips_and_turns() -> None:
    ensembled = Protocol("luma", quantise=False, crop=None, border=0, self_ensemble=True)
    model = network(image_channels=1, sensing_ratio_percent=10)
    with pytest.raises(ValueError, match=r"self_ensemble must be false"):
        evaluate(model, [pair("1", (32, 32, 1))], PseudoInverse("pseudo_inverse"), ensembled)


def test_a_crop_without_pixels_is_refused():
    with pytest.raises(ValueError, match="crop"):
        Protocol("rgb", quantise=False, crop=(0, 4), border=0, self_ensemble=False)
    with pytest.raises(ValueError, match="border must be at least 0"):
        Protocol("rgb", quantise=False, crop=None, border=-1, self_ensemble=False)


def test_an_exact_image_has_infinite_psnr_and_no_gain():
    clean = pair("4").clean
    quality = measure(RGB, clean, clean)
    assert quality.psnr == math.inf
    assert gain(quality, quality) == 0


def test_every_estimate_is_measured_against_the_clean_image():
    model, one = network(num_stages=3), pair("5")
    found = evaluate(model, [one], Median("median", 3), RGB).images[0]
    with torch.inference_mode():
        estimates = model(torch.from_numpy(one.degraded).permute(2, 0, 1)[None])
    expected = [by_hand(e[0].permute(1, 2, 0).numpy().clip(0, 1), one.clean) for e in estimates]
    assert [stage.psnr for stage in found.stages] == pytest.approx(expected, abs=1e-4)
    assert found.restored == found.stages[-1]
    assert found.degraded.psnr == pytest.approx(by_hand(one.degraded, one.clean))
    assert found.baseline.psnr == pytest.approx(by_hand(Median("median", 3).restore(one.degraded), one.clean))


def test_means_are_means_over_images():
    result = evaluation_of({"a": 1.0, "b": 2.0, "c": 6.0})
    assert result.gain_db == pytest.approx(3.0)
    assert result.restored.psnr == pytest.approx(23.0)
    assert result.baseline == pytest.approx(Quality(21.0, 0.6))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_estimate_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr(scores, "estimates", lambda model, degraded: (degraded, torch.full_like(degraded, value)))
    with pytest.raises(ValueError, match="not finite: train it again"):
        restore_pair(network(), pair("0"), NoBaseline("none"), self_ensemble=False)


def test_a_test_set_without_pairs_is_refused():
    with pytest.raises(ValueError, match="no pair"):
        evaluate(network(), [], NoBaseline("none"), RGB)


def test_a_large_image_is_restored_in_tiles_and_left_out_of_the_stages(monkeypatch):
    seen = []

    def restore(model, degraded, *, self_ensemble):
        assert not self_ensemble
        seen.append(degraded.shape)
        return degraded

    monkeypatch.setattr(scores, "WHOLE_IMAGE_PIXELS", 500)
    monkeypatch.setattr(scores, "restore", restore)
    small, large = pair("6", (20, 20, 3)), pair("7", (30, 30, 3))
    result = evaluate(network(), [small, large], NoBaseline("none"), RGB)
    assert seen == [(30, 30, 3)]
    assert [len(image.stages) for image in result.images] == [2, 1]
    assert result.stages == result.images[0].stages


def test_a_sensing_network_measures_the_clean_image():
    model = network(image_channels=1, sensing_ratio_percent=25)
    clean = pair("8", (40, 33, 1)).clean
    unused = EvaluationPair("8", clean, np.zeros_like(clean), {})
    images = restore_pair(model, unused, PseudoInverse("pseudo_inverse"), self_ensemble=False)
    assert images.degraded.shape == images.baseline.shape == images.restored.shape == clean.shape
    # A fresh matrix holds the lowest frequencies, as the baseline's does.
    np.testing.assert_allclose(images.degraded.clip(0, 1), images.baseline, atol=1e-4)
    assert by_hand(images.baseline, clean) > by_hand(np.zeros_like(clean), clean)


def test_a_sensing_network_restores_a_large_image_in_tiles(monkeypatch):
    model = network(image_channels=1, sensing_ratio_percent=25)
    one, baseline, sizes = pair("8", (100, 250, 1)), PseudoInverse("pseudo_inverse"), []
    whole = restore_pair(model, one, baseline, self_ensemble=False)
    monkeypatch.setattr(scores, "WHOLE_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr("dgunet.inference.WHOLE_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr("dgunet.inference.TILE", 192)
    model.register_forward_pre_hook(lambda _, inputs: sizes.append((inputs[0].height, inputs[0].width)))
    sense = model.sense
    monkeypatch.setattr(model, "sense", lambda clean: sizes.append(tuple(clean.shape[2:])) or sense(clean))
    tiled = restore_pair(model, one, baseline, self_ensemble=False)
    assert max(height * width for height, width in sizes) <= 100 * 218
    np.testing.assert_allclose(tiled.degraded, whole.degraded, atol=1e-5)
    np.testing.assert_allclose(tiled.baseline, whole.baseline, atol=1e-5)
    np.testing.assert_array_equal(tiled.restored, restore(model, one.clean).clip(0, 1))
    assert len(tiled.estimates) == 1
    assert by_hand(tiled.restored, whole.restored) > 25, "tiles change statistics, not the image"


def test_training_of_a_sensing_network_does_not_change_its_baseline():
    fresh, trained = (network(image_channels=1, sensing_ratio_percent=25) for _ in range(2))
    assert trained.sensing is not None
    torch.nn.init.normal_(trained.sensing.matrix)
    baseline = PseudoInverse("pseudo_inverse")
    before, after = (
        restore_pair(model, pair("8", (40, 33, 1)), baseline, self_ensemble=False) for model in (fresh, trained)
    )
    assert not np.allclose(before.degraded, after.degraded, atol=0.1)
    np.testing.assert_array_equal(before.baseline, after.baseline)


def test_metrics_are_valid_json_also_where_an_image_is_exact(tmp_path):
    clean = pair("9").clean
    result = evaluate(network(), [EvaluationPair("9", clean, clean, {})], NoBaseline("none"), RGB)
    write_tables(tmp_path, result, {"again": result}, "0" * 64)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert content["degraded"] == {"psnr": 100.0, "ssim": 1.0}
    assert content["gain_db"] < 0
    assert set(content) == {
        "degraded", "baseline", "restored", "gain_db", "gain_interval", "num_images", "stages", "benchmarks",
        "not_measured", "test_index_sha256", "local_statistics", "local_statistics_on_val",
    }  # fmt: skip
    assert content["benchmarks"]["again"]["restored"] == content["restored"]


def test_tables_have_the_scores_of_every_image(tmp_path):
    result = evaluation_of({"a": 1.0, "b": 2.5})
    write_tables(tmp_path, result, {"Set5": evaluation_of({"c": 0.25})}, "0" * 64)
    rows = list(csv.DictReader((tmp_path / "per_image.csv").read_text().splitlines()))
    assert [(row["set"], row["key"], row["gain_db"]) for row in rows] == [
        ("test", "a", "1.0000"), ("test", "b", "2.5000"), ("Set5", "c", "0.2500"),
    ]  # fmt: skip
    assert (tmp_path / "gains.csv").read_text() == "key,gain_db\na,1.0000\nb,2.5000\n"
    assert (tmp_path / "stages.csv").read_text() == "stage,psnr,ssim\n1,21.7500,0.7000\n"
    assert metrics(result, {}, "")["stages"] == {"1": 21.75}


def test_a_report_that_fails_leaves_the_old_one(tmp_path):
    (tmp_path / "metrics.json").write_text("old")
    with pytest.raises(RuntimeError), replacing(tmp_path) as folder:
        (folder / "metrics.json").write_text("new")
        raise RuntimeError
    assert (tmp_path / "metrics.json").read_text() == "old"
    (tmp_path / ".killed.partial").mkdir()
    (tmp_path / ".killed.partial" / "metrics.json").write_text("of a process that was killed")
    with replacing(tmp_path) as folder:
        (folder / "metrics.json").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert (tmp_path / "metrics.json").read_text() == "new"


def test_the_training_curve_may_have_gaps_or_be_absent(tmp_path):
    assert read_curve(tmp_path / "train.csv") == []
    (tmp_path / "train.csv").write_text("step,loss,learning_rate,val_psnr\n1,0.5,0.001,\n2,0.25,0.001,30.5\n")
    assert [row["val_psnr"] for row in read_curve(tmp_path / "train.csv")] == [None, 30.5]


def benchmark(folder: Path, *, degraded: bool) -> Benchmark:
    for name, value in (("b", 0.25), ("a", 0.75)):
        for part, shift in (("clean", 0.0), ("degraded", 0.1)):
            (folder / part).mkdir(exist_ok=True)
            write_image(folder / part / f"{name}.png", np.full((8, 9, 3), value + shift, np.float32))
    return Benchmark("set", str(folder / "clean"), str(folder / "degraded") if degraded else None, None, RGB)


def test_a_benchmark_of_pairs_is_read_by_name(tmp_path):
    found = list(benchmark(tmp_path, degraded=True).pairs(NOISE, 3, 0))
    assert [one.key for one in found] == ["a", "b"]
    assert found[0].clean.mean() == pytest.approx(0.75, abs=0.01)
    assert found[0].degraded.mean() == pytest.approx(0.85, abs=0.01)


def test_the_degradation_of_a_benchmark_image_does_not_depend_on_other_images(tmp_path):
    folder = benchmark(tmp_path, degraded=False)
    both = {one.key: one for one in folder.pairs(NOISE, 3, 7)}
    assert not np.allclose(both["a"].degraded - both["a"].clean, both["b"].degraded - both["b"].clean, atol=0.01)
    (tmp_path / "clean" / "a.png").unlink()
    (alone,) = folder.pairs(NOISE, 3, 7)
    np.testing.assert_array_equal(alone.degraded, both["b"].degraded)


def test_a_gray_task_reads_colour_files_of_a_benchmark_as_gray_in_full_range(tmp_path):
    folder = benchmark(tmp_path, degraded=True)
    write_image(tmp_path / "clean" / "a.png", np.full((8, 9, 3), [1.0, 0.0, 1.0], np.float32))
    write_image(tmp_path / "degraded" / "a.png", np.ones((8, 9, 3), np.float32))
    first, _ = folder.pairs(NOISE, 1, 0)
    np.testing.assert_allclose(first.clean, np.full((8, 9, 1), 0.413), atol=0.51 / 255)
    np.testing.assert_array_equal(first.degraded, np.ones((8, 9, 1), np.float32))
    assert not first.was_gray


def test_a_colour_task_knows_which_files_of_a_benchmark_are_gray(tmp_path):
    folder = benchmark(tmp_path, degraded=False)
    write_image(tmp_path / "clean" / "a.png", np.full((8, 9, 1), 0.5, np.float32))
    assert [one.was_gray for one in folder.pairs(NOISE, 3, 0)] == [True, False]


def test_a_benchmark_may_be_an_archive(tmp_path):
    folder = benchmark(tmp_path, degraded=True)
    shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path)
    packed = Benchmark("set", str(tmp_path / "set.zip"), None, NOISE, RGB)
    assert packed.absent() is None
    assert {one.key for one in packed.pairs(NOISE, 3, 0)} == {"clean/a", "clean/b", "degraded/a", "degraded/b"}
    assert folder.absent() is None
    (tmp_path / "clean" / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"clean/a\.png: "):
        list(folder.pairs(NOISE, 3, 0))


def test_a_benchmark_with_a_missing_or_misshapen_partner_is_refused(tmp_path):
    folder = benchmark(tmp_path, degraded=True)
    write_image(tmp_path / "degraded" / "a.png", np.zeros((9, 9, 3), np.float32))
    with pytest.raises(ValueError, match="differ in size"):
        list(folder.pairs(NOISE, 3, 0))
    (tmp_path / "degraded" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"clean/a\.png: no degraded partner"):
        list(folder.pairs(NOISE, 3, 0))


def test_an_absent_benchmark_names_the_folder_that_is_missing(tmp_path):
    folder = benchmark(tmp_path, degraded=True)
    assert folder.absent() is None
    assert Benchmark("set", folder.clean, str(tmp_path / "nowhere"), None, RGB).absent() == str(tmp_path / "nowhere")


def write_benchmark(folder: Path, *names: str) -> None:
    """Write images with these names; those in the second half are degraded, brighter by 0.1."""
    for number, name in enumerate(names):
        later = number >= len(names) // 2
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, np.full((8, 9, 3), 0.2 + 0.2 * (number % (len(names) // 2)) + 0.1 * later, np.float32))


@pytest.mark.parametrize(
    ("clean", "degraded", "names"),
    [
        ("t/{}/sharp/{}", "t/{}/blur/{}", ["t/x/sharp/1.png", "t/y/sharp/1.png", "t/x/blur/1.png", "t/y/blur/1.png"]),
        ("norain-{}.png", "rain-{}.png", ["norain-1.png", "norain-2.png", "rain-1.png", "rain-2.png"]),
        ("target", "input", ["target/a.png", "target/s/b.png", "input/a.png", "input/s/b.png"]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_benchmark_may_have_any_common_layout(tmp_path, clean, degraded, names, packed):
    write_benchmark(tmp_path / "set", *names)
    root = f"{tmp_path}/set/"
    if packed:
        root = shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "set") + "!"
    both = Benchmark("set", root + clean, root + degraded, None, RGB)
    assert both.absent() is None
    found = list(both.pairs(NOISE, 3, 0))
    assert len({one.key for one in found}) == len(found) == 2
    for one in found:
        np.testing.assert_allclose(one.degraded - one.clean, 0.1, atol=0.01)
    alone = Benchmark("set", root + clean, None, NOISE, RGB)
    assert alone.absent() is None and len(list(alone.pairs(NOISE, 3, 0))) == 2


def test_a_pattern_of_a_benchmark_that_matches_nothing_is_an_error_that_lists_the_files(tmp_path):
    folder = benchmark(tmp_path, degraded=True)
    wrong = Benchmark("set", folder.clean + "/{}_x.png", folder.degraded + "/{}_x.png", None, RGB)
    assert wrong.absent() is None
    with pytest.raises(ValueError, match=r"(?s)benchmark set: .*\{\}_x\.png.*a\.png: matches neither pattern"):
        list(wrong.pairs(NOISE, 3, 0))


def test_an_empty_folder_is_an_absent_benchmark(tmp_path):
    folder = benchmark(tmp_path, degraded=True)
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount" / ".keep").touch()
    for place in (str(tmp_path / "mount"), str(tmp_path / "no.zip"), "http://127.0.0.1:9/set"):
        missing = Benchmark("set", folder.clean, place, None, RGB).absent()
        assert missing is not None and missing.startswith(place)
    (tmp_path / "no.zip").write_bytes(b"x")
    with pytest.raises(ValueError, match="incomplete or damaged"):
        Benchmark("set", str(tmp_path / "no.zip"), None, None, RGB).absent()


@pytest.mark.parametrize("part", ["clean", "degraded"])
@pytest.mark.parametrize("is_pair", [True, False])
def test_two_images_of_a_benchmark_that_differ_in_their_suffix_alone_are_refused(tmp_path, part, is_pair):
    folder = benchmark(tmp_path, degraded=is_pair)
    if part == "degraded" and not is_pair:
        folder = Benchmark("set", str(tmp_path / "degraded"), None, None, RGB)
    write_image(tmp_path / part / "a.bmp", np.zeros((8, 9, 3), np.float32))
    with pytest.raises(ValueError, match=r"a\.bmp.*a\.png"):
        list(folder.pairs(NOISE, 3, 0))


def test_images_of_a_benchmark_lie_in_the_folder_that_the_environment_names(tmp_path, monkeypatch):
    content = {"protocol": {"colour": "luma"}, "clean": "set/target", "degraded": "set/input"}
    shared = {"colour": "rgb", "quantise": True, "crop": None, "border": 0, "self_ensemble": False}
    params = {"defaults": {"evaluate": {"protocol": shared}}, "benchmarks": {"set": content}}
    monkeypatch.delenv("DGUNET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    found = load_benchmark(params, "set")
    assert (found.clean, found.degraded) == ("/cache/dgunet/sets/set/target", "/cache/dgunet/sets/set/input")
    assert found.protocol == Protocol("luma", quantise=True, crop=None, border=0, self_ensemble=False)
    monkeypatch.setenv("DGUNET_DATA", f"{tmp_path}/")
    assert load_benchmark(params, "set").clean == f"{tmp_path}/set/target"
    monkeypatch.setenv("DGUNET_DATA", "s3://bucket/sets")
    assert load_benchmark(params, "set").clean == "s3://bucket/sets/set/target"
    for place in ("/mnt/set/target", "https://example.org/set.zip!target"):
        content["clean"] = place
        assert load_benchmark(params, "set").clean == place
    with pytest.raises(ValueError, match=r"no benchmark `sett` in params\.yaml; available: set"):
        load_benchmark(params, "sett")


def test_a_place_that_holds_both_sides_of_a_benchmark_is_listed_once(tmp_path, monkeypatch):
    write_benchmark(tmp_path / "set", "rain-1.png", "norain-1.png")
    listed = []
    list_files = storage.list_files
    monkeypatch.setattr(storage, "list_files", lambda place: listed.append(place) or list_files(place))
    root = f"{tmp_path}/set/"
    assert Benchmark("set", root + "norain-{}.png", root + "rain-{}.png", None, RGB).absent() is None
    assert listed == [f"{tmp_path}/set"]


@pytest.mark.slow
@pytest.mark.parametrize(("crop", "psnr", "ssim"), [(None, 26.901, 0.8384), ((320, 480), 26.903, None)])
def test_the_input_of_rain100l_measures_as_published(crop, psnr, ssim):
    folder = image_set("Rain100L")
    protocol = Protocol("luma", quantise=True, crop=crop, border=0, self_ensemble=False)
    rain = Benchmark("Rain100L", str(folder / "target"), str(folder / "input"), None, protocol)
    found = [measure(protocol, one.degraded, one.clean) for one in rain.pairs(NOISE, 3, 0)]
    assert np.mean([quality.psnr for quality in found]) == pytest.approx(psnr, abs=5e-4)
    if ssim is not None:
        assert np.mean([quality.ssim for quality in found]) == pytest.approx(ssim, abs=5e-5)


def test_a_benchmark_may_name_a_published_set(monkeypatch):
    shared = {"colour": "rgb", "quantise": True, "crop": None, "border": 0, "self_ensemble": False}
    content = {"dataset": "rain100l"}
    params = {"defaults": {"evaluate": {"protocol": shared}}, "benchmarks": {"set": content}}
    monkeypatch.setenv("DGUNET_DATA", "/sets")
    found = load_benchmark(params, "set")
    assert (found.clean, found.degraded, found.dataset) == (
        "/sets/Rain100L/target", "/sets/Rain100L/input", "rain100l",
    )  # fmt: skip
    assert found.absent() == "/sets/Rain100L"
    for dataset, message in (
        ("bsds500", "benchmarks.set: give a split of bsds500: train, test"),
        ("rain", "benchmarks.set: there is no data set `rain`; available: "),
    ):
        content["dataset"] = dataset
        with pytest.raises(ValueError, match=message):
            load_benchmark(params, "set")
    content.update(dataset="bsds500", split="test")
    found = load_benchmark(params, "set")
    assert (found.clean, found.degraded) == ("/sets/CBSD400/test", None)


def test_a_published_set_with_a_changed_image_is_no_benchmark(tmp_path, monkeypatch):
    monkeypatch.setenv("DGUNET_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "Set5").mkdir()
    (tmp_path / "Set5" / "bird_GT.bmp").write_bytes(b"x")
    found = Benchmark("set", str(tmp_path / "Set5"), None, NOISE, RGB, "set5")
    with pytest.raises(ValueError, match=r"bird_GT\.bmp: 1 bytes, not \d+"):
        found.absent()
