"""Import of published checkpoints: every name is accounted for, no code of the file runs."""

import argparse
import gzip
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference_network
import torch
from reference_network import CASES, case_weights
from safetensors.torch import save_file

from dgunet import published
from dgunet.checkpoint import load_model, save_model


def estimates(network, image):
    with torch.inference_mode():
        return network(network.sense(image) if network.sensing is not None else image)


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ({"width": 40, "growth": 20, "head_growth": 16, "share_stages": True}, 3_661_912),
        ({"width": 40, "growth": 20, "share_stages": False}, 12_176_107),
        ({"width": 80, "growth": 48, "head_growth": 32, "share_stages": True}, 17_331_512),
        ({"width": 80, "growth": 40, "share_stages": False}, 48_361_987),
        ({"width": 96, "growth": 48, "share_stages": False}, 69_572_915),
        (
            {
                "width": 32,
                "growth": 16,
                "head_growth": 16,
                "share_stages": True,
                "image_channels": 1,
                "num_measurements": 256,
            },
            2_546_748,
        ),
        (
            {
                "width": 32,
                "growth": 16,
                "head_growth": 16,
                "share_stages": False,
                "image_channels": 1,
                "num_measurements": 103,
            },
            6_915_612,
        ),
    ],
)
def test_networks_of_published_sizes_have_the_published_number_of_parameters(sizes, count):
    listed = reference_network.shapes(**sizes)
    # All operators share one slope; so do all attention blocks outside the shared stage, which has its own.
    operators = sum(name.endswith(".body.1.weight") and "phi" in name for name in listed)
    attentions = sum(name.endswith("1.body.1.weight") and "shallow" in name for name in listed)
    in_stages = sum("shallow" in name and name.startswith(("basic", "stage_model", "body")) for name in listed) // 6
    duplicates = max(operators - 1, 0) + attentions - 1 - in_stages
    assert sum(int(np.prod(shape)) for shape in listed.values()) - duplicates == count
    network = published.from_state_dict({name: torch.empty(shape, device="meta") for name, shape in listed.items()})
    assert network.config.num_stages == 7


@pytest.fixture
def weights():
    return case_weights("dgunet")


def test_the_module_prefix_and_the_state_dict_key_are_optional(weights):
    image = torch.rand(1, 3, 16, 16)
    reference = estimates(published.from_state_dict(weights), image)
    assert len(reference) == 7, "the published number of stages, as the names of a shared stage do not give it"
    prefixed = {f"module.{name}": tensor for name, tensor in weights.items()}
    for state_dict in ({"state_dict": weights, "epoch": 3}, prefixed, {"state_dict": prefixed}):
        assert torch.equal(estimates(published.from_state_dict(state_dict), image)[-1], reference[-1])


