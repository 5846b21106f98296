"""What is done with many drawn networks at once: ensembles, figures, a choice; and how they are built and shown."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from conftest import build_mlp
from transformers.utils import logging

from pdiff_hf import (
    CheckpointSplit,
    DrawnNetworks,
    ImageData,
    PDiffPipeline,
    TensorData,
    TensorSplit,
    load_images,
    make_processor,
)
from pdiff_hf.data.inputs import BatchError
from pdiff_hf.loops import seeded
from pdiff_hf.pipelines.pipeline_output import PDiffPipelineOutput
from pdiff_hf.pipelines.sampling import sample_to_folder
from pdiff_hf.targets.calibration import calibration_figures


@pytest.fixture
def out(tiny_pipeline: PDiffPipeline) -> PDiffPipelineOutput:
    """Six networks."""
    return tiny_pipeline(6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def images(tiny_pipeline: PDiffPipeline) -> ImageData:
    return load_images("digits", image_size=8)


@pytest.fixture
def regressions() -> DrawnNetworks:
    """Three networks that predict one number."""
    with seeded(0):
        target = build_mlp().eval()
        target.classifier = torch.nn.Linear(target.classifier.in_features, 1)
    target.config.num_labels, target.config.problem_type = 1, "regression"
    processor = make_processor(target, "head")
    vector = processor.flatten(target.state_dict())
    vectors = vector + 0.1 * torch.arange(3.0)[:, None]
    return DrawnNetworks(target, processor, vectors, {}, [{} for _ in vectors])


# Ensembles


def test_an_ensemble_is_the_mean_of_probabilities_with_its_uncertainty(out: PDiffPipelineOutput, random_images):
    pixel_values = random_images(out.models.target_model, 5)

    predicted = out.ensemble(pixel_values)

    probabilities = out.logits(pixel_values).softmax(-1)  # (6, 5, 10)
    mean = probabilities.mean(0)
    own = -(probabilities * probabilities.log()).sum(-1).mean(0)
    torch.testing.assert_close(predicted.probabilities, mean)
    torch.testing.assert_close(predicted.entropy, -(mean * mean.log()).sum(-1))
    torch.testing.assert_close(predicted.mutual_information, predicted.entropy - own)
    assert (predicted.mutual_information > 0).all()


def test_copies_of_one_network_have_no_mutual_information(out: PDiffPipelineOutput, random_images):
    copies = out.models.take([2, 2, 2])

    predicted = copies.ensemble(random_images(copies.target_model, 5))

    torch.testing.assert_close(predicted.mutual_information, torch.zeros(5))


def test_regressions_have_no_ensemble_of_probabilities(regressions: DrawnNetworks):
    with pytest.raises(ValueError, match="ensemble is defined for classifiers, but these networks predict a value"):
        regressions.ensemble(torch.randn(4, 1, 8, 8))
    with pytest.raises(ValueError, match="evaluate is defined for classifiers"):
        regressions.evaluate((torch.randn(4, 1, 8, 8), torch.randn(4)))


# Figures


def test_figures_of_each_network_and_of_the_ensemble_do_not_depend_on_the_batches(
    out: PDiffPipelineOutput, images: ImageData
):
    inputs, labels = images.inputs(images.test), images.test.labels
    logits = out.logits(inputs).double()

    evaluation = out.evaluate((inputs, labels), batch_size=300)

    for i in range(6):
        expected = calibration_figures(logits[i].log_softmax(-1), labels)
        assert {name: own[i].item() for name, own in evaluation.networks.items()} == pytest.approx(expected)
    expected = calibration_figures(logits.softmax(-1).mean(0).log(), labels)
    assert evaluation.ensemble == pytest.approx(expected)


def test_labeled_data_a_split_and_a_pair_are_evaluated_alike_with_the_networks_own_preprocessing(
    out: PDiffPipelineOutput, images: ImageData
):
    out.models.preprocessing = images.preprocessing.to_dict()
    pair = (images.inputs(images.test), images.test.labels)
    tensors = TensorData(*(TensorSplit(*pair) for _ in range(3)), images.label_names)

    expected = out.evaluate(pair)

    for data in (images, images.test, tensors, tensors.test):
        assert out.evaluate(data).ensemble == expected.ensemble


def test_classes_in_another_order_are_matched_by_name(out: PDiffPipelineOutput, images: ImageData):
    names = [f"digit {name}" for name in images.label_names]
    out.models.target_model.config.id2label = dict(enumerate(names))
    named = images.relabeled(range(10), names)
    expected = out.evaluate(named).ensemble

    assert out.evaluate(images.relabeled([9 - i for i in range(10)], names[::-1])).ensemble == expected
    with pytest.raises(BatchError, match="The classes of the data are"):
        out.evaluate(images.relabeled(range(10), [f"animal {i}" for i in range(10)]))


def test_a_printed_evaluation_is_a_short_table(out: PDiffPipelineOutput, images: ImageData):
    evaluation = out.evaluate(images)

    lines = str(evaluation).splitlines()

    assert lines[0].split() == ["on", "797", "examples", "accuracy", "%", "NLL", "Brier", "ECE", "%"]
    assert [line.split("  ")[0] for line in lines[1:]] == ["mean of 6 networks", "std of 6 networks", "their ensemble"]
    assert f"{100 * evaluation.ensemble['accuracy']:.2f}" in lines[3]
    assert len({len(line) for line in lines}) == 1
    assert str(out.models[:1].evaluate(images)).splitlines()[1].startswith("one network")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (torch.zeros(3, 1, 8, 8), "Labeled examples are needed, but a Tensor was given"),
        ((torch.zeros(3, 1, 8, 8), torch.zeros(2).long()), r"but are \(2,\) for 3 examples"),
        ((torch.zeros(2, 1, 8, 8), torch.tensor([0, 10])), "whole numbers from 0 to 9, .* from 0 to 10"),
        ((torch.zeros(2, 1, 8, 8), torch.tensor([0.0, 1.0])), "but those given are torch.float32"),
        ((torch.zeros(2, 1, 16, 16).byte(), torch.tensor([0, 1])), r"are \(16, 16\), .* load them with image_size=8"),
    ],
)
def test_what_is_no_labeled_data_of_the_networks_is_refused(out: PDiffPipelineOutput, data: object, sentence: str):
    with pytest.raises(BatchError, match=sentence):
        out.evaluate(data)
    with pytest.raises(BatchError, match=sentence):
        out.best_on(data)


# The best


def test_the_best_networks_are_chosen_on_validation_images(out: PDiffPipelineOutput, images: ImageData):
    accuracies = out.evaluate(images.validation).networks["accuracy"]

    best = out.best_on(images, k=3)

    highest = accuracies.sort(descending=True).values[:3]
    assert best.evaluate(images.validation).networks["accuracy"].tolist() == highest.tolist()
    assert torch.equal(out.best_on(images.validation).parameters[0], best.parameters[0])
    assert best.provenance[0]["index"] == accuracies.argmax()
    assert type(best[0]) is type(out.models[0])


def test_networks_of_equal_accuracy_are_ordered_by_their_loss(out: PDiffPipelineOutput, random_images):
    inputs = random_images(out.models.target_model, 1)
    logits = out.logits(inputs)[:, 0]  # (6, classes)
    label = logits.mean(0).argmax()

    best = out.best_on((inputs, label[None]), k=6)

    loss = [-network(inputs).logits.log_softmax(-1)[0, label].item() for network in best]
    right = [network(inputs).logits.argmax().item() == label for network in best]
    assert right == sorted(right, reverse=True)
    assert loss[: sum(right)] == sorted(loss[: sum(right)])


def test_the_best_regression_has_the_highest_r2(regressions: DrawnNetworks):
    inputs = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    best = regressions.best_on((inputs, regressions.logits(inputs)[1, :, 0]))

    assert torch.equal(best.parameters[0], regressions.parameters[1])


def test_more_best_networks_than_there_are_is_refused(out: PDiffPipelineOutput, images: ImageData):
    with pytest.raises(ValueError, match="k must be a whole number of at least 1 and at most 6, but is 7"):
        out.best_on(images, k=7)


# Building


def test_a_network_is_the_same_object_as_long_as_it_is_held(out: PDiffPipelineOutput):
    held = out.models[2]

    assert out.models[2] is held
    assert out.models[-4] is held
    assert out.models.build(2) is not held


def test_networks_that_nobody_holds_are_not_kept(out: PDiffPipelineOutput):
    seen = []
    for network in out.models:
        gc.collect()
        assert sum(reference() is not None for reference in seen) <= 1  # the one before, until it is replaced
        seen.append(weakref.ref(network))


def test_what_is_saved_are_the_networks_as_drawn(out: PDiffPipelineOutput, tmp_path):
    held = out.models[0]
    with torch.no_grad():
        held.classifier.weight.zero_()

    out.save_pretrained(tmp_path)

    saved = type(held).from_pretrained(tmp_path / "00000")
    assert torch.equal(saved.classifier.weight, out.models.build(0).classifier.weight)


def test_drawn_networks_can_be_copied_and_pickled_while_one_is_held(out: PDiffPipelineOutput):
    held = out.models[1]

    for copied in (copy.deepcopy(out.models), pickle.loads(pickle.dumps(out.models))):
        assert torch.equal(copied.parameters, out.parameters)
        assert copied[1] is not held


# Showing


def test_outputs_are_shown_in_a_line(tiny_pipeline: PDiffPipeline, out: PDiffPipelineOutput):
    assert repr(out) == "6 drawn networks: MLPForImageClassification, parameters (6, 90)"
    assert repr(out.models[:1]) == "1 drawn network: MLPForImageClassification, parameters (1, 90)"
    assert repr(tiny_pipeline(2, output_type="latent")) == "latents (2, 4)"
    out.models.provenance[0]["generator"] = "org/generator"
    assert str(out).endswith("parameters (6, 90), from 'org/generator'")


def test_images_and_checkpoints_are_shown_in_a_few_lines(images: ImageData, tiny_checkpoints):
    assert repr(images).splitlines() == [
        "images of 'digits': 700 train, 300 validation, 797 test, each (1, 8, 8), 10 classes: 0, 1, 2, 3, 4, …"
    ]
    assert repr(images.test) == "797 examples (797, 1, 8, 8) uint8, labels int64"
    assert repr(tiny_checkpoints).splitlines() == [
        "checkpoints of MLPForImageClassification on 'digits': 24 train, 8 validation, 8 test of 2 runs",
        "90 parameters each: classifier.weight, classifier.bias",
    ]
    assert repr(tiny_checkpoints.zoo) == "24 checkpoints of 2 runs, parameters (24, 90)"
    assert (
        repr(CheckpointSplit(torch.zeros(0, 3), run=[], step=[], seed=[]))
        == "0 checkpoints of 0 runs, parameters (0, 3)"
    )


# Progress


def test_saving_shows_one_bar(out: PDiffPipelineOutput, tmp_path, capsys: pytest.CaptureFixture):
    logging.enable_progress_bar()

    out.save_pretrained(tmp_path)

    shown = capsys.readouterr().err
    assert "saving networks: 100%" in shown
    assert "model shards" not in shown
    assert logging.is_progress_bar_enabled()


def test_drawing_batch_by_batch_shows_one_bar(tiny_pipeline: PDiffPipeline, capsys: pytest.CaptureFixture):
    capsys.readouterr()

    assert sum(len(out.models) for out in tiny_pipeline.iter(5, batch_size=2)) == 5

    shown = capsys.readouterr().err
    assert shown.count("\n") == 1  # which each bar writes at its end
    assert "drawing networks: 100%" in shown
    tiny_pipeline(1, num_inference_steps=3)
    assert "3/3" in capsys.readouterr().err


def test_sampling_to_a_folder_shows_one_bar_and_leaves_the_pipelines_own(
    tiny_pipeline: PDiffPipeline, tmp_path, capsys: pytest.CaptureFixture
):
    capsys.readouterr()

    sample_to_folder(tiny_pipeline, tmp_path / "drawn", 3)

    shown = capsys.readouterr().err
    assert shown.count("\n") == 1  # which each bar writes at its end
    assert "drawing networks: 100%" in shown
    tiny_pipeline(1, num_inference_steps=3)
    assert "3/3" in capsys.readouterr().err
