"""Cards from the templates of `model_cards/`: every figure comes from the run's own data, and a gap is an error."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
from huggingface_hub import DatasetCardData, ModelCardData
from markupsafe import Markup

from ..folders import shipped_folder, write_text
from .safety import printable

TAGS = ["p-diff", "neural-network-diffusion", "weight-generation"]
LICENSE = "apache-2.0"  # unless networks were imported, which have that of those who trained them
NO_ADDRESS = "path/or/id"  # the name of the repository in a card that has not been pushed
PICTURES = {
    "accuracy_novelty.png": "Score against distance to the nearest zoo network",
    "accuracy_similarity.png": "Score against similarity to the zoo",
    "similarity_matrix.png": "Similarity between the sets",
    "parameter_distribution.png": "Distribution of the parameters by layer",
    "reverse_process.png": "Score along the reverse process",
    "embedding.png": "Zoo, held-out checkpoints and samples in two dimensions",
}
CONDITIONAL_PICTURES = {"conditions.png": "Score on tasks that nobody trained"}
UNCERTAINTY_PICTURES = {"uncertainty.png": "Accuracy and NLL of single networks and ensembles on corrupted images"}
ALL_PICTURES = PICTURES | CONDITIONAL_PICTURES | UNCERTAINTY_PICTURES
IMAGE_CLASSIFICATION = "image-classification"
_ADDRESS = re.compile(r"<!-- (?:Repository:|This card speaks of) (\S+) -->")  # the latter in earlier cards


def write_checkpoints_card(
    folder: str | os.PathLike,
    checkpoints: Any,  # Checkpoints
    score_name: str,
    features: Sequence[dict[str, Any]],  # the columns, as `datasets` writes them into a card
    conditions: Mapping[str, Any] | None,  # what its rows were made for, if for anything
) -> None:
    """Writes the README.md of a checkpoints dataset into its folder."""
    splits, processor, collection = checkpoints.splits, checkpoints.processor, checkpoints.collection
    settings = dict(collection.get("settings") or {})
    filled = {name: rows for name, rows in splits.items() if len(rows)}
    count = sum(map(len, splits.values()))
    files = [{"split": name, "path": f"data/{name}-*.parquet"} for name in filled]
    imported = collection.get("imported")
    card_data = DatasetCardData(
        license=LICENSE if imported is None else imported.get("license"),
        tags=[*TAGS, "checkpoints"],
        size_categories=_size_category(count),
        configs=[{"config_name": "default", "data_files": files}],
        dataset_info={"features": list(features)},
    )
    text = render(
        "checkpoints_dataset.md",
        card_data,
        target_class=type(checkpoints.target_model).__name__,
        score_name=score_name,
        subset_description=describe_layout(processor.names),
        parameter_dim=processor.parameter_dim,
        statistics=processor.statistics,
        counts=dict.fromkeys(("train", "validation", "test"), 0) | {name: len(rows) for name, rows in splits.items()},
        rows=[_split_row(name, rows) for name, rows in filled.items()],
        settings=settings | {"dataset_name": published_name(settings["dataset_name"])} if settings else None,
        runs=collection.get("runs"),
        imported=imported,
        conditions=conditions,
        run_count=len({run for rows in filled.values() for run in rows.run}),
        costs={name.removesuffix("_seconds"): f"{value:.1f}" for name, value in collection.get("costs", {}).items()},
        hardware=collection.get("hardware"),
        sizes={"vectors": describe_bytes(count * 4 * processor.parameter_dim)},
    )
    write_text(Path(folder) / "README.md", text)


def write_network_card(
    folder: str | os.PathLike, provenance: Sequence[Mapping[str, Any]], target_class: str, subfolders: bool
) -> None:
    """Writes the README.md of drawn networks in `subfolders` `00000/`, `00001/`, …, or of one at the root."""
    generator = provenance[0]["generator"]
    card_data = ModelCardData(
        license=provenance[0].get("license", LICENSE),
        library_name="peft" if target_class == "AdaptedModel" else "transformers",
        pipeline_tag=IMAGE_CLASSIFICATION if "ImageClassification" in target_class else None,
        tags=[*TAGS, "generated-by-pdiff"],
        base_model=generator,
    )
    about = {"target_class": target_class, "provenance": provenance, "generator": generator}
    text = render("generated_network.md", card_data, subfolders=subfolders, **about)
    write_text(Path(folder) / "README.md", text)


def write_remote_code_card(folder: str | os.PathLike) -> None:
    """Writes the README.md of the revision of a pipeline that carries its own code."""
    text = render("remote_code.md", ModelCardData(license=LICENSE, library_name="diffusers", tags=TAGS))
    write_text(Path(folder) / "README.md", text)


def has_own_card(folder: str | os.PathLike) -> bool:
    """Tells whether a folder has a README.md that somebody wrote by hand; it is kept."""
    readme = Path(folder) / "README.md"
    return readme.is_file() and _ADDRESS.search(readme.read_text(encoding="utf-8")) is None


def readdress(text: str, repo_id: str) -> str:
    """Returns a card in which its repository is called `repo_id`, whatever it was called before."""
    if (found := _ADDRESS.search(text)) is None:
        return text
    # As an item of a list or the text of a link it is another repository of that name: the data set, or the generator.
    alone = r"(?<![\w./\[-])(?<!- )"
    return re.sub(rf"(?:{alone}|(?<=huggingface\.co/)){re.escape(found[1])}(?![\w/-]|\.\w)", repo_id, text)


def require_license(license: str | None) -> None:
    """Raises a ValueError unless this may be the identifier of a license on the Hub, or None."""
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise ValueError(
            f"--license {license!r} is no identifier of a license on the Hub; pass one such as mit or cc-by-4.0, or "
            "`other` (https://huggingface.co/docs/hub/repositories-licenses)."
        )


def published_name(name: str | None) -> str | None:
    """Returns a data set's or model's name as others may read it: of a local path, its last part."""
    return Path(name).name if name and (os.path.isabs(name) or Path(name).exists()) else name


def published_value(value: Any) -> Any:
    """Returns a JSON value in which paths of this machine are cut down to their last part."""
    if isinstance(value, dict):
        return {key: published_value(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [published_value(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def describe_layout(names: Sequence[str]) -> str:
    """Names the tensors of a layout, the first of many."""
    return ", ".join(f"`{name}`" for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def describe_hardware() -> str:
    """Returns the processor or accelerator in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} of {os.cpu_count()} cores ({platform.machine()})"


