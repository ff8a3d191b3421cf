"""A model folder: round trip, bytes, faults."""

import json
import subprocess
import sys

import pytest
import torch

import dgunet
from dgunet import DGUNet, DGUNetConfig
from dgunet.checkpoint import load_model, read_card, save_model

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
def test_a_model_comes_back_from_its_folder(tmp_path, config):
    network = DGUNet(config)
    save_model(network, tmp_path / "deep" / "model", CARD)
    loaded = dgunet.load_model(tmp_path / "deep" / "model")
    assert loaded.config == config
    assert not loaded.training
    assert loaded.state_dict().keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_the_folder_has_the_names_of_the_hubs_and_nothing_else(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    card = read_card(folder)
    assert card["model_type"] == "dgunet"
    assert {name: card[name] for name in CARD} == CARD
    assert DGUNetConfig(**card["config"]) == CONFIGS[0]


def test_the_same_model_gives_the_same_bytes_whatever_its_memory_order(folder, network, tmp_path):
    save_model(network.to(memory_format=torch.channels_last), tmp_path / "again", dict(reversed(CARD.items())))
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_saving_again_replaces(folder, network):
    with torch.no_grad():
        network.first.gradient.step_size.fill_(2)
    save_model(network, folder, CARD | {"task": "other"})
    assert load_model(str(folder)).first.gradient.step_size.item() == 2
    assert read_card(folder)["task"] == "other"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_loading_draws_no_random_numbers(folder):
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
        (lambda card: card.update(model_type="unet"), "not of a DGUNet"),
    ],
)
def test_a_card_that_does_not_fit_is_refused_with_the_reason(folder, change, message):
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


def test_no_folder_at_all_is_said(tmp_path):
    with pytest.raises(ValueError, match="no model folder"):
        load_model(tmp_path / "nowhere")


def test_a_card_must_be_plain_json_and_leave_our_keys_alone(tmp_path, network):
    for card, message in [({"config": {}}, "config is written by"), ({"x": object()}, "JSON"), ({"x": 1e999}, "JSON")]:
        with pytest.raises(ValueError, match=message):
            save_model(network, tmp_path / "model", card)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said_and_left_clean(tmp_path, network):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="could not be written"):
        save_model(network, tmp_path / "file" / "model", CARD)
    with pytest.raises(ValueError, match="could not be written"):
        save_model(network, tmp_path / "file", CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_registry_address_goes_through_the_hub(folder, monkeypatch):
    hub = pytest.importorskip("dgunet.hub")
    monkeypatch.setattr(hub, "pull", lambda uri: {"models:/derain@champion": folder}[uri])
    assert load_model("models:/derain@champion").config == CONFIGS[0]


def test_the_face_imports_torch_only_when_asked():
    code = "import sys, dgunet; assert 'torch' not in sys.modules; dgunet.DGUNet; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_restore_is_the_function_even_after_its_module_was_imported():
    code = "import dgunet.inference, dgunet; assert callable(dgunet.restore), dgunet.restore"
    subprocess.run([sys.executable, "-c", code], check=True)
