"""Target networks: which tensors are generated, two small classifiers, and networks that share one trunk."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .processing_parameters import LayoutError, ParameterProcessor


def subset_patterns(model: nn.Module, subset: str | Sequence[str]) -> list[str]:
    """Returns the `state_dict()` patterns of a subset: presets are expanded, patterns passed on.

    The presets are read from the order of the model's modules and know no architecture:
    `last_norms` is the last two normalisation layers (the paper's main setting: 2,048 numbers of a ResNet-18, 5,120
    of a ResNet-50, 768 of a ViT-Tiny, 3,072 of a ConvNeXt-Tiny), `head` the last linear layer, `full` everything.
    `adapter` is what PEFT trains of an `AdaptedModel`.

    Raises:
        LayoutError: If the model lacks the layers that a preset asks for.
    """
    patterns: list[str] = []
    for name in [subset] if isinstance(subset, str) else subset:
        if name == "full":
            patterns.append("*")
        elif name == "last_norms":
            patterns += [f"{m}.*" for m in _last_modules(model, _is_normalisation, 2, "normalisation layers")]
        elif name == "adapter":
            tensors: Any = getattr(model, "adapter_tensors", None)
            if tensors is None:
                raise LayoutError(
                    f"{type(model).__name__} has no adapter; pass what peft.get_peft_model returns to a "
                    "CheckpointRecorder, or AdaptedModel.wrap of it to make_processor."
                )
            patterns += tensors()
        elif name == "head":
            patterns += [f"{m}.*" for m in _last_modules(model, _is_linear, 1, "linear layer")]
        else:
            patterns.append(name)
    return patterns


def make_processor(model: nn.Module, subset: str | Sequence[str]) -> ParameterProcessor:
    """Builds the layout of a preset, see `subset_patterns`, or of fnmatch patterns on `state_dict()` names."""
    return ParameterProcessor.from_model(model, subset_patterns(model, subset))


def _is_normalisation(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and any(True for _ in module.parameters(recurse=False))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _last_modules(model: nn.Module, wanted: Callable[[nn.Module], bool], count: int, what: str) -> list[str]:
    names = [name for name, module in model.named_modules() if wanted(module)]
    if len(names) < count:
        raise LayoutError(
            f"{type(model).__name__} has {len(names)} of the {count} {what} that this preset generates; "
            "name the tensors by patterns instead."
        )
    return names[-count:]


class UnknownTargetError(ValueError):
    """The class of a saved target network is not to be found."""


def load_target_model(folder: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
    """Loads a saved target as the class that its `config.json` names: one of transformers, or one of the user's.

    A class of the user's is found if it has been defined in this process; nothing is imported at a repository's word.

    Args:
        folder: What `PreTrainedModel.save_pretrained` wrote.
        kwargs: Further arguments of `PreTrainedModel.from_pretrained`.

    Raises:
        UnknownTargetError: If there is no such class; hand such a network over as `target_model=…`.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return target_class(config).from_pretrained(folder, **kwargs)


def target_class(config: Any) -> type[PreTrainedModel]:
    """Returns the class of a saved target by the content of its `config.json`; see `load_target_model`.

    Raises:
        UnknownTargetError: If there is none.
    """
    values = config if isinstance(config, dict) else {}
    names = values.get("architectures")
    name = names[0] if isinstance(names, list) and names else "network without a name"
    return find_model_class(str(name), values.get("model_type"))


def find_model_class(name: str, model_type: str | None) -> type[PreTrainedModel]:
    """Returns the class of that name and model type: transformers' own, or one that is defined in this process.

    Raises:
        UnknownTargetError: If there is none.
    """
    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    for model_class in reversed(list(_subclasses(PreTrainedModel))):  # the latest of that name, as in a notebook
        if model_class.__name__ == name and model_class.config_class.model_type == model_type:
            return model_class
    raise UnknownTargetError(
        f"The target is a {name} of the type {model_type!r}, which transformers {transformers.__version__} does not "
        "have and nobody has defined in this process; import the module that defines it, or build the network and "
        "pass it as target_model=…"
    )


def _subclasses(model_class: type[PreTrainedModel]) -> Iterator[type[PreTrainedModel]]:
    for subclass in model_class.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


class AnyTransformersModel(type):
    """Makes `issubclass(…, AnyTargetModel)` true of every transformers model."""

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, PreTrainedModel)


class AnyTargetModel(PreTrainedModel, metaclass=AnyTransformersModel):
    """What a pipeline repository names as the class of a target that neither transformers nor this package has.

    diffusers would name the module in which the user defined the class; then the pipeline could be loaded only where a
    module of that name has been imported, and from the Hub not at all.
    """

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
        """Loads the target as its own class; see `load_target_model`."""
        return load_target_model(folder, **kwargs)


