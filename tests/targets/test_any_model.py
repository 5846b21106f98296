"""Networks of classes that the package does not know work with patterns alone."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from pdiff_hf import (
    CheckpointRecorder,
    Checkpoints,
    PDiffPipeline,
    PDiffPipelineOutput,
    build_network,
    fit,
    load_checkpoints,
    make_processor,
    network_logits,
)
from pdiff_hf.loops import seeded
from pdiff_hf.targets.loading import UnknownTargetError


class TableConfig(PreTrainedConfig):
    """A classifier of rows of a table: numbers and one category."""

    model_type = "test_table"

    num_numbers: int = 5
    num_categories: int = 4
    width: int = 12


class TableClassifier(PreTrainedModel):
    """Takes two named tensors, neither of which is an image."""

    config_class = TableConfig

    def __init__(self, config: TableConfig) -> None:
        super().__init__(config)
        self.category = nn.Embedding(config.num_categories, config.width)
        self.numbers = nn.Linear(config.num_numbers, config.width)
        self.mix = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, numbers: torch.Tensor, category: torch.Tensor, labels: torch.Tensor | None = None):
        hidden = (self.numbers(numbers) + self.category(category)).relu()  # (batch, width)
        logits = self.out(self.mix(hidden).relu())
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


PATTERNS = ["mix.*", "out.*"]


def build_table(config: TableConfig | None = None) -> TableClassifier:
    with seeded(0):
        return TableClassifier(config or TableConfig(num_labels=3)).eval()


def rows(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return {
        "numbers": torch.randn(count, 5, generator=generator),
        "category": torch.randint(4, (count,), generator=generator),
    }


def record(model: PreTrainedModel) -> Checkpoints:
    """Trains the patterns for a few steps and records each."""
    recorder = CheckpointRecorder(model, PATTERNS)
    optimizer = torch.optim.AdamW([model.get_parameter(name) for name in recorder.processor.names], lr=3e-2)
    for step in range(20):
        batch = rows(32 + step)
        optimizer.zero_grad()
        model(**batch, labels=batch["category"] % 3).loss.backward()
        optimizer.step()
        recorder.record(step)
    return recorder.checkpoints()


@pytest.fixture
def pipe(tiny_recipe) -> PDiffPipeline:
    return fit(record(build_table()), tiny_recipe)


def draw(pipe: PDiffPipeline) -> PDiffPipelineOutput:
    return pipe(4, generator=torch.Generator().manual_seed(0))


def test_unknown_class_works_end_to_end(tiny_recipe, tmp_path):
    record(build_table()).save(tmp_path / "zoo")
    checkpoints = load_checkpoints(tmp_path / "zoo", target_model=build_table())
    pipe = fit(checkpoints, tiny_recipe)
    pipe.save_pretrained(tmp_path / "first")
    loaded = PDiffPipeline.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "again")
    out, expected = draw(loaded), draw(pipe)
    out.save_pretrained(tmp_path / "drawn")

    assert type(loaded.target_model) is TableClassifier
    assert checkpoints.processor.parameter_dim == 12 * 12 + 12 + 12 * 3 + 3
    for folder in ("first", "again"):  # no module of the user's
        index = json.loads((tmp_path / folder / "model_index.json").read_text())
        assert index["target_model"] == ["pdiff_hf", "AnyTargetModel"]
    assert torch.equal(out.parameters, expected.parameters)
    batch = rows(6)
    logits = out.logits(batch)
    assert logits.shape == (4, 6, 3)
    assert torch.equal(logits, expected.logits(batch))
    for i, network in enumerate(out.models):
        saved = TableClassifier.from_pretrained(tmp_path / "drawn" / f"{i:05d}")
        assert torch.equal(saved(**batch).logits, network(**batch).logits)
        assert torch.allclose(network(**batch).logits, logits[i], atol=1e-5)


def test_class_that_is_not_found_is_named_and_the_network_can_be_given(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipeline")
    record(build_table()).save(tmp_path / "zoo")
    for folder in ("pipeline", "zoo"):  # as for a process in which the class is not defined
        config = tmp_path / folder / "target_model" / "config.json"
        config.write_text(config.read_text().replace("TableClassifier", "ElsewhereClassifier"))

    for load, folder in ((PDiffPipeline.from_pretrained, "pipeline"), (load_checkpoints, "zoo")):
        with pytest.raises(
            UnknownTargetError, match=r"is a ElsewhereClassifier of the type 'test_table'.*target_model="
        ):
            load(tmp_path / folder)
        assert load(tmp_path / folder, target_model=pipe.target_model).target_model is pipe.target_model


def test_unknown_class_is_shared_on_the_hub(pipe, hub, repo_id, empty_cache):
    record(build_table()).push_to_hub(f"{repo_id}-zoo", token="hf_alice")
    pipe.push_to_hub(repo_id, token="hf_alice")

    zoo = load_checkpoints(f"{repo_id}-zoo", token="hf_alice", cache_dir=empty_cache)
    loaded = PDiffPipeline.from_pretrained(repo_id, token="hf_alice", cache_dir=empty_cache)

    assert type(zoo.target_model) is type(loaded.target_model) is TableClassifier
    assert torch.equal(draw(loaded).logits(rows(3)), draw(pipe).logits(rows(3)))


def test_class_defined_twice_is_the_latest(tmp_path):
    class AgainConfig(TableConfig):
        model_type = "test_again"

    def define() -> type[PreTrainedModel]:
        return type("AgainClassifier", (TableClassifier,), {"config_class": AgainConfig})

    first = define()
    record(first(AgainConfig(num_labels=3)).eval()).save(tmp_path)
    second = define()

    assert type(load_checkpoints(tmp_path).target_model) is second


def test_target_of_another_task_is_loaded_as_the_class_it_was_saved_as(tmp_path):
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = BertForSequenceClassification(config).eval()
    recorder = CheckpointRecorder(model, "head")
    recorder.record(0)
    recorder.checkpoints().save(tmp_path)

    loaded = load_checkpoints(tmp_path).target_model

    average = build_network(model, recorder.processor, recorder.checkpoints().zoo.parameters[0])
    ids = torch.arange(6).view(2, 3)
    assert type(loaded) is BertForSequenceClassification
    assert torch.equal(loaded(ids).logits, average(ids).logits)


def test_network_whose_output_has_no_logits_is_named():
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = BertModel(config).eval()
    processor = make_processor(model, "pooler.*")

    with pytest.raises(ValueError, match=r"BertModel returns a BaseModelOutput\w* without logits.*with a head"):
        network_logits(
            model, processor, torch.zeros(2, processor.parameter_dim), {"input_ids": torch.ones(1, 3).int()}
        )
