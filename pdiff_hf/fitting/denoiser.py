"""The second stage: training a denoiser on the standardized latents of a zoo."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, ModelMixin, SchedulerMixin
from diffusers.training_utils import EMAModel

from .. import loops
from .._registration import component_class, component_classes
from ..settings import RunSettings
from .denoising import Batch, DenoisingLoss, ZooConditions, draw_batch
from .function_matching import FunctionMatching
from .settings import NUM_TRAIN_TIMESTEPS, DenoiserSettings, RecipeError
from .snapshots import Losses, Snapshots
from .steps import check_finite, optimizer_step, share_of_process

NUM_EVALUATED = 256  # noisy latents of each split on which the loss is evaluated


@dataclass
class FittedDenoiser:
    """What a training yields: the denoiser, the sampler to be shipped, and the guide, if there is to be one.

    `notes` are for `metrics.json`: which snapshot was chosen, on which losses.
    """

    denoiser: ModelMixin
    scheduler: SchedulerMixin
    guide: ModelMixin | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def fit_denoiser(
    latents: torch.Tensor,
    settings: DenoiserSettings,
    run: RunSettings | None = None,
    stopwatch: loops.Stopwatch | None = None,
    data: dict[str, str] | None = None,
    autoencoder: ModelMixin | None = None,
    validation: torch.Tensor | None = None,
    matching: FunctionMatching | None = None,
    conditions: ZooConditions | None = None,
) -> FittedDenoiser:
    """Trains the denoiser on standardized latents and returns it with the sampler to be shipped.

    Batches are split among the processes; noise and times are drawn for the whole batch from a generator seeded by the
    step, so that one process and several, interrupted and uninterrupted runs see the same numbers.

    Args:
        latents: Latents of the zoo, `(n, latent_dim)` float32 of mean 0 and variance 1.
        settings: Which denoiser, how it is trained, and the sampler.
        run: Where the state of training is saved, if anywhere.
        stopwatch: Receives the seconds that a resumed training took before.
        data: Fingerprints of what the latents were made from, which a resumed training must share.
        autoencoder: What made the latents: a unit autoencoder states its tokens, and the weight of each number.
        validation: Latents of the validation checkpoints, `(m, latent_dim)`, which `select_snapshot` asks for.
        matching: The networks that the latents are of, if functions are matched.
        conditions: What the latents are for, and those of validation, of a conditional zoo.

    Raises:
        RecipeError: If the denoiser needs tokens, but the autoencoder makes none, or takes no conditions.
        ValueError: If the batch cannot be divided among the processes, or the state to resume from is of another
            training.
        NonFiniteParametersError: If the training diverged.
    """
    accelerator = loops.make_accelerator(run, settings)
    with loops.seeded(settings.seed):
        denoiser = _build_denoiser(latents.shape[1], settings, autoencoder, conditions)
    noise_scheduler = _build_noise_scheduler(settings)
    optimizer, lr_scheduler = loops.make_optimizer(denoiser.parameters(), settings, fused=True)
    model, optimizer = accelerator.prepare(denoiser.train(), optimizer)
    ema = EMAModel(model.parameters(), decay=settings.ema_decay, use_ema_warmup=False)
    snapshots = Snapshots(settings, validation is not None)
    accelerator.register_for_checkpointing(lr_scheduler, ema, snapshots, stopwatch or loops.Stopwatch())
    ema.to(accelerator.device)
    weights = getattr(autoencoder, "latent_weights", torch.ones(latents.shape[1])).to(accelerator.device)
    matching = matching.to(accelerator.device) if matching is not None and settings.function_weight else None
    is_bf16 = settings.auto_bf16 and loops.trains_in_bf16(accelerator, run)
    compute_loss = DenoisingLoss(noise_scheduler, settings, weights, matching, is_bf16)
    splits = {"train": latents} | ({} if validation is None else {"validation": validation})
    given = {} if conditions is None else conditions.splits
    evaluate = partial(_evaluate, compute_loss, model, ema, splits, given)
    share = partial(share_of_process, accelerator=accelerator)
    identity = (
        asdict(settings) | (data or {}) | {"mixed_precision": "bf16" if is_bf16 else accelerator.mixed_precision}
    )
    for step in loops.training_steps(accelerator, settings.max_train_steps, run, "training the denoiser", identity):
        # 1. Draw latents with replacement, their noise, times and conditions, and take this process's share.
        generator = loops.step_generator(settings.seed, step, "batches")
        rows = torch.randint(len(latents), (settings.train_batch_size,), generator=generator)
        generator = loops.step_generator(settings.seed, step, "noise")
        batch = draw_batch(latents, settings, rows, generator, given.get("train")).each(share)
        # 2. Take the networks whose functions are matched.
        if matching is not None:
            count = -(-settings.function_networks // accelerator.num_processes)
            batch = replace(batch, networks=share(matching.networks["train"][rows])[:count])  # (k, D)
        # 3. Compare what the denoiser predicts with what is to be predicted.
        loss, _ = compute_loss(model, batch, loops.step_generator(settings.seed, step, "functions"))
        # 4. Step down the gradient and average the weights.
        optimizer_step(accelerator, model, optimizer, lr_scheduler, loss, settings)
        ema.step(model.parameters())
        loops.log_loss(accelerator, run, step, loss)
        if not snapshots.update(step + 1, ema.shadow_params, evaluate):
            break
    loops.finish_trackers(accelerator)
    if settings.ema_decay:
        ema.copy_to(model.parameters())
    denoiser = accelerator.unwrap_model(model).cpu().eval()
    guide = _with_weights(denoiser, snapshots.guide) if snapshots.guide else None
    if snapshots.best:
        denoiser = _with_weights(denoiser, snapshots.best)
    check_finite(denoiser, run)
    scheduler = getattr(diffusers, settings.scheduler).from_config(noise_scheduler.config)
    return FittedDenoiser(denoiser, scheduler, guide, snapshots.describe())


def _build_noise_scheduler(settings: DenoiserSettings) -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        beta_schedule=settings.beta_schedule,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        prediction_type=settings.prediction_type,
        clip_sample=False,
        timestep_spacing="trailing",
    )


def _build_denoiser(
    latent_dim: int, settings: DenoiserSettings, autoencoder: ModelMixin | None, conditions: ZooConditions | None
) -> ModelMixin:
    denoiser_class: Any = component_class("denoiser", settings.type)
    arguments: dict[str, Any] = {}
    if "token_groups" in inspect.signature(denoiser_class).parameters:
        config = {} if autoencoder is None else autoencoder.config
        arguments = {name: config[name] for name in ("token_groups", "token_edges") if name in config}
        if not arguments:
            raise RecipeError(
                f"The denoiser {settings.type!r} takes tokens of units, but {type(autoencoder).__name__} makes none; "
                "fit an autoencoder with the recipe 'units', or choose another denoiser with --type."
            )
    if conditions is not None:
        require_conditions(settings)
        arguments["condition_dim"] = conditions.meaning.dim
    denoiser = denoiser_class(latent_dim=latent_dim, **arguments, **settings.config)
    if conditions is not None:
        mean, std = conditions.statistics()
        denoiser.condition_embedding.mean.copy_(mean)
        denoiser.condition_embedding.std.copy_(std)
    return denoiser


def require_conditions(settings: DenoiserSettings) -> None:
    """Raises `RecipeError` if the denoiser's class takes no conditions."""
    if "condition_dim" not in inspect.signature(component_class("denoiser", settings.type)).parameters:
        able = [
            name
            for name, cls in component_classes("denoiser").items()
            if "condition_dim" in inspect.signature(cls).parameters
        ]
        raise RecipeError(
            f"The zoo has conditions, but the denoiser {settings.type!r} takes none; choose one of {able} with --type "
            "or in the recipe, or leave out the column 'condition' and the key `conditions` of collection.json."
        )


