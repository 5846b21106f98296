"""Imports networks that were trained and saved elsewhere as a checkpoints dataset.

python training/import_checkpoints.py --files 'downloads/zoo.tar.gz' --model_type pdiff_mlp \\
    --model_config '{"hidden_sizes": [16]}' --dataset_name digits --image_size 8 --output_dir runs/imported/checkpoints
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from pdiff_hf.folders import require_writable_folder
from pdiff_hf.settings import HubSettings, run_script, setting
from pdiff_hf.zoo.collection_scripts import summarize_import
from pdiff_hf.zoo.importing import ImportOptions, import_checkpoints
from pdiff_hf.zoo.settings import IMAGES, TargetSettings, image_arguments, load_images_of, load_target


@dataclass
class ScriptSettings(ImportOptions, TargetSettings):
    """What this script takes."""

    files: list[str] = field(
        kw_only=True,
        metadata={
            "help": ".safetensors, .pth, .pt or .bin files, folders of them or of transformers and its Trainer, .tar "
            "or .tar.gz archives of files, or globs."
        },
    )
    output_dir: str = field(kw_only=True, metadata={"help": "Folder of the result; it is written atomically."})
    dataset_name: str | None = setting(
        None, f"Images on which the networks are measured, and BatchNorm statistics are found: {IMAGES}"
    )
    subset: list[str] = field(
        default_factory=lambda: ["full"],
        metadata={"help": "What is generated: last_norms, head, full, or patterns on state_dict() names."},
    )

    def __post_init__(self) -> None:
        ImportOptions.__post_init__(self)
        TargetSettings.__post_init__(self)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, imports and writes the dataset."""
    hub, settings = HfArgumentParser((HubSettings, ScriptSettings), description=__doc__).parse_args_into_dataclasses(
        argv, look_for_args_file=False
    )
    require_writable_folder(settings.output_dir)
    hub.prepare_push(settings.output_dir, "dataset")
    images, collection = None, {}
    if settings.dataset_name is not None:
        images = load_images_of(settings)
        collection["settings"] = image_arguments(settings) | {"image_size": images.preprocessing.image_size}
    model = load_target(settings, images)
    checkpoints = import_checkpoints(settings.files, model, settings.subset, settings, images, collection)
    checkpoints.save(settings.output_dir)
    print(summarize_import(checkpoints, settings.output_dir))
    hub.push(settings.output_dir)


if __name__ == "__main__":
    run_script(main, resumable=False)
