"""The optimizers of a recipe."""

import pytest
import torch
from factories import recipe
from torch import nn

from dgunet.network import DGUNet, DGUNetConfig
from pipeline.training.optimizers import Muon, build_optimizers, orthogonalised


@pytest.mark.parametrize("shape", [(3, 16, 144), (2, 64, 27), (1, 1, 9), (4, 8, 8)])
def test_singular_values_are_near_one_and_their_vectors_stay(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalised(matrices)
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    cosine = (found * (left @ right)).sum((1, 2)) / found.norm(dim=(1, 2)) / min(shape[1:]) ** 0.5
    assert float(cosine.min()) > 0.96


def test_matrices_are_orthogonalised_each_by_itself() -> None:
    matrices = torch.randn((3, 8, 36), generator=torch.Generator().manual_seed(1))
    alone = torch.cat(
        [orthogonalised(matrix[None]) for matrix in matrices * torch.tensor([1.0, 100.0, 0.01])[:, None, None]]
    )
    torch.testing.assert_close(orthogonalised(matrices), alone, rtol=1e-3, atol=1e-4)


def test_a_gradient_of_zeros_changes_nothing() -> None:
    weight = nn.Parameter(torch.ones(4, 3, 3, 3))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=1.0, weight_decay=0.0).step()
    assert torch.equal(weight, torch.ones(4, 3, 3, 3))


def test_steps_are_those_of_muon_in_torch_but_for_its_bfloat16() -> None:
    random = torch.Generator().manual_seed(1)
    weight = nn.Parameter(torch.randn(16, 8, 3, 3, generator=random).to(memory_format=torch.channels_last))
    matrix = nn.Parameter(weight.detach().permute(0, 2, 3, 1).reshape(16, -1).clone())
    start = weight.detach().clone()
    settings = {"lr": 0.01, "weight_decay": 0.1}
    own, reference = Muon([weight], **settings), torch.optim.Muon([matrix], adjust_lr_fn="match_rms_adamw", **settings)
    for _ in range(3):
        weight.grad = torch.randn(weight.shape, generator=random).to(memory_format=torch.channels_last)
        matrix.grad = weight.grad.permute(0, 2, 3, 1).reshape(16, -1)
        own.step()
        reference.step()
    expected = matrix.detach().view(16, 3, 3, 8).permute(0, 3, 1, 2) - start
    error = (weight.detach() - start - expected).norm() / expected.norm()
    assert float(error) < 0.03


def test_the_order_of_the_weights_in_memory_does_not_matter() -> None:
    random = torch.Generator().manual_seed(1)
    start, gradient = (torch.randn(8, 4, 3, 3, generator=random) for _ in range(2))
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(start.clone().to(memory_format=order))
        weight.grad = gradient.clone().to(memory_format=order)
        Muon([weight], lr=0.1, weight_decay=0.0).step()
        found.append(weight.detach())
    assert torch.equal(*found)


def test_every_parameter_has_one_optimizer() -> None:
    network = DGUNet(DGUNetConfig(image_channels=3, **recipe().network.model_dump()))
    muon, adamw = build_optimizers(network, recipe(optimizer="muon"))
    convolutions = {id(weight) for weight in muon.param_groups[0]["params"]}
    assert convolutions == {id(parameter) for parameter in network.parameters() if parameter.ndim == 4}
    others = {id(parameter) for parameter in adamw.param_groups[0]["params"]}
    assert convolutions | others == {id(parameter) for parameter in network.parameters()}
    assert not convolutions & others
    (alone,) = build_optimizers(network, recipe(optimizer="adamw"))
    assert len(alone.param_groups[0]["params"]) == len(list(network.parameters()))


def test_what_is_stored_of_a_weight_is_of_its_size() -> None:
    """A slice would be saved with all the matrices that were orthogonalised with it."""
    weights = [nn.Parameter(torch.ones(4, 3, 3, 3)) for _ in range(5)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    muon = Muon(weights, lr=0.1, weight_decay=0.0)
    muon.step()
    assert [muon.state[weight]["momentum"].untyped_storage().nbytes() for weight in weights] == [4 * 108] * 5
