"""Adapters are recorded, generated, and saved as PEFT adapters of the base network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from conftest import build
from huggingface_hub import hf_hub_download
from texts import CLASSES, build_bert, texts
from torch import nn
from transformers import PreTrainedModel

from pdiff_hf import (
    AdaptedModel,
    CheckpointRecorder,
    Checkpoints,
    LayoutError,
    PDiffPipeline,
    TensorData,
    TensorSplit,
    audit,
    build_network,
    fit,
    load_checkpoints,
    make_processor,
    network_logits,
)
from pdiff_hf.data.inputs import Inputs, forward
from pdiff_hf.loops import seeded
from pdiff_hf.targets.symmetries import Symmetries


def vit() -> tuple[PreTrainedModel, Inputs]:
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return build("vit"), images


def bert() -> tuple[PreTrainedModel, Inputs]:
    return build_bert(), texts(6)


LORA_VIT = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
LORA_BERT = peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_dropout=0.1, target_modules=["query", "value"])
DORA_BERT = peft.LoraConfig(task_type="SEQ_CLS", r=2, use_dora=True, target_modules=["dense"])
BIAS_BERT = peft.LoraConfig(task_type="SEQ_CLS", r=2, bias="all", target_modules=["query", "value"])
OWN_BIAS_BERT = peft.LoraConfig(task_type="SEQ_CLS", r=2, bias="lora_only", target_modules=["query", "value"])
VERA_BERT = peft.VeraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
IA3_BERT = peft.IA3Config(task_type="SEQ_CLS", target_modules=["key", "value"], feedforward_modules=[])
KINDS: dict[str, tuple[Callable, peft.PeftConfig, str]] = {
    "vit-lora": (vit, LORA_VIT, "mine"),
    "bert-lora": (bert, LORA_BERT, "default"),
    "bert-dora": (bert, DORA_BERT, "default"),
    "bert-ia3": (bert, IA3_BERT, "default"),
    "bert-lora-and-all-biases": (bert, BIAS_BERT, "default"),
    "bert-lora-and-its-biases": (bert, OWN_BIAS_BERT, "default"),
    "bert-vera": (bert, VERA_BERT, "default"),
}


def adapt(kind: str) -> tuple[peft.PeftModel, Inputs]:
    """Returns an adapted network and inputs for it."""
    make_base, config, name = KINDS[kind]
    base, inputs = make_base()
    with seeded(1):
        return peft.get_peft_model(base, peft.get_peft_config(config.to_dict()), adapter_name=name), inputs


def record(model: peft.PeftModel, inputs: Inputs, subset: str = "adapter") -> Checkpoints:
    """Trains the adapter and records each step."""
    recorder = CheckpointRecorder(model, subset)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    model.train()
    with seeded(2):
        for step in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(forward(model, inputs).logits, torch.arange(6) % CLASSES).backward()
            optimizer.step()
            recorder.record(step)
    return recorder.checkpoints()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bert-lora"])
def test_drawn_adapter_is_a_peft_adapter_of_the_base(kind, tiny_recipe, tmp_path):
    model, inputs = adapt(kind)

    record(model, inputs).save(tmp_path / "zoo")
    fit(load_checkpoints(tmp_path / "zoo"), tiny_recipe).save_pretrained(tmp_path / "pipeline")
    pipe = PDiffPipeline.from_pretrained(tmp_path / "pipeline")
    out = pipe(2, generator=torch.Generator().manual_seed(0))
    out.save_pretrained(tmp_path / "drawn")

    logits = out.logits(inputs)
    assert type(pipe.target_model) is AdaptedModel
    for i in range(2):
        base, _ = KINDS[kind][0]()
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "drawn" / f"{i:05d}").eval()
        with torch.no_grad():
            assert torch.allclose(forward(loaded, inputs).logits, logits[i], atol=1e-5)
            assert torch.allclose(forward(out.models[i], inputs).logits, logits[i], atol=1e-5)
    assert not torch.allclose(logits[0], logits[1], atol=1e-5)
    written = sorted(path.name for path in (tmp_path / "drawn" / "00000").iterdir())
    assert written == ["adapter_config.json", "adapter_model.safetensors", "provenance.json"]


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_is_what_peft_trains_and_wrapping_changes_nothing(kind, tmp_path):
    model, _ = adapt(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    target = AdaptedModel.wrap(model)

    trained = [name for name, parameter in target.named_parameters() if parameter.requires_grad]
    assert 0 < len(trained) < len(list(target.parameters()))
    assert target.adapter_tensors() == trained == make_processor(target, "adapter").names
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter is target.get_parameter(f"peft_model.{n}") for n, parameter in model.named_parameters())
    target.save_pretrained(tmp_path)
    assert set(AdaptedModel.wrap(model.requires_grad_(False)).adapter_tensors()) >= set(trained)  # as PEFT loads it
    assert AdaptedModel.from_pretrained(tmp_path).adapter_tensors() == trained
    assert target.config.num_labels == model.get_base_model().config.num_labels


def test_adapter_is_chosen_by_patterns_too():
    names = CheckpointRecorder(adapt("vit-lora")[0], "*lora_*").processor.names

    assert len(names) == 2 * 2 * 2  # layers, query and value, A and B; without the head
    assert all("lora_" in name for name in names)


def test_trunk_is_the_base_and_is_computed_as_in_plain_passes(random_vectors):
    model, inputs = adapt("bert-lora")
    target = AdaptedModel.wrap(model.eval())
    processor = make_processor(target, "adapter")
    parameters = random_vectors(target, processor, 4)

    logits = network_logits(target, processor, parameters, inputs)

    networks = [build_network(target, processor, vector) for vector in parameters]
    with torch.no_grad():
        assert torch.allclose(logits, torch.stack([forward(n, inputs).logits for n in networks]), atol=1e-5)
    embedding = "peft_model.base_model.model.bert.embeddings.word_embeddings.weight"
    assert len({network.get_parameter(embedding).data_ptr() for network in networks}) == 1


def test_saved_target_names_the_base_but_no_folder_of_this_machine(tmp_path):
    base, _ = vit()
    base.save_pretrained(tmp_path / "base")
    for name, expected in (("someone/base", "someone/base"), (str(tmp_path / "base"), None)):
        model = type(base).from_pretrained(tmp_path / "base")
        model.name_or_path = name

        target = AdaptedModel.wrap(peft.get_peft_model(model, peft.get_peft_config(LORA_VIT.to_dict())))
        target.save_pretrained(tmp_path / "target")
        AdaptedModel.from_pretrained(tmp_path / "target").save_adapter(tmp_path / "adapter")

        adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == expected
        assert str(tmp_path) not in (tmp_path / "target" / "config.json").read_text()


def test_networks_without_one_peft_adapter_are_refused(tiny_vit):
    with pytest.raises(LayoutError, match="ViTForImageClassification has no adapter; pass the result"):
        CheckpointRecorder(tiny_vit, "adapter")

    model, _ = adapt("bert-lora")
    model.add_adapter("second", peft.get_peft_config(LORA_BERT.to_dict()))
    with pytest.raises(LayoutError, match=r"has the adapters \['default', 'second'\], but a target can have only one"):
        CheckpointRecorder(model, "adapter")

    model, _ = adapt("bert-lora")
    model.get_base_model().bert.embeddings.LayerNorm.requires_grad_(True)
    with pytest.raises(LayoutError, match=r"PEFT does not save .*LayerNorm\.weight' .*modules_to_save"):
        CheckpointRecorder(model, "adapter")

    tiny_vit._hf_peft_config_loaded = True  # set by add_adapter, which requires a newer PEFT than the installed one
    with pytest.raises(LayoutError, match="its own add_adapter"):
        CheckpointRecorder(tiny_vit, "*lora_*")


def test_directions_of_a_lora_may_be_permuted_and_rescaled():
    model, inputs = adapt("bert-lora")
    vectors = record(model, inputs).zoo.parameters
    target = AdaptedModel.wrap(model.eval())
    processor = make_processor(target, "adapter")

    symmetries = Symmetries(target, processor, vectors[-1], inputs)

    pairs = [layer for layer in symmetries.layers if "lora_A" in layer.incoming[0] and "lora_B" in layer.outgoing[0]]
    assert len(pairs) == 4
    assert all(layer.rescalable for layer in pairs)


def test_adapters_are_audited(tiny_recipe):
    model, inputs = adapt("bert-lora")
    checkpoints = record(model, inputs)
    pipe = fit(checkpoints, tiny_recipe)
    split = TensorSplit(dict(texts(20, seed=5)), torch.arange(20) % CLASSES)

    answer = audit(
        pipe(4).parameters,
        checkpoints.zoo.parameters,
        runs=checkpoints.zoo.run,
        steps=checkpoints.zoo.step,
        processor=pipe.processor,
        model=pipe.target_model,
        images=TensorData(split, split, split, ["a", "b", "c"]),
        num_baseline_models=3,
    )

    assert answer.networks["samples"]["samples"].scores["test"].shape == (4,)


def test_adapters_go_over_the_hub(tiny_recipe, hub, repo_id, empty_cache):
    model, inputs = adapt("bert-lora")
    pipe = fit(record(model, inputs), tiny_recipe)

    pipe.push_to_hub(repo_id, token="hf_alice")
    loaded = PDiffPipeline.from_pretrained(repo_id, token="hf_alice", cache_dir=empty_cache)
    out = loaded(2, generator=torch.Generator().manual_seed(0))
    out.push_to_hub(f"{repo_id}-drawn", token="hf_alice")

    drawn = peft.PeftModel.from_pretrained(
        bert()[0], f"{repo_id}-drawn", subfolder="00001", token="hf_alice", cache_dir=empty_cache
    ).eval()
    assert torch.allclose(forward(drawn, inputs).logits, out.logits(inputs)[1], atol=1e-5)
    card = Path(hf_hub_download(f"{repo_id}-drawn", "README.md", token="hf_alice", cache_dir=empty_cache)).read_text()
    assert "library_name: peft" in card
    assert f'PeftModel.from_pretrained(base, "{repo_id}-drawn", subfolder="00000")' in card
