"""Neural network diffusion in the Hugging Face ecosystem: draw working networks from one repository."""

# isort: off
from . import _registration  # before any component: their names are part of the file format
# isort: on

from .data.images import ImageData, load_images
from .data.inputs import TensorData, TensorSplit
from .evaluation import Audit, audit
from .fitting.autoencoder import fit_autoencoder
from .fitting.denoiser import fit_denoiser
from .fitting.pipeline import fit
from .fitting.settings import Recipe, load_recipe
from .hub.client import (
    CorruptFileError,
    HubAccessError,
    HubConflictError,
    HubError,
    HubNotFoundError,
    HubQuotaError,
    HubUnreachableError,
)
from .hub.safety import BrokenFileError, UnsafeFileError
from .hub.sharing import share
from .models.conv_autoencoder import ParameterAutoencoder
from .models.conv_denoiser import ParameterDenoiser
from .models.linear_autoencoder import LinearParameterAutoencoder
from .models.mlp_denoiser import MLPParameterDenoiser
from .pipelines.pipeline_output import DrawnNetworks, PDiffPipelineOutput
from .pipelines.pipeline_pdiff import PDiffPipeline
from .targets.adapters import AdaptedModel
from .targets.building import build_network
from .targets.inference import network_logits, network_predictions
from .targets.loading import AnyTargetModel, UnknownTargetError
from .targets.networks import ConvNetConfig, ConvNetForImageClassification, MLPConfig, MLPForImageClassification
from .targets.processing_parameters import LayoutError, NonFiniteParametersError, ParameterProcessor
from .targets.subsets import make_processor
from .zoo.checkpoints import Checkpoints, CheckpointSplit, load_checkpoints
from .zoo.merging import append_checkpoints, merge_checkpoints
from .zoo.parquet import CheckpointsError
from .zoo.recorder import CheckpointRecorder
from .zoo.runs import collect_runs
from .zoo.settings import CollectionSettings, MultiRunSettings, TrajectorySettings
from .zoo.trainer_callback import CheckpointCallback
from .zoo.trajectory import collect

__version__ = "0.1.0"

# model_index.json names every component as one of `pdiff_hf`; a new row of the table needs no further line here.
for _role in _registration.COMPONENTS:
    globals().update({_cls.__name__: _cls for _cls in _registration.component_classes(_role).values()})

__all__ = [
    "AdaptedModel",
    "AnyTargetModel",
    "Audit",
    "BrokenFileError",
    "CheckpointCallback",
    "CheckpointRecorder",
    "CheckpointSplit",
    "Checkpoints",
    "CheckpointsError",
    "CollectionSettings",
    "ConvNetConfig",
    "ConvNetForImageClassification",
    "CorruptFileError",
    "DrawnNetworks",
    "HubAccessError",
    "HubConflictError",
    "HubError",
    "HubNotFoundError",
    "HubQuotaError",
    "HubUnreachableError",
    "ImageData",
    "LayoutError",
    "LinearParameterAutoencoder",
    "MLPConfig",
    "MLPForImageClassification",
    "MLPParameterDenoiser",
    "MultiRunSettings",
    "NonFiniteParametersError",
    "PDiffPipeline",
    "PDiffPipelineOutput",
    "ParameterAutoencoder",
    "ParameterDenoiser",
    "ParameterProcessor",
    "Recipe",
    "TensorData",
    "TensorSplit",
    "TrajectorySettings",
    "UnknownTargetError",
    "UnsafeFileError",
    "append_checkpoints",
    "audit",
    "build_network",
    "collect",
    "collect_runs",
    "fit",
    "fit_autoencoder",
    "fit_denoiser",
    "load_checkpoints",
    "load_images",
    "load_recipe",
    "make_processor",
    "merge_checkpoints",
    "network_logits",
    "network_predictions",
    "share",
]

for _role in _registration.COMPONENTS:  # a new row of the table needs no line here
    for _class in _registration.component_classes(_role).values():
        if _class.__name__ not in __all__:
            globals()[_class.__name__] = _class
            __all__.append(_class.__name__)
