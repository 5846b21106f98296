"""The transformer denoiser: equivariance, edges, positions, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pdiff_hf import TransformerParameterDenoiser
from pdiff_hf.loops import seeded

# Two layers of units, an output bias, kernels between the layers, and a residual group that reads itself.
GROUPS = [[5, 3], [4, 2], [1, 6]]
EDGES = [[0, 1, 9], [1, 1, 2]]
SHAPES = [(5, 3), (4, 2), (1, 6), (4, 5, 9), (4, 4, 2)]
LATENT_DIM = 15 + 8 + 6 + 180 + 32


def build(**config: Any) -> TransformerParameterDenoiser:
    """A denoiser all of whose weights are random, so that nothing it computes is zero."""
    arguments = {"latent_dim": LATENT_DIM, "token_groups": GROUPS, "token_edges": EDGES, "width": 32} | config
    with seeded(0):
        denoiser = TransformerParameterDenoiser(**arguments)
        for parameter in denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return denoiser.eval()


def draw(count: int = 3) -> torch.Tensor:
    return torch.randn(count, LATENT_DIM, generator=torch.Generator().manual_seed(1))


def permute(latents: torch.Tensor) -> torch.Tensor:
    """The latents with the units of both layers in another order, and their edges with them."""
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    first, second, rest, kernels, residual = (
        piece.unflatten(1, shape) for piece, shape in zip(latents.split(sizes, 1), SHAPES, strict=True)
    )
    one, two = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 3, 1, 0])
    moved = (first[:, one], second[:, two], rest, kernels[:, two][:, :, one], residual[:, two][:, :, two])
    return torch.cat([piece.flatten(1) for piece in moved], dim=1)


@torch.no_grad()
def test_permuted_units_give_a_permuted_prediction():
    denoiser, latents = build(), draw()

    predicted, permuted = denoiser(latents, 300).sample, denoiser(permute(latents), 300).sample

    torch.testing.assert_close(permuted, permute(predicted), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(permuted, predicted, atol=1e-2)


@torch.no_grad()
def test_positions_tell_the_units_of_a_group_apart():
    denoiser, latents = build(positions=True), draw()

    permuted = denoiser(permute(latents), 300).sample

    assert not torch.allclose(permuted, permute(denoiser(latents, 300).sample), atol=1e-2)


@torch.no_grad()
def test_a_new_denoiser_predicts_zero():
    denoiser = TransformerParameterDenoiser(LATENT_DIM, token_groups=GROUPS, token_edges=EDGES, positions=True)

    assert torch.equal(denoiser(draw(), 300).sample, torch.zeros(3, LATENT_DIM))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_every_number_of_a_latent_has_a_say_in_every_other(shape):
    denoiser, latents = build(), draw(1)
    start = sum(torch.Size(before).numel() for before in SHAPES[: SHAPES.index(shape)])
    changed = latents.clone()
    changed[0, start] += 3.0

    difference = (denoiser(changed, 300).sample - denoiser(latents, 300).sample)[0].abs()

    assert (difference > 1e-6).all()


@torch.no_grad()
def test_messages_go_along_the_edges_alone():
    """A unit hears from those that it is joined to: with one edge and no attention, no other token changes."""
    denoiser, latents = build(num_blocks=1, token_edges=EDGES[:1], latent_dim=LATENT_DIM - 32), draw(1)[:, :-32]
    kernels = torch.zeros(1, 4, 5, 9)
    kernels[0, 2, 3, 4] = 1.0  # unit 3 of the first layer is read by unit 2 of the second
    message = denoiser.messages[0][0]
    with seeded(1):
        source, target = torch.randn(1, 5, 32), torch.randn(1, 4, 32)

    to_source, to_target = message(source, target, kernels.permute(0, 3, 1, 2))

    assert to_source[0].abs().sum(1).nonzero().flatten().tolist() == [3]
    assert to_target[0].abs().sum(1).nonzero().flatten().tolist() == [2]
    assert denoiser(latents, 300).sample.shape == latents.shape


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"latent_dim": 7}, f"describe {LATENT_DIM} numbers, but latent_dim is 7"),
        ({"token_edges": [[0, 3, 1]]}, "name groups that are not among the 3"),
        ({"num_heads": 5}, "must be even and a multiple of num_heads=5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(**config)