def draw_network(
    target_model: PreTrainedModel, processor: ParameterProcessor, vector: torch.Tensor, share_trunk: bool = True
) -> PreTrainedModel:
    """Returns a network with the generated tensors of `vector`, `(D,)`, in the target's dtype and in eval mode.

    With `share_trunk` the network owns `Parameter` objects of its own over the trunk's storage, which do not require
    grad: moving, casting, training or stepping it never changes another network. Buffers are always copied. Without
    it, every tensor is copied and trainable.
    """
    processor.check(vector)
    processor.check_model(target_model)
    generated = processor.unflatten(vector)
    memo: dict[int, object] = {}
    for name, parameter in target_model.named_parameters():
        if name in generated:
            data = generated[name].to(parameter.device, parameter.dtype, copy=True)
        else:
            data = parameter.detach() if share_trunk else parameter.detach().clone()
        memo[id(parameter)] = nn.Parameter(data, requires_grad=name in generated or not share_trunk)
    return copy.deepcopy(target_model, memo).eval()


class MLPConfig(PreTrainedConfig):
    """Configuration of `MLPForImageClassification`.

    Args:
        image_size: Height and width of the input in pixels.
        num_channels: Channels of the input.
        hidden_sizes: Units of each hidden layer.
    """

    model_type = "pdiff_mlp"

    image_size: int = 8
    num_channels: int = 1
    hidden_sizes: list[int] | tuple[int, ...] = (32,)


class ConvNetConfig(PreTrainedConfig):
    """Configuration of `ConvNetForImageClassification`.

    Args:
        num_channels: Channels of the input; any image size of at least `2 ** len(hidden_sizes)` works.
        hidden_sizes: Channels of each block.
        normalization: `"batch"`, or `"layer"` over all channels and positions of an image. The latter keeps no running
            statistics, so that whole networks with it can be trained and drawn independently of each other.

    Raises:
        ValueError: If there is no such normalisation.
    """

    model_type = "pdiff_convnet"

    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (16, 32)
    normalization: str = "batch"


class SmallClassifier(PreTrainedModel):
    """What the two small networks share: `pixel_values` in, logits out, and a loss if labels are given."""

    main_input_name = "pixel_values"

    def _init_weights(self, module: nn.Module) -> None:
        # The library's default, N(0, 0.02), is made for transformers; a ReLU network without one trains badly from it.
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")

    def compute_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(batch, channels, height, width)` to `(batch, classes)`."""
        raise NotImplementedError

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutputWithNoAttention | tuple:
        """Classifies images.

        Args:
            pixel_values: `(batch, channels, height, width)` float.
            labels: `(batch,)` int64; the cross-entropy is returned as `loss`.
            return_dict: `False` for a plain tuple.
        """
        logits = self.compute_logits(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


class MLPForImageClassification(SmallClassifier):
    """A multilayer perceptron with ReLUs on flattened images."""

    config_class = MLPConfig
    base_model_prefix = "mlp"

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        sizes = [config.num_channels * config.image_size**2, *config.hidden_sizes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.classifier = nn.Linear(sizes[-1], config.num_labels)
        self.post_init()

    def compute_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(batch, channels, height, width)` to `(batch, classes)`."""
        hidden = pixel_values.flatten(1)  # (batch, channels * height * width)
        for layer in self.layers:
            hidden = layer(hidden).relu()
        return self.classifier(hidden)


class ConvNetForImageClassification(SmallClassifier):
    """Blocks of 3x3 convolution, normalisation, ReLU and 2x2 max pooling, then the mean over positions and a head."""

    config_class = ConvNetConfig
    base_model_prefix = "convnet"

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__(config)
        sizes = [config.num_channels, *config.hidden_sizes]
        pairs = list(itertools.pairwise(sizes))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, kernel_size=3, padding=1, bias=False) for a, b in pairs)
        if config.normalization not in ("batch", "layer"):
            raise ValueError(f"normalization must be 'batch' or 'layer', but is {config.normalization!r}.")
        batch = config.normalization == "batch"
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) if batch else nn.GroupNorm(1, b) for _, b in pairs)
        self.classifier = nn.Linear(sizes[-1], config.num_labels)
        self.post_init()

    def compute_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(batch, channels, height, width)` to `(batch, classes)`."""
        hidden = pixel_values
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = nn.functional.max_pool2d(norm(convolution(hidden)).relu(), 2)  # halves height and width
        return self.classifier(hidden.mean((2, 3)))


for _config, _model in ((MLPConfig, MLPForImageClassification), (ConvNetConfig, ConvNetForImageClassification)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)
