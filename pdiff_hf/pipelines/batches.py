"""More networks than fit in memory, drawn batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from .checks import as_count, check_generator
from .guidance import KnownConditions, as_condition
from .pipeline_output import CallState, PDiffPipelineOutput


class BatchesMixin:
    """Calls a pipeline for one batch after the other, with one progress bar for all of them."""

    conditions: KnownConditions | None
    _call: CallState

    def iter(
        self,
        num_models: int,
        batch_size: int = 64,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        condition: Any = None,
        guidance_scale: float | None = None,
        autoguidance_scale: float | None = None,
        output_type: str = "model",
        temperature: float = 1.0,
    ) -> Iterator[PDiffPipelineOutput]:
        """Draws more networks than fit in memory: yields outputs of `batch_size` networks, the last one of the rest.

        Takes the arguments of the call. A list of generators, one for each network, gives the networks of one call.
        """
        num_models, batch_size = as_count("num_models", num_models), as_count("batch_size", batch_size)
        check_generator(generator, num_models)
        condition = as_condition(self.conditions, condition, num_models)
        how = (guidance_scale, autoguidance_scale, output_type, temperature)
        with self.progress_bar(total=num_models) as progress_bar:
            progress_bar.set_description("drawing networks")
            for start in range(0, num_models, batch_size):
                batch = slice(start, min(start + batch_size, num_models))
                own = generator[batch] if isinstance(generator, list) else generator
                asked = None if condition is None else condition[batch]
                self._call.is_batch = True
                try:
                    output = cast(Any, self)(batch.stop - start, num_inference_steps, own, None, asked, *how)
                finally:
                    self._call.is_batch = False
                progress_bar.update(batch.stop - start)
                yield output

    def progress_bar(self, iterable: Iterable | None = None, total: int | None = None) -> tqdm:
        """Returns the bar of a call, as `set_progress_bar_config` has it; that of a batch of `iter` is not shown."""
        if self._call.is_batch:
            return tqdm(iterable, total=total, disable=True)
        return DiffusionPipeline.progress_bar(self, iterable, total)
