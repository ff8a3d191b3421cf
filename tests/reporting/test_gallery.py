"""The gallery is one file without references to others, shows failures too, and has the same bytes every time."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from factories import small_params
from matplotlib.figure import Figure

from dgunet.checkpoint import save_model
from dgunet.network import DGUNet, DGUNetConfig
from pipeline import evaluate as evaluate_command
from pipeline.config.params import ParamsError, merged_section, validated
from pipeline.dataloader.pairs import EvaluationPair
from pipeline.dataloader.pairs import pairs as read_pairs
from pipeline.evaluation.baselines import NonLocalMeans
from pipeline.evaluation.benchmarks import Benchmark
from pipeline.evaluation.local_statistics import Candidate
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.quality import Quality
from pipeline.evaluation.scores import Evaluation, ImageScores, Restoration, evaluate, restore_pair
from pipeline.evaluation.settings import Evaluate
from pipeline.preparation.leaks import Leak, photograph_leak, write_thumbnails
from pipeline.preparation.settings import Prepare
from pipeline.prepare import prepare
from pipeline.reporting.gallery import GalleryItem, Page, choose, most_different_crop, render
from pipeline.reporting.plots import ON_DARK, ON_LIGHT, plots, png, svg
from pipeline.shards.format import Index, Pair, write_index, write_shard
from pipeline.summary import read_results, summary

RGB = Protocol("rgb", quantise=False, crop=None, border=0, self_ensemble=False)
BASELINE = NonLocalMeans("non_local_means", 0.9)
CURVE = [
    {"step": float(n), "loss": 1 / n, "learning_rate": 1e-3, "val_psnr": 20.0 + n if n % 2 else None} for n in (1, 2, 3)
]


def network(channels: int = 3) -> DGUNet:
    torch.manual_seed(0)
    return DGUNet(DGUNetConfig(image_channels=channels, width=8, growth=4, head_growth=4, num_stages=2)).eval()


def page(channels: int = 3, task: str = "denoise") -> Page:
    rng, model = np.random.default_rng(0), network(channels)
    clean = [rng.random((40, 900 if n == 0 else 50, channels), np.float32) for n in range(3)]
    noise = [rng.normal(0, 0.1 + n / 20, image.shape).astype(np.float32) for n, image in enumerate(clean)]
    pairs = [EvaluationPair(f"key{n}", x, x + e, {}) for n, (x, e) in enumerate(zip(clean, noise, strict=True))]
    found = evaluate(model, pairs, BASELINE, RGB)
    sampled = {"seed": [1], "steps": [{"kind": "haze", "beta": 0.512345, "seed": 99}]}
    shown = [
        GalleryItem(
            "largest gain",
            found.images[n],
            restore_pair(model, one, BASELINE, self_ensemble=False),
            sampled if n else {},
        )
        for n, one in enumerate(pairs)
    ]
    sigma = {"kind": "gaussian_noise", "sigma": [25, 25], "per_channel": True}
    leak = Leak("1 image <shows> it", "", ())
    return Page(
        task, found, {"Set <5>": found}, {"Set <6>": leak}, shown, plots(found, CURVE),
        {"kind": "sequence", "steps": [sigma]}, model.config, 12345, BASELINE, None,
    )  # fmt: skip


def evaluation(gains: list[float]) -> Evaluation:
    images = (
        ImageScores(f"k{n}", Quality(20.0, 0.5), Quality(21.0, 0.6), (Quality(20 + gain, 0.7),))
        for n, gain in enumerate(gains)
    )
    return Evaluation(tuple(images), RGB)


class Reader(HTMLParser):
    """Collects the addresses that the page would fetch, and checks that its tags match."""

    def __init__(self):
        super().__init__()
        self.fetched, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        fetching = (
            ("src", "srcset", "action", "poster") if tag == "a" else ("src", "srcset", "href", "action", "poster")
        )
        self.fetched += [value for name, value in attrs if name in fetching]
        if tag not in ("meta", "img", "input", "source", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    return reader


@pytest.mark.parametrize("channels", [1, 3])
def test_the_page_fetches_nothing(channels):
    text = render(page(channels))
    reader = read(text)
    assert reader.open == []
    assert len(reader.fetched) == 3 * (3 + 4 + 2) + 3 * 2
    assert all(re.match(r"data:image/(jpeg|png|svg\+xml);base64,[A-Za-z0-9+/=]+$", uri) for uri in reader.fetched)
    assert not re.search(r"https?://|@import|url\(|<script src|<link", text)


def test_the_page_shows_the_sampled_parameters_of_each_image():
    shown = [part.strip() for part in read(render(page())).text]
    assert shown.count("haze beta 0.512") == 2


def test_the_page_has_no_row_of_stages_where_the_last_estimate_alone_is_known():
    shown = page()
    last = [
        replace(
            item,
            images=item.images._replace(estimates=item.images.estimates[-1:]),
            scores=replace(item.scores, stages=item.scores.stages[-1:]),
        )
        for item in shown.items
    ]
    assert "stage 1" in render(shown)
    assert "stage 1" not in render(replace(shown, items=last))


def test_the_page_is_the_same_bytes_every_time():
    assert render(page()) == render(page())


def test_the_page_shows_the_numbers_of_the_evaluation_and_of_every_image():
    shown = page()
    text = " ".join(read(render(shown)).text)
    assert f"{shown.evaluation.restored.psnr:.2f}" in text
    assert f"{shown.evaluation.gain_db:+.2f}" in text
    for image in shown.evaluation.images:
        assert image.key in text
        assert all(f"{stage.psnr:.2f}" in text for stage in image.stages)
    assert "12,345" in text
    assert "the image with the smallest gain is always shown" in text


def test_text_from_outside_is_escaped():
    text = render(page(task="<script>alert(1)</script>"))
    assert "<script>alert" not in text
    assert "Set &lt;5&gt;" in text


@pytest.mark.parametrize("palette", [ON_LIGHT, ON_DARK])
def test_plots_are_the_same_bytes_every_time_and_have_no_date(palette):
    for name, plot in plots(evaluation([1.0, 2.0, 5.0]), CURVE).items():
        assert png(plot) == png(plot), name
        assert svg(plot, palette) == svg(plot, palette), name
        assert b"Matplotlib v" not in png(plot) + svg(plot, palette)
        assert b"dc:date" not in svg(plot, palette)


def test_there_is_no_training_plot_without_a_curve_and_infinite_gains_draw_no_bar():
    sampled = plots(evaluation([float("inf")]), [])
    assert sorted(sampled) == ["gains", "stages"]
    assert all(
        cv2.imdecode(np.frombuffer(png(plot), np.uint8), cv2.IMREAD_COLOR) is not None for plot in sampled.values()
    )


@pytest.mark.parametrize(("last", "scale"), [(0.06, "linear"), (0.01, "log"), (-0.01, "linear")])
def test_the_axis_of_the_loss_always_has_labels(last, scale):
    curve = [{"step": 100.0 * k, "loss": loss, "val_psnr": 20.0 + k} for k, loss in enumerate([0.08, 0.07, last], 1)]
    axes = Figure().add_subplot()
    plots(evaluation([1.0]), curve)["training"](axes, ON_LIGHT)
    assert axes.get_yscale() == scale
    low, high = sorted(axes.get_ylim())
    labels = [label for minor in (False, True) for label in axes.get_yticklabels(minor=minor)]
    assert len([label for label in labels if label.get_text() and low <= label.get_position()[1] <= high]) >= 2


@pytest.mark.parametrize(("end", "num_points"), [(303, 3), (400, 4)])
def test_a_loss_of_a_few_last_steps_is_not_shown(end, num_points):
    curve = [{"step": float(step), "loss": 0.1, "val_psnr": 20.0} for step in (100, 200, 300, end)]
    axes = Figure().add_subplot()
    plots(evaluation([1.0]), curve)["training"](axes, ON_LIGHT)
    assert len(axes.lines[0].get_xdata()) == num_points


def test_worst_median_and_best_are_always_shown():
    result = evaluation([3.0, -1.0, 7.0, 2.0, 4.0])
    assert choose(result, 3) == {"k1": "smallest gain", "k0": "median gain", "k2": "largest gain"}
    assert list(choose(result, 5)) == ["k1", "k3", "k0", "k4", "k2"]
    assert choose(result, 4)["k3"] == "rank 2 of 5 by gain"


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("images", [1, 2, 3, 7])
def test_no_more_images_are_chosen_than_asked_for_or_there_are(images, number):
    assert len(choose(evaluation([float(n) for n in range(images)]), number)) == min(images, number)


def test_the_crop_is_where_network_and_baseline_differ_most():
    flat = np.zeros((200, 300, 3), np.float32)
    restored = flat.copy()
    restored[150:170, 40:60] = 1.0
    rows, columns = most_different_crop(Restoration(flat, flat, flat, (restored,)))
    assert rows.stop - rows.start == columns.stop - columns.start == 72
    assert rows.start <= 150 and rows.stop >= 170
    assert columns.start <= 40 and columns.stop >= 60
    small = np.zeros((5, 9, 1), np.float32)
    assert most_different_crop(Restoration(small, small, small, (small,))) == (slice(0, 5), slice(0, 5))


SETTINGS = {
    "protocol": {"colour": "rgb", "quantise": False, "crop": [16, 16], "border": 0, "self_ensemble": False},
    "baseline": {"kind": "non_local_means", "strength_per_sigma": 0.9},
    "gallery_images": 3,
    "local_statistics": [{"window": 96, "of": ["norm"]}],
    "benchmarks": ["Nowhere"],
}
BENCHMARKS = {
    "Nowhere": {
        "clean": "no/such/folder",
        "degradation": {"kind": "gaussian_noise", "sigma": [25, 25], "per_channel": True},
        "protocol": {"colour": "luma", "quantise": True, "crop": None, "border": 0, "self_ensemble": False},
    }
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            "protocol",
            {"colour": "ycc", "quantise": False, "crop": None, "border": 0, "self_ensemble": False},
            "evaluate.protocol.colour",
        ),
        ("protocol", {"colour": "rgb", "quantise": False, "border": 0}, "evaluate.protocol.crop: missing"),
        (
            "protocol",
            {"colour": "rgb", "quantise": False, "crop": None, "border": 0, "shave": 4},
            "evaluate.protocol.shave: no such",
        ),
        ("baseline", {"kind": "median", "size": 4}, "evaluate.baseline.size"),
        ("baseline", {"kind": "bm3d"}, "evaluate.baseline"),
        ("gallery_images", 0, "evaluate.gallery_images"),
    ],
)
def test_an_error_in_the_section_names_its_place(place, value, message):
    with pytest.raises(ParamsError, match=re.escape(message)):
        validated({**SETTINGS, place: value}, Evaluate, "evaluate")


def checkout(folder: Path) -> list[str]:
    """Write what the command reads: params.yaml, test shards, a model; return its arguments."""
    rng = np.random.default_rng(0)
    synthesize = merged_section(small_params(), "denoise", "synthesize")
    (folder / "params.yaml").write_text(
        yaml.safe_dump(
            {"seed": 1, "benchmarks": BENCHMARKS, "denoise": {"synthesize": synthesize, "evaluate": SETTINGS}}
        )
    )
    (folder / "test").mkdir()
    pairs = [Pair(f"key{n}", rng.integers(0, 256, (32, 32, 3), np.uint8), None, {"degradation": {}}) for n in range(4)]
    entry = write_shard(folder / "test" / "000000.tar", pairs)
    write_index(folder / "test", Index({**synthesize, "seed": 1}, [entry]))
    shutil.copytree(folder / "test", folder / "val")
    save_model(network(), folder / "model", {"task": "denoise", "provenance": {}})
    (folder / "photographs.json").write_text("[]")
    paths = {"model": "model", "shards": "test", "validation": "val", "curve": "report/train.csv", "out": "report"}
    paths["thumbnails"] = "thumbnails.npz"
    return ["--task", "denoise", *(word for name, path in paths.items() for word in (f"--{name}", path))]


@pytest.fixture
def in_a_checkout(tmp_path, monkeypatch):
    """The arguments of the command in a checkout where every benchmark has the images of the test split."""
    arguments = checkout(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DGUNET_DATA", "sets")
    monkeypatch.setattr("pipeline.evaluation.benchmarks.Benchmark.absent", lambda self: None)
    monkeypatch.setattr("pipeline.evaluation.benchmarks.Benchmark.pairs", lambda *_: read_pairs(Path("test")))
    monkeypatch.setattr("pipeline.evaluation.benchmarks.Benchmark.clean_images", lambda self: iter(()))
    monkeypatch.setattr("pipeline.evaluation.benchmarks.Benchmark.sha256", lambda self: "0" * 64)
    return arguments


@pytest.mark.parametrize(
    ("benchmark", "seen", "refused"),
    [
        ({"dataset": "rain100l"}, ["dataset:CBSD400/train/100075.jpg"], True),
        ({"dataset": "rain100l"}, ["dataset:CBSD400/train/100080.jpg", "dataset:CBSD400/test/100007.jpg"], False),
        ({"dataset": "bsd68"}, ["dataset:CBSD68/101085.png"], True),
        ({"clean": "CBSD68"}, ["dataset:BSD68/test001.png"], True),
        ({"dataset": "set5"}, ["dataset:Set5/bird_GT.bmp"], True),
        ({"dataset": "set5"}, ["dataset:Set12/01.png", "dataset:mine/a.png"], False),
        ({"clean": "mine"}, ["dataset:mine/a.png"], False),
    ],
)
def test_a_benchmark_whose_scenes_the_model_has_seen_is_refused(in_a_checkout, capsys, benchmark, seen, refused):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["benchmarks"]["Nowhere"] = {"protocol": BENCHMARKS["Nowhere"]["protocol"], **benchmark}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    Path("published.json").write_text(json.dumps(seen))
    evaluate_command.main(in_a_checkout)
    said = capsys.readouterr().out
    assert ("benchmark Nowhere refused: 1 images of the train and val splits show scenes of" in said) == refused
    metrics = json.loads(Path("report/metrics.json").read_text())
    assert ("Nowhere" in metrics["benchmarks"]) != refused
    assert ("Nowhere" in metrics["not_measured"]) == refused
    assert ("not measured: 1 images of the train" in Path("report/gallery.html").read_text()) == refused
    if refused:
        assert f"such as {seen[0]}" in said
        assert metrics["not_measured"]["Nowhere"]["pairs"] == [[seen[0], ""]]


@pytest.mark.parametrize("trained_on", [(0, 1), (1, 3)])
def test_a_benchmark_with_a_near_duplicate_in_train_or_val_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trained_on: tuple[int, int]
) -> None:
    arguments = checkout(tmp_path)
    monkeypatch.chdir(tmp_path)
    for folder, numbers in (("photos", range(4)), ("mine", [7])):
        Path(folder).mkdir()
        for number in numbers:
            noise = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
            cv2.imwrite(f"{folder}/{number}.png", cv2.resize(noise, (128, 96), interpolation=cv2.INTER_CUBIC))
    copy = cv2.imread("photos/0.png")  # smaller, compressed, and brighter
    cv2.imwrite("mine/copy.jpg", cv2.resize(copy, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA) // 2 + 60)
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["benchmarks"]["Nowhere"] = {"protocol": BENCHMARKS["Nowhere"]["protocol"], "clean": str(tmp_path / "mine")}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    settings = Prepare.model_validate(
        {
            "sources": [{"kind": "folder", "path": "photos"}],
            "min_side": 32,
            "max_megapixels": 1,
            "split": {"val": 0.0, "test": 0.0},
        }
    )
    found = prepare(settings, seed=1, cache_file=Path("cache.sqlite"))
    write_thumbnails(Path("thumbnails.npz"), found.entries, found.thumbnails)
    hashes = {Path(entry.uri).stem: entry.sha256 for entry in found.entries}
    Path("photographs.json").write_text(json.dumps(sorted(hashes[str(number)] for number in trained_on)))
    evaluate_command.main(arguments)
    metrics, said = json.loads(Path("report/metrics.json").read_text()), capsys.readouterr().out
    if 0 in trained_on:
        assert metrics["not_measured"]["Nowhere"]["pairs"] == [["photos/0.png", "copy"]]
        assert (
            "show scenes of Nowhere, such as photos/0.png, which is like copy. To measure on it, take them out" in said
        )
        assert metrics["benchmarks"] == {}
    else:
        assert metrics["not_measured"] == {}
        measured = json.loads(Path("report/measurement.json").read_text())["sets"]
        assert measured["Nowhere"]["sha256"] == Benchmark("Nowhere", "mine", None, None, RGB).sha256()
        (Path("mine") / "copy.jpg").write_bytes((Path("mine") / "copy.jpg").read_bytes() + b"x")
        assert measured["Nowhere"]["sha256"] != Benchmark("Nowhere", "mine", None, None, RGB).sha256()


def test_photographs_without_a_thumbnail_are_an_error(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "thumbnails.npz",
        sha256=np.array([b"b"]),
        uri=np.array([b"b.png"]),
        thumbnail=np.zeros((1, 32, 32), np.uint8),
    )
    for absent in ("a", "c"):
        (tmp_path / "photographs.json").write_text(json.dumps([absent]))
        with pytest.raises(ValueError, match="lacks photographs"):
            photograph_leak(tmp_path, tmp_path / "thumbnails.npz", "mine", {"x": np.zeros((32, 32), np.uint8)})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_command_writes_the_same_report_twice_and_prints_which_benchmark_it_skipped(tmp_path, monkeypatch, capsys):
    arguments = checkout(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DGUNET_DATA", "data/sets")
    evaluate_command.main(arguments)
    assert "denoise: benchmark Nowhere skipped: data/sets/no/such/folder is not available" in capsys.readouterr().out
    first = contents(tmp_path / "report")
    assert sorted(first) == [
        "explanation.html", "gains.csv", "gains.png", "gallery.html", "measurement.json", "metrics.json",
        "per_image.csv", "stages.csv", "stages.png",
    ]  # fmt: skip
    evaluate_command.main(arguments)
    second = contents(tmp_path / "report")
    assert second == first
    tested = json.loads(first["measurement.json"])["sets"]["test split"]
    assert tested["sha256"] == json.loads(first["metrics.json"])["test_index_sha256"]
    sampled = re.findall(r"gaussian_noise sigma ([0-9.]+), per_channel true", first["gallery.html"].decode())
    assert len(set(sampled)) == len(sampled) == SETTINGS["gallery_images"]
    metrics = json.loads(first["metrics.json"])
    assert metrics["num_images"] == 4
    assert metrics["benchmarks"] == {}
    assert [tried["window"] for tried in metrics["local_statistics_on_val"]] == [None, 96]


def test_windows_that_are_better_on_the_val_split_are_used_and_named(tmp_path, monkeypatch):
    arguments = checkout(tmp_path)
    monkeypatch.chdir(tmp_path)
    evaluate_command.main(arguments)
    whole = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert whole["local_statistics"] is None
    monkeypatch.setattr(Candidate, "is_better", property(lambda candidate: candidate.local is not None))
    evaluate_command.main(arguments)
    chosen = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert chosen["local_statistics"] == {"window": 96, "of": ["norm"]}
    assert "norm over windows of 96 pixels" in (tmp_path / "report" / "gallery.html").read_text()


def test_a_command_that_fails_leaves_the_old_report(tmp_path, monkeypatch):
    arguments = checkout(tmp_path)
    monkeypatch.chdir(tmp_path)
    evaluate_command.main(arguments)
    first = contents(tmp_path / "report")
    monkeypatch.setattr(evaluate_command, "render", lambda page: 1 / 0)
    save_model(network().requires_grad_(False), tmp_path / "model", {"task": "denoise", "provenance": {"commit": "b"}})
    with pytest.raises(ZeroDivisionError):
        evaluate_command.main(arguments)
    assert contents(tmp_path / "report") == first


def report(folder: Path, task: str, promotion: dict | None) -> None:
    (folder / task).mkdir(parents=True)
    numbers = {
        kind: {"psnr": psnr, "ssim": 0.5} for kind, psnr in (("degraded", 20.0), ("baseline", None), ("restored", 29.5))
    }
    (folder / task / "metrics.json").write_text(json.dumps({**numbers, "gain_db": 9.5}))
    if promotion is not None:
        (folder / task / "promote.json").write_text(json.dumps(promotion))


def test_the_summary_has_a_line_per_task_and_three_lines_of_next_commands(tmp_path):
    report(tmp_path, "denoise", {"champion_version": 3, "alias_moved": True, "reason": "better by 1 dB"})
    report(tmp_path, "derain", {"champion_version": None, "alias_moved": False, "reason": "worse than the baseline"})
    report(tmp_path, "deblur", None)
    lines = summary(read_results(tmp_path), tmp_path).splitlines()
    assert [line.split() for line in lines[2:5]] == [
        ["deblur", "20.00", "-", "29.50", "+9.50", "-", "none"],
        ["denoise", "20.00", "-", "29.50", "+9.50", "-", "3"],
        ["derain", "20.00", "-", "29.50", "+9.50", "-", "none"],
    ]
    assert lines[5] == "derain: did not become champion: worse than the baseline"
    assert lines[6] == ""
    assert len(lines[7:]) == 3
    assert "models:/denoise@champion" in lines[8]


def test_a_summary_without_reports_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="make repro"):
        read_results(tmp_path)
