"""Merges checkpoints datasets of one collection, for example the shards that independent jobs made with `--run_shard`.

python training/merge_checkpoints.py --checkpoints shards/1 shards/2 shards/3 shards/4 --output_dir runs/checkpoints
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from pdiff_hf.folders import require_writable_folder
from pdiff_hf.settings import run_script, setting
from pdiff_hf.zoo.checkpoints import load_checkpoints
from pdiff_hf.zoo.collection_scripts import summarize_zoo
from pdiff_hf.zoo.merging import merge_checkpoints


@dataclass
class ScriptSettings:
    """What this script takes."""

    checkpoints: list[str] = field(metadata={"help": "The datasets, in any order: folders or Hub ids."})
    output_dir: str = field(metadata={"help": "The merged dataset is written here, atomically."})
    skip_equal: bool = setting(False, "Take rows that occur twice, bit for bit, once instead of refusing them.")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, merges and writes the dataset."""
    (run,) = HfArgumentParser(ScriptSettings, description=__doc__).parse_args_into_dataclasses(
        argv, look_for_args_file=False
    )
    require_writable_folder(run.output_dir)
    merged = merge_checkpoints([load_checkpoints(folder) for folder in run.checkpoints], skip_equal=run.skip_equal)
    merged.save(run.output_dir)
    print(summarize_zoo(merged, run.output_dir))


if __name__ == "__main__":
    run_script(main, resumable=False)
