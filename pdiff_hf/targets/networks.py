"""Two small image classifiers, registered with the auto classes of transformers."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .task import task_of


class MLPConfig(PreTrainedConfig):
    """Configuration of `MLPForImageClassification`."""

    model_type = "pdiff_mlp"

    image_size: int = 8  # height and width of the input in pixels
    num_channels: int = 1  # channels of the input
    hidden_sizes: list[int] | tuple[int, ...] = (32,)  # units of each hidden layer


class ConvNetConfig(PreTrainedConfig):
    """Configuration of `ConvNetForImageClassification`.

    The normalization is `"batch"`, or `"layer"` over all channels and positions of an image. The latter has no running
    statistics, which independently trained or drawn networks would need to have estimated.
    """

    model_type = "pdiff_convnet"

    num_channels: int = 3  # channels of the input
    hidden_sizes: list[int] | tuple[int, ...] = (16, 32)  # channels of each block, which halves height and width
    normalization: str = "batch"


class SmallClassifier(PreTrainedModel):
    """Base class of the two small networks: `pixel_values` in, logits out, and a loss if labels are given."""

    main_input_name = "pixel_values"

    def _init_weights(self, module: nn.Module) -> None:
        # The default of the library, N(0, 0.02), suits transformers; ReLU networks train badly from it.
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")

    def compute_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(batch, channels, height, width)` to `(batch, classes)`."""
        raise NotImplementedError

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutputWithNoAttention | tuple:
        """Returns the logits `(batch, classes)` of images `(batch, channels, height, width)`.

        With labels `(batch,)`, classes int64 or values float, it returns the loss of the task too.
        """
        logits = self.compute_logits(pixel_values)
        loss = None if labels is None else task_of(self.config).loss(logits, labels)
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
        hidden = pixel_values.flatten(1)  # (batch, channels * height * width)
        for layer in self.layers:
            hidden = layer(hidden).relu()
        return self.classifier(hidden)


class ConvNetForImageClassification(SmallClassifier):
    """Blocks of 3x3 convolution, normalization, ReLU and 2x2 max pooling, then the mean over positions and a head."""

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
        hidden = pixel_values
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = nn.functional.max_pool2d(norm(convolution(hidden)).relu(), 2)  # halves height and width
        return self.classifier(hidden.mean((2, 3)))


for _config, _model in ((MLPConfig, MLPForImageClassification), (ConvNetConfig, ConvNetForImageClassification)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)
