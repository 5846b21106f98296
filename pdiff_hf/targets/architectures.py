"""The six architectures of the paper's main table, as transformers configurations."""

from __future__ import annotations

from typing import Any

# Sizes as published: He et al. (arXiv 1512.03385), Dosovitskiy et al. (2010.11929) and Touvron et al. (2012.12877),
# Liu et al. (2201.03545). What is not named is transformers' default: those of ResNet-50 and ViT-B/16.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnet18": {
        "model_type": "resnet",
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
    },
    "resnet50": {"model_type": "resnet"},
    "vit-tiny": {"model_type": "vit", "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "vit-base": {"model_type": "vit"},
    "convnext-tiny": {"model_type": "convnext", "hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]},
    "convnext-base": {"model_type": "convnext", "hidden_sizes": [128, 256, 512, 1024], "depths": [3, 3, 27, 3]},
}


def architecture_config(name: str) -> dict[str, Any]:
    """Returns the configuration of an architecture as a dictionary, including `model_type`; ValueError if unknown."""
    if name not in ARCHITECTURES:
        raise ValueError(
            f"There is no architecture {name!r}; the known ones are {', '.join(ARCHITECTURES)}. "
            "Use --model_type and --model_config for any other."
        )
    return dict(ARCHITECTURES[name])
