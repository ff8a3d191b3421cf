"""Model folders: round trip, same bytes, damaged files; and the public names of the package."""

import json
import subprocess
import sys

import pytest
import torch

import dgunet
from dgunet import DGUNet, DGUNetConfig
from dgunet.checkpoint import load_model, read_card, save_model
from dgunet.config import LocalStatistics

CARD = {"task": "derain", "provenance": {"commit": "abc", "data": "def", "metrics": {"psnr": 30.5}}}
CONFIGS = [
    DGUNetConfig(width=4, growth=2, num_stages=3),
    DGUNetConfig(width=4, growth=2, num_stages=3, image_channels=1, sensing_ratio_percent=4, full_image=False),
]


@pytest.fixture
def network():
    return DGUNet.with_seed(CONFIGS[0], 0)


@pytest.fixture
def folder(tmp_path, network):
    save_model(network, tmp_path / "model", CARD)
    return tmp_path / "model"


@pytest.mark.parametrize("config", CONFIGS)
def test_a_model_folder_round_trip(tmp_path, config):
    network = DGUNet(config)
    save_model(network, tmp_path / "deep" / "model", CARD)
    loaded = dgunet.load_model(tmp_path / "deep" / "model")
    assert loaded.config == config
    assert not loaded.training
    assert loaded.state_dict().keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_local_statistics_are_kept(tmp_path, network):
    save_model(network, tmp_path / "whole", CARD)
    network.local_statistics = LocalStatistics(160, ("norm", "projection"))
    save_model(network, tmp_path / "local", CARD)
    assert load_model(tmp_path / "local").local_statistics == network.local_statistics
    assert load_model(tmp_path / "whole").local_statistics is None
    assert "statistics" not in read_card(tmp_path / "whole")


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"window": 100, "of": ["norm"]}, "statistics: window: must be an odd multiple of 32, is 100"),
        ({"window": 96, "of": []}, "statistics: of: must name some of norm"),
        ({"window": 96}, "statistics must be"),
        ("local", "statistics must be"),
    ],
)
def test_local_statistics_that_are_not_valid_are_refused(folder, statistics, message):
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**card, "statistics": statistics}))
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_a_model_folder_holds_two_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    card = read_card(folder)
    assert card["model_type"] == "dgunet"
    assert {name: card[name] for name in CARD} == CARD
    assert DGUNetConfig(**card["config"]) == CONFIGS[0]


def test_the_same_model_gives_the_same_bytes_in_any_memory_format(folder, network, tmp_path):
    save_model(network.to(memory_format=torch.channels_last), tmp_path / "again", dict(reversed(CARD.items())))
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_saving_again_replaces_both_files(folder, network):
    with torch.no_grad():
        network.first.gradient.step_size.fill_(2)
    save_model(network, folder, CARD | {"task": "other"})
    assert load_model(str(folder)).first.gradient.step_size.item() == 2
    assert read_card(folder)["task"] == "other"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_loading_uses_no_random_numbers(folder):
    before = torch.random.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def rewritten(folder, change):
    path = folder / "config.json"
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card["config"].update(depth=3), "unknown field depth"),
        (lambda card: card["config"].pop("width"), "config lacks width"),
        (lambda card: card["config"].update(num_stages=0), "num_stages: must be"),
        (lambda card: card["config"].update(width=8), "has shape"),
        (lambda card: card["config"].update(share_stages=False), r"missing last\.merge\.basis"),
        (lambda card: card.update(model_type="unet"), "not the card of a DGUNet"),
    ],
)
def test_an_invalid_card_is_refused_with_the_reason(folder, change, message):
    rewritten(folder, change)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("fault", ["missing", "cut", "garbage"])
def test_a_missing_or_damaged_file_is_named(folder, name, fault):
    path = folder / name
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if fault == "cut" else b"\xff" * 64)
    with pytest.raises(ValueError, match=name):
        load_model(folder)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a model folder"):
        load_model(tmp_path / "missing")


def test_a_card_with_reserved_keys_or_other_values_than_json_is_refused(tmp_path, network):
    for card, message in [({"config": {}}, "config is written by"), ({"x": object()}, "JSON"), ({"x": 1e999}, "JSON")]:
        with pytest.raises(ValueError, match=message):
            save_model(network, tmp_path / "model", card)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_config_json_does_not_describe_are_refused(folder, network):
    other = DGUNet.with_seed(network.config, 9)
    save_model(other, folder.with_name("other"), CARD)
    weights = folder / "model.safetensors"
    (folder.with_name("other") / "model.safetensors").replace(weights)
    with pytest.raises(ValueError, match=r"model\.safetensors: not the weights that config\.json was written for"):
        load_model(folder)
    card = read_card(folder)
    del card["weights_sha256"]  # as older versions wrote it
    (folder / "config.json").write_text(json.dumps(card))
    load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, network, value):
    next(network.parameters()).data.fill_(value)
    save_model(network, tmp_path / "diverged", {})
    with pytest.raises(ValueError, match="infinite or not numbers, as after training that diverged"):
        load_model(tmp_path / "diverged")


def test_a_failed_write_is_reported_and_leaves_no_file(tmp_path, network):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="could not be written"):
        save_model(network, tmp_path / "file" / "model", CARD)
    with pytest.raises(ValueError, match="could not be written"):
        save_model(network, tmp_path / "file", CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_address_of_a_registry_is_fetched_by_the_hub(folder, monkeypatch):
    monkeypatch.setattr("dgunet.hub.model_folder", lambda uri: {"models:/derain@champion": folder}[uri])
    assert load_model("models:/derain@champion").config == CONFIGS[0]


def test_the_package_imports_torch_on_first_use_only():
    code = "import sys, dgunet; assert 'torch' not in sys.modules; dgunet.DGUNet; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_restore_is_a_function_also_after_importing_its_module():
    code = "import dgunet.inference, dgunet; assert callable(dgunet.restore), dgunet.restore"
    subprocess.run([sys.executable, "-c", code], check=True)
