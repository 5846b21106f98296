"""Autoencoders and denoisers: what they promise of their latents, their precision, their batches and their files."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import ModelMixin

from pdiff_hf import (
    LinearParameterAutoencoder,
    MLPParameterDenoiser,
    ParameterAutoencoder,
    ParameterDenoiser,
    TransformerParameterDenoiser,
)
from pdiff_hf.loops import seeded

SIZES = [30, 1, 39]  # lengths of the tensors of a vector; 70 in all, no multiple of 32
COUNT, PARAMETER_DIM, LATENT_DIM = 20, sum(SIZES), 6


@pytest.fixture
def zoo() -> torch.Tensor:
    """Vectors whose three tensors differ in scale and offset."""
    vectors = torch.randn(COUNT, PARAMETER_DIM, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.01, 1.0, 3.0]).repeat_interleave(torch.tensor(SIZES))
    return vectors * scale + 5 * scale


def fit_conv(zoo: torch.Tensor) -> ParameterAutoencoder:
    """An autoencoder that has seen a few batches, so that its running statistics are not those of a new one."""
    with seeded(0):
        autoencoder = ParameterAutoencoder.from_zoo(zoo, SIZES, latent_dim=LATENT_DIM, channels=(4, 8, 8, 8, 4))
    for _ in range(3):
        autoencoder.train()(zoo, generator=torch.Generator().manual_seed(0))
    autoencoder.eval().fit_latent_statistics(zoo)
    return autoencoder


def fit_linear(zoo: torch.Tensor) -> LinearParameterAutoencoder:
    return LinearParameterAutoencoder.from_zoo(zoo, latent_dim=LATENT_DIM)


def build_conv_denoiser(zoo: torch.Tensor) -> ParameterDenoiser:
    with seeded(0):
        denoiser = ParameterDenoiser(LATENT_DIM, channels=(4, 8, 4), time_embedding_dim=16)
    denoiser.train()(torch.randn(8, LATENT_DIM), 3)
    return denoiser.eval()


def with_random_weights(denoiser: ModelMixin) -> ModelMixin:
    """A denoiser whose output layers are no longer zero."""
    with seeded(0):
        for parameter in denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return denoiser.eval()


def build_mlp_denoiser(zoo: torch.Tensor) -> ModelMixin:
    return with_random_weights(MLPParameterDenoiser(LATENT_DIM, width=16, time_embedding_dim=16))


def build_transformer_denoiser(zoo: torch.Tensor) -> ModelMixin:
    groups, edges = [[2, 1], [1, 2]], [[0, 1, 1]]
    return with_random_weights(
        TransformerParameterDenoiser(LATENT_DIM, token_groups=groups, token_edges=edges, width=16)
    )


AUTOENCODERS: dict[str, Callable[[torch.Tensor], ModelMixin]] = {"conv": fit_conv, "linear": fit_linear}
DENOISERS: dict[str, Callable[[torch.Tensor], ModelMixin]] = {
    "conv": build_conv_denoiser,
    "mlp": build_mlp_denoiser,
    "transformer": build_transformer_denoiser,
}


@pytest.fixture(params=AUTOENCODERS)
def autoencoder(request: pytest.FixtureRequest, zoo: torch.Tensor) -> ModelMixin:
    return AUTOENCODERS[request.param](zoo)


@pytest.fixture(params=DENOISERS)
def denoiser(request: pytest.FixtureRequest, zoo: torch.Tensor) -> ModelMixin:
    return DENOISERS[request.param](zoo)


@torch.no_grad()
def test_models_survive_saving(autoencoder, denoiser, zoo, tmp_path):
    latents = autoencoder.encode(zoo).latents

    loaded = {}
    for name, model in (("autoencoder", autoencoder), ("denoiser", denoiser)):
        model.save_pretrained(tmp_path / name)
        loaded[name], info = type(model).from_pretrained(tmp_path / name, output_loading_info=True)
        assert info["missing_keys"] == info["unexpected_keys"] == []

    assert torch.equal(loaded["autoencoder"].encode(zoo).latents, latents)
    assert torch.equal(loaded["autoencoder"].decode(latents).sample, autoencoder.decode(latents).sample)
    assert torch.equal(loaded["denoiser"](latents, 5).sample, denoiser(latents, 5).sample)


@torch.no_grad()
def test_latents_of_the_zoo_are_standardized(autoencoder, zoo):
    latents = autoencoder.encode(zoo).latents

    assert latents.shape == (COUNT, LATENT_DIM)
    assert torch.allclose(latents.mean(0), torch.zeros(LATENT_DIM), atol=1e-4)
    assert torch.allclose(latents.std(0), torch.ones(LATENT_DIM), atol=1e-4)


@torch.no_grad()
def test_decoded_vectors_have_the_length_of_the_zoo_and_its_scale(autoencoder, zoo):
    decoded = autoencoder.decode(autoencoder.encode(zoo).latents).sample

    assert decoded.shape == zoo.shape
    assert decoded.dtype == torch.float32
    for decoded_tensor, tensor in zip(decoded.split(SIZES, 1), zoo.split(SIZES, 1), strict=True):
        assert float(decoded_tensor.mean()) == pytest.approx(float(tensor.mean()), rel=0.5)


@torch.no_grad()
def test_plain_tuples_hold_the_same_tensors(autoencoder, denoiser, zoo):
    latents = autoencoder.encode(zoo).latents

    assert torch.equal(autoencoder.encode(zoo, return_dict=False)[0], latents)
    assert torch.equal(autoencoder.decode(latents, return_dict=False)[0], autoencoder.decode(latents).sample)
    assert torch.equal(denoiser(latents, 1, return_dict=False)[0], denoiser(latents, 1).sample)


@pytest.mark.parametrize("fit", AUTOENCODERS.values(), ids=AUTOENCODERS)
@pytest.mark.parametrize("columns", [slice(0, 30), slice(5, 9)], ids=["tensor", "coordinates"])
@torch.no_grad()
def test_numbers_that_never_vary_are_kept_finite(zoo, fit, columns):
    zoo[:, columns] = 0.1

    autoencoder = fit(zoo)
    latents = autoencoder.encode(zoo).latents

    assert torch.isfinite(latents).all()
    assert torch.isfinite(autoencoder.decode(latents).sample).all()


@torch.no_grad()
def test_conv_latents_that_never_vary_are_kept_finite(zoo):
    autoencoder = fit_conv(zoo)

    autoencoder.fit_latent_statistics(zoo[:1].repeat(COUNT, 1))

    assert torch.isfinite(autoencoder.encode(zoo).latents).all()


# A denoiser may be cast; weights that are generated must not be rounded.
@pytest.mark.parametrize("cast", ["to", "half", "bfloat16", "from_pretrained"])
@torch.no_grad()
def test_autoencoder_stays_float32_under_a_cast(autoencoder, zoo, cast, tmp_path):
    expected = autoencoder.encode(zoo).latents

    if cast == "to":
        autoencoder.to(torch.bfloat16).to("cpu", torch.float16).to(dtype=torch.float16)
    elif cast in ("half", "bfloat16"):
        getattr(autoencoder, cast)()
    else:
        autoencoder.save_pretrained(tmp_path)
        autoencoder = type(autoencoder).from_pretrained(tmp_path, dtype=torch.bfloat16)

    floating = [tensor for tensor in autoencoder.state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {torch.float32}
    assert torch.equal(autoencoder.encode(zoo).latents, expected)
    assert autoencoder.decode(expected.to(torch.bfloat16)).sample.dtype == torch.float32


@torch.no_grad()
def test_one_row_does_not_depend_on_its_batch(autoencoder, denoiser, zoo):
    latents = autoencoder.encode(zoo).latents

    for function, rows in (
        (lambda rows: autoencoder.encode(rows).latents, zoo),
        (lambda rows: autoencoder.decode(rows).sample, latents),
        (lambda rows: denoiser(rows, 10).sample, latents),
    ):
        assert torch.allclose(function(rows[3:4]), function(rows)[3:4], atol=1e-5)


@torch.no_grad()
def test_times_are_one_for_all_or_one_for_each_and_may_lie_between_steps(denoiser):
    sample = torch.randn(3, LATENT_DIM)
    for_each = denoiser(sample, torch.tensor([10.25, 500.5, 999.75])).sample

    for time in (500.5, torch.tensor(500.5), torch.tensor([500.5])):
        assert torch.allclose(denoiser(sample, time).sample[1], for_each[1], atol=1e-6)
    assert torch.allclose(denoiser(sample, 500).sample, denoiser(sample, torch.full((3,), 500)).sample, atol=1e-6)
    assert not torch.allclose(denoiser(sample, 500).sample[1], for_each[1], atol=1e-6)


@torch.no_grad()
def test_denoiser_computes_in_the_dtype_it_is_cast_to(denoiser):
    denoiser.to(torch.bfloat16)

    predicted = denoiser(torch.randn(3, LATENT_DIM, dtype=torch.bfloat16), 10).sample

    assert predicted.dtype == torch.bfloat16


@torch.no_grad()
def test_all_linear_codes_lose_nothing_and_zero_is_the_average(zoo):
    autoencoder = LinearParameterAutoencoder.from_zoo(zoo, explained_variance=1.0)

    assert autoencoder.config.latent_dim == COUNT - 1
    assert torch.allclose(autoencoder.decode(torch.zeros(1, COUNT - 1)).sample[0], zoo.mean(0), atol=1e-5)
    assert torch.allclose(autoencoder(zoo).sample, zoo, atol=1e-5)


@torch.no_grad()
def test_linear_codes_are_the_fewest_with_the_share_of_variance(zoo):
    def explained(autoencoder: LinearParameterAutoencoder) -> float:
        return float(autoencoder(zoo).sample.var(0).sum() / zoo.var(0).sum())

    chosen = LinearParameterAutoencoder.from_zoo(zoo, explained_variance=0.8)
    fewer = LinearParameterAutoencoder.from_zoo(zoo, latent_dim=chosen.config.latent_dim - 1)

    assert explained(fewer) < 0.8 <= explained(chosen)


@pytest.mark.parametrize("shape", [(20, 70), (70, 20)], ids=["wide", "tall"])
def test_linear_codes_in_blocks_are_those_of_a_singular_value_decomposition(shape, monkeypatch):
    monkeypatch.setattr("pdiff_hf.models.linear_autoencoder.BLOCK_NUMBERS", 60)  # three columns or rows
    scales = torch.logspace(0, -3, shape[1])  # deviations far smaller than the mean
    zoo = 10 + torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scales

    fitted = LinearParameterAutoencoder.from_zoo(zoo, explained_variance=0.999)

    mean = zoo.double().mean(0)
    _, singular, directions = torch.linalg.svd(zoo.double() - mean, full_matrices=False)
    count = int((singular.square().cumsum(0) / singular.square().sum() < 0.999).sum()) + 1
    cosines = (fitted.components.double() * directions[:count]).sum(1)
    assert torch.allclose(fitted.mean.double(), mean, atol=1e-6)
    assert torch.allclose(fitted.latent_std.double(), singular[:count] / (shape[0] - 1) ** 0.5, rtol=1e-6)
    assert torch.allclose(cosines.abs(), torch.ones(count, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("count", [1, 24])
def test_identical_checkpoints_are_refused(zoo, count):
    with pytest.raises(ValueError, match=f"All {count} parameter vectors are equal"):
        LinearParameterAutoencoder.from_zoo(zoo[:1].repeat(count, 1))


def test_more_codes_than_directions_are_refused(zoo):
    with pytest.raises(ValueError, match=r"latent_dim=20 is more than the 19 directions in which 20 checkpoints"):
        LinearParameterAutoencoder.from_zoo(zoo, latent_dim=20)


def test_conv_training_noise_is_decided_by_the_generator(zoo):
    autoencoder = fit_conv(zoo)

    clean, noisy, again, other = (
        autoencoder(zoo, generator=None if seed is None else torch.Generator().manual_seed(seed)).item()
        for seed in (None, 0, 0, 1)
    )

    assert noisy == again
    assert len({clean, noisy, other}) == 3


def test_conv_normalization_is_one_mean_and_deviation_per_tensor(zoo):
    autoencoder = fit_conv(zoo)

    for i, tensor in enumerate(zoo.split(SIZES, 1)):
        mean, std = autoencoder.mean.split(SIZES)[i], autoencoder.std.split(SIZES)[i]
        spread = tensor.std(1, correction=0).mean() if tensor.shape[1] > 1 else torch.tensor(1.0)
        assert torch.allclose(mean, tensor.mean().expand_as(mean))
        assert torch.allclose(std, spread.expand_as(std))


@torch.no_grad()
def test_conv_denoiser_sees_49_neighboring_positions():
    with seeded(0):
        denoiser = ParameterDenoiser(latent_dim=101, channels=(4,) * 7).eval()
    sample = torch.randn(1, 101, generator=torch.Generator().manual_seed(0))
    perturbed = sample.clone()
    perturbed[0, 50] += 10.0

    changed = (denoiser(perturbed, 10).sample != denoiser(sample, 10).sample)[0].nonzero()[:, 0]

    assert ParameterDenoiser(latent_dim=8).convolutions[0].kernel_size == (7,)
    assert len(ParameterDenoiser(latent_dim=8).convolutions) == 8
    assert (int(changed.min()), int(changed.max())) == (50 - 24, 50 + 24)
