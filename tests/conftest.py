"""Tiny real targets, zoos and pipelines, and a Hub on this machine in place of the network."""

from __future__ import annotations

import re
import tempfile

from hub.environment import reserve_session_hub

# The libraries below read once, at their import, which Hub there is.
HF_HOME = tempfile.TemporaryDirectory(prefix="pdiff-hf-tests-")
SESSION_HUB = reserve_session_hub(HF_HOME.name)

# ruff: noqa: E402
import dataclasses
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from hub.server import Hub
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from pdiff_hf import (
    Checkpoints,
    CheckpointSplit,
    ConvNetConfig,
    ConvNetForImageClassification,
    MLPConfig,
    MLPForImageClassification,
    ParameterProcessor,
    PDiffPipeline,
    Recipe,
    TrajectorySettings,
    fit,
    load_recipe,
    make_processor,
)
from pdiff_hf.data.preprocessing import Preprocessing
from pdiff_hf.loops import seeded

hypothesis.settings.register_profile("pdiff_hf", deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.load_profile("pdiff_hf")


def build_resnet() -> PreTrainedModel:
    config = ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
    )
    return ResNetForImageClassification(config)


def build_vit() -> PreTrainedModel:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=4,
    )
    return ViTForImageClassification(config)


def build_convnext() -> PreTrainedModel:
    config = ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=16, num_labels=4)
    return ConvNextForImageClassification(config)


def build_mlp() -> PreTrainedModel:
    return MLPForImageClassification(MLPConfig(image_size=8, num_channels=1, hidden_sizes=[8], num_labels=10))


def build_convnet() -> PreTrainedModel:
    return ConvNetForImageClassification(ConvNetConfig(num_channels=3, hidden_sizes=[4, 8], num_labels=4))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "resnet": build_resnet,
    "vit": build_vit,
    "convnext": build_convnext,
    "mlp": build_mlp,
    "convnet": build_convnet,
}
LAYOUTS = [
    (family, subset)
    for family in FAMILIES
    for subset in ("last_norms", "head", "full")
    if (family, subset) != ("mlp", "last_norms")  # the one network without a normalization layer
]


def build(family: str) -> PreTrainedModel:
    """Builds a target with the same weights whenever it is asked for, in eval mode."""
    with seeded(0):
        return FAMILIES[family]().eval()


def snippets(page: Path) -> list[str]:
    """The Python of a Markdown page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def run_snippets(page: Path) -> dict:
    """Runs the Python of a Markdown page, one snippet after the other, and returns what it has defined."""
    namespace: dict = {}
    for snippet in snippets(page):
        exec(compile(snippet, str(page), "exec"), namespace)
    return namespace


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its state for the life of the process; each test starts without one."""
    yield
    AcceleratorState._reset_state(True)
    PartialState._reset_state()


@pytest.fixture(scope="session")
def session_hub() -> Hub:
    """The Hub that the libraries talk to; it listens from the first test on that asks for it."""
    SESSION_HUB.start()
    return SESSION_HUB


@pytest.fixture
def hub(session_hub: Hub) -> Iterator[Hub]:
    """The Hub that the libraries talk to, with nothing in its log and no failure planned."""
    session_hub.reset()
    yield session_hub
    session_hub.reset()


@pytest.fixture
def repo_id() -> str:
    """The id of a repository that alice, whose token is "hf_alice", may make."""
    return f"alice/{secrets.token_hex(6)}"


@pytest.fixture
def empty_cache(tmp_path: Path) -> Path:
    """A folder to download to that holds nothing yet."""
    cache = tmp_path / "cache"
    cache.mkdir()
    return cache


@pytest.fixture
def tiny_resnet() -> PreTrainedModel:
    return build("resnet")


@pytest.fixture
def tiny_vit() -> PreTrainedModel:
    return build("vit")


@pytest.fixture
def tiny_convnext() -> PreTrainedModel:
    return build("convnext")


