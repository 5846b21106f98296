"""PEFT adapters as the parameter subset: a target made of a base network and its adapter."""

from __future__ import annotations

import importlib
import json
import os
import re
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import is_peft_available

from ..hub.safety import UnsafeFileError
from .loading import find_model_class
from .processing_parameters import LayoutError
from .task import require_logits

# An adapter may be of those PEFT types that need nothing but tensors,
TYPES = "LORA ADALORA IA3 LOHA LOKR OFT HRA VERA LN_TUNING PROMPT_TUNING PREFIX_TUNING P_TUNING"
# with names of modules, none a pattern, in these settings (PEFT takes several of them for regular expressions),
NAMES = """target_modules exclude_modules modules_to_save feedforward_modules layers_pattern rank_pattern alpha_pattern
    target_parameters trainable_token_indices"""
NAME = re.compile(r"[\w.-]+")
# and these other settings.
SETTINGS = """peft_type task_type base_model_name_or_path inference_mode bias fan_in_fan_out layers_to_transform
    r alpha lora_alpha lora_dropout lora_bias use_dora use_rslora alora_invocation_tokens ensure_weight_tying
    init_lora_weights init_ia3_weights init_weights init_r target_r tinit tfinal deltaT beta1 beta2 orth_reg_weight
    total_step module_dropout rank_dropout rank_dropout_scale decompose_both decompose_factor use_effective_conv2d
    block_share coft eps oft_block_size num_cayley_neumann_terms use_cayley_neumann apply_GS
    d_initial projection_prng_key save_projection vera_dropout num_virtual_tokens token_dim num_transformer_submodules
    num_attention_heads num_layers prefix_projection encoder_hidden_size encoder_dropout encoder_num_layers
    encoder_reparameterization_type prompt_tuning_init"""
# Left out is what matters only to its first initialization, or to PEFT on the machine where it was made.
PAST = """auto_mapping revision peft_version runtime_config megatron_core loftq_config eva_config corda_config
    lora_ga_config prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs"""
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


class AdaptedConfig(PreTrainedConfig):
    """Configuration of `AdaptedModel`."""

    model_type = "pdiff_adapted"

    base_class: str = ""  # class name of the base network
    base_config: dict[str, Any] | None = None
    adapter_config: dict[str, Any] | None = None  # as in an adapter_config.json
    adapter_name: str = "default"  # as PEFT calls it


class AdaptedModel(PreTrainedModel):
    """A base network with a PEFT adapter (LoRA, IA3, …) as one self-contained transformers network.

    PEFT saves an adapter without its base, and transformers cannot load a base with an adapter inside. This class
    saves and loads both together, so that it can be a pipeline's target: the adapter is generated, the base is the
    trunk. It is made by `wrap` and requires peft.
    """

    config_class = AdaptedConfig
    base_model_prefix = "peft_model"

    def __init__(self, config: AdaptedConfig, peft_model: Any = None) -> None:
        super().__init__(config)
        self.peft_model: Any = _build(config) if peft_model is None else peft_model
        # Now, because transformers lets everything that it loads require grad.
        self.trained = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        self.post_init()

    def init_weights(self) -> None:
        """Does nothing: base and adapter have initialized their own tensors."""

    @classmethod
    def wrap(cls, peft_model: Any) -> AdaptedModel:
        """Wraps the result of `peft.get_peft_model` or `PeftModel.from_pretrained`; tensors are shared, not copied.

        Raises:
            LayoutError: If the network has more than one adapter.
            UnsafeFileError: If it is of a type, or has settings, that are not read back.
        """
        if len(peft_model.peft_config) > 1:
            raise LayoutError(
                f"This network has the adapters {list(peft_model.peft_config)}, but a target can have only one; "
                "remove the others with delete_adapter."
            )
        name = peft_model.active_adapter
        base = peft_model.get_base_model()
        adapter = peft_model.peft_config[name].to_dict()
        if Path(str(adapter["base_model_name_or_path"] or "")).exists():
            adapter["base_model_name_or_path"] = None  # a local path is meaningless on other machines
        if isinstance(adapter.get("target_modules"), str):  # a pattern
            adapter["target_modules"] = sorted(peft_model.base_model.targeted_module_names)
        adapter = adapter_settings(json.loads(json.dumps(adapter, default=sorted)))  # sets become lists
        config = AdaptedConfig(
            base_class=type(base).__name__,
            base_config={key: value for key, value in base.config.to_dict().items() if key != "_name_or_path"},
            adapter_config=adapter,
            adapter_name=name,
            id2label=base.config.id2label,
            label2id=base.config.label2id,
        )
        return cls(config, peft_model).train(peft_model.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Has the arguments and the output of the base network."""
        return self.peft_model(*args, **kwargs)

    def adapter_tensors(self) -> list[str]:
        """Returns the names of what PEFT trains (adapter, biases, a head): what required grad, else what PEFT saves.

        Raises `LayoutError` if something else requires grad, which would not be saved with an adapter.
        """
        peft: Any = importlib.import_module("peft")
        name = self.config.adapter_name
        saved = peft.get_peft_model_state_dict(self.peft_model, adapter_name=name, save_embedding_layers=False)
        places = {tensor.data_ptr() for tensor in saved.values()}
        own = [n for n, p in self.named_parameters() if f".{name}" in n or p.data_ptr() in places]
        foreign = [n for n in self.trained if n not in own]
        if foreign:
            raise LayoutError(
                f"PEFT does not save {foreign[0]!r} with the adapter, but it requires grad; freeze it, or name its "
                "module in modules_to_save."
            )
        return self.trained or own

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves base and adapter; buffers that layers have in common (VeRA's projections) are written for each."""
        buffers = dict(self.named_buffers(remove_duplicate=False))
        state_dict = {n: t.clone() if n in buffers else t for n, t in self.state_dict().items()}
        super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)

    def save_adapter(self, folder: str | os.PathLike) -> None:
        """Writes `adapter_config.json` and its safetensors file, for `PeftModel.from_pretrained(base, folder)`."""
        folder, name = Path(folder), self.config.adapter_name
        self.peft_model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink()  # PEFT's empty template
        if name != "default":  # PEFT writes it into a subfolder of that name
            for file in (folder / name).iterdir():
                file.replace(folder / file.name)
            (folder / name).rmdir()


