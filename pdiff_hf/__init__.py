"""Neural network diffusion in the Hugging Face ecosystem: draw working networks from one repository."""

from . import _registration  # noqa: F401  (first: the classes below are part of the file format)
