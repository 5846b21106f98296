"""`PDiffPipeline`: networks drawn from noise."""

from __future__ import annotations

import copy
import inspect
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel

from ..hub.safety import UnsafeFileError, read_json
from ..hub.sharing import share
from .batches import BatchesMixin
from .checks import as_count, as_number, check_arguments, check_scheduler, returned_latents
from .guidance import Guidance, KnownConditions, as_autoguidance_scale, as_guidance_scale
from .latent_space import LatentSpaceMixin
from .loading import Source, load_arguments, locate
from .pipeline_output import CallState, PDiffPipelineOutput, number_draws
from .saving import replace_pipeline

PUSHING = ("private", "token", "commit_message", "create_pr")  # arguments of save_pretrained with push_to_hub


class PDiffPipeline(LatentSpaceMixin, BatchesMixin, DiffusionPipeline):
    """Draws parameter subsets from noise (Neural Network Diffusion, arXiv 2402.13144) and puts them into a network.

    Several threads may draw from one pipeline at once, unless its components are offloaded. Networks may be loaded in
    several threads too, but not built in others meanwhile: transformers changes torch's default dtype as it loads.

    Args:
        autoencoder: Decodes standardized latents as parameter vectors; float32 under any cast.
        denoiser: Predicts what the scheduler's `prediction_type` names.
        scheduler: Any of diffusers' DDPM, DDIM, DPM-Solver++, UniPC or Euler schedulers, with the noise levels and the
            prediction type of the training and without clipping. `pipe.scheduler = …` takes what is made of it by
            `from_config(pipe.scheduler.config)`, and refuses others; another denoiser is for another pipeline.
        processor: The layout of a vector.
        target_model: The network whose parameters are generated. It holds the average of the training checkpoints in
            the generated positions, and works as it stands.
        guide: An under-trained state of the denoiser, which samples are guided away from (see `Guidance`).
        default_num_inference_steps: That of a call without any.
        default_autoguidance_scale: That of a call without any.
        default_guidance_scale: That of a call without any.
        image_processor_config: Preprocessing of the network's images; saved as `preprocessor_config.json`, and with
            every drawn network.
        conditions: What `KnownConditions.to_dict` returns, if networks are drawn for conditions.

    Attributes:
        conditions: The `KnownConditions`: what conditions mean, and those of the zoo; None without.
        metrics: How it was made and what was measured, the content of its `metrics.json`; None if not known.
    """

    model_cpu_offload_seq = "guide->denoiser->autoencoder"
    _optional_components = ["guide"]
    _exclude_from_cpu_offload = ["target_model"]
    _callback_tensor_inputs = ["latents"]
    metrics: dict[str, Any] | None = None
    _source: Source | None = None
    _trained: SchedulerMixin | None = None

    def __init__(
        self,
        autoencoder: ModelMixin,
        denoiser: ModelMixin,
        scheduler: SchedulerMixin,
        processor: ConfigMixin,
        target_model: PreTrainedModel,
        guide: ModelMixin | None = None,
        default_num_inference_steps: int = 20,
        default_autoguidance_scale: float = 0.0,
        image_processor_config: dict[str, Any] | None = None,
        conditions: dict[str, Any] | None = None,
        default_guidance_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self._call = CallState()
        self.register_modules(autoencoder=autoencoder, denoiser=denoiser, scheduler=scheduler)
        self.register_modules(processor=processor, target_model=target_model, guide=guide)
        if type(target_model).__module__.split(".")[0] not in LOADABLE_CLASSES:  # a class of the user's
            self.register_to_config(target_model=("pdiff_hf", "AnyTargetModel"))
        preprocessing = json.loads(json.dumps(image_processor_config, default=lambda value: value.tolist()))
        self.register_to_config(
            default_num_inference_steps=as_count("default_num_inference_steps", default_num_inference_steps),
            default_autoguidance_scale=as_autoguidance_scale(default_autoguidance_scale, guide),
            image_processor_config=preprocessing,
        )
        self.conditions = KnownConditions.of_pipeline(conditions, denoiser=denoiser, guide=guide)
        scale = as_guidance_scale(default_guidance_scale, self.conditions)
        if self.conditions:  # the files of other pipelines stay as they always were
            self.register_to_config(conditions=self.conditions.to_dict(), default_guidance_scale=scale)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute or component; a scheduler must belong to the denoiser, else `SchedulerError`."""
        if name == "scheduler":
            check_scheduler(value, self._trained)
            self._trained = self._trained or copy.deepcopy(value)
        super().__setattr__(name, value)

    @property
    def num_timesteps(self) -> int:
        """Steps of the sampler in this thread's last call."""
        return self._call.num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked this thread's call to stop, by setting `_interrupt`."""
        return self._call.interrupt

    _interrupt = property(lambda self: self.interrupt, lambda self, value: setattr(self._call, "interrupt", value))

    @torch.no_grad()
    def __call__(
        self,
        num_models: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        condition: Any = None,
        guidance_scale: float | None = None,
        autoguidance_scale: float | None = None,
        output_type: str = "model",
        temperature: float = 1.0,
        return_dict: bool = True,
        callback_on_step_end: Callable[[PDiffPipeline, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> PDiffPipelineOutput | tuple:
        """Draws networks, and returns a `PDiffPipelineOutput`.

        Args:
            num_models: How many.
            num_inference_steps: Steps of the sampler; fewer than the default draw networks closer to the average.
            generator: Decides the noise. A list, one for each network, makes a network independent of its batch.
            latents: Initial noise `(num_models, latent_dim)` of unit variance, in place of drawn noise.
            condition: What networks are drawn for, with `conditions`: c numbers, or `num_models` rows of them; of bits
                also the names that are 1, such as `["3", "7"]`.
            guidance_scale: How far to go from the unconditional to the conditional prediction, which is at 1.
            autoguidance_scale: How far to extrapolate from the guide's prediction beyond the denoiser's; 0 for not.
            output_type: `"model"`, `"pt"`, `"np"` or `"latent"`.
            temperature: Factor on the final latents: 1 as trained, 0 gives `decode(0)`.
            return_dict: `False` for a plain tuple of the fields that are set.
            callback_on_step_end: Called as `callback(pipe, step, timestep, {"latents": …})` after each step; returns a
                dict, which may hold other latents.
            callback_on_step_end_tensor_inputs: Names of what the callback gets.

        Raises:
            ValueError: If an argument does not fit, in a sentence that names it.
            SchedulerError: If the scheduler no longer belongs to the denoiser.
            NonFiniteParametersError: If a parameter is NaN or infinite.
        """
        # 1. Check inputs
        scheduler = copy.deepcopy(self.scheduler)  # other threads draw at the same time
        check_scheduler(scheduler, self._trained)
        num_models, temperature = as_count("num_models", num_models), as_number("temperature", temperature)
        steps = self.config.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        num_inference_steps = as_count("num_inference_steps", steps, scheduler.config.num_train_timesteps)
        guidance = Guidance.of_call(self, num_models, condition, guidance_scale, autoguidance_scale)
        shape = (num_models, self.denoiser.config.latent_dim)
        asked = callback_on_step_end_tensor_inputs or []
        check_arguments(shape, generator, latents, output_type, asked, self._callback_tensor_inputs)
        device, dtype = self._execution_device, self.denoiser.dtype

        # 2. Prepare timesteps and initial noise
        scheduler.set_timesteps(num_inference_steps, device=device)
        self._call.num_timesteps, self._call.interrupt = len(scheduler.timesteps), False
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        latents = latents.to(device, dtype) * scheduler.init_noise_sigma  # (num_models, latent_dim)
        extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}

        # 3. Denoise
        with self.progress_bar(total=self.num_timesteps) as progress_bar:
            for i, t in enumerate(scheduler.timesteps):
                if self.interrupt:
                    continue
                model_input = scheduler.scale_model_input(latents, t)
                latents = scheduler.step(guidance(model_input, t), t, latents, **extra).prev_sample
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, i, t, {"latents": latents})
                    latents = returned_latents(changed, latents)
                progress_bar.update()
        latents = latents * temperature

        # 4. Decode
        fields: dict[str, Any] = {"latents": latents}
        if output_type != "latent":
            parameters = self.autoencoder.decode(latents.float()).sample  # (num_models, D)
            self.processor.check(parameters)
            fields = {"parameters": parameters.cpu().numpy() if output_type == "np" else parameters}
        if output_type == "model":
            sampling = {"num_inference_steps": num_inference_steps, "temperature": temperature, **guidance.describe()}
            how = (self._source, type(scheduler).__name__, sampling, guidance.condition)
            fields["models"] = self._networks(parameters, number_draws(num_models, generator, *how))
        self.maybe_free_model_hooks()
        output = PDiffPipelineOutput(**fields, condition_distance=guidance.condition_distance)
        return output if return_dict else output.to_tuple()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> PDiffPipeline:
        """Loads a pipeline from a folder or from the Hub.

        Only configurations and safetensors weights are fetched and compared with their checksums, cached ones too.
        Files that do not fit one another are found before memory is taken for what they ask for.

        Args:
            pretrained_model_name_or_path: A folder, or an id such as `"org/name"`.
            **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `variant`, `dtype` and
                `device_map` (a device) as diffusers takes them, and arguments of the constructor over stored ones.

        Raises:
            HubError: If it cannot be fetched; the subclasses of `pdiff_hf.hub.client` say why.
            BrokenFileError: If a file is missing, damaged or does not fit the others.
            UnsafeFileError: If weights are pickled, or a class is none that this package reads.
        """
        device, known = kwargs.pop("device_map", None), inspect.signature(cls.__init__).parameters
        source, arguments = load_arguments(str(pretrained_model_name_or_path), known, kwargs)
        pipe = cls(**arguments)
        pipe.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        pipe._source = source
        if (source.folder / "metrics.json").is_file():
            pipe.metrics = read_json(source.folder / "metrics.json")
        return pipe if device is None else pipe.to(device)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> PDiffPipeline:
        """Makes a pipeline that shares another one's components; see `DiffusionPipeline.from_pipe`."""
        if "scheduler" in kwargs and "denoiser" not in kwargs:
            check_scheduler(kwargs["scheduler"], pipeline.scheduler)
        return super().from_pipe(pipeline, **(pipeline.components | kwargs))  # named, they may be of any class

    @classmethod
    def download(cls, pretrained_model_name: str | os.PathLike, variant: str | None = None, **kwargs: Any) -> str:
        """Fetches what `from_pretrained` reads, and returns the folder; takes its arguments that concern fetching."""
        return str(locate(str(pretrained_model_name), kwargs, variant).folder)

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> str | None:
        """Saves the pipeline with its preprocessing, `metrics.json`, card and figures; takes what diffusers takes.

        The card is written from `metrics`, unless somebody wrote it by hand. With `push_to_hub`, the arguments of that
        method are taken too, and the address of the commit is returned.
        """
        folder = Path(save_directory)
        pushing = {key: kwargs.pop(key) for key in PUSHING if key in kwargs}
        repo_id = kwargs.pop("repo_id", folder.name)
        if kwargs.pop("safe_serialization", True) is False:
            raise UnsafeFileError("safe_serialization=False asks for pickled weights, which are never written.")
        with replace_pipeline(folder, self, kwargs.get("variant"), pushing.get("token"), push_to_hub) as temporary:
            super().save_pretrained(temporary, *args, **kwargs)
        return share(folder, repo_id, **pushing) if push_to_hub else None

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Pushes the pipeline with its card, metrics and figures, in one commit, or in none if nothing has changed.

        Takes and returns what `pdiff_hf.share` does.
        """
        pushing = {"private": private, "token": token, "commit_message": commit_message, "create_pr": create_pr}
        with tempfile.TemporaryDirectory() as folder:
            return cast(str, self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, **pushing))
