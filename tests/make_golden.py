"""Creates tests/golden: tiny pipelines and their samples. Run it only if the file format changes on purpose.

python tests/make_golden.py [pipeline | units | conditional]
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
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
from pdiff_hf.targets.conditions import Conditions

GOLDEN = Path(__file__).parent / "golden"
PIPELINES = {  # folders, files of samples
    "pipeline": "samples.safetensors",
    "units": "unit_samples.safetensors",
    "conditional": "conditional_samples.safetensors",
}
SEEDS = (0, 1, 2, 3)
ASKED = [[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]]  # the conditions of these seeds, for a conditional pipeline


def images() -> torch.Tensor:
    """Three images that depend on no generator, `(3, 1, 8, 8)`."""
    return torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)


def draw(pipe: PDiffPipeline) -> dict[str, torch.Tensor]:
    """The golden samples: parameters of four seeds, and the logits of these networks on three images."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    out = pipe(len(SEEDS), generator=generators, condition=None if pipe.conditions is None else ASKED)
    return {"parameters": out.parameters, "logits": out.logits(images())}


def fit_head() -> PDiffPipeline:
    """Linear codes and an MLP denoiser, for the head of a network."""
    # All values are explicit, here and below, so that changes of a recipe have no effect.
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
    return fit(zoo_of("head", [8], runs=1, count=24), recipe)


def fit_units() -> PDiffPipeline:
    """Codes of units, a transformer denoiser with edges, and a guide, for a whole network with two hidden layers."""
    return fit(zoo_of("full", [6, 5], runs=24, count=24), unit_recipe())


def fit_conditional() -> PDiffPipeline:
    """The same for networks with one hidden layer and a condition of three bits, with both kinds of guidance."""
    checkpoints = zoo_of("full", [6], runs=24, count=24)
    checkpoints.zoo.condition = [[float(i // place % 2) for place in (1, 2, 4)] for i in range(24)]
    checkpoints.collection["conditions"] = Conditions("bits", ("a", "b", "c")).to_dict()
    recipe = unit_recipe()
    recipe.denoiser.condition_dropout, recipe.denoiser.guidance_scale = 0.1, 1.5
    return fit(checkpoints, recipe)


def unit_recipe() -> Recipe:
    """The recipe of both."""
    return Recipe(
        autoencoder=AutoencoderSettings(type="unit", config={"explained_variance": 0.5}),
        denoiser=DenoiserSettings(
            type="transformer",
            config={"width": 16, "num_blocks": 1, "num_heads": 2, "mlp_ratio": 2, "edge_rank": 4},
            max_train_steps=200,
            train_batch_size=32,
            learning_rate=3e-3,
            lr_scheduler="cosine_with_min_lr",
            lr_min_rate=0.02,
            lr_warmup_steps=10,
            ema_decay=0.99,
            prediction_type="v_prediction",
            beta_schedule="squaredcos_cap_v2",
            scheduler="DPMSolverMultistepScheduler",
            num_inference_steps=20,
            guide_at=0.25,
            autoguidance_scale=0.5,
        ),
    )


def zoo_of(subset: str, hidden_sizes: list[int], runs: int, count: int) -> Checkpoints:
    """A zoo of vectors around those of one MLP."""
    config = MLPConfig(image_size=8, num_channels=1, hidden_sizes=hidden_sizes, num_labels=10)
    with seeded(0):
        model = MLPForImageClassification(config)
    processor = make_processor(model.eval(), subset)
    noise = torch.randn(count, processor.parameter_dim, generator=torch.Generator().manual_seed(1))
    zoo = CheckpointSplit(
        parameters=processor.flatten(model.state_dict()) + 0.1 * noise,
        run=[f"run-{i % runs}" for i in range(count)],
        step=list(range(count)),
        seed=[0] * count,
    )
    preprocessing = Preprocessing(image_size=8, mean=(0.3,), std=(0.37,)).to_dict()
    return Checkpoints({"train": zoo}, processor, model, preprocessing)


def main(names: Sequence[str]) -> None:
    """Fits the named pipelines, by default all, and saves each with its samples."""
    for name in names or PIPELINES:
        shutil.rmtree(GOLDEN / name, ignore_errors=True)
        {"pipeline": fit_head, "units": fit_units, "conditional": fit_conditional}[name]().save_pretrained(
            GOLDEN / name
        )
        for about in ("README.md", "metrics.json"):  # names the machine; no network depends on it
            (GOLDEN / name / about).unlink()
        samples = draw(PDiffPipeline.from_pretrained(GOLDEN / name))
        tensors = {key: tensor.contiguous() for key, tensor in samples.items()}
        save_file(tensors, GOLDEN / PIPELINES[name])


if __name__ == "__main__":
    main(sys.argv[1:])
