"""First stage: fits the parameter autoencoder to a checkpoint zoo.

    accelerate launch training/train_autoencoder.py --checkpoints runs/digits/checkpoints \\
        --output_dir runs/digits/autoencoder
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache

from accelerate import Accelerator

from pdiff_hf.fitting.autoencoder import explained_variance, fit_autoencoder
from pdiff_hf.fitting.images import images_of
from pdiff_hf.fitting.settings import AutoencoderSettings, FitScriptSettings, parse_with_recipe
from pdiff_hf.fitting.units import canonical_splits, choose_recipe
from pdiff_hf.folders import replace_folder, require_writable_folder, write_json
from pdiff_hf.loops import Stopwatch, fingerprint
from pdiff_hf.settings import run_script
from pdiff_hf.zoo.checkpoints import SPLITS, load_checkpoints

ROWS = 256  # of each split that are reconstructed for the summary


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, fits the autoencoder and writes it."""
    load = cache(load_checkpoints)
    run, settings = parse_with_recipe(
        FitScriptSettings, AutoencoderSettings, __doc__, argv, lambda flags: choose_recipe(load(flags.checkpoints))
    )
    require_writable_folder(run.output_dir)
    accelerator = Accelerator(mixed_precision=run.mixed_precision)
    stopwatch = Stopwatch()
    checkpoints = load(run.checkpoints)
    images = images_of(checkpoints, run.checkpoints, run.dataset_name) if settings.uses_images else None
    autoencoder = fit_autoencoder(checkpoints, settings, run, stopwatch, images)
    if accelerator.is_main_process:
        notes = {
            "settings": asdict(settings),
            "seconds": stopwatch.seconds,
            "zoo": fingerprint([checkpoints.zoo.parameters]),
            "is_conditional": checkpoints.conditions is not None,
        }
        with replace_folder(run.output_dir) as folder:
            autoencoder.save_pretrained(folder)
            write_json(folder / "training.json", notes)
        run.clear()
        for split in checkpoints.splits.values():
            split.parameters = split.parameters[:ROWS]
        for name, vectors in canonical_splits(checkpoints, SPLITS, autoencoder, images)[0].items():
            if len(vectors) > 1:
                share = explained_variance(autoencoder, vectors)
                print(f"{autoencoder.config.latent_dim} latents keep {share:.2%} of the variance of the {name} split.")
        print(f"Written: {run.output_dir}")
        print(
            f"Next: accelerate launch training/train_denoiser.py --checkpoints {run.checkpoints} "
            f"--autoencoder {run.output_dir} --output_dir …"
        )
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    run_script(main)
