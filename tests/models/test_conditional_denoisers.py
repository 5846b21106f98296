"""Denoisers with conditions: what a condition changes, what stands for none, and what others are spared."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import ModelMixin

from pdiff_hf import MLPParameterDenoiser, TransformerParameterDenoiser
from pdiff_hf.loops import seeded

GROUPS, EDGES = [[3, 2], [2, 1]], [[0, 1, 1]]
LATENT_DIM, CONDITION_DIM = 6 + 2 + 6, 4
BUILD: dict[str, Callable[..., ModelMixin]] = {
    "mlp": lambda **config: MLPParameterDenoiser(LATENT_DIM, width=16, num_blocks=1, **config),
    "transformer": lambda **config: TransformerParameterDenoiser(
        LATENT_DIM, token_groups=GROUPS, token_edges=EDGES, width=16, num_blocks=1, **config
    ),
}


@pytest.fixture(params=BUILD)
def denoiser(request: pytest.FixtureRequest) -> ModelMixin:
    """A conditional denoiser all of whose weights are random."""
    with seeded(0):
        denoiser = BUILD[request.param](condition_dim=CONDITION_DIM)
        for parameter in denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return denoiser.eval()


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(3, LATENT_DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def conditions() -> torch.Tensor:
    return torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]])


@torch.no_grad()
def test_each_condition_changes_the_prediction_of_its_row_alone(denoiser, latents, conditions):
    predicted = denoiser(latents, 300, conditions).sample
    changed = denoiser(latents, 300, conditions[[0, 1, 0]]).sample

    assert torch.allclose(predicted[:2], changed[:2], atol=1e-6)
    assert (predicted[2] - changed[2]).abs().max() > 1e-3


@torch.no_grad()
def test_no_condition_is_one_of_its_own(denoiser, latents, conditions):
    unconditional = denoiser(latents, 300).sample
    dropped = torch.where(torch.tensor([[False], [True], [False]]), torch.nan, conditions)

    mixed = denoiser(latents, 300, dropped).sample

    assert torch.allclose(mixed[1], unconditional[1], atol=1e-6)
    assert torch.allclose(mixed[::2], denoiser(latents, 300, conditions).sample[::2], atol=1e-6)
    assert (unconditional - denoiser(latents, 300, torch.zeros(3, CONDITION_DIM)).sample).abs().max() > 1e-3


def test_dropped_conditions_leave_finite_gradients(denoiser, latents, conditions):
    conditions[1] = torch.nan

    denoiser(latents, 300, conditions).sample.square().sum().backward()

    assert all(parameter.grad.isfinite().all() for parameter in denoiser.parameters() if parameter.grad is not None)
    assert denoiser.condition_embedding.null.grad.abs().max() > 0


@torch.no_grad()
def test_conditions_are_standardized_in_float32(denoiser, latents):
    """Years around 2000 differ in digits that bfloat16 has not got."""
    statistics = denoiser.condition_embedding
    statistics.mean.fill_(2003.0)
    statistics.std.fill_(2.0)
    denoiser.to(torch.bfloat16)

    years = torch.tensor([[2001.0], [2003.0], [2005.0]]).expand(-1, CONDITION_DIM)
    predicted = denoiser(latents[:1].expand(3, -1).bfloat16(), 300, years).sample

    assert statistics.mean.dtype == statistics.std.dtype == torch.float32
    assert predicted.dtype == torch.bfloat16
    assert torch.equal(statistics.mean, torch.full((CONDITION_DIM,), 2003.0))
    assert len(predicted.unique(dim=0)) == 3


@torch.no_grad()
def test_statistics_are_saved(denoiser, latents, conditions, tmp_path):
    denoiser.condition_embedding.mean.fill_(0.5)
    denoiser.save_pretrained(tmp_path)

    loaded = type(denoiser).from_pretrained(tmp_path)

    assert loaded.config.condition_dim == CONDITION_DIM
    assert torch.equal(loaded(latents, 300, conditions).sample, denoiser(latents, 300, conditions).sample)


def test_condition_of_another_length_is_refused(denoiser, latents):
    with pytest.raises(ValueError, match=r"takes a condition of shape \(3, 4\).*has shape \(3, 2\)"):
        denoiser(latents, 300, torch.zeros(3, 2))


@pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)
@torch.no_grad()
def test_a_denoiser_without_conditions_ignores_one(build, latents, conditions):
    with seeded(0):
        denoiser = build().eval()

    assert torch.equal(denoiser(latents, 300, conditions).sample, denoiser(latents, 300).sample)
    assert not [name for name in denoiser.state_dict() if "condition" in name]
