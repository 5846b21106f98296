"""Neural network diffusion in the Hugging Face ecosystem: draw working networks from one repository."""

# isort: off
from . import _registration  # noqa: F401  (before any component: their names are part of the file format)
# isort: on

from .adapters import AdaptedModel
from .batches import TensorData, TensorSplit
from .checkpoints import CheckpointRecorder, Checkpoints, CheckpointsError, CheckpointZoo, load_checkpoints
from .collecting import CollectionSettings, collect
from .collecting_runs import MultiRunSettings, collect_runs
from .evaluation import Audit, audit
from .fitting import fit, fit_autoencoder, fit_denoiser
from .hub_client import (
    CorruptFileError,
    HubAccessError,
    HubConflictError,
    HubError,
    HubNotFoundError,
    HubQuotaError,
    HubUnreachableError,
)
from .images import ImageData, load_images
from .inference import network_logits, network_predictions
from .merging import append_checkpoints, merge_checkpoints
from .modeling_autoencoder import ParameterAutoencoder
from .modeling_denoiser import ParameterDenoiser
from .modeling_linear_autoencoder import LinearParameterAutoencoder
from .modeling_mlp_denoiser import MLPParameterDenoiser
from .pipeline_output import DrawnNetworks, PDiffPipelineOutput
from .pipeline_pdiff import PDiffPipeline
from .processing_parameters import LayoutError, NonFiniteParametersError, ParameterProcessor
from .safe_files import BrokenFileError, UnsafeFileError
from .settings import Recipe, load_recipe
from .sharing import share
from .targets import (
    AnyTargetModel,
    ConvNetConfig,
    ConvNetForImageClassification,
    MLPConfig,
    MLPForImageClassification,
    UnknownTargetError,
    draw_network,
    make_processor,
)
from .trainer_callback import CheckpointCallback

__version__ = "0.1.0"

__all__ = [
    "AdaptedModel",
    "AnyTargetModel",
    "Audit",
    "BrokenFileError",
    "CheckpointCallback",
    "CheckpointRecorder",
    "CheckpointZoo",
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
    "UnknownTargetError",
    "UnsafeFileError",
    "append_checkpoints",
    "audit",
    "collect",
    "collect_runs",
    "draw_network",
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
