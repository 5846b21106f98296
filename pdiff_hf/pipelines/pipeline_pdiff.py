"""`PDiffPipeline`: networks drawn from noise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, cast

import diffusers
import torch
from diffusers import SchedulerMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel

from ..models.conv_autoencoder import ParameterAutoencoder
from ..models.conv_denoiser import ParameterDenoiser
from ..models.linear_autoencoder import LinearParameterAutoencoder
from ..models.mlp_denoiser import MLPParameterDenoiser
from ..targets.processing_parameters import ParameterProcessor
from .pipeline_output import DrawnNetworks, PDiffPipelineOutput
from .shared import SharedPipeline

OUTPUT_TYPES = ("model", "pt", "np", "latent")


class PDiffPipeline(SharedPipeline):
    """Draws parameter subsets from noise (Neural Network Diffusion, arXiv 2402.13144) and puts them into a network.

    Args:
        autoencoder: Decodes standardized latents as parameter vectors; float32 under any cast.
        denoiser: Predicts what the scheduler's `prediction_type` names.
        scheduler: Any of diffusers' DDPM, DDIM, DPM-Solver++, UniPC or Euler schedulers, with `clip_sample=False`.
        processor: The layout of a vector.
        target_model: The network whose parameters are generated. It holds the average of the training checkpoints in
            the generated positions, and works as it stands.
        default_num_inference_steps: Steps of the sampler if the call names none.
        image_processor_config: Preprocessing of the network's images; saved as `preprocessor_config.json`, and with
            every drawn network.
    """

    model_cpu_offload_seq = "denoiser->autoencoder"
    _exclude_from_cpu_offload = ["target_model"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        autoencoder: ParameterAutoencoder | LinearParameterAutoencoder,
        denoiser: ParameterDenoiser | MLPParameterDenoiser,
        scheduler: SchedulerMixin,
        processor: ParameterProcessor,
        target_model: PreTrainedModel,
        default_num_inference_steps: int = 20,
        image_processor_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            autoencoder=autoencoder,
            denoiser=denoiser,
            scheduler=scheduler,
            processor=processor,
            target_model=target_model,
        )
        if type(target_model).__module__.split(".")[0] not in LOADABLE_CLASSES:  # a class of the user's
            self.register_to_config(target_model=("pdiff_hf", "AnyTargetModel"))
        self.register_to_config(
            default_num_inference_steps=default_num_inference_steps, image_processor_config=image_processor_config
        )

    def check_inputs(
        self,
        num_models: int,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        output_type: str,
        temperature: float,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        """Raises a `ValueError` that names what was given and what was expected."""
        if num_models < 1 or num_inference_steps < 1:
            raise ValueError(
                f"num_models and num_inference_steps must be at least 1, but are {num_models}, {num_inference_steps}."
            )
        if isinstance(generator, list) and len(generator) != num_models:
            raise ValueError(f"{len(generator)} generators were given for {num_models} networks; give one for each.")
        expected = (num_models, self.denoiser.config.latent_dim)
        if latents is not None and tuple(latents.shape) != expected:
            raise ValueError(f"latents must have shape {expected}, but have {tuple(latents.shape)}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, but is {output_type!r}.")
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, but is {temperature}.")
        unknown = sorted(set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(f"A callback may ask for {self._callback_tensor_inputs}, but asks for {unknown}.")

    @property
    def num_timesteps(self) -> int:
        """Steps of the sampler in the last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked to stop, by setting `_interrupt`."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        num_models: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "model",
        temperature: float = 1.0,
        return_dict: bool = True,
        callback_on_step_end: Callable[[PDiffPipeline, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> PDiffPipelineOutput | tuple:
        """Draws networks.

        Args:
            num_models: How many.
            num_inference_steps: Steps of the sampler; fewer are faster and, below the default, draw networks that are
                closer to the average.
            generator: Decides the noise. A list, one for each network, makes a network independent of its batch.
            latents: Initial noise `(num_models, latent_dim)` of unit variance, in place of drawn noise.
            output_type: `"model"`, `"pt"`, `"np"` or `"latent"`.
            temperature: Factor on the final latents: 1 as trained, 0 gives `decode(0)`.
            return_dict: `False` for a plain tuple.
            callback_on_step_end: Called as `callback(pipe, step, timestep, {"latents": …})` after each step; what it
                returns replaces the latents.
            callback_on_step_end_tensor_inputs: Names of what the callback gets.

        Returns:
            A `PDiffPipelineOutput`, or a tuple of its fields that are set.

        Raises:
            ValueError: If an argument does not fit, in a sentence that names it.
        """
        # 1. Check inputs
        if num_inference_steps is None:
            num_inference_steps = self.config.default_num_inference_steps
        callback_inputs = callback_on_step_end_tensor_inputs or ["latents"]
        self.check_inputs(
            num_models, num_inference_steps, generator, latents, output_type, temperature, callback_inputs
        )
        device, dtype = self._execution_device, self.denoiser.dtype

        # 2. Prepare timesteps and initial noise
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        self._num_timesteps, self._interrupt = len(self.scheduler.timesteps), False
        if latents is None:
            shape = (num_models, self.denoiser.config.latent_dim)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        latents = latents.to(device, dtype) * self.scheduler.init_noise_sigma  # (num_models, latent_dim)
        extra = {"generator": generator} if "generator" in inspect.signature(self.scheduler.step).parameters else {}

        # 3. Denoise
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            for i, t in enumerate(self.scheduler.timesteps):
                if self._interrupt:
                    continue
                predicted = self.denoiser(self.scheduler.scale_model_input(latents, t), t).sample
                latents = self.scheduler.step(predicted, t, latents, **extra).prev_sample
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, i, t, {"latents": latents})
                    latents = changed.pop("latents", latents)
                progress_bar.update()
        latents = latents * temperature

        # 4. Decode
        output = PDiffPipelineOutput(latents=latents)
        if output_type != "latent":
            parameters = self.autoencoder.decode(latents.float()).sample  # (num_models, D)
            output = PDiffPipelineOutput(parameters=parameters.cpu().numpy() if output_type == "np" else parameters)
            if output_type == "model":
                provenance = self._provenance(num_models, num_inference_steps, generator, temperature)
                output = PDiffPipelineOutput(
                    parameters=parameters,
                    models=DrawnNetworks(
                        self.target_model,
                        self.processor,
                        parameters,
                        self.config.image_processor_config or {},
                        provenance,
                    ),
                )
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    def iter(
        self,
        num_models: int,
        batch_size: int = 64,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "model",
        temperature: float = 1.0,
    ) -> Iterator[PDiffPipelineOutput]:
        """Draws more networks than fit in memory: yields outputs of `batch_size` networks, the last one of the rest.

        Takes the arguments of the call. A list of generators, one for each network, gives the networks of one call.
        """
        if isinstance(generator, list) and len(generator) != num_models:
            raise ValueError(f"{len(generator)} generators were given for {num_models} networks; give one for each.")
        for start in range(0, num_models, batch_size):
            count = min(batch_size, num_models - start)
            output = self(
                count,
                num_inference_steps=num_inference_steps,
                generator=generator[start : start + count] if isinstance(generator, list) else generator,
                output_type=output_type,
                temperature=temperature,
            )
            yield cast(PDiffPipelineOutput, output)

    def _provenance(
        self,
        num_models: int,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None,
        temperature: float,
    ) -> list[dict[str, Any]]:
        shared = {
            "generator": self._source.repo_id if self._source else None,
            "revision": self._source.commit if self._source else None,
            "scheduler": type(self.scheduler).__name__,
            "num_inference_steps": num_inference_steps,
            "temperature": temperature,
            "diffusers_version": diffusers.__version__,
        }
        if isinstance(generator, list):
            return [{**shared, "seed": g.initial_seed(), "index": 0} for g in generator]
        seed = None if generator is None else generator.initial_seed()
        return [{**shared, "seed": seed, "index": i} for i in range(num_models)]
