"""The one table of components: role -> type -> class. Loading, fitting, settings and export read it.

It is imported before any component, because it also registers their names with diffusers. Without that,
`save_pretrained` writes module paths, and `from_pretrained` on a Hub id then demands a Python file inside the
repository (huggingface/diffusers#6563). diffusers' table is semi-private: it is imported directly so that a rename
upstream fails at import and not at a user's download. Class names are part of the file format: never rename them.
"""

from __future__ import annotations

import importlib

from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES

# "module:class", so that this table imports nothing of the package. The keys are the `type` of a recipe.
COMPONENTS: dict[str, dict[str, str]] = {
    "autoencoder": {
        "conv": "models.conv_autoencoder:ParameterAutoencoder",
        "linear": "models.linear_autoencoder:LinearParameterAutoencoder",
        "unit": "models.unit_autoencoder:UnitParameterAutoencoder",
    },
    "denoiser": {
        "conv": "models.conv_denoiser:ParameterDenoiser",
        "mlp": "models.mlp_denoiser:MLPParameterDenoiser",
        "transformer": "models.transformer_denoiser:TransformerParameterDenoiser",
    },
    "processor": {"parameters": "targets.processing_parameters:ParameterProcessor"},
    "target_model": {
        "mlp": "targets.networks:MLPForImageClassification",
        "convnet": "targets.networks:ConvNetForImageClassification",
        "adapted": "targets.adapters:AdaptedModel",
        "module": "targets.module_target:ModuleTarget",
        "any": "targets.loading:AnyTargetModel",
    },
}

COMPONENTS["guide"] = COMPONENTS["denoiser"]  # an earlier state of the denoiser


def component_classes(role: str) -> dict[str, type]:
    """Returns the classes of a role, by the `type` that a recipe names them with."""
    return {name: _load(address) for name, address in COMPONENTS[role].items()}


def component_class(role: str, type: str) -> type:
    """Returns one class of a role.

    Raises:
        ValueError: If the table has no such type.
    """
    if type not in COMPONENTS[role]:
        raise ValueError(f"There is no {role} of type {type!r}; choose one of {list(COMPONENTS[role])}.")
    return _load(COMPONENTS[role][type])


def _load(address: str) -> type:
    module, _, name = address.partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)


_NAMES = [address.partition(":")[2] for addresses in COMPONENTS.values() for address in addresses.values()]
LOADABLE_CLASSES["pdiff_hf"] = {name: ["save_pretrained", "from_pretrained"] for name in _NAMES}
ALL_IMPORTABLE_CLASSES.update(LOADABLE_CLASSES["pdiff_hf"])
