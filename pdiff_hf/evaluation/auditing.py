"""The audit of a pipeline end to end; what the script and the command `pdiff-hf audit` run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import HfArgumentParser

from ..data.images import ImageData
from ..fitting.pipeline import describe_fit
from ..folders import require_writable_folder
from ..hub.files import RepositoryFiles
from ..hub.safety import printable, read_json
from ..pipelines.card import report_parts
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..settings import HubSettings, require_within, setting
from ..targets.conditions import ConditionError
from ..targets.task import task_of
from ..zoo.checkpoints import Checkpoints, load_checkpoints
from ..zoo.fits import require_channels
from ..zoo.settings import load_images_of_zoo
from ..zoo.tasks import TASKS, tasks_of
from .conditional import ConditionalAuditor
from .conditional_report import write_conditional_report
from .evaluator import evaluate
from .predictive import compare_uncertainty, require_classifier
from .report import add_report, write_report
from .shifts import load_outliers
from .uncertainty_report import summarize_uncertainty, uncertainty_table


@dataclass
class AuditSettings(HubSettings):
    """What is audited, with how many samples."""

    pipeline: str = field(
        kw_only=True, metadata={"help": "A pipeline's folder, whose card gets the report, or Hub id."}
    )
    checkpoints: str = field(
        kw_only=True, metadata={"help": "The checkpoints it was fitted to: a folder or a Hub id."}
    )
    output_dir: str = setting("report", "Folder of the report.")
    dataset_name: str | None = setting(None, "Where the images are, if not where a local zoo was collected.")
    num_models: int = setting(200, "Networks drawn from the generator, if it takes no conditions.")
    num_models_each: int = setting(20, "Networks drawn for each held-out condition, if it takes conditions.")
    num_baseline_models: int = setting(100, "Networks drawn from each baseline at each strength.")
    num_inference_steps: int | None = setting(None, "Steps of the sampler; by default the shipped ones.")
    temperature: float = setting(1.0, "Factor on the generator's latents.")
    drop_broken: bool = setting(False, "Leave out samples that are not finite, and count them as broken.")
    seed: int = setting(0, "Random seed for the samples of the generator and the baselines.")
    uncertainty: bool = setting(False, "Compare predictive uncertainty too: ensembles of drawn networks and others.")
    num_ensemble_members: int = setting(10, "With --uncertainty: networks of an ensemble.")
    ood_dataset_name: str | None = setting(
        None, "With --uncertainty: another data set to be told from the test images; by default images made of these."
    )

    def __post_init__(self) -> None:
        if self.ood_dataset_name is not None and not self.uncertainty:
            raise ValueError("--ood_dataset_name is for the comparison that --uncertainty adds; pass that too.")
        require_within(self, 2, "num_models", "num_models_each", "num_ensemble_members")
        require_within(self, 1, "num_baseline_models", "num_inference_steps")
        require_within(self, 0, "temperature", "seed")


def main(argv: Sequence[str] | None = None, prog: str | None = None, description: str | None = None) -> None:
    """Parses the flags, audits on the main process, writes the report and prints its tables."""
    parser = HfArgumentParser(AuditSettings, prog=prog, description=description)
    (settings,) = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    accelerator = Accelerator()
    if accelerator.is_main_process:
        metrics = audit_pipeline(settings, accelerator.device)
        parts = report_parts(metrics)
        shown = [parts[name] for name in ("criteria", "table", "summary")]
        if settings.uncertainty:
            shown += [uncertainty_table(metrics["uncertainty"]), summarize_uncertainty(metrics["uncertainty"])]
        for line in "\n\n".join(shown).split("\n"):
            print(printable(line))
        print(f"\nReport and figures: {settings.output_dir}")
    accelerator.wait_for_everyone()


def audit_pipeline(settings: AuditSettings, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Evaluates a pipeline, writes the report and the card of a pipeline in a folder; returns the `metrics.json`.

    With `push_to_hub`, the pipeline with its new card, metrics and figures is pushed: to `hub_model_id`, or, if it
    came from the Hub, back to where it came from.

    Raises:
        ValueError: If the zoo does not record on which images it was collected, or is from the Hub and no
            `dataset_name` is given.
        HubError: If something cannot be fetched or pushed.
    """
    require_writable_folder(settings.output_dir)
    folder = Path(settings.pipeline)
    is_folder = folder.is_dir()
    if settings.hub_model_id is None:
        settings.hub_model_id = folder.name if is_folder else settings.pipeline
    settings.prepare_push(settings.pipeline, "model")
    checkpoints = load_checkpoints(settings.checkpoints, token=settings.hub_token)
    collected = checkpoints.collection.get("settings")
    if settings.dataset_name is None and collected and not Path(settings.checkpoints).is_dir():
        raise ValueError(
            f"The zoo {settings.checkpoints} is from the Hub, and what it names is not read unasked; name the images: "
            f"--dataset_name {printable(collected.get('dataset_name'))}, if you trust that."
        )
    images = load_images_of_zoo(checkpoints, settings.dataset_name)
    pipe = PDiffPipeline.from_pretrained(settings.pipeline, token=settings.hub_token).to(device)
    require_channels(pipe.target_model.config, images)
    require_within(settings, 1, "num_inference_steps", highest=pipe.scheduler.config.num_train_timesteps)
    if not is_folder:
        folder = RepositoryFiles(settings.pipeline, token=settings.hub_token).download(["metrics.json"])
    fitted = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else describe_fit(checkpoints)
    measure = _audit_unconditional if pipe.conditions is None else _audit_conditional
    metrics = measure(settings, pipe, checkpoints, images, fitted)
    if is_folder:
        add_report(settings.pipeline, pipe, settings.output_dir, metrics)
        settings.push(settings.pipeline)
    elif settings.push_to_hub:
        with tempfile.TemporaryDirectory() as temporary:
            pipe.save_pretrained(temporary)
            add_report(temporary, pipe, settings.output_dir, metrics)
            settings.push(temporary)
    return metrics


