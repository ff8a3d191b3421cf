"""The 3×3 convolution with fewer products is the convolution, and so are its gradients."""

import pytest
import torch
from torch.nn import functional

from dgunet.network import DGUNet, DGUNetConfig, winograd
from dgunet.network.blocks import PReLU, conv3x3


def random_tensor(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def leaves(tensors, dtype):
    return [tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("strip_bytes", [1, 2**20], ids=["many strips", "one strip"])
@pytest.mark.parametrize("shape", [(2, 5, 7, 16, 12), (1, 3, 2, 18, 23), (3, 4, 4, 1, 1), (1, 2, 3, 41, 6)])
def test_it_is_the_convolution_with_its_gradients(shape, strip_bytes, monkeypatch):
    monkeypatch.setattr(winograd, "STRIP_BYTES", strip_bytes)
    batch, channels, outputs, height, width = shape
    inputs = (
        random_tensor(batch, channels, height, width),
        random_tensor(outputs, channels, 3, 3, seed=1),
        random_tensor(outputs, seed=2),
    )
    slopes = random_tensor(batch, outputs, height, width, seed=3)
    inputs_32, inputs_64 = leaves(inputs, torch.float32), leaves(inputs, torch.float64)
    found, expected = winograd.Convolution.apply(*inputs_32), functional.conv2d(*inputs_64, padding=1)
    (found * slopes).sum().backward()
    (expected * slopes).sum().backward()
    assert found.is_contiguous(memory_format=torch.channels_last)
    compared = [
        (found.detach(), expected.detach()),
        *((a.grad, b.grad) for a, b in zip(inputs_32, inputs_64, strict=True)),
    ]
    for tensor, reference in compared:
        torch.testing.assert_close(tensor.double(), reference, atol=2e-6 * float(reference.abs().max()) + 1e-6, rtol=0)


def test_only_the_wanted_gradients_are_computed():
    image, weight = random_tensor(1, 4, 8, 8), random_tensor(4, 4, 3, 3).requires_grad_()
    winograd.Convolution.apply(image, weight, None).sum().backward()
    assert image.grad is None
    assert weight.grad is not None


def test_it_is_used_where_it_is_faster_and_exact(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    image, weight = torch.zeros(1, 40, 32, 32), torch.zeros(40, 40, 3, 3)
    assert winograd.applies(image, weight)
    assert not winograd.applies(image, weight[:39])
    assert not winograd.applies(image[:, :, :31], weight)
    assert not winograd.applies(image.bfloat16(), weight.bfloat16())
    assert not winograd.applies(image.double(), weight.double())
    assert not winograd.applies(image.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.applies(image, weight)
    for other in ("DEFAULT", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda other=other: other)
        assert not winograd.applies(image, weight)


def test_a_network_is_the_same_with_it_and_without(monkeypatch):
    network = DGUNet.with_seed(DGUNetConfig(width=40, growth=4, num_stages=3), 0)
    image = torch.rand(2, 3, 40, 36, generator=torch.Generator().manual_seed(0))
    used = []
    apply = winograd.Convolution.apply
    monkeypatch.setattr(winograd.Convolution, "apply", lambda *inputs: used.append(1) or apply(*inputs))

    def run(capability):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        network.zero_grad()
        estimates = network(image)
        sum((estimate - 0.5).square().mean() for estimate in estimates).backward()
        return estimates, [parameter.grad.clone() for parameter in network.parameters()]

    (found, gradients), count = run("AVX2"), len(used)
    expected, expected_gradients = run("AVX512")
    assert count > 10
    assert len(used) == count
    for estimate, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(estimate, reference, atol=1e-5, rtol=0)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert (gradient - reference).norm() <= 1e-4 * reference.norm() + 1e-7


def test_a_convolution_keeps_its_names():
    assert list(conv3x3(2, 3, bias=True).state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("autocast", [False, True])
def test_prelu_is_that_of_torch_with_its_gradients(autocast):
    activation = PReLU()
    features = random_tensor(2, 3, 5, 4).requires_grad_()
    slopes = random_tensor(2, 3, 5, 4, seed=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = activation(features)
    (found * slopes).sum().backward()
    exact, slope = leaves((features.detach(), activation.weight.detach()), torch.float64)
    expected = functional.prelu(exact, slope)
    (expected * slopes).sum().backward()
    assert found.dtype == torch.float32
    for tensor, reference in [(found, expected), (features.grad, exact.grad), (activation.weight.grad, slope.grad)]:
        torch.testing.assert_close(tensor.detach().double(), reference.detach(), atol=1e-5, rtol=1e-6)


def test_prelu_keeps_the_type_of_its_input():
    assert PReLU()(torch.zeros(1, 2, 3, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
