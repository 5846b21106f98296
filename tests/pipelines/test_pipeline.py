"""`PDiffPipeline`: outputs, randomness, arguments, saving and the drawn networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

from pdiff_hf import (
    Checkpoints,
    CheckpointSplit,
    PDiffPipeline,
    Recipe,
    fit,
    make_processor,
)
from pdiff_hf.data.preprocessing import Preprocessing
from pdiff_hf.pipelines.sampling import sample_to_folder
from pdiff_hf.targets.processing_parameters import NonFiniteParametersError

COMPONENTS = ["autoencoder", "denoiser", "target_model"]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def parameters_of(pipe: PDiffPipeline, *seeds: int) -> torch.Tensor:
    (parameters,) = pipe(len(seeds), generator=generators(*seeds), output_type="pt", return_dict=False)
    return parameters


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].device == tensor.device, name
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name], tensor), name


@pytest.fixture
def resnet_pipeline(tiny_resnet: PreTrainedModel, random_vectors: Callable, tiny_recipe: Recipe) -> PDiffPipeline:
    """A pipeline for the last two BatchNorms of a network that transformers itself provides, with named labels."""
    names = ["bee", "cat", "dog", "emu"]
    tiny_resnet.config.id2label = dict(enumerate(names))
    tiny_resnet.config.label2id = {name: i for i, name in enumerate(names)}
    processor = make_processor(tiny_resnet, "last_norms")
    parameters = random_vectors(tiny_resnet, processor, 12)
    zoo = CheckpointSplit(parameters, run=["run-0"] * 12, step=list(range(12)), seed=[0] * 12)
    preprocessing = Preprocessing(image_size=16, mean=(0.5,) * 3, std=(0.25,) * 3).to_dict()
    return fit(Checkpoints({"train": zoo}, processor, tiny_resnet, preprocessing), tiny_recipe)


# Outputs


def test_output_types_are_views_of_the_same_samples(tiny_pipeline: PDiffPipeline):
    model, pt, array, latent = (
        tiny_pipeline(2, generator=generators(0, 1), output_type=output_type)
        for output_type in ("model", "pt", "np", "latent")
    )
    parameters, models = tiny_pipeline(2, generator=generators(0, 1), return_dict=False)

    assert model.parameters.shape == (2, tiny_pipeline.processor.parameter_dim)
    assert model.parameters.dtype == torch.float32
    assert torch.equal(tiny_pipeline.processor.flatten(model.models[1].state_dict()), model.parameters[1])
    assert torch.equal(parameters, model.parameters)
    assert len(models) == len(model.models) == 2
    assert torch.equal(pt.parameters, model.parameters)
    assert isinstance(array.parameters, np.ndarray)
    assert array.parameters.dtype == np.float32
    assert np.array_equal(array.parameters, model.parameters.numpy())
    assert torch.equal(tiny_pipeline.autoencoder.decode(latent.latents).sample, model.parameters)
    assert model.latents is pt.models is latent.parameters is None


def test_output_without_networks_names_the_output_type(tiny_pipeline: PDiffPipeline, tmp_path: Path):
    out = tiny_pipeline(1, output_type="pt")

    with pytest.raises(ValueError, match="output_type='model'"):
        out.logits(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="output_type='model'"):
        out.save_pretrained(tmp_path / "drawn")


# Randomness


def test_one_seed_draws_the_same_networks_again_and_another_seed_others(tiny_pipeline: PDiffPipeline):
    assert torch.equal(parameters_of(tiny_pipeline, 0, 1), parameters_of(tiny_pipeline, 0, 1))
    first, second = parameters_of(tiny_pipeline, 0, 1)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "DDPMScheduler"])
def test_a_list_of_generators_makes_a_network_independent_of_its_batch(tiny_pipeline: PDiffPipeline, scheduler: str):
    tiny_pipeline.scheduler = getattr(diffusers, scheduler).from_config(tiny_pipeline.scheduler.config)
    seeds = (3, 1, 4, 15)

    together = tiny_pipeline(4, generator=generators(*seeds), output_type="latent").latents
    alone = [tiny_pipeline(1, generator=generators(seed), output_type="latent").latents for seed in seeds]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)

    alone = [parameters_of(tiny_pipeline, seed) for seed in seeds]
    torch.testing.assert_close(parameters_of(tiny_pipeline, *seeds), torch.cat(alone), atol=1e-5, rtol=0)


def test_the_noise_of_a_list_of_generators_is_bit_equal_to_single_noise(tiny_pipeline: PDiffPipeline):
    seen: list[torch.Tensor] = []

    # What the denoiser sees at the first step is the initial noise itself.
    def watch(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0].clone())

    handle = tiny_pipeline.denoiser.register_forward_pre_hook(watch)
    tiny_pipeline(3, num_inference_steps=1, generator=generators(7, 8, 9), output_type="latent")
    for seed in (7, 8, 9):
        tiny_pipeline(1, num_inference_steps=1, generator=generators(seed), output_type="latent")
    handle.remove()

    together, *alone = seen
    assert torch.equal(together, torch.cat(alone))


def test_given_latents_take_the_place_of_noise_and_are_not_written_to(tiny_pipeline: PDiffPipeline):
    latents = torch.randn(2, tiny_pipeline.denoiser.config.latent_dim, generator=generators(0)[0])
    before = latents.clone()

    first = tiny_pipeline(2, latents=latents, output_type="pt").parameters
    second = tiny_pipeline(2, latents=latents, output_type="pt").parameters

    assert torch.equal(first, second)
    assert torch.equal(latents, before)


def test_temperature_scales_the_final_latents_and_zero_gives_the_average(tiny_pipeline: PDiffPipeline):
    whole = tiny_pipeline(2, generator=generators(0, 1), output_type="latent").latents
    half = tiny_pipeline(2, generator=generators(0, 1), output_type="latent", temperature=0.5).latents
    parameters = tiny_pipeline(2, temperature=0, output_type="pt").parameters

    torch.testing.assert_close(half, 0.5 * whole)
    assert torch.equal(parameters, tiny_pipeline.autoencoder.decode(torch.zeros_like(whole)).sample)
    average = tiny_pipeline.processor.flatten(tiny_pipeline.target_model.state_dict())
    torch.testing.assert_close(parameters[0], average)


# Wrong inputs


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_models": 0}, "num_models"),
        ({"num_models": -1}, "num_models"),
        ({"num_models": 2.0}, "num_models must be a whole number of at least 1, but is 2.0"),
        ({"num_models": np.float64(2)}, "num_models must be a whole number"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": -2}, "num_inference_steps"),
        ({"num_inference_steps": 9999}, "num_inference_steps must be .* at most 1000, but is 9999"),
        ({"generator": 0}, "generator must be a torch.Generator or a list of them, but is 0"),
        ({"generator": [0]}, r"generator must be a torch.Generator or a list of them, but is \[0\]"),
        ({"num_models": 3, "generator": generators(0, 1)}, "2 generators were given for 3 networks"),
        ({"num_models": 2, "latents": torch.zeros(2, 3)}, r"latents must have shape \(2, 4\)"),
        ({"num_models": 2, "latents": torch.zeros(1, 4)}, r"latents must have shape \(2, 4\)"),
        ({"latents": np.zeros((1, 4))}, "latents must be a torch.Tensor, but are a ndarray"),
        ({"latents": torch.full((1, 4), float("nan"))}, "latents must be finite"),
        ({"output_type": "pil"}, "output_type must be one of .* 'pil'"),
        ({"temperature": -0.1}, "temperature must be a finite number of at least 0, but is -0.1"),
        ({"temperature": float("nan")}, "temperature must be a finite number .*, but is nan"),
        ({"temperature": np.float32("inf")}, "temperature must be a finite number .*inf"),
        ({"temperature": None}, "temperature must be a finite number .*, but is None"),
        ({"callback_on_step_end_tensor_inputs": ["latents", "noise"]}, "asks for .*'noise'"),
        ({"callback_on_step_end": lambda *_: None}, "callback_on_step_end must return a dict, .* returned None"),
        ({"callback_on_step_end": lambda *_: {"latents": torch.zeros(3)}}, r"latents must have shape \(1, 4\)"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_sentence(tiny_pipeline: PDiffPipeline, arguments: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence) as raised:
        tiny_pipeline(**arguments)

    text = str(raised.value)
    assert text.endswith(".")
    assert "\n" not in text


def test_latents_that_overflow_draw_no_networks(tiny_pipeline: PDiffPipeline):
    with pytest.raises(NonFiniteParametersError, match="NaN or infinite"):
        tiny_pipeline(temperature=1e39)


def test_numbers_of_numpy_are_taken_as_numbers_and_saved(tiny_pipeline: PDiffPipeline, tmp_path: Path):
    expected = tiny_pipeline(3, num_inference_steps=5, generator=generators(0, 1, 2), temperature=0.5)
    numbers = {"num_models": np.int64(3), "num_inference_steps": np.int32(5), "temperature": np.float32(0.5)}

    out = tiny_pipeline(**numbers, generator=generators(0, 1, 2))
    out.save_pretrained(tmp_path / "drawn")

    assert torch.equal(out.parameters, expected.parameters)
    assert out.models.provenance == expected.models.provenance
    sample_to_folder(tiny_pipeline, tmp_path / "sampled", **numbers, seed=np.int64(7))
    provenance = json.loads((tmp_path / "sampled" / "00002" / "provenance.json").read_text(encoding="utf-8"))
    assert (provenance["seed"], provenance["temperature"]) == (9, 0.5)


def test_a_pipeline_made_with_numbers_of_numpy_is_saved(tiny_pipeline: PDiffPipeline, tmp_path: Path):
    preprocessing = {
        "image_mean": np.array([0.25]),
        "size": {"height": np.int64(8)},
        "rescale_factor": np.float32(0.5),
    }
    pipe = PDiffPipeline(
        **tiny_pipeline.components, default_num_inference_steps=np.int64(7), image_processor_config=preprocessing
    )

    pipe.save_pretrained(tmp_path)

    loaded = PDiffPipeline.from_pretrained(tmp_path)
    assert loaded.config.default_num_inference_steps == 7
    assert loaded.config.image_processor_config["image_mean"] == [0.25]


# Callbacks


def test_a_callback_sees_and_replaces_the_latents_of_every_step(tiny_pipeline: PDiffPipeline):
    calls: list[tuple[int, int, tuple[int, ...]]] = []

    def callback(pipe: PDiffPipeline, step: int, timestep: torch.Tensor, inputs: dict) -> dict:
        calls.append((step, int(timestep), tuple(inputs["latents"].shape)))
        return {"latents": torch.full_like(inputs["latents"], 0.25)} if step == 4 else {}

    latents = tiny_pipeline(2, num_inference_steps=5, output_type="latent", callback_on_step_end=callback).latents

    tiny_pipeline.scheduler.set_timesteps(5)
    assert calls == [(i, t, (2, 4)) for i, t in enumerate(tiny_pipeline.scheduler.timesteps.tolist())]
    assert len(calls) == tiny_pipeline.num_timesteps == 5
    assert torch.equal(latents, torch.full((2, 4), 0.25))


def test_a_callback_can_interrupt(tiny_pipeline: PDiffPipeline):
    seen: list[torch.Tensor] = []

    def callback(pipe: PDiffPipeline, step: int, timestep: torch.Tensor, inputs: dict) -> dict:
        seen.append(inputs["latents"])
        pipe._interrupt = step == 1
        return inputs

    latents = tiny_pipeline(1, num_inference_steps=6, output_type="latent", callback_on_step_end=callback).latents

    assert len(seen) == 2
    assert torch.equal(latents, seen[-1])
    assert tiny_pipeline.interrupt
    tiny_pipeline(1, num_inference_steps=2)
    assert not tiny_pipeline.interrupt


# Saving and loading


def test_a_saved_pipeline_draws_bit_equal_samples(tiny_pipeline: PDiffPipeline, tmp_path: Path):
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = PDiffPipeline.from_pretrained(tmp_path / "pipeline")

    assert torch.equal(parameters_of(loaded, 0, 1, 2), parameters_of(tiny_pipeline, 0, 1, 2))
    assert loaded.config.default_num_inference_steps == tiny_pipeline.config.default_num_inference_steps
    assert dict(loaded.config.image_processor_config) == dict(tiny_pipeline.config.image_processor_config)


def test_model_index_names_the_classes_of_this_package(tiny_pipeline: PDiffPipeline, tmp_path: Path):
    tiny_pipeline.save_pretrained(tmp_path)

    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "PDiffPipeline"
    assert index["autoencoder"] == ["pdiff_hf", "LinearParameterAutoencoder"]
    assert index["denoiser"] == ["pdiff_hf", "MLPParameterDenoiser"]
    assert index["processor"] == ["pdiff_hf", "ParameterProcessor"]
    assert index["target_model"] == ["pdiff_hf", "MLPForImageClassification"]
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]


def test_a_target_of_transformers_is_named_as_such(resnet_pipeline: PDiffPipeline, tmp_path: Path):
    resnet_pipeline.save_pretrained(tmp_path)

    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert index["target_model"] == ["transformers", "ResNetForImageClassification"]
    assert torch.equal(parameters_of(PDiffPipeline.from_pretrained(tmp_path), 0), parameters_of(resnet_pipeline, 0))


def test_a_saved_pipeline_has_the_preprocessing_at_its_root(tiny_pipeline: PDiffPipeline, tmp_path: Path):
    tiny_pipeline.save_pretrained(tmp_path)

    saved = json.loads((tmp_path / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert saved == Preprocessing(image_size=8, mean=(0.3,), std=(0.37,)).to_dict()
    assert Preprocessing.from_dict(saved).image_size == 8


def test_a_variant_is_saved_beside_the_rest_and_loaded_by_its_name(tiny_pipeline: PDiffPipeline, tmp_path: Path):
    tiny_pipeline.save_pretrained(tmp_path, variant="ema")

    weights = sorted(path.name for path in tmp_path.rglob("*.safetensors"))
    assert len(weights) == 3
    assert all(".ema." in name for name in weights)
    loaded = PDiffPipeline.from_pretrained(tmp_path, variant="ema")
    assert torch.equal(parameters_of(loaded, 0, 1), parameters_of(tiny_pipeline, 0, 1))


def test_from_pipe_shares_the_components_and_draws_the_same(tiny_pipeline: PDiffPipeline):
    other = PDiffPipeline.from_pipe(tiny_pipeline)

    assert other.denoiser is tiny_pipeline.denoiser
    assert other.config.default_num_inference_steps == tiny_pipeline.config.default_num_inference_steps
    assert dict(other.config.image_processor_config) == dict(tiny_pipeline.config.image_processor_config)
    assert torch.equal(parameters_of(other, 0, 1), parameters_of(tiny_pipeline, 0, 1))


def test_the_call_leaves_every_component_as_it_was(resnet_pipeline: PDiffPipeline, random_images: Callable):
    before = {name: snapshot(getattr(resnet_pipeline, name)) for name in COMPONENTS}
    layout = dict(resnet_pipeline.processor.config)

    out = resnet_pipeline(3, generator=generators(0, 1, 2))
    out.logits(random_images(resnet_pipeline.target_model, 2))
    out.models[0](random_images(resnet_pipeline.target_model, 2))

    for name, tensors in before.items():
        assert_unchanged(getattr(resnet_pipeline, name), tensors)
        assert not getattr(resnet_pipeline, name).training
    assert dict(resnet_pipeline.processor.config) == layout


# Precision


@pytest.mark.parametrize("way", ["from_pretrained", "to"])
def test_generated_parameters_stay_float32_in_a_bfloat16_pipeline(
    tiny_pipeline: PDiffPipeline, random_images: Callable, tmp_path: Path, way: str
):
    before = snapshot(tiny_pipeline.autoencoder)
    if way == "from_pretrained":
        tiny_pipeline.save_pretrained(tmp_path)
        pipe = PDiffPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    else:
        pipe = tiny_pipeline.to(torch.bfloat16)

    out = pipe(2, generator=generators(0, 1))

    assert_unchanged(pipe.autoencoder, before)
    assert pipe.denoiser.dtype == torch.bfloat16
    assert out.parameters.dtype == torch.float32
    assert torch.isfinite(out.parameters).all()
    assert {p.dtype for p in out.models[0].parameters()} == {torch.bfloat16}
    logits = out.logits(random_images(pipe.target_model, 3))
    assert logits.dtype == torch.float32
    assert logits.shape == (2, 3, 10)


# Drawn networks


def test_drawn_networks_are_a_sequence(tiny_pipeline: PDiffPipeline):
    out = tiny_pipeline(5, generator=generators(0, 1, 2, 3, 4))
    flatten = tiny_pipeline.processor.flatten

    assert len(out.models) == 5
    assert torch.equal(flatten(out.models[-1].state_dict()), out.parameters[4])
    assert [len(out.models[:2]), len(out.models[1::2]), len(out.models[7:])] == [2, 2, 0]
    assert torch.equal(flatten(out.models[1::2][1].state_dict()), out.parameters[3])
    assert out.models[1::2].provenance[1]["seed"] == 3
    assert len(list(out.models)) == 5
    for index in (5, -6):
        with pytest.raises(IndexError, match="5 drawn networks"):
            out.models[index]


def test_drawn_networks_are_built_on_access_over_one_trunk(tiny_pipeline: PDiffPipeline):
    out = tiny_pipeline(2, generator=generators(0, 1))

    first, again, copy = out.models[0], out.models.build(0), out.models.build(0, share_trunk=False)

    assert first is not again
    trunk = tiny_pipeline.target_model.layers[0].weight
    assert first.layers[0].weight.data_ptr() == again.layers[0].weight.data_ptr() == trunk.data_ptr()
    assert first.classifier.weight.data_ptr() != again.classifier.weight.data_ptr()
    assert not first.layers[0].weight.requires_grad
    assert copy.layers[0].weight.data_ptr() != trunk.data_ptr()
    assert copy.layers[0].weight.requires_grad
    assert torch.equal(copy.classifier.weight, first.classifier.weight)


def test_training_a_drawn_network_changes_no_other(resnet_pipeline: PDiffPipeline, random_images: Callable):
    out = resnet_pipeline(2, generator=generators(0, 1))
    one, parameters = out.models[0], out.parameters.clone()
    before = [snapshot(network) for network in (*out.models, resnet_pipeline.target_model)]

    optimizer = torch.optim.SGD(one.train().parameters(), lr=1.0)
    one(random_images(resnet_pipeline.target_model, 4)).logits.square().sum().backward()
    optimizer.step()

    assert not torch.equal(resnet_pipeline.processor.flatten(one.state_dict()), parameters[0])
    assert torch.equal(out.parameters, parameters)
    others = (out.models.build(0), out.models[1], resnet_pipeline.target_model)
    for network, tensors in zip(others, before, strict=True):
        assert_unchanged(network, tensors)


def test_joint_logits_equal_the_forward_of_each_network(
    tiny_pipeline: PDiffPipeline, resnet_pipeline: PDiffPipeline, random_images: Callable
):
    for pipe in (tiny_pipeline, resnet_pipeline):
        out = pipe(3, generator=generators(0, 1, 2))
        images = random_images(pipe.target_model, 6)

        logits = out.logits(images)

        assert logits.shape == (3, 6, pipe.target_model.config.num_labels)
        expected = torch.stack([network(images).logits for network in out.models])
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_saved_networks_load_in_plain_transformers(
    resnet_pipeline: PDiffPipeline, random_images: Callable, tmp_path: Path
):
    images = random_images(resnet_pipeline.target_model, 4)
    out = resnet_pipeline(2, generator=generators(5, 6))

    out.save_pretrained(tmp_path / "drawn")

    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["00000", "00001", "README.md"]
    for i, seed in enumerate((5, 6)):
        folder = tmp_path / "drawn" / f"{i:05d}"
        loaded = AutoModelForImageClassification.from_pretrained(folder)
        assert torch.equal(loaded(images).logits, out.models[i](images).logits)
        assert loaded.config.id2label == {0: "bee", 1: "cat", 2: "dog", 3: "emu"}
        preprocessing = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        assert preprocessing == resnet_pipeline.config.image_processor_config
        provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        assert provenance["seed"] == seed
        assert provenance["index"] == 0
        assert provenance["scheduler"] == "DPMSolverMultistepScheduler"
        assert provenance["temperature"] == 1.0


def test_provenance_of_one_generator_numbers_the_networks(tiny_pipeline: PDiffPipeline):
    out = tiny_pipeline(3, num_inference_steps=7, generator=torch.Generator().manual_seed(11))

    assert [entry["index"] for entry in out.models.provenance] == [0, 1, 2]
    assert {entry["seed"] for entry in out.models.provenance} == {11}
    assert {entry["num_inference_steps"] for entry in out.models.provenance} == {7}


# More networks than fit in memory


def test_iter_draws_all_networks_in_batches(tiny_pipeline: PDiffPipeline):
    one = list(tiny_pipeline.iter(7, batch_size=3, generator=torch.Generator().manual_seed(0)))
    listed = list(tiny_pipeline.iter(5, batch_size=2, generator=generators(0, 1, 2, 3, 4), output_type="pt"))

    assert [len(out.models) for out in one] == [3, 3, 1]
    assert len(torch.cat([out.parameters for out in one]).unique(dim=0)) == 7
    vectors = torch.cat([out.parameters for out in listed])
    torch.testing.assert_close(vectors, parameters_of(tiny_pipeline, 0, 1, 2, 3, 4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("arguments", [{"num_models": 0}, {"num_models": 2, "batch_size": 0}])
def test_iter_refuses_to_draw_nothing(tiny_pipeline: PDiffPipeline, arguments: dict):
    with pytest.raises(ValueError, match="must be a whole number of at least 1, but is 0"):
        list(tiny_pipeline.iter(**arguments))


def test_iter_refuses_a_list_of_generators_of_another_length(tiny_pipeline: PDiffPipeline):
    for count in (2, 4):
        with pytest.raises(ValueError, match=f"{count} generators were given for 3 networks"):
            list(tiny_pipeline.iter(3, batch_size=2, generator=generators(*range(count))))


# Metrics and card


def test_metrics_and_card_are_written_wherever_a_pipeline_is_saved(tiny_pipeline: PDiffPipeline, tmp_path: Path):
    fitted = tiny_pipeline.metrics
    tiny_pipeline.save_pretrained(tmp_path)
    loaded = PDiffPipeline.from_pretrained(tmp_path)
    assert loaded.metrics == fitted

    loaded.metrics = fitted | {"data": fitted["data"] | {"dataset_name": "another-data-set"}}
    loaded.save_pretrained(tmp_path)

    saved = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert saved["data"]["dataset_name"] == "another-data-set"
    assert "another-data-set" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_new_metrics_leave_a_card_that_somebody_wrote_by_hand(tiny_pipeline: PDiffPipeline, tmp_path: Path):
    (tmp_path / "README.md").write_text("# Mine\n", encoding="utf-8")

    tiny_pipeline.save_pretrained(tmp_path)

    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "# Mine\n"
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == tiny_pipeline.metrics
