"""What a repository or folder holds, without fetching a weight."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ..hub import client as hub_client
from ..hub.client import HubNotFoundError, persistently
from ..hub.files import RepositoryFiles
from ..hub.safety import broken_files, own_files, printable, read_json
from ..targets.processing_parameters import ParameterProcessor
from .guidance import KnownConditions
from .loading import COMPONENTS, read_index
from .numbers import number

DESCRIBING = (
    "model_index.json",
    "metrics.json",
    "processor/processor_config.json",
    "autoencoder/config.json",
    "target_model/config.json",
)


def describe_pipeline(
    name: str | os.PathLike, revision: str | None = None, token: str | bool | None = None
) -> dict[str, Any]:
    """Describes a generator in a folder or on the Hub: what it generates, with what, its size, and its audit.

    Returns:
        JSON types: `name, commit, size` (bytes), `largest_file, generated` (`names`, `parameter_dim`), `target`
        (`class`, `labels`), `autoencoder, denoiser, scheduler` (classes), `latent_dim, num_inference_steps,
        autoguidance_scale, guidance_scale, conditions` (`kind`, `names`, `complement`, `trained_count`; or None) and,
        where they are known, `data, verdict, accuracy, dispersion, costs`.

    Raises:
        HubError: If it cannot be read.
        BrokenFileError: If it is no pipeline, or a configuration is damaged.
        UnsafeFileError: If a configuration is no regular file of the folder.
    """
    folder, commit = Path(name), None
    if folder.is_dir():
        sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    else:
        repository = RepositoryFiles(str(name), revision=revision, token=token)
        how: dict[str, Any] = {"files_metadata": True, "timeout": hub_client.ANSWER_TIMEOUT}
        api = HfApi(token=token)
        info = persistently(lambda: api.model_info(str(name), revision=revision, **how), str(repository))
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if "model_index.json" not in sizes:
            raise HubNotFoundError(f"The {repository} is no pipeline: it has no model_index.json.")
        commit = info.sha
        folder = replace(repository, revision=commit).download(DESCRIBING)
    own_files(folder, DESCRIBING)
    index, where = read_index(folder), f"The description of {str(name)!r}"
    target = read_json(folder / "target_model" / "config.json")
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    with broken_files(where):
        processor = ParameterProcessor.from_config(read_json(folder / "processor" / "processor_config.json"))
        described: dict[str, Any] = {
            "name": str(name),
            "commit": commit,
            "size": sum(sizes.values()),
            "largest_file": max(sizes, key=lambda file: sizes[file]),
            "generated": {"names": processor.names, "parameter_dim": processor.parameter_dim},
            "target": {"class": index["target_model"][1], "labels": list(target.get("id2label", {}).values())},
            **{component: index[component][1] for component in COMPONENTS[:3]},
            "latent_dim": int(read_json(folder / "autoencoder" / "config.json")["latent_dim"]),
            "num_inference_steps": index.get("default_num_inference_steps"),
            "autoguidance_scale": index.get("default_autoguidance_scale", 0.0),
            "conditions": None,
            "guidance_scale": index.get("default_guidance_scale", 1.0),
        }
        if index.get("conditions") is not None:
            known = KnownConditions.from_dict(index["conditions"])
            described["conditions"] = known.meaning.to_dict() | {"trained_count": len(known.trained)}
        if "sets" in metrics:
            described["verdict"] = {key: metrics["verdict"][key] for key in ("word", "reason")}
            sets = metrics["sets"]
            described["accuracy"] = {name: _floats(figures["test"]["accuracy"]) for name, figures in sets.items()}
            described["dispersion"] = _floats(sets["generated"]["dispersion"])
        data = metrics.get("data", {})
        described["data"] = {key: data.get(key) for key in ("dataset_name", "checkpoints", "zoo_count")}
        described["costs"] = metrics.get("costs", {})
        return described


def _floats(figures: dict[str, Any]) -> dict[str, float | None]:
    return {key: None if value is None else float(value) for key, value in figures.items()}


def description_table(described: dict[str, Any]) -> str:
    """Returns what `describe_pipeline` found as lines of text."""
    generated, target = described["generated"], described["target"]
    names = generated["names"]
    rows = {
        "generator": described["name"] + (f" at {described['commit'][:8]}" if described["commit"] else ""),
        "generates": f"{generated['parameter_dim']:,} parameters in {len(names)} tensors of {target['class']}",
        "tensors": ", ".join(names[:3]) + (f", … ({len(names) - 3} more)" if len(names) > 3 else ""),
        "labels": f"{len(target['labels'])}: {', '.join(map(str, target['labels'][:5]))}, …",
        "autoencoder": f"{described['autoencoder']}, {described['latent_dim']} latents",
        "denoiser": described["denoiser"],
        "sampler": f"{described['scheduler']}, {described['num_inference_steps']} steps"
        + (f", guidance {described['guidance_scale']}" if described["guidance_scale"] != 1 else "")
        + (f", autoguidance {described['autoguidance_scale']}" if described["autoguidance_scale"] else ""),
        "size": f"{described['size']:,} bytes, most of it {described['largest_file']}",
    }
    if conditions := described["conditions"]:
        meant = ", ".join(conditions["names"][:10]) + (", …" if len(conditions["names"]) > 10 else "")
        rows["conditions"] = f"{conditions['kind']} for {meant}; {conditions['trained_count']} in the zoo"
    data = {key: value for key, value in described["data"].items() if value is not None}
    if data:
        rows["fitted to"] = ", ".join(f"{key} {value}" for key, value in data.items())
    if "verdict" in described:
        accuracy = {name: f"{number(figures['mean'], 2, 100)} %" for name, figures in described["accuracy"].items()}
        real = ["zoo" if "zoo" in accuracy else "heldout"]  # of a conditional generator, tasks are held out
        rows["audit"] = f"{described['verdict']['word']} ({described['verdict']['reason']})"
        rows["accuracy"] = ", ".join(f"{name} {accuracy[name]}" for name in ("generated", *real, "average"))
        known = {key: value for key, value in described["dispersion"].items() if value is not None}  # F may be None
        rows["dispersion"] = ", ".join(f"{key} = {value:.2f}" for key, value in known.items())
    else:
        rows["audit"] = "not evaluated; `pdiff-hf audit` does"
    width = max(map(len, rows))
    return "\n".join(f"{key:{width}}  {printable(value)}" for key, value in rows.items())
