"""Import of published checkpoints: every name is accounted for, no code of the file runs."""

from pathlib import Path

import numpy as np
import pytest
import reference_network
import torch
from reference_network import CASES, case_weights

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


def test_unexpected_and_misshapen_names_are_all_listed(weights):
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
        ({"state_dict": [1]}, "no mapping"),
        ({"r0": 0.5}, "no floating-point tensors: r0"),
    ]:
        with pytest.raises(ValueError, match=message):
            published.from_state_dict(state_dict)


def test_a_wrong_number_of_stages_is_refused(weights):
    with pytest.raises(ValueError, match="at least 3"):
        published.from_state_dict(weights, num_stages=2)
    with pytest.raises(ValueError, match="say 3, not 7"):
        published.from_state_dict(case_weights("dgunet_plus"), num_stages=7)


def test_a_checkpoint_file_is_loaded(weights, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"epoch": 1, "state_dict": weights, "optimizer": {"lr": 0.1}}, path)
    image = torch.rand(1, 3, 16, 16)
    expected = estimates(published.from_state_dict(weights, num_stages=3), image)[-1]
    assert torch.equal(estimates(published.load(path, num_stages=3), image)[-1], expected)


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
