"""What takes the place of sharing and of the component classes in the revision that carries its own code.

`pdiff_hf.pipelines.export` puts these names where the package has the ones of its other modules.
"""

from __future__ import annotations

from typing import Any, NoReturn

from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin

# The components' classes are in files of their own; the pipeline names them in annotations alone.
ParameterAutoencoder = LinearParameterAutoencoder = ParameterDenoiser = MLPParameterDenoiser = ModelMixin
ParameterProcessor = ConfigMixin


class SharedPipeline(DiffusionPipeline):
    """A pipeline whose code came with its weights: it draws, and is neither saved nor pushed."""

    _source: Any = None

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses, because what would be written could not be loaded.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "A pipeline that was loaded with trust_remote_code=True cannot be saved so that it can be loaded again. "
            "`pip install pdiff-hf`, load the main revision with pdiff_hf.PDiffPipeline, and save that."
        )

    def push_to_hub(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses; see `save_pretrained`."""
        self.save_pretrained()


def share(*args: Any, **kwargs: Any) -> NoReturn:
    """Refuses to push, because this revision has no client.

    Raises:
        NotImplementedError: Always.
    """
    raise NotImplementedError("`pip install pdiff-hf` to push drawn networks, or push each by transformers.")


def write_network_card(*args: Any, **kwargs: Any) -> None:
    """Writes no card: the templates are not here."""
