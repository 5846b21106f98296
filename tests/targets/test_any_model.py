"""A network of a class that the package has never seen goes the whole way with patterns alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from pdiff_hf import CheckpointRecorder, Checkpoints, PDiffPipeline, build_network, fit, load_checkpoints
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


def test_unknown_class_goes_the_whole_way(tiny_recipe, tmp_path):
    model, batch = build_table(), rows(6)

    record(model).save(tmp_path / "zoo")
    checkpoints = load_checkpoints(tmp_path / "zoo", target_model=build_table())
    pipe = fit(checkpoints, tiny_recipe)
    pipe.save_pretrained(tmp_path / "pipeline")
    loaded = PDiffPipeline.from_pretrained(tmp_path / "pipeline")
    out, expected = (p(4, generator=torch.Generator().manual_seed(0)) for p in (loaded, pipe))

    assert type(loaded.target_model) is TableClassifier
    assert checkpoints.processor.parameter_dim == 12 * 12 + 12 + 12 * 3 + 3
    assert torch.equal(out.parameters, expected.parameters)
    logits = out.logits(batch)
    with torch.no_grad():
        plain = torch.stack([network(**batch).logits for network in out.models])
    assert logits.shape == (4, 6, 3)
    assert torch.allclose(logits, plain, atol=1e-5)
    assert torch.equal(logits, expected.logits(batch))


def forget_class(folder: Path) -> None:
    """Leaves a saved target as it looks to a process that has not defined its class."""
    config = folder / "target_model" / "config.json"
    config.write_text(config.read_text().replace("TableClassifier", "ElsewhereClassifier"))


def test_target_is_handed_over_where_its_class_is_not_to_be_found(tiny_recipe, tmp_path):
    pipe = fit(record(build_table()), tiny_recipe)
    pipe.save_pretrained(tmp_path)
    forget_class(tmp_path)

    with pytest.raises(UnknownTargetError, match=r"is a ElsewhereClassifier of the type 'test_table'.*target_model="):
        PDiffPipeline.from_pretrained(tmp_path)
    loaded = PDiffPipeline.from_pretrained(tmp_path, target_model=pipe.target_model)

    assert loaded(2).logits(rows(3)).shape == (2, 3, 3)


def test_pipeline_names_no_module_of_the_users(tiny_recipe, tmp_path):
    pipe = fit(record(build_table()), tiny_recipe)

    for folder in (tmp_path / "first", tmp_path / "again"):
        pipe.save_pretrained(folder)
        index = json.loads((folder / "model_index.json").read_text())
        assert index["target_model"] == ["pdiff_hf", "AnyTargetModel"]
        pipe = PDiffPipeline.from_pretrained(folder)


def test_unknown_class_goes_over_the_hub(tiny_recipe, hub, repo_id, empty_cache):
    checkpoints = record(build_table())
    pipe = fit(checkpoints, tiny_recipe)

    checkpoints.push_to_hub(f"{repo_id}-zoo", token="hf_alice")
    pipe.push_to_hub(repo_id, token="hf_alice")
    zoo = load_checkpoints(f"{repo_id}-zoo", token="hf_alice", cache_dir=empty_cache)
    loaded = PDiffPipeline.from_pretrained(repo_id, token="hf_alice", cache_dir=empty_cache)
    out, expected = (p(2, generator=torch.Generator().manual_seed(0)) for p in (loaded, pipe))

    assert type(zoo.target_model) is type(loaded.target_model) is TableClassifier
    assert torch.equal(out.logits(rows(3)), expected.logits(rows(3)))


def test_class_defined_twice_is_the_latest(tmp_path):
    class AgainConfig(TableConfig):
        model_type = "test_again"

    def define() -> type[PreTrainedModel]:
        return type("AgainClassifier", (TableClassifier,), {"config_class": AgainConfig})

    first = define()
    record(first(AgainConfig(num_labels=3)).eval()).save(tmp_path)
    second = define()

    assert type(load_checkpoints(tmp_path).target_model) is second


def test_drawn_networks_of_an_unknown_class_are_saved_and_loaded_by_it(tiny_recipe, tmp_path):
    out = fit(record(build_table()), tiny_recipe)(2)

    out.save_pretrained(tmp_path / "drawn")
    loaded = TableClassifier.from_pretrained(tmp_path / "drawn" / "00001")

    assert torch.equal(loaded(**rows(3)).logits, out.models[1](**rows(3)).logits)


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


def test_target_that_is_not_to_be_found_is_named_in_a_sentence(tmp_path):
    record(build_table()).save(tmp_path)
    forget_class(tmp_path)

    with pytest.raises(UnknownTargetError, match=r"is a ElsewhereClassifier of the type 'test_table'.*target_model="):
        load_checkpoints(tmp_path)