def as_target(model: nn.Module) -> PreTrainedModel:
    """Returns a network that a pipeline can hold: a PEFT model wrapped, any other network unchanged.

    What `torch.compile`, `DataParallel`, `DistributedDataParallel` or `AveragedModel` made of it is looked through.

    Raises:
        LayoutError: If it is no transformers network, cannot be saved with its adapter, or a module inside of it was
            compiled or wrapped.
        ValueError: If its output has no logits.
    """
    model = unwrap(model)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise LayoutError(
            f"The adapter of this {type(model).__name__} was added by its own add_adapter, after which transformers "
            "does not save the base; add it with peft.get_peft_model."
        )
    base = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(base, PreTrainedModel):
        raise LayoutError(
            f"A target is a transformers network, but this is a plain {type(base).__name__}; record "
            "pdiff_hf.ModuleTarget.wrap(module, arguments), with the arguments of its constructor."
        )
    require_logits(base)
    return base if base is model else AdaptedModel.wrap(model)


def unwrap(model: nn.Module) -> nn.Module:
    """Returns what a compiled or wrapped network was made of.

    Raises `LayoutError` if a module inside of it is compiled or wrapped, so that its tensors have other names.
    """
    while _is_wrapped(model):
        model = cast(nn.Module, model.module if isinstance(model, WRAPPERS) else model._orig_mod)
    inner = next((name for name, module in model.named_modules() if _is_wrapped(module)), None)
    if inner is not None:
        raise LayoutError(
            f"{inner!r} in this {type(model).__name__} is a {type(model.get_submodule(inner)).__name__}, which "
            f"renames its tensors; compile the module in place (model.{inner}.compile()), or compile or wrap the "
            "whole network."
        )
    return model


def _is_wrapped(module: nn.Module) -> bool:
    return isinstance(module, WRAPPERS) or hasattr(module, "_orig_mod")


def adapter_settings(stored: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of an adapter that matter when it is built again.

    Raises:
        UnsafeFileError: If it is of another type than those above, or has other settings than those, or patterns.
    """
    if stored.get("peft_type") not in TYPES.split():
        raise UnsafeFileError(f"The adapter is of type {stored.get('peft_type')!r:.50}; only those are read: {TYPES}.")
    # No import statement: diffusers requires all packages that exported code imports to be installed.
    mapping: Any = importlib.import_module("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING
    default = mapping[stored["peft_type"]].__dataclass_fields__
    known = NAMES.split() + SETTINGS.split()
    for key, value in stored.items():
        if key in NAMES.split():
            names = [value] if isinstance(value, str) else value or ()
            is_safe = all(NAME.fullmatch(str(name)) for name in names)
        else:
            is_default = not value or value == getattr(default.get(key), "default", None)
            is_safe = is_default or key in known or key in PAST.split()
        if not is_safe:
            raise UnsafeFileError(
                f"The adapter's setting {key} = {value!r:.50} is not read: modules need plain names, not patterns, "
                "and nothing may lead to other adapters, files or modules of Python."
            )
    return {key: value for key, value in stored.items() if key in known}


def _build(config: AdaptedConfig) -> Any:
    if not is_peft_available():
        raise ImportError("This target has an adapter, which requires peft: pip install 'pdiff-hf[peft]'.")
    peft: Any = importlib.import_module("peft")
    base_values = dict(config.base_config or {})
    base_class = find_model_class(config.base_class, base_values.get("model_type"))
    base = base_class(base_class.config_class.from_dict(base_values))
    adapter_config = peft.get_peft_config(adapter_settings(config.adapter_config or {}))
    if getattr(adapter_config, "prompt_tuning_init", None) == "TEXT":
        # The text is already in the weights; PEFT would download the tokenizer and its code again.
        adapter_config.prompt_tuning_init = "RANDOM"
    base.name_or_path = adapter_config.base_model_name_or_path or ""  # PEFT copies it into its configuration
    return peft.get_peft_model(base, adapter_config, adapter_name=config.adapter_name, autocast_adapter_dtype=False)