def render(template: str, card_data: DatasetCardData | ModelCardData, **values: Any) -> str:
    """Returns a card from a template of `model_cards/`; a value that the template lacks is an error."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        finalize=_without_html,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = (shipped_folder("model_cards") / template).read_text(encoding="utf-8")
    values |= {"card_data": Markup(card_data.to_yaml()), "address": NO_ADDRESS, "license": card_data.license}
    return environment.from_string(text).render(values)


def _without_html(value: Any) -> Any:
    """Returns a value of a card, a text without HTML and control characters; the metadata stay as they are."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(map(printable, value.split("\n"))).replace("<", "&lt;")


def describe_bytes(count: float) -> str:
    """Returns a size in words, with three digits."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB" if count < 1000 else f"{count:,.0f} GB"


def _size_category(rows: int) -> str:
    """The Hub's buckets of data set sizes."""
    bounds = {"n<1K": 1e3, "1K<n<10K": 1e4, "10K<n<100K": 1e5, "100K<n<1M": 1e6}
    return next((name for name, bound in bounds.items() if rows < bound), "n>1M")


def _split_row(name: str, rows: Any) -> dict[str, object]:
    score = 100 * torch.tensor(rows.validation_score or [float("nan")])
    measured = not score.isnan().any()
    return {
        "split": name,
        "count": len(rows),
        "runs": len(set(rows.run)),
        "score": f"{score.mean():.2f}, {score.min():.2f}, {score.max():.2f}" if measured else "not measured",
    }