@pytest.fixture
def mlp() -> PreTrainedModel:
    return build("mlp")


@pytest.fixture
def convnet() -> PreTrainedModel:
    return build("convnet")


@pytest.fixture(params=FAMILIES)
def target_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One target of each family after the other."""
    return build(request.param)


@pytest.fixture(params=LAYOUTS, ids=lambda layout: "-".join(layout))
def target_and_processor(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, ParameterProcessor]:
    """Each family with each preset that it has."""
    family, subset = request.param
    model = build(family)
    return model, make_processor(model, subset)


@pytest.fixture
def random_images() -> Callable[[PreTrainedModel, int], torch.Tensor]:
    """A function of a target and a count that returns seeded `pixel_values` of the target's shape."""

    def draw(model: PreTrainedModel, count: int) -> torch.Tensor:
        size = getattr(model.config, "image_size", 16)
        generator = torch.Generator().manual_seed(count)
        return torch.randn(count, model.config.num_channels, size, size, generator=generator)

    return draw


@pytest.fixture
def random_vectors() -> Callable[[PreTrainedModel, ParameterProcessor, int], torch.Tensor]:
    """A function of a target, a layout and a count that returns seeded vectors around the target's own."""

    def draw(model: PreTrainedModel, processor: ParameterProcessor, count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(count)
        noise = torch.randn(count, processor.parameter_dim, generator=generator)
        return processor.flatten(model.state_dict()) + 0.1 * noise

    return draw


@pytest.fixture
def tiny_checkpoints(mlp: PreTrainedModel, random_vectors: Callable) -> Checkpoints:
    """The heads of an MLP on 8x8 digits: 24, 8 and 8 rows of two runs; 90 numbers each."""
    processor = make_processor(mlp, "head")
    splits, first_step = {}, 0
    for split, count in (("train", 24), ("validation", 8), ("test", 8)):
        rows = range(count)
        splits[split] = CheckpointSplit(
            parameters=random_vectors(mlp, processor, 40)[first_step : first_step + count],
            run=[f"run-{row % 2}" for row in rows],
            step=[first_step + row // 2 for row in rows],
            seed=[row % 2 for row in rows],
            validation_score=[0.5 + row / 100 for row in rows],
            validation_loss=[1.0 - row / 100 for row in rows],
        )
        first_step += count
    settings = TrajectorySettings(dataset_name="digits", image_size=8, model_type="pdiff_mlp", subset=["head"])
    return Checkpoints(
        splits=splits,
        processor=processor,
        target_model=mlp,
        preprocessing=Preprocessing(image_size=8, mean=(0.3,), std=(0.37,)).to_dict(),
        collection={"settings": dataclasses.asdict(settings), "costs": {"target_seconds": 1.0}},
    )


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """The default recipe, with next to nothing to train."""
    recipe = load_recipe("fast")
    return Recipe(
        autoencoder=dataclasses.replace(recipe.autoencoder, config={"latent_dim": 4}),
        denoiser=dataclasses.replace(
            recipe.denoiser,
            config={"width": 16, "num_blocks": 1},
            max_train_steps=3,
            train_batch_size=16,
            lr_warmup_steps=1,
        ),
    )


@pytest.fixture
def tiny_pipeline(tiny_checkpoints: Checkpoints, tiny_recipe: Recipe) -> PDiffPipeline:
    """A pipeline of 4 latents for the heads of `tiny_checkpoints`."""
    return fit(tiny_checkpoints, tiny_recipe)


@pytest.fixture
def two_processes() -> tuple[str, ...]:
    """The launcher of two processes on this machine, for `scripts.start`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # `--cpu` would start a single process; with ACCELERATE_USE_CPU the two of `--multi_gpu` meet on the processor.
    machine = ("--multi_gpu", "--num_machines", "1", "--num_processes", "2", "--main_process_port", str(port))
    return ("-m", "accelerate.commands.launch", *machine, "--mixed_precision", "no", "--dynamo_backend", "no")
