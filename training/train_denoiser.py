"""Second stage: trains the denoiser on the latents of a zoo and writes the whole pipeline.

    accelerate launch training/train_denoiser.py --checkpoints runs/digits/checkpoints \\
        --autoencoder runs/digits/autoencoder --output_dir runs/digits/pipeline
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from pdiff_hf.evaluation.metrics import dispersion
from pdiff_hf.fitting.autoencoder import load_autoencoder, recipe_for
from pdiff_hf.fitting.images import images_of
from pdiff_hf.fitting.pipeline import fit_pipeline
from pdiff_hf.fitting.settings import DenoiserSettings, FitScriptSettings, parse_with_recipe
from pdiff_hf.fitting.units import canonical_splits
from pdiff_hf.folders import require_writable_folder
from pdiff_hf.settings import HubSettings, run_script
from pdiff_hf.zoo.checkpoints import load_checkpoints

NUM_DRAWN = 16  # networks drawn for the summary
NUM_ALIGNED = 500  # checkpoints that they are compared with, if units must be aligned


@dataclass
class ScriptSettings(HubSettings, FitScriptSettings):
    """What this script takes beside the settings of its stage."""

    autoencoder: str = field(kw_only=True, metadata={"help": "The folder that train_autoencoder.py wrote."})


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, trains the denoiser, writes the pipeline and pushes it."""
    run, settings = parse_with_recipe(
        ScriptSettings,
        DenoiserSettings,
        __doc__,
        argv,
        lambda flags: recipe_for(flags.autoencoder),
    )
    require_writable_folder(run.output_dir)
    accelerator = Accelerator(mixed_precision=run.mixed_precision)
    if accelerator.is_main_process:
        run.prepare_push(run.output_dir, "model")
    checkpoints = load_checkpoints(run.checkpoints, token=run.hub_token)
    autoencoder, first_stage = load_autoencoder(run.autoencoder)
    is_using = settings.uses_images or checkpoints.conditions is not None
    images = images_of(checkpoints, run.checkpoints, run.dataset_name) if is_using else None
    pipe = fit_pipeline(checkpoints, autoencoder, first_stage, settings, run, images)
    if accelerator.is_main_process:
        pipe.save_pretrained(run.output_dir)
        run.clear()
        generator, asked = torch.Generator().manual_seed(settings.seed), None
        if pipe.conditions is not None:
            trained = pipe.conditions.trained
            asked = trained[torch.linspace(0, len(trained) - 1, NUM_DRAWN).long()]
        drawn = torch.as_tensor(pipe(NUM_DRAWN, generator=generator, output_type="pt", condition=asked)[0])
        splits, symmetries = canonical_splits(checkpoints, ["train"], autoencoder, images)
        zoo = splits["train"]
        if symmetries is not None:  # units are drawn in any order
            zoo, mean = symmetries.align_to_mean(zoo[:NUM_ALIGNED], rounds=2)
            drawn = symmetries.align(symmetries.canonicalize(drawn), mean)
        spread = dispersion(drawn, zoo)
        print(f"The dispersion R of {NUM_DRAWN} drawn networks is {spread:.2f}; the zoo has 1, copies of one 0.")
        print(f"Written: {run.output_dir}")
        run.push(run.output_dir)
        print(
            f"Next, for its accuracy beside baselines: pdiff-hf audit {run.output_dir} "
            f"--checkpoints {run.checkpoints} --output_dir …"
        )
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    run_script(main)
