"""Second stage: trains the denoiser on the latents of a zoo and writes the whole pipeline.

    accelerate launch training/train_denoiser.py --checkpoints runs/digits/checkpoints \\
        --autoencoder runs/digits/autoencoder --output_dir runs/digits/pipeline
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import Accelerator

from pdiff_hf.fitting.fitting import assemble_pipeline, describe_fit, encode_zoo, fit_denoiser, load_autoencoder
from pdiff_hf.folders import replace_folder, require_writable_folder
from pdiff_hf.loops import Stopwatch, TrainingState
from pdiff_hf.settings import DenoiserSettings, HubSettings, RunSettings, parse_with_recipe, setting
from pdiff_hf.zoo.checkpoints import load_checkpoints


@dataclass
class ScriptSettings(HubSettings, RunSettings):
    """What this script takes beside the settings of its stage."""

    checkpoints: str = setting("", "The checkpoints dataset: a folder or a Hub id.")
    autoencoder: str = setting("", "The folder that train_autoencoder.py wrote.")
    recipe: str = setting("fast", "`fast`, `paper` or the path of a YAML file; flags override it.")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and trains."""
    run, settings = parse_with_recipe(ScriptSettings, DenoiserSettings, "denoiser", __doc__, argv)
    require_writable_folder(run.output_dir)
    accelerator = Accelerator(mixed_precision=run.mixed_precision)
    if accelerator.is_main_process:
        run.prepare_push(run.output_dir, "model")
    checkpoints = load_checkpoints(run.checkpoints, token=run.hub_token)
    autoencoder, first_stage = load_autoencoder(run.autoencoder)
    state = TrainingState.from_run(run)
    stopwatch = Stopwatch()
    latents = encode_zoo(autoencoder, checkpoints)
    denoiser, scheduler = fit_denoiser(latents, settings, state, stopwatch)
    if accelerator.is_main_process:
        seconds = stopwatch.seconds
        pipe = assemble_pipeline(checkpoints, autoencoder, denoiser, scheduler, settings)
        pipe.metrics = describe_fit(checkpoints, first_stage, settings, seconds)
        with replace_folder(run.output_dir) as folder:
            pipe.save_pretrained(folder)
        state.clear()
        run.push(run.output_dir)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
