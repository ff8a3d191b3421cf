"""prepare: rejection, duplicates, scenes, splits."""

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from factories import PROJECT, small_params
from jaxtyping import Float32
from PIL import Image

from pipeline.preparation.settings import Prepare, Split
from pipeline.prepare import Prepared, main, prepare, report
from pipeline.sources.listing import Folder, Pairs, Source, Starter
from pipeline.sources.manifest import SPLITS

Picture = Float32[np.ndarray, "H W 3"]


@pytest.fixture(autouse=True)
def _in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def scene(number: int, height: int = 96, width: int = 128) -> Picture:
    """A picture unlike all others: smooth random shapes at several scales."""
    rng = np.random.default_rng(number)
    layers = [
        cv2.resize(rng.random((n, n, 3), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        for n in (5, 9, 17)
    ]
    return np.clip(np.asarray(sum(layers), np.float32) / 3, 0, 1)


def save(path: str, picture: Picture, **options: object) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(file, **options)  # type: ignore[arg-type]
    return file


def album(folder: str, numbers: range) -> None:
    for number in numbers:
        save(f"{folder}/{number:03d}.png", scene(number))


def run(*sources: Source, seed: int = 0, val: float = 0.0, test: float = 0.0, min_side: int = 32) -> Prepared:
    settings = Prepare(sources=list(sources), min_side=min_side, max_megapixels=1.0, split=Split(val=val, test=test))
    return prepare(settings, seed=seed, cache_file=Path("inspections.sqlite"))


def rejected(prepared: Prepared) -> dict[str, str]:
    return {item.uri: item.reason for item in prepared.rejected}


def uris(prepared: Prepared) -> set[str]:
    return {entry.uri for entry in prepared.entries}


def splits(prepared: Prepared) -> dict[str, str]:
    return {entry.sha256: entry.split for entry in prepared.entries}


def scenes_of_several(prepared: Prepared) -> list[list[str]]:
    return sorted(sorted(names) for names in report(prepared)["scenes_of_several"].values())


def bomb() -> bytes:
    """A PNG of a few hundred bytes whose header promises 40000 × 40000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_unusable_images_are_rejected_with_the_reason() -> None:
    save("p/good.png", scene(1))
    save("p/tiny.png", scene(2, 31, 200))
    save("p/huge.png", scene(3, 1001, 1000))
    save("p/copy.bmp", scene(1))
    cut = save("p/cut.jpg", scene(4), quality=95)
    cut.write_bytes(cut.read_bytes()[:-400])
    Path("p/text.png").write_text("not an image")
    Path("p/empty.png").touch()
    Path("p/bomb.png").write_bytes(bomb())
    Path("p/notes.txt").touch()
    found = run(Folder(path="p"))
    assert uris(found) == {"p/copy.bmp"}  # of two equal ones, the first by name
    reasons = rejected(found)
    assert reasons["p/good.png"] == "duplicate: same pixels as p/copy.bmp"
    assert reasons["p/tiny.png"] == "too small: 200x31, min_side is 32"
    assert "truncated" in reasons["p/cut.jpg"]
    assert "image of a known kind" in reasons["p/text.png"] and "empty file" in reasons["p/empty.png"]
    assert "more than the 1000000" in reasons["p/huge.png"] and "1600000000 pixels" in reasons["p/bomb.png"]
    assert report(found)["ignored"] == {".txt: not an image's name": 1}
    assert list(report(found)["no_photographs"].values()) == [{".txt": 1}]
    assert {item["where"] for item in report(found)["left_out"]} == reasons.keys() - {"p/notes.txt"}


def test_every_kind_of_image_is_accepted() -> None:
    kinds: dict[str, Callable[[Image.Image], Image.Image]] = {
        "gray.png": lambda image: image.convert("L"),
        "alpha.webp": lambda image: image.convert("RGBA"),
        "cmyk.jpg": lambda image: image.convert("CMYK"),
        "palette.png": lambda image: image.quantize(),
        "wrong_suffix.png": lambda image: image,
    }
    Path("p").mkdir()
    for number, (name, convert) in enumerate(kinds.items()):
        picture = convert(Image.fromarray((scene(number) * 255).astype(np.uint8)))
        picture.save(f"p/{name}", "JPEG" if name.startswith("wrong") else None)
    cv2.imwrite("p/deep.tiff", (scene(9) * 65535).astype(np.uint16))
    found = run(Folder(path="p"))
    assert uris(found) == {f"p/{name}" for name in (*kinds, "deep.tiff")} and not found.rejected
    assert {(entry.height, entry.width) for entry in found.entries} == {(96, 128)}


def test_the_same_pixels_in_another_format_are_a_duplicate() -> None:
    save("p/a.png", scene(1))
    save("p/b.tiff", scene(1))
    save("p/c.webp", scene(1), lossless=True)
    upright = Image.fromarray(np.rint(scene(1) * 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees when shown
    upright.transpose(Image.Transpose.ROTATE_90).save("p/d.png", exif=exif)
    assert len(run(Folder(path="p")).entries) == 1


def test_near_duplicates_share_a_scene() -> None:
    album("p", range(20))
    picture = scene(0)
    save("p/half.png", cv2.resize(picture, (64, 48), interpolation=cv2.INTER_AREA))
    save("p/compressed.jpg", picture, quality=30)
    save("p/darker.png", 0.6 * picture)
    save("p/mirrored.png", picture[:, ::-1])
    save("p/cropped.png", picture[2:-2, 2:-2])
    noise = np.random.default_rng(0).normal(0, 0.05, picture.shape).astype(np.float32)
    save("p/noisy.png", np.clip(picture + noise, 0, 1))
    save("p/gray.png", np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2))
    names = ("000", "half", "darker", "mirrored", "cropped", "noisy", "gray")
    expected = sorted(["p/compressed.jpg", *(f"p/{name}.png" for name in names)])
    assert scenes_of_several(run(Folder(path="p"))) == [expected]


def test_the_stereo_pair_of_the_starter_is_one_scene_and_the_others_are_seven() -> None:
    found = run(Starter())
    assert scenes_of_several(found) == [["starter:skimage/motorcycle_left.png", "starter:skimage/motorcycle_right.png"]]
    assert len({entry.scene for entry in found.entries}) == 7 and not found.rejected


def test_flat_images_are_no_duplicates() -> None:
    for level in range(5):
        save(f"p/{level}.png", np.full((64, 64, 3), level / 5, np.float32))
    assert scenes_of_several(run(Folder(path="p"))) == []


def test_no_scene_straddles_the_splits() -> None:
    album("p", range(30))
    for number in range(30):
        save(f"p/{number:03d}.jpg", scene(number), quality=60)
    found = run(Folder(path="p"), val=0.3, test=0.3)
    scenes = {
        entry.scene: {other.split for other in found.entries if other.scene == entry.scene} for entry in found.entries
    }
    assert len(scenes) == 30 and all(len(of_scene) == 1 for of_scene in scenes.values())


def test_splits_do_not_depend_on_names_order_or_other_images() -> None:
    album("p", range(24))
    album("other", range(24, 40))
    before = splits(run(Folder(path="p"), val=0.3, test=0.3))
    assert set(before.values()) == set(SPLITS)
    both = splits(run(Folder(path="other"), Folder(path="p"), val=0.3, test=0.3))
    assert len(both) == 40 and both.items() >= before.items()
    for path in sorted(Path("p").iterdir()):
        path.rename(f"p/{sys.maxsize - int(path.stem)}.png")
    for path in sorted(Path("p").iterdir())[:8]:
        path.unlink()
    fewer = splits(run(Folder(path="p"), val=0.3, test=0.3))
    assert len(fewer) == 16 and before.items() >= fewer.items()


def test_an_empty_split_is_an_error_that_says_what_to_do() -> None:
    album("p", range(4))
    with pytest.raises(
        ValueError, match=r"folder:p: no image for val and test: 4 different scenes.*set seed to \d+"
    ) as error:
        run(Folder(path="p"), seed=1, val=0.01, test=0.01)
    assert "train 4, val 0, test 0" in str(error.value)


def test_no_usable_image_is_an_error_that_names_folder_and_reasons() -> None:
    Path("empty").mkdir()
    with pytest.raises(ValueError, match="folder:empty: no image: the source is empty"):
        run(Folder(path="empty"))
    save("p/tiny.png", scene(1, 8, 8))
    with pytest.raises(ValueError, match=r"(?s)folder:p: no usable image among 1 files:.*p/tiny\.png: too small"):
        run(Folder(path="p"))


def test_a_source_without_an_image_is_an_error_beside_others_too() -> None:
    for number in range(6):
        save(f"pp/c/{number}_gt.png", scene(number))
        save(f"pp/d/{number}_in.png", scene(number))
    with pytest.raises(
        ValueError, match=r"(?s)no pair that fits pp/c/{}_GT\.png and pp/d/{}_in\.png among 12 files:.*no clean partner"
    ):
        run(Starter(), Pairs(clean="pp/c/{}_GT.png", degraded="pp/d/{}_in.png"))
    with pytest.raises(ValueError, match=r"(?s)among 12 files:.*pp/c/0_gt\.png: matches neither pattern"):
        run(Starter(), Pairs(clean="pp/c/{}_GT.png", degraded="pp/d/{}_IN.png"))
    Path("texts").mkdir()
    Path("texts/a.txt").touch()
    with pytest.raises(ValueError, match=r"(?s)folder:texts: no image among 1 files:.*a\.txt: \.txt: not an image"):
        run(Starter(), Folder(path="texts"))


def test_pairs_carry_their_partner_and_misaligned_ones_are_rejected() -> None:
    for number in range(4):
        save(f"d/clean/{number}.png", scene(number))
        save(f"d/rain/{number}.png", np.clip(scene(number) + 0.1, 0, 1))
    save("d/rain/3.png", scene(3, 95, 128))
    Path("d/clean/2.png").write_bytes(b"x")
    found = run(Pairs(clean="d/clean", degraded="d/rain"))
    assert {entry.uri: entry.degraded for entry in found.entries} == {
        f"d/clean/{number}.png": f"d/rain/{number}.png" for number in range(2)
    }
    save("d/rain/1.png", np.clip(scene(1) + 0.2, 0, 1))
    again = run(Pairs(clean="d/clean", degraded="d/rain"))
    changed = {entry.uri for entry, before in zip(again.entries, found.entries, strict=True) if entry != before}
    assert changed == {"d/clean/1.png"}  # so that DVC sees that the degraded image is another one
    assert rejected(found) == {
        "d/rain/2.png": "its clean partner d/clean/2.png: "
        "not a PNG, JPEG, TIFF, BMP, WebP, AVIF or HEIC image of a known kind",
        "d/rain/3.png": "misaligned: 128x95, but its clean partner is 128x96",
    }


def test_two_degraded_partners_of_one_clean_image_are_two_entries_of_one_scene() -> None:
    save("d/c/1.png", scene(1))
    for number in range(2):
        save(f"d/r/1_{number}.png", np.clip(scene(1) + 0.1 + 0.1 * number, 0, 1))
    save("d/r/1_9.png", np.clip(scene(1) + 0.1, 0, 1))
    found = run(Pairs(clean="d/c/{}.png", degraded="d/r/{}_*.png"))
    assert [entry.degraded for entry in found.entries] == ["d/r/1_0.png", "d/r/1_1.png"]
    assert len({entry.scene for entry in found.entries}) == 1
    assert rejected(found) == {"d/r/1_9.png": "duplicate: same pixels as d/r/1_0.png"}


def test_the_command_writes_the_same_bytes_twice_and_prints_the_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    album("photos", range(12))
    sources = [{"kind": "starter"}, {"kind": "folder", "path": "photos"}]
    settings = {"sources": sources, "min_side": 64, "max_megapixels": 50.0, "split": {"val": 0.2, "test": 0.2}}
    Path("params.yaml").write_text(json.dumps(small_params() | {"seed": 1, "prepare": settings}))
    arguments = ["prepare", "--manifest", "data/manifest.jsonl", "--report", "reports/prepare.json"]
    arguments += ["--thumbnails", "data/thumbnails.npz"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    written = [Path(path).read_bytes() for path in (arguments[2], arguments[4], arguments[6])]
    main()
    assert [Path(path).read_bytes() for path in (arguments[2], arguments[4], arguments[6])] == written
    counts = json.loads(written[1])["splits"]
    assert sum(numbers["images"] for numbers in counts.values()) == 20
    assert "train" in capsys.readouterr().out


def test_a_run_without_new_images_imports_no_heavy_package(monkeypatch: pytest.MonkeyPatch) -> None:
    album("photos", range(4))
    sources = [{"kind": "folder", "path": "photos"}]
    settings = {"sources": sources, "min_side": 64, "max_megapixels": 50.0, "split": {"val": 0.0, "test": 0.0}}
    Path("params.yaml").write_text(json.dumps(small_params() | {"seed": 1, "prepare": settings}))
    code = (
        "import sys; sys.argv = ['prepare', '--manifest', 'manifest.jsonl', '--report', 'prepare.json',"
        " '--thumbnails', 'thumbnails.npz']\n"
        "from pipeline import prepare; prepare.main()\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    arguments = "--manifest manifest.jsonl --report prepare.json --thumbnails thumbnails.npz"
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments.split()])
    main()
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    again = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    imported = set(again.stdout.splitlines()[-1].split())
    heavy = {"torch", "ray", "mlflow", "sklearn", "skimage", "scipy", "pandas", "matplotlib", "webdataset", "dvc"}
    assert not heavy & imported
    assert {"cv2", "numpy"} <= imported
