"""Draws networks from a pipeline and judges them beside the zoo, held-out checkpoints and baselines.

    accelerate launch training/evaluate_pipeline.py --pipeline runs/digits/pipeline \\
        --checkpoints runs/digits/checkpoints --output_dir runs/digits/report
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from accelerate import Accelerator
from transformers import HfArgumentParser

from pdiff_hf.checkpoints import load_checkpoints
from pdiff_hf.collecting import collection_of, load_images_of
from pdiff_hf.evaluation import evaluate, metrics_table, summarize, write_report
from pdiff_hf.fitting import describe_fit
from pdiff_hf.folders import require_writable_folder
from pdiff_hf.modelcards import add_report, read_metrics
from pdiff_hf.pipeline_pdiff import PDiffPipeline
from pdiff_hf.settings import setting


@dataclass
class ScriptSettings:
    """What this script takes."""

    pipeline: str = field(metadata={"help": "The pipeline: a folder or a Hub id. A folder's card gets the report."})
    checkpoints: str = field(metadata={"help": "The checkpoints dataset it was fitted to: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "The report is written here."})
    dataset_name: str | None = setting(None, "Where the images are, if not where the checkpoints were collected.")
    num_models: int = setting(200, "Networks drawn from the generator.")
    num_baseline_models: int = setting(100, "Networks drawn from each baseline at each setting of its knob.")
    num_inference_steps: int | None = setting(None, "Steps of the sampler; by default the shipped ones.")
    temperature: float = setting(1.0, "Factor on the generator's latents.")
    seed: int = setting(0, "Decides every sample.")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, evaluates on the main process, writes the report and prints the table."""
    (run,) = HfArgumentParser(ScriptSettings, description=__doc__).parse_args_into_dataclasses(
        argv, look_for_args_file=False
    )
    require_writable_folder(run.output_dir)
    accelerator = Accelerator()
    if accelerator.is_main_process:
        checkpoints = load_checkpoints(run.checkpoints)
        images = load_images_of(collection_of(checkpoints, run.dataset_name))
        fitted = read_metrics(run.pipeline) or describe_fit(checkpoints)
        pipe = PDiffPipeline.from_pretrained(run.pipeline).to(accelerator.device)
        evaluation = evaluate(
            pipe,
            checkpoints,
            images,
            num_models=run.num_models,
            num_baseline_models=run.num_baseline_models,
            seed=run.seed,
            num_inference_steps=run.num_inference_steps,
            temperature=run.temperature,
        )
        metrics = write_report(run.output_dir, evaluation, fitted, pipe.processor)
        add_report(run.pipeline, pipe, run.output_dir, metrics)
        print(f"\n{metrics_table(metrics)}\n\n{summarize(metrics)}\n\nReport and pictures: {run.output_dir}")
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
