"""The layout: vectors and state dicts hold the same numbers, and what does not fit is refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from pdiff_hf import LayoutError, NonFiniteParametersError, ParameterProcessor, make_processor
from pdiff_hf.loops import step_generator

# Every example writes all the numbers that it reads, so one model serves them all.
shares_the_model = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**32 - 1)


def draw_vector(processor: ParameterProcessor, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(processor.parameter_dim, generator=step_generator(seed, 0))


@pytest.fixture
def processor(mlp: PreTrainedModel) -> ParameterProcessor:
    return make_processor(mlp, "head")


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_vector_survives_unflattening_and_loading_into_the_model(target_and_processor, scale):
    model, processor = target_and_processor
    before = copy.deepcopy(model.state_dict())
    vector = draw_vector(processor, 0, scale)

    tensors = processor.unflatten(vector)
    processor.load_into(model, vector)

    assert {name: t.shape for name, t in tensors.items()} == {n: before[n].shape for n in processor.names}
    assert torch.equal(processor.flatten(tensors), vector)
    assert torch.equal(processor.flatten(model.state_dict()), vector)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in processor.names)


@shares_the_model
@given(data=st.data(), seed=seeds)
def test_any_choice_of_tensors_is_laid_out_in_the_order_of_the_state_dict(target_model, data, seed):
    names = [name for name, _ in target_model.named_parameters()]
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=6, unique=True))

    processor = make_processor(target_model, chosen)
    vector = draw_vector(processor, seed)
    processor.load_into(target_model, vector)

    assert processor.names == [name for name in target_model.state_dict() if name in chosen]
    assert torch.equal(processor.flatten(target_model.state_dict()), vector)
    assert torch.equal(
        vector, torch.cat([target_model.get_parameter(name).detach().flatten() for name in processor.names])
    )


def test_many_vectors_are_unflattened_at_once_as_views(processor):
    vectors = torch.stack([draw_vector(processor, seed) for seed in range(6)]).view(2, 3, -1)

    tensors = processor.unflatten(vectors)

    for name, tensor in processor.unflatten(vectors[1, 2]).items():
        assert torch.equal(tensors[name][1, 2], tensor)
        assert tensors[name].untyped_storage().data_ptr() == vectors.untyped_storage().data_ptr()


def test_flatten_does_not_share_memory_with_a_single_tensor(mlp):
    vector = make_processor(mlp, "classifier.weight").flatten(mlp.state_dict())

    assert vector.data_ptr() != mlp.classifier.weight.data_ptr()


def test_half_precision_target_has_float32_vectors(mlp):
    mlp.to(torch.bfloat16)
    processor = make_processor(mlp, "head")
    vector = draw_vector(processor, 0)

    processor.load_into(mlp, vector)
    read_back = processor.flatten(mlp.state_dict())

    assert mlp.classifier.weight.dtype == torch.bfloat16
    assert read_back.dtype == torch.float32
    assert torch.equal(read_back, vector.to(torch.bfloat16).float())


def test_layout_survives_saving(target_and_processor, tmp_path):
    _, processor = target_and_processor

    processor.save_pretrained(tmp_path / "repository" / "processor")
    loaded = ParameterProcessor.from_pretrained(tmp_path / "repository", subfolder="processor")

    for name in ("names", "shapes", "sizes", "parameter_dim"):
        assert getattr(loaded, name) == getattr(processor, name)
    assert loaded.config.dtypes == processor.config.dtypes
    assert loaded.config.transformers_version == processor.config.transformers_version


def test_presets_and_patterns_select_parameters_but_no_statistics(target_model):
    full, head = make_processor(target_model, "full"), make_processor(target_model, "head")

    assert full.parameter_dim == sum(p.numel() for p in target_model.parameters())
    assert len(head.names) == 2
    assert head.shapes[0][0] == head.sizes[1] == target_model.config.num_labels
    first = full.names[0]
    assert make_processor(target_model, ["head", first]).names == [first, *head.names]
    for name, _ in target_model.named_buffers():
        assert name not in full.names
        with pytest.raises(LayoutError, match="matches none"):
            make_processor(target_model, name)


@pytest.mark.parametrize(
    ("subset", "sentence"),
    [
        ("last_norms", "MLPForImageClassification has 0 of the 2 normalization layers"),
        (["classifier.*", "encoder.*"], r"'encoder\.\*' matches none .* MLPForImageClassification.*'layers"),
        ([], "No patterns were given"),
    ],
)
def test_subset_that_the_network_does_not_have_is_refused(mlp, subset, sentence):
    with pytest.raises(LayoutError, match=sentence):
        make_processor(mlp, subset)


@pytest.mark.parametrize("names", [[], ["weight", "weight"], ["weight"]], ids=["none", "duplicated", "too few"])
def test_malformed_layout_is_refused(names):
    with pytest.raises(LayoutError, match="at least one distinct name"):
        ParameterProcessor(names=names, shapes=[[2], [2]], dtypes=["float32", "float32"])


@pytest.mark.parametrize("shape", [(89,), (91,), (3, 89), (90, 3), ()])
def test_wrong_length_is_named(processor, shape):
    with pytest.raises(LayoutError, match=r"has 90 numbers, but the given one has shape"):
        processor.unflatten(torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        ("classifier.bias", None, r"lacks 'classifier\.bias'"),
        ("classifier.weight", torch.zeros(8, 10), r"'classifier\.weight' is \(8, 10\) .* but \(10, 8\)"),
        ("classifier.bias", torch.zeros(10).double(), r"'classifier\.bias' is .*torch\.float64 .*torch\.float32"),
    ],
    ids=["missing", "wrong shape", "wrong dtype"],
)
def test_tensor_that_does_not_fit_is_named(mlp, processor, name, tensor, sentence):
    state_dict = {key: tensor if key == name else t for key, t in mlp.state_dict().items()}
    state_dict = {key: t for key, t in state_dict.items() if t is not None}

    with pytest.raises(LayoutError, match=sentence):
        processor.flatten(state_dict)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_tensor_is_named(mlp, processor, value):
    vector = processor.flatten(mlp.state_dict())
    vector[-2:] = value  # the last two numbers of the bias, which comes last
    message = r"2 of the 10 values of 'classifier\.bias'"
    before = copy.deepcopy(mlp.state_dict())

    with pytest.raises(NonFiniteParametersError, match=message):
        processor.flatten(processor.unflatten(vector))
    with pytest.raises(NonFiniteParametersError, match=message):
        processor.load_into(mlp, vector)
    with pytest.raises(NonFiniteParametersError, match=r"2 of the 20 values of 'classifier\.bias'"):
        processor.check(torch.stack([torch.zeros_like(vector), vector]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in mlp.state_dict().items())


def test_matrix_or_another_network_is_refused_and_the_network_left_unchanged(convnet, processor):
    before = copy.deepcopy(convnet.state_dict())

    with pytest.raises(LayoutError, match=r"Expected one vector \(D,\).*\(2, 90\)"):
        processor.load_into(convnet, torch.zeros(2, 90))
    with pytest.raises(LayoutError, match=r"'classifier\.weight' is \(4, 8\) in this ConvNet.* \(10, 8\)"):
        processor.load_into(convnet, torch.zeros(90))
    assert all(torch.equal(tensor, before[name]) for name, tensor in convnet.state_dict().items())