def test_half_precision_weights_become_float32(weights):
    network = published.from_state_dict({name: tensor.half() for name, tensor in weights.items()})
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_an_imported_network_shares_no_memory_with_the_file_and_can_be_saved_and_trained(weights, tmp_path):
    weights["phit_0.body.1.weight"] = weights["phi_0.body.1.weight"]
    network = published.from_state_dict(weights)
    addresses = {parameter.data_ptr() for parameter in network.parameters()}
    assert len(addresses) == len(list(network.parameters()))
    assert not addresses & {tensor.data_ptr() for tensor in weights.values()}
    save_model(network, tmp_path / "model", {"task": "derain"})
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(estimates(load_model(tmp_path / "model"), image)[-1], estimates(network, image)[-1])
    sum(estimate.sum() for estimate in network(image)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("case", CASES)
def test_a_missing_name_is_refused(case):
    complete = case_weights(case)
    for name in list(complete)[::7]:
        weights = {key: tensor for key, tensor in complete.items() if key != name}
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            published.from_state_dict(weights)


WRAPPED = {
    "params_ema": lambda w: {"params_ema": w},
    "params": lambda w: {"params": w, "iter": 5},
    "model_state_dict": lambda w: {"model_state_dict": w, "optimizer_state_dict": {"state": {}, "param_groups": []}},
    "network, nested": lambda w: {"network": {"generator": {"state_dict": w}}},
    "net": lambda w: {"net": w, "epoch": 3, "best": 31.5, "args": None},
    "DataParallel": lambda w: {"model": {f"module.{n}": t for n, t in w.items()}},
    "compiled": lambda w: {f"_orig_mod.{n}": t for n, t in w.items()},
    "compiled inside of DDP": lambda w: {"state_dict": {f"module._orig_mod.{n}": t for n, t in w.items()}},
    "a compiled part": lambda w: {n.replace("basic.", "basic._orig_mod."): t for n, t in w.items()},
    "Lightning": lambda w: {
        "state_dict": {f"model.{n}": t for n, t in w.items()}
        | {"loss.vgg.weight": torch.zeros(3), "metric.count": torch.zeros(1, dtype=torch.long)},
        "optimizer_states": [{"state": {}}],
        "hyper_parameters": {"lr": 1e-3},
    },
    "Lightning, another name": lambda w: {"state_dict": {f"net.module.{n}": t for n, t in w.items()}},
    "AveragedModel": lambda w: {"n_averaged": torch.tensor(3)} | {f"module.{n}": t for n, t in w.items()},
    "AveragedModel in Lightning": lambda w: {
        "state_dict": {"model.n_averaged": torch.tensor(3)} | {f"model.module.{n}": t for n, t in w.items()}
    },
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_weights_are_found_below_keys_and_prefixes(wrapped, weights):
    network = published.from_state_dict(WRAPPED[wrapped](weights))
    expected = published.from_state_dict(weights).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_of_several_sets_of_weights_one_is_chosen_by_its_key(weights):
    averaged = {name: tensor + 1 for name, tensor in weights.items()}
    both = {"params": weights, "params_ema": {f"module.{name}": tensor for name, tensor in averaged.items()}}
    with pytest.raises(ValueError, match=r"params, params_ema\.module; choose one with --key, such as .* params_ema"):
        published.from_state_dict(both)
    for key, first in (("params", weights), ("params_ema", averaged), ("params_ema.module", averaged)):
        network = published.from_state_dict(both, key=key)
        assert torch.equal(network.first.proximal.shallow.embed.weight, first["shallow_feat1.0.weight"]), key
    with pytest.raises(ValueError, match="no weights under ema; available: params, params_ema"):
        published.from_state_dict(both, key="ema")


def test_a_second_network_in_one_state_dict_is_another_set_of_weights(weights):
    averaged = {f"ema.{name}": tensor + 1 for name, tensor in weights.items()}
    with pytest.raises(ValueError, match=r'several sets of weights: "", ema;'):
        published.from_state_dict(weights | averaged)
    for key, first in (("", weights["shallow_feat1.0.weight"]), ("ema", averaged["ema.shallow_feat1.0.weight"])):
        network = published.from_state_dict(weights | averaged, key=key)
        assert torch.equal(network.first.proximal.shallow.embed.weight, first)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda w: {f"layer{i}.weight": torch.zeros(3) for i in range(1000)},
        lambda w: {name: torch.zeros(7) if tensor.dim() == 1 else tensor for name, tensor in w.items()},
        lambda w: w | {f"layer{i}.weight": torch.zeros(3) for i in range(1000)},
        lambda w: dict(list(w.items())[:40]),
        lambda w: {name: tensor.long() for name, tensor in w.items()},
        lambda w: {"state_dict": {f"layer{i}": i for i in range(1000)}},
        lambda w: {f"layer{i}": i for i in range(1000)},
    ],
)
def test_a_refusal_has_a_few_lines(spoil, weights):
    with pytest.raises(ValueError, match="published state dict") as refusal:
        published.from_state_dict(spoil(weights))
    message = str(refusal.value)
    assert len(message) < 1200
    assert message.count("\n") < 20


def test_unexpected_and_misshapen_names_are_listed(weights):
    weights["extra.weight"] = torch.zeros(3)
    weights["tail.weight"] = torch.zeros(3, 5, 3, 3)
    weights["basic.concat12.weight"] = torch.zeros(1)
    del weights["phi_6.body.0.bias"]
    with pytest.raises(ValueError, match="does not match") as refusal:
        published.from_state_dict(weights)
    message = str(refusal.value)
    assert "missing: phi_6.body.0.bias" in message
    assert "unexpected: extra.weight" in message
    assert "wrong shape: tail.weight is (3, 5, 3, 3), must be (3, 16, 3, 3)" in message
    assert "wrong shape: basic.concat12.weight" in message


