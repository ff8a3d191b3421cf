"""A pair of a folder of shards is made again from its source image, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from synthesis_checkout import OUT, SETTINGS, photograph

from dgunet.images import read_image, write_image
from pipeline import preview, synthesize
from pipeline.dataloader.pairs import online_pair, pairs
from pipeline.sources.hashing import pixel_hash
from pipeline.sources.manifest import SPLITS, read_manifest, write_manifest
from pipeline.synthesis.reproduce import reproduce_pair

ONLINE = {"degradation": {"kind": "gaussian_noise", "sigma": [5, 55], "per_channel": True}, "online": True, "copies": 1}


def synthesized(**changes: Any) -> list[str]:
    """Make the shards with some settings changed; return the keys of all pairs."""
    params = {"tasks": ["restore"], "seed": 5, "restore": {"synthesize": {**SETTINGS, **changes}}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    synthesize.main()
    return [pair.key for split in SPLITS for pair in pairs(OUT / split)]


def real_pairs() -> list[str]:
    """Make shards of real pairs, one clean image with two degraded partners among them."""
    entries = []
    for number, split in enumerate(("train", "train", "val", "test")):
        image = photograph(f"{number}.png", number, split)
        for partner in range(2 if number == 0 else 1):
            degraded = f"{number}-{partner}.jpg"
            write_image(degraded, np.clip(read_image(image.uri) + 0.1 * (partner + 1), 0, 1))
            degraded_sha256 = pixel_hash(read_image(degraded))
            fields = {**vars(image), "source": "pairs:clean", "degraded": degraded, "degraded_sha256": degraded_sha256}
            entries.append(type(image)(**fields))
    write_manifest(Path("manifest.jsonl"), entries)
    return synthesized(degradation={"kind": "none"}, real_pairs=["clean"], copies=1)


@pytest.mark.parametrize("channels", [3, 1])
def test_a_stored_pair_is_the_one_of_the_shard(synthesis_checkout: Path, channels: int) -> None:
    keys = synthesized(channels=channels)
    expected = {pair.key: pair for split in SPLITS for pair in pairs(OUT / split)}
    for key in keys[::7]:
        found = reproduce_pair(OUT, key)
        np.testing.assert_array_equal(found.clean, expected[key].clean)
        np.testing.assert_array_equal(found.degraded, expected[key].degraded)
        assert found.record == expected[key].record and found.clean.shape[2] == channels


def test_an_online_pair_is_the_one_of_the_epoch(synthesis_checkout: Path) -> None:
    key = synthesized(**ONLINE)[0]
    first, third = reproduce_pair(OUT, key), reproduce_pair(OUT, key, epoch=2)
    np.testing.assert_array_equal(first.degraded, next(pairs(OUT / "train")).degraded)
    np.testing.assert_array_equal(third.degraded, online_pair(OUT / "train", key, epoch=2, seed=5).degraded)
    assert not np.array_equal(first.degraded, third.degraded)


def test_a_real_pair_is_found_through_the_manifest(synthesis_checkout: Path) -> None:
    keys = real_pairs()
    expected = {pair.key: pair for split in SPLITS for pair in pairs(OUT / split)}
    assert {key[-1] for key in keys} == {"0", "1"}
    for key in keys[::5]:
        found = reproduce_pair(OUT, key, manifest=Path("manifest.jsonl"))
        np.testing.assert_array_equal(found.degraded, expected[key].degraded)
    with pytest.raises(ValueError, match="give the manifest"):
        reproduce_pair(OUT, keys[0])
    write_manifest(
        Path("manifest.jsonl"), [one for one in read_manifest(Path("manifest.jsonl")) if one.degraded != "0-1.jpg"]
    )
    (second, *_) = [key for key in keys if key.endswith("_1")]
    with pytest.raises(ValueError, match=r"has no real pair of 0\.png"):
        reproduce_pair(OUT, second, manifest=Path("manifest.jsonl"))


def test_the_folder_of_one_split_is_searched_too(synthesis_checkout: Path) -> None:
    key = synthesized()[-1]
    assert reproduce_pair(OUT / "test", key).key == key
    with pytest.raises(ValueError, match="holds no pair"):
        reproduce_pair(OUT / "train", key)


def test_an_unknown_key_shows_three_that_exist(synthesis_checkout: Path) -> None:
    keys = synthesized()
    with pytest.raises(ValueError, match=f"holds no pair 'nobody'; it holds {', '.join(keys[:3])}, for example"):
        reproduce_pair(OUT, "nobody")


@pytest.mark.parametrize("settings", [{}, ONLINE], ids=["stored", "online"])
@pytest.mark.parametrize("change", ["pixels", "gone"])
def test_a_source_image_that_changed_or_is_gone_is_named(
    synthesis_checkout: Path, settings: dict[str, Any], change: str
) -> None:
    key = synthesized(**settings)[0]
    uri = Path(str(reproduce_pair(OUT, key).record["where"]))
    if change == "gone":
        uri.unlink()
    else:
        write_image(uri, 1 - read_image(uri))
    with pytest.raises(ValueError, match=rf"{uri}: .*(changed|No such file).*make repro"):
        reproduce_pair(OUT, key)


def test_a_degradation_that_comes_out_different_is_an_error(
    synthesis_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = synthesized()[0]
    monkeypatch.setattr("pipeline.synthesis.reproduce.regenerate", lambda clean, record: 1 - clean)
    with pytest.raises(ValueError, match=f"the degraded tile of {key} differs from the shard"):
        reproduce_pair(OUT, key)


def test_preview_verifies_a_pair_against_its_source_image(
    synthesis_checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = synthesized()[0]
    arguments = ["--task", "restore", "--shards", str(OUT), "--pair", key, "--verify"]
    preview.main(arguments)
    assert "equal to the shard" in capsys.readouterr().out
    uri = Path(str(reproduce_pair(OUT, key).record["where"]))
    write_image(uri, 1 - read_image(uri))
    with pytest.raises(ValueError, match="changed"):
        preview.main(arguments)
