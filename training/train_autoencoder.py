"""First stage: fits the parameter autoencoder to a checkpoint zoo.

    accelerate launch training/train_autoencoder.py --checkpoints runs/digits/checkpoints \\
        --output_dir runs/digits/autoencoder
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from accelerate import Accelerator

from pdiff_hf.fitting.autoencoder import explained_variance, fit_autoencoder
from pdiff_hf.fitting.settings import AutoencoderSettings, parse_with_recipe
from pdiff_hf.folders import replace_folder, require_writable_folder, write_json
from pdiff_hf.loops import Stopwatch, fingerprint
from pdiff_hf.settings import RunSettings, run_script, setting
from pdiff_hf.zoo.checkpoints import load_checkpoints

ROWS = 256  # of each split that are reconstructed for the summary


@dataclass
class ScriptSettings(RunSettings):
    """What this script takes beside the settings of its stage."""

    checkpoints: str = field(kw_only=True, metadata={"help": "The checkpoints dataset: a folder or a Hub id."})
    recipe: str = setting("fast", "`fast`, `paper` or the path of a YAML file; flags override it.")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, fits the autoencoder and writes it."""
    run, settings = parse_with_recipe(ScriptSettings, AutoencoderSettings, __doc__, argv)
    require_writable_folder(run.output_dir)
    accelerator = Accelerator(mixed_precision=run.mixed_precision)
    stopwatch = Stopwatch()
    checkpoints = load_checkpoints(run.checkpoints)
    autoencoder = fit_autoencoder(checkpoints, settings, run, stopwatch)
    if accelerator.is_main_process:
        notes = {"settings": asdict(settings), "seconds": stopwatch.seconds}
        with replace_folder(run.output_dir) as folder:
            autoencoder.save_pretrained(folder)
            write_json(folder / "training.json", notes | {"zoo": fingerprint([checkpoints.zoo.parameters])})
        run.clear()
        for name, split in checkpoints.splits.items():
            if len(split) > 1:
                share = explained_variance(autoencoder, split.parameters[:ROWS])
                print(f"{autoencoder.config.latent_dim} latents keep {share:.2%} of the variance of the {name} split.")
        print(f"Written: {run.output_dir}")
        print(
            f"Next: accelerate launch training/train_denoiser.py --checkpoints {run.checkpoints} "
            f"--autoencoder {run.output_dir} --output_dir …"
        )
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    run_script(main)
