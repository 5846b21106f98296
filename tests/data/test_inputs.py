"""Networks of named inputs, such as text classifiers, go the same way as networks of images."""

from __future__ import annotations

import datasets
import pytest
import torch
from texts import CLASSES, LENGTH, build_bert, texts
from transformers import PreTrainedModel

from pdiff_hf import (
    Checkpoints,
    CheckpointSplit,
    TensorData,
    TensorSplit,
    build_network,
    fit,
    make_processor,
    network_logits,
    network_predictions,
)
from pdiff_hf.data.inputs import BatchError
from pdiff_hf.evaluation import evaluate, write_report
from pdiff_hf.fitting.pipeline import describe_fit
from pdiff_hf.targets import inference


@pytest.fixture
def bert() -> PreTrainedModel:
    return build_bert()


@torch.no_grad()
def plain_logits(model, processor, parameters, batch) -> torch.Tensor:
    return torch.stack([build_network(model, processor, vector)(**batch).logits for vector in parameters])


@pytest.mark.parametrize("budget", [2**25, 1], ids=["one batch", "one pair at a time"])
@pytest.mark.parametrize("subset", ["last_norms", "head", "full", "bert.encoder.layer.0.attention.self.query.*"])
def test_text_logits_are_those_of_plain_forward_passes(bert, random_vectors, monkeypatch, caplog, subset, budget):
    processor = make_processor(bert, subset)
    parameters, batch = random_vectors(bert, processor, 5), texts(7)
    monkeypatch.setattr(inference, "ACTIVATION_BUDGET", budget)
    monkeypatch.setattr(inference, "ONE_IMAGE_BUDGET", budget)

    logits = network_logits(bert, processor, parameters, batch)

    expected = plain_logits(bert, processor, parameters, batch)
    assert logits.shape == (5, 7, CLASSES)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=1e-4)
    assert caplog.text == ""


def test_half_precision_text_classifier_keeps_whole_numbers_whole(bert, random_vectors):
    bert.to(torch.bfloat16)
    processor = make_processor(bert, "head")

    logits = network_logits(bert, processor, random_vectors(bert, processor, 2), texts(4))

    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    "inputs",
    [
        {"input_ids": torch.zeros(3, 4, dtype=torch.long), "attention_mask": torch.ones(2, 4)},
        {"input_ids": [[1, 2], [3]]},
        {},
        torch.tensor(1.0),
    ],
)
def test_inputs_of_unequal_length_are_refused(bert, random_vectors, inputs):
    processor = make_processor(bert, "head")

    with pytest.raises(BatchError, match="one row per example"):
        network_logits(bert, processor, random_vectors(bert, processor, 2), inputs)


def token_dataset(count: int, seed: int) -> datasets.Dataset:
    """Texts whose label is the class of their first word."""
    batch = texts(count, seed)
    labels = batch["input_ids"][:, 0] % CLASSES
    return datasets.Dataset.from_dict({**{k: v.tolist() for k, v in batch.items()}, "label": labels.tolist()})


@pytest.fixture
def text_data() -> TensorData:
    parts = {"train": 32, "validation": 24, "test": 40}
    return TensorData.from_dataset(
        datasets.DatasetDict({name: token_dataset(n, seed) for seed, (name, n) in enumerate(parts.items())})
    )


def test_tokenized_dataset_becomes_three_splits_with_the_names_of_its_classes(text_data):
    assert [len(split) for split in (text_data.train, text_data.validation, text_data.test)] == [32, 24, 40]
    inputs = text_data.inputs(text_data.test)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (40, LENGTH)
    assert inputs["input_ids"].dtype == torch.int64
    assert text_data.label_names == ["0", "1", "2"]
    assert text_data.test.fingerprint() != text_data.validation.fingerprint()
    rows = token_dataset(9, 0).cast_column("label", datasets.ClassLabel(names=["bad", "fair", "good"]))
    named = TensorData.from_dataset(dict.fromkeys(("train", "validation", "test"), rows))
    assert named.label_names == ["bad", "fair", "good"]
    words = rows.cast_column("label", datasets.Value("int64")).map(lambda row: {"label": "abc"[row["label"]]})
    texts_as_labels = TensorData.from_dataset(dict.fromkeys(("train", "validation", "test"), words))
    assert texts_as_labels.label_names == ["a", "b", "c"]
    assert torch.equal(texts_as_labels.train.labels, named.train.labels)


def test_dataset_that_does_not_fit_is_refused_in_a_sentence():
    rows = token_dataset(6, 0)

    with pytest.raises(BatchError, match=r"has the splits \['train'\], but 'validation' is needed"):
        TensorData.from_dataset({"train": rows})
    with pytest.raises(BatchError, match=r"The train split has the columns .* but lacks \['token_type_ids'\]"):
        TensorData.from_dataset({"train": rows}, columns=["input_ids", "token_type_ids"])
    ragged = datasets.Dataset.from_dict({"input_ids": [[1], [1, 2]], "label": [0, 1]})
    with pytest.raises(BatchError, match="not of one length"):
        TensorData.from_dataset({"train": ragged}, columns=["input_ids"])
    with pytest.raises(BatchError, match="6 examples, but 5 labels"):
        TensorSplit(torch.zeros(6, 2), torch.zeros(5, dtype=torch.long))
    with pytest.raises(BatchError, match="whole numbers from 0, or all floating-point numbers, but are like -1"):
        TensorData.from_dataset(
            dict.fromkeys(("train", "validation", "test"), datasets.Dataset.from_dict({"x": [1], "label": [-1]})),
            ["x"],
        )


def test_text_classifier_is_evaluated_through_the_same_code(bert, random_vectors, text_data, tiny_recipe, tmp_path):
    processor = make_processor(bert, "head")
    vectors = random_vectors(bert, processor, 32)
    columns = {"run": [f"run-{i % 2}" for i in range(32)], "step": list(range(32)), "seed": [0] * 32}
    everything = CheckpointSplit(vectors, **columns)
    parts = {"train": slice(20), "validation": slice(0), "test": slice(20, 32)}
    checkpoints = Checkpoints({name: everything.rows(part) for name, part in parts.items()}, processor, bert)
    pipe = fit(checkpoints, tiny_recipe)

    evaluation = evaluate(pipe, checkpoints, text_data, num_models=6, num_baseline_models=4)

    predicted, _ = network_predictions(
        bert, processor, vectors[:20], text_data.inputs(text_data.test), text_data.test.labels
    )
    expected = (predicted == text_data.test.labels).double().mean().item()
    assert evaluation.sets["zoo"]["test"]["accuracy"]["mean"] == pytest.approx(expected)
    assert evaluation.sets["generated"]["test"]["n"] == 6
    metrics = write_report(tmp_path / "report", evaluation, describe_fit(checkpoints), processor)
    assert "generated" in metrics["sets"]


def test_class_that_the_train_split_lacks_is_refused():
    rows = datasets.Dataset.from_dict({"x": [[1], [2]], "label": [0, 1]})
    more = datasets.Dataset.from_dict({"x": [[1], [2]], "label": [0, 2]})

    with pytest.raises(BatchError, match="The test split has the label 2, but there are only 2 classes"):
        TensorData.from_dataset({"train": rows, "validation": rows, "test": more}, ["x"])