def _audit_unconditional(
    settings: AuditSettings, pipe: PDiffPipeline, checkpoints: Checkpoints, images: ImageData, fitted: dict[str, Any]
) -> dict[str, Any]:
    outliers = None
    if settings.uncertainty:
        require_classifier(pipe)
        if settings.ood_dataset_name is not None:
            outliers = load_outliers(settings.ood_dataset_name, images)
    evaluation = evaluate(
        pipe,
        checkpoints,
        images,
        num_models=settings.num_models,
        num_baseline_models=settings.num_baseline_models,
        seed=settings.seed,
        num_inference_steps=settings.num_inference_steps,
        temperature=settings.temperature,
        drop_broken=settings.drop_broken,
    )
    uncertainty = None
    if settings.uncertainty:
        uncertainty = compare_uncertainty(
            evaluation,
            pipe,
            checkpoints,
            images,
            num_members=settings.num_ensemble_members,
            outliers=outliers,
            costs=fitted["costs"],
            seed=settings.seed,
        )
    return write_report(settings.output_dir, evaluation, fitted, pipe.processor, uncertainty)


def _audit_conditional(
    settings: AuditSettings, pipe: PDiffPipeline, checkpoints: Checkpoints, images: ImageData, fitted: dict[str, Any]
) -> dict[str, Any]:
    """Evaluates a conditional pipeline on held-out conditions and writes the report."""
    # 1. What cannot be evaluated.
    pipe.processor.check(checkpoints.zoo.parameters)
    if checkpoints.conditions is None:
        raise ConditionError(
            f"{settings.pipeline} draws networks for conditions, but the zoo {settings.checkpoints} has none; name "
            "the checkpoints that it was fitted to."
        )
    tasks = tasks_of(checkpoints, images)
    if tasks is None:
        raise ConditionError(
            f"The zoo {settings.checkpoints} does not name one of the tasks {', '.join(TASKS)}; evaluate it with "
            "pdiff_hf.audit_conditional, which takes tasks of your own."
        )
    for name in ("drop_broken", "uncertainty"):
        if getattr(settings, name):
            raise ConditionError(f"--{name} is for generators without conditions; leave it out.")
    # 2. Draw, and evaluate.
    started = time.perf_counter()
    baseline_models = {"num_baseline_models": settings.num_baseline_models, "seed": settings.seed}
    auditor = ConditionalAuditor(checkpoints, images, tasks, **baseline_models)
    sampling = time.perf_counter()
    how = {"num_inference_steps": settings.num_inference_steps, "temperature": settings.temperature}
    samples = auditor.draw(pipe, settings.num_models_each, settings.seed, **how)
    costs = {"sampling_seconds": time.perf_counter() - sampling}
    answer = auditor.audit(samples)
    costs["evaluation_seconds"] = time.perf_counter() - started - costs["sampling_seconds"]
    task = task_of(pipe.target_model.config)
    data = {"task": task.name, "score_name": task.score_name, "test_images_sha256": images.test.fingerprint()}
    return write_conditional_report(settings.output_dir, answer, fitted, {"data": data, "costs": costs})
