"""The zoos of `benchmarks/whole_networks.py`, and what is varied in the recipe that is fitted to them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

HELDOUT = 200  # validation runs, and as many test runs


@dataclass(frozen=True)
class Case:
    """How the zoo of one network is collected, its size, and what its generator needs beside the recipe.

    `collection` are settings of `MultiRunSettings`; `denoiser` are those of the recipe's second stage.
    """

    network: dict[str, Any]
    collection: dict[str, Any]
    size: int
    denoiser: dict[str, Any] = field(default_factory=dict)

    def settings(self, trunk_steps: int = 0) -> dict[str, Any]:
        """Returns the arguments of `MultiRunSettings`; runs branch off one trunk after `trunk_steps`."""
        network = dict(self.network)
        return self.collection | {
            "model_type": network.pop("model_type"),
            "model_config": json.dumps(network),
            "subset": ["full"],
            "num_runs": self.size,
            "num_validation_runs": HELDOUT,
            "num_test_runs": HELDOUT,
            "canonicalize": True,
            "trunk_steps": trunk_steps,
            "seed": 1,
        }


def _mlp(*hidden_sizes: int) -> dict[str, Any]:
    return {"model_type": "pdiff_mlp", "hidden_sizes": hidden_sizes}


def _convnet(*hidden_sizes: int) -> dict[str, Any]:
    return {"model_type": "pdiff_convnet", "hidden_sizes": hidden_sizes, "normalization": "layer"}


DIGITS = {"image_size": 8, "target_learning_rate": 0.01, "target_train_steps": 500, "adam_weight_decay": 1.0}
DIGITS_CONV = DIGITS | {"target_train_steps": 350, "adam_weight_decay": 0.3}
MNIST = {"dataset_name": "mnist", "target_learning_rate": 0.01, "train_batch_size": 128, "adam_weight_decay": 0.1}
MNIST |= {"target_train_steps": 1055}
LARGER = {"function_images": 64}  # of networks that take longer than the denoiser

# Two hidden layers take longer; with the recipe's weight on functions they would vary too little.
LONGER = {"function_weight": 1.6, "max_train_steps": 10000, "ema_decay": 0.999, "num_inference_steps": 12}

CASES = {
    "mlp_16": Case(_mlp(16), DIGITS, 4000),
    "mlp_32": Case(_mlp(32), DIGITS, 4000),
    "mlp_16_16": Case(_mlp(16, 16), DIGITS, 3000, LONGER),
    "mnist_16": Case(_mlp(16), MNIST | {"image_size": 14}, 3000, {"max_train_steps": 9000, "ema_decay": 0.999}),
    "mnist_32_32": Case(_mlp(32, 32), MNIST | {"image_size": 28}, 1200, LARGER | {"max_train_steps": 5000}),
    "convnet": Case(_convnet(8, 16), DIGITS_CONV, 2000, LARGER | {"max_train_steps": 5000}),
}
# Of the recipe: changes to the second stage. `plain_codes` has the first stage fitted without images.
VARIANTS: dict[str, dict[str, Any]] = {
    "units": {},
    "no_matching": {"function_weight": 0.0},
    "rank_1_edges": {"config": {"edge_rank": 1}},
    "positions": {"config": {"positions": True}},
    "plain_codes": {},
}
