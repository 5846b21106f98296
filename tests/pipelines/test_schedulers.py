"""Schedulers: those that draw what the denoiser has learned, and the refusal of all others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler, SchedulerMixin

from pdiff_hf import MLPParameterDenoiser, PDiffPipeline, fit_denoiser, load_recipe
from pdiff_hf.hub.safety import BrokenFileError
from pdiff_hf.pipelines.checks import SchedulerError

SCHEDULERS = [
    "DDPMScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def parameters_of(pipe: PDiffPipeline, *seeds: int) -> torch.Tensor:
    return pipe(len(seeds), generator=generators(*seeds), output_type="pt").parameters


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_can_be_swapped_in_and_keeps_the_spread(tiny_pipeline: PDiffPipeline, scheduler: str):
    tiny_pipeline.scheduler = getattr(diffusers, scheduler).from_config(tiny_pipeline.scheduler.config)
    first, second = parameters_of(tiny_pipeline, 0, 1)
    assert first.isfinite().all()
    assert not torch.allclose(first, second)

    # An untrained denoiser outputs zeros: in v-prediction the exact denoiser of a standard Gaussian.
    tiny_pipeline.denoiser = MLPParameterDenoiser(latent_dim=4, width=8, num_blocks=1)
    latents = tiny_pipeline(2000, num_inference_steps=100, generator=generators(0)[0], output_type="latent").latents

    assert 0.95 < latents.std().item() < 1.05
    assert abs(latents.mean().item()) < 0.05


class ExactGaussianDenoiser(MLPParameterDenoiser):
    """The denoiser of a standard Gaussian in epsilon- or v-prediction, without anything learned."""

    def __init__(self, latent_dim: int, scheduler: DDPMScheduler) -> None:
        super().__init__(latent_dim, width=8, num_blocks=1)
        self.alphas_cumprod = scheduler.alphas_cumprod
        self.predicts_noise = scheduler.config.prediction_type == "epsilon"

    def forward(self, sample, timestep, return_dict=True):
        output = super().forward(sample, timestep)  # zeros
        if self.predicts_noise:
            output.sample = (1 - self.alphas_cumprod[int(timestep)]) ** 0.5 * sample
        return output


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_the_shipped_sampler_keeps_the_spread_of_an_exact_gaussian(tiny_pipeline: PDiffPipeline, recipe: str):
    settings = load_recipe(recipe).denoiser
    num_inference_steps = settings.num_inference_steps
    settings.max_train_steps, settings.type = 1, "mlp"
    scheduler = fit_denoiser(torch.randn(8, 4, generator=generators(0)[0]), settings).scheduler
    pipe = PDiffPipeline.from_pipe(tiny_pipeline, denoiser=ExactGaussianDenoiser(4, scheduler), scheduler=scheduler)

    latents = pipe(
        1000, num_inference_steps=num_inference_steps, generator=generators(1)[0], output_type="latent"
    ).latents

    assert 0.95 < latents.std().item() < 1.05


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler"])
def test_latents_are_never_clipped(tiny_pipeline: PDiffPipeline, tmp_path: Path, scheduler: str):
    tiny_pipeline.save_pretrained(tmp_path)
    pipe = PDiffPipeline.from_pretrained(tmp_path)

    swapped = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)

    assert swapped.config.clip_sample is False
    assert swapped.config.timestep_spacing == "trailing"
    assert swapped.config.prediction_type == "v_prediction"


def bare(name: str, **settings: object) -> Callable[[SchedulerMixin], SchedulerMixin]:
    """A function that makes a scheduler from its own defaults."""
    return lambda shipped: getattr(diffusers, name)(**settings)


def derived(name: str, **settings: object) -> Callable[[SchedulerMixin], SchedulerMixin]:
    """A function that makes a scheduler from the configuration of the shipped one."""
    return lambda shipped: getattr(diffusers, name).from_config(shipped.config, **settings)


# With the standard deviation of samples where an exact Gaussian has 1, or what diffusers raised.
FOREIGN = {
    "default DDIM, which clips": bare("DDIMScheduler"),
    "default Euler, 156": bare("EulerDiscreteScheduler"),
    "Heun, 5.8": derived("HeunDiscreteScheduler"),
    "flow matching, AttributeError": derived("FlowMatchEulerDiscreteScheduler"),
    "consistency models, .67": derived("LCMScheduler"),
    "Euler with beta sigmas, .09": derived("EulerDiscreteScheduler", use_beta_sigmas=True),
    "Euler with Karras sigmas, .72": derived("EulerDiscreteScheduler", use_karras_sigmas=True),
    "Euler between logarithms, .82": derived("EulerDiscreteScheduler", interpolation_type="log_linear"),
    "Euler with times that no denoiser knows": derived("EulerDiscreteScheduler", timestep_type="continuous"),
    "Karras sigmas, IndexError": derived("DPMSolverMultistepScheduler", use_karras_sigmas=True),
    "exponential sigmas, IndexError": derived("DPMSolverMultistepScheduler", use_exponential_sigmas=True),
    "sigmas of flows, .37": derived("DPMSolverMultistepScheduler", use_flow_sigmas=True),
    "SDE of the noise, 94": derived(
        "DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min"
    ),
    "UniPC with Karras sigmas, AssertionError": derived("UniPCMultistepScheduler", use_karras_sigmas=True),
    "UniPC with exponential sigmas, AssertionError": derived("UniPCMultistepScheduler", use_exponential_sigmas=True),
    "UniPC with shifted times, ValueError": derived("UniPCMultistepScheduler", use_dynamic_shifting=True),
    "clipping": derived("DDIMScheduler", clip_sample=True),
    "thresholding": derived("DDPMScheduler", thresholding=True),
    "learned variance, TypeError": derived("DDPMScheduler", variance_type="learned"),
    "another prediction type": derived("DDIMScheduler", prediction_type="epsilon"),
    "another beta schedule": derived("DPMSolverMultistepScheduler", beta_schedule="linear"),
    "another number of times": derived("DDIMScheduler", num_train_timesteps=100),
    "none": lambda shipped: None,
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_a_scheduler_that_does_not_belong_is_refused_in_one_sentence(tiny_pipeline: PDiffPipeline, make: Callable):
    shipped, before = tiny_pipeline.scheduler, parameters_of(tiny_pipeline, 0)

    with pytest.raises(SchedulerError, match=r"pipe\.scheduler\.config") as raised:
        tiny_pipeline.scheduler = make(shipped)

    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)
    assert tiny_pipeline.scheduler is shipped
    assert torch.equal(parameters_of(tiny_pipeline, 0), before)


def test_the_sentence_about_a_scheduler_names_a_remedy_that_works(tiny_pipeline: PDiffPipeline):
    with pytest.raises(SchedulerError) as raised:
        tiny_pipeline.scheduler = diffusers.DDIMScheduler()

    sentence = str(raised.value)
    assert "DDIMScheduler with clip_sample=True, prediction_type='epsilon', beta_schedule='linear'" in sentence
    remedy = sentence.partition("use ")[2].removesuffix(".")
    tiny_pipeline.scheduler = eval(remedy, {"pipe": tiny_pipeline, **vars(diffusers)})
    assert parameters_of(tiny_pipeline, 0).isfinite().all()


def test_a_scheduler_made_from_its_own_arguments_is_taken_if_it_belongs(tiny_pipeline: PDiffPipeline):
    tiny_pipeline.scheduler = diffusers.DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False, beta_end=0.5
    )

    assert parameters_of(tiny_pipeline, 0).isfinite().all()


def test_settings_that_were_changed_in_place_are_found_by_the_call(tiny_pipeline: PDiffPipeline):
    tiny_pipeline.scheduler.register_to_config(prediction_type="epsilon")

    with pytest.raises(SchedulerError, match="prediction_type='epsilon' does not belong"):
        tiny_pipeline(1)


def test_every_constructor_refuses_a_scheduler_that_does_not_belong(tiny_pipeline: PDiffPipeline, tmp_path: Path):
    tiny_pipeline.save_pretrained(tmp_path)
    euler = diffusers.EulerDiscreteScheduler()

    with pytest.raises(SchedulerError, match="beta_schedule='linear'"):
        PDiffPipeline.from_pretrained(tmp_path, scheduler=euler)
    with pytest.raises(SchedulerError, match="beta_schedule='linear'"):
        PDiffPipeline.from_pipe(tiny_pipeline, scheduler=euler)
    with pytest.raises(SchedulerError, match="clip_sample=True"):
        PDiffPipeline(**tiny_pipeline.components | {"scheduler": DDPMScheduler()})
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(BrokenFileError, match="clip_sample=True"):
        PDiffPipeline.from_pretrained(tmp_path)
