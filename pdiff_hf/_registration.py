"""Registers the package's components with diffusers, so that a pipeline repository can name them as `["pdiff_hf", …]`.

Without this, `save_pretrained` writes module paths, and `from_pretrained` on a Hub id then demands a Python file
inside the repository (huggingface/diffusers#6563). The table is semi-private: it is imported directly so that a rename
upstream fails at import and not at a user's download. The names below are part of the file format.
"""

from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES

COMPONENTS = (
    "ParameterAutoencoder",
    "LinearParameterAutoencoder",
    "ParameterDenoiser",
    "MLPParameterDenoiser",
    "ParameterProcessor",
    "MLPForImageClassification",
    "ConvNetForImageClassification",
    "AdaptedModel",
    "AnyTargetModel",
)

LOADABLE_CLASSES["pdiff_hf"] = {name: ["save_pretrained", "from_pretrained"] for name in COMPONENTS}
ALL_IMPORTABLE_CLASSES.update(LOADABLE_CLASSES["pdiff_hf"])
