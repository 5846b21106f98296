"""Any plain `nn.Module` as a target: timm's, torchvision's and your own networks, saved with what rebuilds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .adapters import unwrap
from .loading import UnknownTargetError, subclasses
from .processing_parameters import LayoutError
from .task import logits_of, task_of

CLASS = "class:"  # begins an argument that stands for a class


class ModuleConfig(PreTrainedConfig):
    """Configuration of `ModuleTarget`."""

    model_type = "pdiff_module"

    module_class: str = ""  # path of the module's class
    arguments: dict[str, Any] | None = None  # of its constructor, as JSON
    tie_word_embeddings: bool = True  # transformers ties no parameters without it


class ModuleTarget(PreTrainedModel):
    """A plain `nn.Module`, whose output is its logits or has `logits`, as a transformers network.

    It is made by `wrap`. Names of tensors begin with `module.`. The saved files contain the path of the module's class
    and the constructor's arguments. On loading the class is looked up among those that this process has already
    defined or imported; nothing is imported.
    """

    config_class = ModuleConfig
    base_model_prefix = "module"

    def __init__(self, config: ModuleConfig, module: nn.Module | None = None) -> None:
        super().__init__(config)
        self.module = _build_module(config) if module is None else module
        first: dict[nn.Parameter, str] = {}
        names = self.named_parameters(remove_duplicate=False)
        self._tied_weights_keys = {n: first[p] for n, p in names if first.setdefault(p, n) != n}
        self.post_init()

    def init_weights(self) -> None:
        """Does nothing: the module has initialized its own tensors."""

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Fills buffers that are not saved, which transformers leaves as empty memory when it loads."""
        unsaved = [name for name, _ in self.named_non_persistent_buffers()]
        if unsaved:
            with torch.random.fork_rng():
                rebuilt = ModuleTarget(self.config, _build_module(self.config))
            for name in unsaved:
                self.get_buffer(name).copy_(rebuilt.get_buffer(name))

    @classmethod
    def wrap(cls, module: nn.Module, arguments: dict[str, Any] | None = None, **config: Any) -> ModuleTarget:
        """Wraps a module, compiled or in `DataParallel` or not; tensors are shared, not copied.

        Args:
            module: The module.
            arguments: Arguments of its constructor that build it anew: whatever JSON has, and classes of modules.
            config: Fields of the configuration, such as `num_labels`, `id2label` or `problem_type`.

        Raises:
            LayoutError: If its class and these arguments do not build the same tensors, or a module inside of it was
                compiled or wrapped.
        """
        module = unwrap(module)
        given = {
            name: f"{CLASS}{_path(value)}" if isinstance(value, type) else value
            for name, value in (arguments or {}).items()
        }
        settings = ModuleConfig(module_class=_path(type(module)), arguments=given, **config)
        try:
            with torch.device("meta"):
                rebuilt = _shapes(_build_module(settings))
        except TypeError as error:
            raise LayoutError(
                f"{type(module).__name__} cannot be built with the arguments {given} ({error}); give those that its "
                "constructor takes: ModuleTarget.wrap(module, {'width': 64})."
            ) from error
        differing = {name for name, _ in rebuilt.items() ^ _shapes(module).items()}
        if differing:
            raise LayoutError(
                f"{type(module).__name__} with the arguments {given} has other tensors than this module, such as "
                f"{min(differing)!r}; give the arguments that it was built with."
            )
        return cls(settings, module).train(module.training)

    def forward(self, *args: Any, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Has the module's arguments; returns its logits `(batch, k)`, with the task's loss if labels are given."""
        output = self.module(*args, **kwargs)
        logits = output if isinstance(output, torch.Tensor) else logits_of(self.module, output)
        loss = None if labels is None else task_of(self.config).loss(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _build_module(config: ModuleConfig) -> nn.Module:
    arguments = {
        name: _find(value.removeprefix(CLASS)) if isinstance(value, str) and value.startswith(CLASS) else value
        for name, value in (config.arguments or {}).items()
    }
    return _find(config.module_class)(**arguments)


def _find(path: str) -> type[nn.Module]:
    """Returns the latest class of modules that this process knows by that path, but none of the insides of torch."""
    found = [cls for cls in subclasses(nn.Module) if _path(cls) == path]
    inside = path.startswith("torch.") and not path.startswith("torch.nn.modules.")
    if not found or inside or issubclass(found[-1], PreTrainedModel):
        raise UnknownTargetError(
            f"The target is a module of the class {path!r}, which is not defined in this process; import the module "
            "that defines it, or build the network and pass it as target_model=…"
        )
    return found[-1]


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
