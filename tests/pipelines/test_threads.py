"""One pipeline in several threads: each draws, evaluates and loads as if it were alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import pytest
import torch

from pdiff_hf import PDiffPipeline

THREADS = 8


@pytest.fixture(autouse=True)
def switching_often() -> Iterator[None]:
    """Threads take turns every 10 microseconds instead of every 5 milliseconds."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def in_threads(function: Callable, arguments: list) -> list:
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(function, arguments))


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "DDPMScheduler", "UniPCMultistepScheduler"])
def test_threads_draw_what_one_thread_draws(tiny_pipeline: PDiffPipeline, scheduler: str):
    tiny_pipeline.scheduler = getattr(diffusers, scheduler).from_config(tiny_pipeline.scheduler.config)
    tiny_pipeline.set_progress_bar_config(disable=True)

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        steps = 3 + seed % 3
        return tiny_pipeline(1, num_inference_steps=steps, generator=generator, output_type="pt").parameters

    seeds = list(range(4 * THREADS))
    alone = [draw(seed) for seed in seeds]

    assert all(map(torch.equal, in_threads(draw, seeds), alone))


def test_a_callback_interrupts_the_call_of_its_own_thread(tiny_pipeline: PDiffPipeline):
    def draw(stop_after: int) -> int:
        steps = []

        def callback(pipe: PDiffPipeline, step: int, timestep: torch.Tensor, inputs: dict) -> dict:
            steps.append(step)
            pipe._interrupt = step + 1 == stop_after
            return inputs

        tiny_pipeline(1, num_inference_steps=stop_after + 2, callback_on_step_end=callback, output_type="pt")
        assert tiny_pipeline.interrupt
        assert tiny_pipeline.num_timesteps == stop_after + 2
        return len(steps)

    stops = [1, 3, 5, 7] * 4

    assert in_threads(draw, stops) == stops


def test_threads_get_the_logits_that_one_thread_gets(tiny_pipeline: PDiffPipeline, random_images: Callable):
    target = tiny_pipeline.target_model
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    images = random_images(target, 4)
    outputs = [tiny_pipeline(3, generator=torch.Generator().manual_seed(seed)) for seed in range(THREADS)] * 4

    alone = [output.logits(images) for output in outputs]

    assert all(map(torch.equal, in_threads(lambda output: output.logits(images), outputs), alone))
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_loading_in_threads_leaves_torch_and_the_modules_of_others_as_they_were(
    tiny_pipeline: PDiffPipeline, tmp_path: Path
):
    tiny_pipeline.save_pretrained(tmp_path)
    tie_weights, linspace = type(tiny_pipeline.target_model).tie_weights, torch.linspace

    def load_or_build(dtype: torch.dtype | None) -> set[str]:
        if dtype is None:
            return {torch.nn.Linear(3, 3).weight.device.type for _ in range(300)}
        pipe = PDiffPipeline.from_pretrained(tmp_path, dtype=dtype)
        assert pipe.target_model.dtype == pipe.denoiser.dtype == dtype
        return {p.device.type for p in (*pipe.denoiser.parameters(), *pipe.target_model.parameters())}

    dtypes = [torch.bfloat16, torch.float32, torch.bfloat16, None] * 10
    assert in_threads(load_or_build, dtypes) == [{"cpu"}] * len(dtypes)
    assert type(tiny_pipeline.target_model).tie_weights is tie_weights
    assert torch.linspace is linspace
    assert torch.get_default_dtype() == torch.float32


def test_drawing_does_not_depend_on_the_default_dtype_that_loading_changes(tiny_pipeline: PDiffPipeline):
    def draw() -> torch.Tensor:
        return tiny_pipeline(1, generator=torch.Generator().manual_seed(0), output_type="pt").parameters

    expected = draw()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(draw(), expected)
    finally:
        torch.set_default_dtype(torch.float32)
