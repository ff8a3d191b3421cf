"""Parity with the published network, for every family, with separate and with shared stages.

`dgunet` is compared with the reference network of the tests, the reference network with numbers that are part of the
tests, and both with outputs of the published code where the folder that DGUNET_PARITY names is at hand.
"""

import json
import math
from hashlib import sha256

import numpy as np
import pytest
import reference_network
import torch
from factories import PARITY
from reference_network import CASES, OUTPUTS, case_estimates, case_image, case_weights

from dgunet import published

TOLERANCE = 2e-5  # in float32, for images in [0, 1]
PUBLISHED = ["small_dgunet", "small_dgunet_plus", "derain_dgunet", "cs_dgunet_deblock"]


def estimates(network, image):
    with torch.inference_mode():
        return network(network.sense(image) if network.sensing is not None else image)


@pytest.mark.parametrize("case", CASES)
def test_all_estimates_equal_those_of_the_reference_network(case):
    weights = case_weights(case)
    network = published.from_state_dict(
        weights, num_stages=CASES[case]["num_stages"], full_image=CASES[case].get("full_image", True)
    )
    image = case_image(case, 2, 64, 96).float()
    restored = estimates(network, image)
    assert len(restored) == CASES[case]["num_stages"]
    assert len({float(estimate.sum()) for estimate in restored}) == len(restored), "every stage changes the estimate"
    for estimate, expected in zip(restored, case_estimates(case, weights, image), strict=True):
        torch.testing.assert_close(estimate, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_the_reference_network_gives_its_recorded_outputs(case):
    with np.load(OUTPUTS) as recorded:
        assert set(recorded) == set(CASES)
        expected = recorded[case]
    np.testing.assert_allclose(reference_network.exact_outputs(case), expected, atol=1e-6, rtol=0)


def parity_file(name):
    path = PARITY / name
    if not path.is_file():
        pytest.skip(
            f"needs {name}, outputs of the published code: set DGUNET_PARITY to the folder that holds them; "
            "docs/datasets.md says what they are and where to get them"
        )
    return path


def published_weight(name, shape):
    """The tensor `name` as it was filled for the published outputs: normal numbers, seeded by the name, then scaled."""
    seed = int.from_bytes(sha256(name.encode()).digest()[:8], "little")
    normal = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return normal * np.float32(0.7 / math.sqrt(math.prod(shape[1:])))
    if "norm" in name:
        return normal * np.float32(0.1) + np.float32(name.endswith("weight"))
    if tuple(shape) == (1,):
        return np.abs(normal) * np.float32(0.1) + np.float32(0.25)
    return normal * np.float32(0.05)


def published_case(name):
    """Sizes and weights of a published network; names that share one storage hold the values of their owner."""
    listed = json.loads(parity_file(f"{name}.json").read_text())
    owner = listed["same_storage_as"]
    weights = {
        key: torch.from_numpy(published_weight(owner.get(key, key), tuple(shape)))
        for key, shape in listed["tensors"].items()
    }
    return listed["sizes"], weights


def published_outputs(name):
    """The input of a published case (sensing: the clean image), and all estimates."""
    with np.load(parity_file(f"{name}.npz")) as arrays:
        num_stages = len(arrays) - 1
        return torch.from_numpy(arrays["input"]), [
            torch.from_numpy(arrays[f"stage{number}"]) for number in range(1, num_stages + 1)
        ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_all_estimates_equal_those_of_the_published_code(name):
    sizes, weights = published_case(name)
    image, expected = published_outputs(name)
    restored = estimates(published.from_state_dict(weights, num_stages=sizes["num_stages"]), image)
    assert len(restored) == sizes["num_stages"]
    for estimate, reference in zip(restored, expected, strict=True):
        torch.testing.assert_close(estimate, reference, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_reference_network_gives_the_outputs_of_the_published_code(name):
    sizes, weights = published_case(name)
    image, expected = published_outputs(name)
    exact, image = {key: tensor.double() for key, tensor in weights.items()}, image.double()
    with torch.inference_mode():
        if sizes["sensing_ratio_percent"] is None:
            restored = reference_network.blind(exact, image, sizes["num_stages"])
        else:
            restored = reference_network.sensing(exact, image, sizes["num_stages"], full_image=True)
    for estimate, reference in zip(restored, expected, strict=True):
        torch.testing.assert_close(estimate.float(), reference, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("name", [*PUBLISHED, "sensing_dgunet_plus_names"])
def test_sizes_and_names_of_a_published_file_are_recognised(name):
    sizes, weights = published_case(name)
    network = published.from_state_dict(weights, num_stages=sizes["num_stages"])
    assert {key: getattr(network.config, key) for key in sizes} == sizes
    listed = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    keys = {key: value for key, value in sizes.items() if key != "sensing_ratio_percent"}
    assert reference_network.shapes(**keys, num_measurements=network.config.num_measurements) == listed
