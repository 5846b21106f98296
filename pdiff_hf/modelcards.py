"""Cards from the templates of `model_cards/`, filled from the run's own data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import DatasetCardData, ModelCardData

from .checkpoints import Checkpoints, checkpoint_features
from .folders import shipped_folder, write_text
