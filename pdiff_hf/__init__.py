"""Neural network diffusion in the Hugging Face ecosystem: draw working networks from one repository.

`import X as X` exports a name to type checkers too.
"""

# isort: off
from . import _registration  # before any component: their names are part of the file format
# isort: on

import diffusers

from .data.images import ImageData as ImageData
from .data.images import load_images as load_images
from .data.inputs import TensorData as TensorData
from .data.inputs import TensorSplit as TensorSplit
from .evaluation import Audit as Audit
from .evaluation import Auditor as Auditor
from .evaluation import ConditionalAudit as ConditionalAudit
from .evaluation import ConditionalAuditor as ConditionalAuditor
from .evaluation import audit as audit
from .evaluation import audit_conditional as audit_conditional
from .fitting.autoencoder import fit_autoencoder as fit_autoencoder
from .fitting.denoiser import fit_denoiser as fit_denoiser
from .fitting.pipeline import fit as fit
from .fitting.settings import Recipe as Recipe
from .fitting.settings import load_recipe as load_recipe
from .hub.client import CorruptFileError as CorruptFileError
from .hub.client import HubAccessError as HubAccessError
from .hub.client import HubConflictError as HubConflictError
from .hub.client import HubError as HubError
from .hub.client import HubNotFoundError as HubNotFoundError
from .hub.client import HubQuotaError as HubQuotaError
from .hub.client import HubUnreachableError as HubUnreachableError
from .hub.safety import BrokenFileError as BrokenFileError
from .hub.safety import UnsafeFileError as UnsafeFileError
from .hub.sharing import share as share
from .models.conv_autoencoder import ParameterAutoencoder as ParameterAutoencoder
from .models.conv_denoiser import ParameterDenoiser as ParameterDenoiser
from .models.linear_autoencoder import LinearParameterAutoencoder as LinearParameterAutoencoder
from .models.mlp_denoiser import MLPParameterDenoiser as MLPParameterDenoiser
from .models.transformer_denoiser import TransformerParameterDenoiser as TransformerParameterDenoiser
from .models.unit_autoencoder import UnitParameterAutoencoder as UnitParameterAutoencoder
from .pipelines.drawn_networks import DrawnNetworks as DrawnNetworks
from .pipelines.ensembles import DrawnEvaluation as DrawnEvaluation
from .pipelines.ensembles import EnsemblePrediction as EnsemblePrediction
from .pipelines.pipeline_output import PDiffPipelineOutput as PDiffPipelineOutput
from .pipelines.pipeline_pdiff import PDiffPipeline as PDiffPipeline
from .targets.adapters import AdaptedModel as AdaptedModel
from .targets.building import build_network as build_network
from .targets.conditions import ConditionError as ConditionError
from .targets.conditions import Conditions as Conditions
from .targets.inference import network_logits as network_logits
from .targets.inference import network_predictions as network_predictions
from .targets.loading import AnyTargetModel as AnyTargetModel
from .targets.loading import UnknownTargetError as UnknownTargetError
from .targets.module_target import ModuleTarget as ModuleTarget
from .targets.networks import ConvNetConfig as ConvNetConfig
from .targets.networks import ConvNetForImageClassification as ConvNetForImageClassification
from .targets.networks import MLPConfig as MLPConfig
from .targets.networks import MLPForImageClassification as MLPForImageClassification
from .targets.processing_parameters import LayoutError as LayoutError
from .targets.processing_parameters import NonFiniteParametersError as NonFiniteParametersError
from .targets.processing_parameters import ParameterProcessor as ParameterProcessor
from .targets.processing_parameters import StatisticsError as StatisticsError
from .targets.statistics import estimate_statistics as estimate_statistics
from .targets.subsets import make_processor as make_processor
from .zoo.checkpoints import Checkpoints as Checkpoints
from .zoo.checkpoints import CheckpointSplit as CheckpointSplit
from .zoo.checkpoints import load_checkpoints as load_checkpoints
from .zoo.merging import append_checkpoints as append_checkpoints
from .zoo.merging import merge_checkpoints as merge_checkpoints
from .zoo.parquet import CheckpointsError as CheckpointsError
from .zoo.recorder import CheckpointRecorder as CheckpointRecorder
from .zoo.runs import collect_runs as collect_runs
from .zoo.settings import CollectionSettings as CollectionSettings
from .zoo.settings import MultiRunSettings as MultiRunSettings
from .zoo.settings import TrajectorySettings as TrajectorySettings
from .zoo.trainer_callback import CheckpointCallback as CheckpointCallback
from .zoo.trajectory import collect as collect

__version__ = "0.1.0"

diffusers.PDiffPipeline = PDiffPipeline  # where DiffusionPipeline.from_pretrained looks its classes up

# model_index.json names every component as one of `pdiff_hf`; a new row of the table needs no further line here.
for _role in _registration.COMPONENTS:
    globals().update({_cls.__name__: _cls for _cls in _registration.component_classes(_role).values()})
