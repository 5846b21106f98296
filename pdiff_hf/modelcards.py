"""Cards from the templates of `model_cards/`, filled from the run's own data."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import jinja2
import torch
from huggingface_hub import DatasetCardData, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from .checkpoints import Checkpoints, CheckpointZoo, checkpoint_features
from .evaluation.plots import PICTURES
from .evaluation.report import metrics_table, summarize
from .folders import replace_folder, shipped_folder, write_json, write_text
from .pipeline_pdiff import PDiffPipeline
from .processing_parameters import ParameterProcessor

TAGS = ["p-diff", "neural-network-diffusion", "weight-generation"]


def write_checkpoints_card(folder: str | os.PathLike, checkpoints: Checkpoints) -> None:
    """Writes the README.md of a checkpoints dataset into the folder where it was saved."""
    features = checkpoint_features(checkpoints.processor.parameter_dim)
    splits = {name: zoo for name, zoo in checkpoints.splits.items() if len(zoo)}
    card_data = DatasetCardData(
        tags=[*TAGS, "checkpoints"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}-*.parquet"} for name in splits],
            }
        ],
        dataset_info={"features": features._to_yaml_list()},
    )
    text = _render(
        "checkpoints_dataset.md",
        card_data=card_data,
        target_class=type(checkpoints.target_model).__name__,
        subset_description=_describe(checkpoints.processor),
        parameter_dim=checkpoints.processor.parameter_dim,
        counts={name: len(zoo) for name, zoo in checkpoints.splits.items()},
        rows=[_split_row(name, zoo) for name, zoo in splits.items()],
        settings=checkpoints.collection.get("settings"),
        runs=checkpoints.collection.get("runs"),
        run_count=len({run for zoo in splits.values() for run in zoo.run}),
        costs={name: round(seconds, 1) for name, seconds in checkpoints.collection.get("costs", {}).items()},
        hardware=describe_hardware(),
    )
    write_text(Path(folder) / "README.md", text)


def add_report(
    folder: str | os.PathLike, pipe: PDiffPipeline, report: str | os.PathLike, metrics: dict[str, Any]
) -> None:
    """Puts an evaluation into a pipeline's own folder: pictures, `metrics.json` and a card that shows them.

    Args:
        folder: The pipeline's folder; of a Hub id nothing is written.
        pipe: The pipeline.
        report: The folder that `write_report` wrote.
        metrics: What it returned.
    """
    if not Path(folder).is_dir():
        return
    with replace_folder(folder) as temporary:
        for picture in PICTURES:
            shutil.copy(Path(report) / picture, temporary / picture)
        write_json(temporary / "metrics.json", metrics)
        write_pipeline_card(temporary, pipe, metrics)


def read_metrics(pipeline: str | os.PathLike, revision: str | None = None) -> dict[str, Any] | None:
    """Returns the `metrics.json` of a pipeline's folder or Hub repository, or None if it has none."""
    path = Path(pipeline) / "metrics.json"
    if not Path(pipeline).is_dir():
        try:
            path = Path(hf_hub_download(str(pipeline), "metrics.json", revision=revision))
        except EntryNotFoundError:
            return None
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_pipeline_card(folder: str | os.PathLike, pipe: PDiffPipeline, metrics: dict[str, Any]) -> None:
    """Writes the README.md of a pipeline repository from its `metrics.json`, evaluated or not."""
    evaluated = "sets" in metrics
    card_data = ModelCardData(
        library_name="diffusers", tags=[*TAGS, "arxiv:2402.13144"], metrics=["accuracy"] if evaluated else None
    )
    text = _render(
        "pipeline.md",
        card_data=card_data,
        target_class=type(pipe.target_model).__name__,
        subset_description=_describe(pipe.processor),
        parameter_dim=pipe.processor.parameter_dim,
        zoo_count=metrics["data"]["zoo_count"],
        dataset_name=metrics["data"]["dataset_name"],
        autoencoder_class=type(pipe.autoencoder).__name__,
        latent_dim=pipe.autoencoder.config.latent_dim,
        denoiser_class=type(pipe.denoiser).__name__,
        denoiser_parameters=f"{pipe.denoiser.num_parameters():,}",
        scheduler_class=type(pipe.scheduler).__name__,
        num_inference_steps=pipe.config.default_num_inference_steps,
        training=metrics["generator"].get("denoiser"),
        costs={name.removesuffix("_seconds"): round(value, 2) for name, value in metrics["costs"].items()},
        hardware=metrics["environment"]["hardware"],
        table=metrics_table(metrics) if evaluated else None,
        summary=summarize(metrics) if evaluated else None,
        pictures=PICTURES,
    )
    write_text(Path(folder) / "README.md", text)


def describe_hardware() -> str:
    """Returns the processor or accelerator in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} of {os.cpu_count()} cores ({platform.machine()})"


def _render(template: str, card_data: DatasetCardData | ModelCardData, **values: Any) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=False, keep_trailing_newline=True)
    text = (shipped_folder("model_cards") / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(card_data=card_data.to_yaml(), **values)


def _describe(processor: ParameterProcessor) -> str:
    shown = [f"`{name}`" for name in processor.names[:4]]
    return ", ".join(shown) + (f" and {len(processor.names) - 4} more" if len(processor.names) > 4 else "")


def _split_row(name: str, zoo: CheckpointZoo) -> dict[str, object]:
    accuracy = 100 * torch.tensor(zoo.validation_accuracy)
    return {
        "split": name,
        "count": len(zoo),
        "runs": len(set(zoo.run)),
        "mean": f"{accuracy.mean():.2f}",
        "least": f"{accuracy.min():.2f}",
        "most": f"{accuracy.max():.2f}",
    }
