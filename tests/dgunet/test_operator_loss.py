"""The loss on Φ and Φᵀ: its definition, what it trains, and that the transpose is that of autograd."""

import pytest
import torch

from dgunet.losses import charbonnier
from dgunet.network import DGUNet, DGUNetConfig
from dgunet.network.gradient import ResidualOperator
from dgunet.operator_loss import operator_loss

CONFIG = DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=3)


def images(count: int = 2, side: int = 32, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, 3, side, side, generator=generator) for _ in range(count)]


def test_the_transpose_is_that_of_autograd():
    torch.manual_seed(0)
    operator = ResidualOperator(3)
    image, vector = (tensor.double() for tensor in images())
    operator.double()
    _, wanted = torch.autograd.functional.vjp(operator, image, vector)
    torch.testing.assert_close(operator.transposed(vector, image), wanted)


def test_it_is_the_sum_of_both_terms_over_the_stages():
    network = DGUNet.with_seed(CONFIG, 0)
    clean, degraded = images()
    estimates = network(degraded)
    found = operator_loss(network, degraded, estimates, clean, degradation_weight=0.3, adjoint_weight=0.7)
    middle = (slice(None), slice(None), slice(8, 24), slice(8, 24))
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    wanted = torch.zeros(())
    for stage, x in zip(network.stages(), (degraded, *estimates[:-1]), strict=True):
        learned, y = stage.gradient.learned, degraded[middle]
        wanted = wanted + 0.3 * charbonnier((learned.degrade(clean[middle]) - y)[inside])
        residual = (learned.degrade(x[middle]) - y).detach()
        _, transposed = torch.autograd.functional.vjp(learned.degrade, x[middle].detach(), residual)
        error = (learned.adjoint(residual) - transposed)[inside].square().sum((1, 2, 3))
        wanted = wanted + 0.7 * (error / transposed[inside].square().sum((1, 2, 3))).mean()
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("weights", [(0.1, 0.0), (0.0, 0.1)])
def test_each_term_reaches_its_operator_alone(weights):
    network = DGUNet.with_seed(CONFIG, 0)
    clean, degraded = images()
    loss = operator_loss(
        network, degraded, network(degraded), clean, degradation_weight=weights[0], adjoint_weight=weights[1]
    )
    loss.backward()
    reached = {name.split(".")[-3] for name, weight in network.named_parameters() if weight.grad is not None}
    assert reached == {"degrade" if weights[0] else "adjoint"}


def test_it_is_the_mean_over_images_so_that_parts_of_a_batch_add_up():
    network = DGUNet.with_seed(CONFIG, 0)
    clean, degraded = images()
    options = {"degradation_weight": 0.1, "adjoint_weight": 0.02}
    whole = operator_loss(network, degraded, network(degraded), clean, **options)
    parts = [
        operator_loss(network, degraded[[n]], network(degraded[[n]]), clean[[n]], **options) for n in range(len(clean))
    ]
    torch.testing.assert_close(whole, sum(parts) / len(parts))


def test_what_minimises_it_is_the_degradation_and_its_transpose():
    network = DGUNet.with_seed(CONFIG, 1)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)

    def pair(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        (clean,) = images(1, 48, seed)
        return clean, torch.nn.functional.avg_pool2d(clean, 3, 1, 1)

    def errors() -> list[tuple[float, float]]:
        """For each stage: the error of Φ relative to that of the identity, and the cosine of Φᵀr and Jᵀr."""
        clean, degraded = pair(1000)
        found = []
        with torch.no_grad():
            for stage in network.stages():
                learned = stage.gradient.learned
                error = (learned.degrade(clean) - degraded).square().mean() / (clean - degraded).square().mean()
                residual = learned.degrade(degraded) - degraded
                pair_of = [learned.adjoint(residual), learned.degrade.transposed(residual, degraded)]
                cosine = torch.nn.functional.cosine_similarity(*(tensor.flatten() for tensor in pair_of), dim=0)
                found.append((float(error), float(cosine)))
        return found

    before = errors()
    for step in range(300):
        clean, degraded = pair(step)
        estimates = [degraded] * CONFIG.num_stages
        loss = operator_loss(network, degraded, estimates, clean, degradation_weight=1.0, adjoint_weight=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for (error_before, _), (error, cosine) in zip(before, errors(), strict=True):
        assert error < 0.2 < error_before
        assert cosine > 0.9  # without the term for the transpose: 0.2 to 0.8