@torch.no_grad()
def _evaluate(
    compute_loss: DenoisingLoss,
    model: torch.nn.Module,
    ema: EMAModel,
    splits: dict[str, torch.Tensor],
    conditions: Mapping[str, torch.Tensor],
) -> Losses:
    """Returns the losses of the averaged weights on latents of both splits, always with the same noise and times."""
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    model.eval()
    losses: Losses = {}
    matching, device = compute_loss.matching, compute_loss.weights.device
    for split, latents in splits.items():
        generator = torch.Generator().manual_seed(0)
        rows = torch.linspace(0, len(latents) - 1, NUM_EVALUATED).long()
        noise = torch.randn(NUM_EVALUATED, latents.shape[1], generator=generator)
        timesteps = torch.randperm(NUM_EVALUATED, generator=generator) * NUM_TRAIN_TIMESTEPS // NUM_EVALUATED
        condition = conditions[split][rows] if split in conditions else None
        networks = None if matching is None else matching.networks[split][rows]
        batch = Batch(latents[rows], noise, timesteps, condition, networks).each(lambda tensor: tensor.to(device))
        whole, error = compute_loss(model, batch, generator)
        losses |= {f"{split}_loss": whole.item(), split: error.item()}
    ema.restore(model.parameters())
    model.train()
    return losses


def _with_weights(denoiser: ModelMixin, weights: Sequence[torch.Tensor]) -> ModelMixin:
    """Returns a copy of the denoiser with other parameters."""
    other = copy.deepcopy(denoiser)
    for parameter, tensor in zip(other.parameters(), weights, strict=True):
        parameter.data.copy_(tensor)
    return other