def test_a_mapping_that_is_no_published_state_dict_is_refused():
    for state_dict, message in [
        ({}, "empty"),
        ({"conv.weight": torch.zeros(3, 3)}, r"missing or misshapen: shallow_feat1\.0\.weight"),
        ({"state_dict": [1]}, r"no tensors, but state_dict \(list\)"),
        ({"r0": 0.5}, r"no tensors, but r0 \(float\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            published.from_state_dict(state_dict)


def test_a_wrong_number_of_stages_is_refused(weights):
    with pytest.raises(ValueError, match="at least 3"):
        published.from_state_dict(weights, num_stages=2)
    with pytest.raises(ValueError, match="has 3 stages, not 7"):
        published.from_state_dict(case_weights("dgunet_plus"), num_stages=7)


def test_a_checkpoint_file_is_loaded(weights, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"epoch": 1, "state_dict": weights, "optimizer": {"lr": 0.1}}, path)
    image = torch.rand(1, 3, 16, 16)
    expected = estimates(published.from_state_dict(weights, num_stages=3), image)[-1]
    assert torch.equal(estimates(published.load(path, num_stages=3), image)[-1], expected)


def test_a_safetensors_file_is_loaded(weights, tmp_path):
    save_file(
        {f"module.{name}": tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "model.safetensors"
    )
    network = published.load(tmp_path / "model.safetensors")
    assert torch.equal(network.first.proximal.shallow.embed.weight, weights["shallow_feat1.0.weight"])


def test_metrics_and_arguments_beside_the_weights_are_harmless(weights, tmp_path):
    extra = {
        "best_psnr": np.float64(31.5),
        "epoch": np.int64(3),
        "args": argparse.Namespace(lr=1e-3, folder=Path("runs")),
    }
    torch.save({"state_dict": weights, **extra}, tmp_path / "model.pth")
    network = published.load(tmp_path / "model.pth")
    assert torch.equal(network.first.proximal.shallow.embed.weight, weights["shallow_feat1.0.weight"])


def zip_bytes(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def saved(value: object, save: Callable[..., None] = torch.save, **options: object) -> bytes:
    buffer = io.BytesIO()
    save(value, buffer, **options)
    return buffer.getvalue()


OTHER_FILES = {
    "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
    "page.pth": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page"),
    "text.pth": ("The weights are at …\n".encode(), "a text file"),
    "empty.pth": (b"", "an empty file"),
    "array.pth": (saved(np.zeros(3), lambda value, file: np.save(file, value)), "a NumPy array"),
    "arrays.pth": (saved(np.zeros(3), lambda value, file: np.savez(file, value)), "npz"),
    "model.onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.0.0", "an ONNX model"),
    "onnx.pth": (b"\x08\x07\x12\x07pytorch\x1a\x052.0.0", "an ONNX model"),
    "weights.zip": (zip_bytes("weights/a.pth", "README.md"), r"a zip archive .*weights/a\.pth, README\.md"),
    "cut.pth": (saved({"a": torch.zeros(300)})[:400], "its end is missing"),
    "packed.pth": (gzip.compress(b"x"), "gzip"),
    "keras.pth": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "script.pth": (zip_bytes("script/constants.pkl", "script/data.pkl", "script/code/a.py"), "TorchScript"),
    "module.pth": (saved(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))), r"\(torch\.nn.*Conv2d.*state_dict"),
    "old.pth": (saved(torch.nn.PReLU(), _use_new_zipfile_serialization=False), "objects other than weights"),
    "cut.safetensors": (b"\x10\0\0\0\0\0\0\0{" + bytes(30), "safetensors"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_another_kind_of_file_is_named_in_one_line(name, tmp_path):
    content, reason = OTHER_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason) as refusal:
        published.load(tmp_path / name)
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / name}: ")
    assert "\n" not in message
    assert len(message) < 500


def test_folders_and_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path, reason in ((tmp_path, "a folder"), (tmp_path / "pipe.pth", "not a regular file")):
        with pytest.raises(ValueError, match=reason):
            published.load(path)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_without_running_it(weights, tmp_path):
    path, witness = tmp_path / "evil.pth", tmp_path / "witness"
    torch.save({"state_dict": weights, "extra": Touch(witness)}, path)
    with pytest.raises(ValueError, match="could run code"):
        published.load(path)
    assert not witness.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut", b"a: 1\n", b"\x80\x02."])
def test_a_damaged_file_is_named(content, tmp_path):
    path = tmp_path / "cut.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cut\.pth"):
        published.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.pth"):
        published.load(tmp_path / "missing.pth")


def test_a_file_with_a_bare_tensor_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="holds a Tensor"):
        published.load(tmp_path / "tensor.pth")


def test_sparse_tensors_are_refused_by_their_names():
    weights = case_weights("dgunet")
    name = next(name for name, value in weights.items() if value.ndim == 4)
    with pytest.raises(ValueError, match=f"not floating-point tensors, or sparse: {name}"):
        published.from_state_dict(weights | {name: weights[name].to_sparse()})
