"""Creates tests/golden: a tiny pipeline and its samples. Run it only if the file format changes on purpose.

python tests/make_golden.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from pdiff_hf import (
    Checkpoints,
    CheckpointSplit,
    MLPConfig,
    MLPForImageClassification,
    PDiffPipeline,
    Recipe,
    fit,
    make_processor,
)
from pdiff_hf.data.preprocessing import Preprocessing
from pdiff_hf.fitting.settings import AutoencoderSettings, DenoiserSettings
from pdiff_hf.loops import seeded

GOLDEN = Path(__file__).parent / "golden"
SEEDS = (0, 1, 2, 3)


def images() -> torch.Tensor:
    """Three images that depend on no generator, `(3, 1, 8, 8)`."""
    return torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)


def draw(pipe: PDiffPipeline) -> dict[str, torch.Tensor]:
    """The golden samples: parameters of four seeds, and the logits of these networks on three images."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    out = pipe(len(SEEDS), generator=generators)
    return {"parameters": out.parameters, "logits": out.logits(images())}


def main() -> None:
    """Fits a pipeline to a zoo of the head of an MLP, and saves it with its samples."""
    with seeded(0):
        model = MLPForImageClassification(MLPConfig(image_size=8, num_channels=1, hidden_sizes=[8], num_labels=10))
    processor = make_processor(model.eval(), "head")
    count = 24
    noise = torch.randn(count, processor.parameter_dim, generator=torch.Generator().manual_seed(1))
    zoo = CheckpointSplit(
        parameters=processor.flatten(model.state_dict()) + 0.1 * noise,
        run=["run-0"] * count,
        step=list(range(count)),
        seed=[0] * count,
    )
    preprocessing = Preprocessing(image_size=8, mean=(0.3,), std=(0.37,)).to_dict()
    # All values are explicit, so that changes of a recipe have no effect here.
    recipe = Recipe(
        autoencoder=AutoencoderSettings(type="linear", config={"latent_dim": 8}),
        denoiser=DenoiserSettings(
            type="mlp",
            config={"width": 16, "num_blocks": 1},
            latent_smoothing=0.0,
            max_train_steps=200,
            train_batch_size=32,
            learning_rate=1e-3,
            lr_scheduler="cosine",
            lr_warmup_steps=10,
            ema_decay=0.99,
            prediction_type="v_prediction",
            beta_schedule="squaredcos_cap_v2",
            scheduler="DPMSolverMultistepScheduler",
            num_inference_steps=20,
        ),
    )
    pipe = fit(Checkpoints({"train": zoo}, processor, model, preprocessing), recipe)

    shutil.rmtree(GOLDEN / "pipeline", ignore_errors=True)
    pipe.save_pretrained(GOLDEN / "pipeline")
    samples = draw(PDiffPipeline.from_pretrained(GOLDEN / "pipeline"))
    save_file({name: tensor.contiguous() for name, tensor in samples.items()}, GOLDEN / "samples.safetensors")


if __name__ == "__main__":
    main()
