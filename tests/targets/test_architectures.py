"""The paper's architectures have the paper's sizes, and its subsets the paper's counts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel

from pdiff_hf import CollectionSettings, LayoutError, ParameterProcessor, load_images, make_processor
from pdiff_hf.targets.architectures import ARCHITECTURES, architecture_config
from pdiff_hf.zoo.settings import load_target

PAGE = (Path(__file__).parents[2] / "docs" / "targets.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\S+) \| [^|]+ \| `([^`]+)` \| ([\d,]+) \|$", PAGE, re.MULTILINE)


def build_on_meta(name: str, num_labels: int) -> PreTrainedModel:
    config = AutoConfig.for_model(**architecture_config(name), num_labels=num_labels)
    with torch.device("meta"):
        return AutoModelForImageClassification.from_config(config)


@pytest.mark.parametrize(
    ("name", "count", "last_norms"),
    [
        ("resnet18", 11_689_512, 2048),
        ("resnet50", 25_557_032, 5120),
        ("vit-tiny", 5_717_416, 768),
        ("vit-base", 86_567_656, 3072),
        ("convnext-tiny", 28_589_128, 3072),
        ("convnext-base", 88_591_464, 4096),
    ],
)
def test_architecture_and_last_norms_have_the_published_sizes(name, count, last_norms):
    model = build_on_meta(name, 1000)

    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert make_processor(model, "last_norms").parameter_dim == last_norms


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_counts_of_the_documentation_are_right(name):
    model = build_on_meta(name, 100)
    rows = [(subset.split(), int(count.replace(",", ""))) for row, subset, count in ROWS if row == name]

    assert len(rows) >= 4
    for subset, count in rows:
        assert make_processor(model, subset).parameter_dim == count, subset


def test_architecture_is_built_by_name_and_changed_by_single_values():
    images = load_images("digits", image_size=32)
    settings = CollectionSettings(
        architecture="vit-tiny", image_size=32, model_config='{"num_hidden_layers": 2, "patch_size": 8}'
    )

    first, again = load_target(settings, images), load_target(settings, images)

    config = first.config
    assert (config.hidden_size, config.num_hidden_layers, config.patch_size) == (192, 2, 8)
    assert (config.image_size, config.num_channels, config.num_labels) == (32, 1, 10)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert first(torch.zeros(1, 1, 32, 32)).logits.shape == (1, 10)


def test_unknown_architecture_is_refused_with_the_known_ones():
    settings = CollectionSettings(architecture="resnet19")

    with pytest.raises(ValueError, match=r"no architecture 'resnet19'.*resnet18, resnet50, vit-tiny"):
        load_target(settings, load_images("digits", image_size=8))


def test_missing_name_is_reported_with_the_versions(tiny_vit, tmp_path):
    make_processor(tiny_vit, "last_norms").save_pretrained(tmp_path)
    config = tmp_path / "processor_config.json"
    values = json.loads(config.read_text())
    values["names"] = [name.replace("vit.layers", "vit.encoder.layer") for name in values["names"]]
    config.write_text(json.dumps({**values, "transformers_version": "4.40.0"}))
    processor = ParameterProcessor.from_pretrained(tmp_path)
    sentence = rf"vit\.encoder\.layer.*transformers 4\.40\.0, but {re.escape(transformers.__version__)} is installed"

    with pytest.raises(LayoutError, match=sentence):
        processor.check_model(tiny_vit)
    with pytest.raises(LayoutError, match=sentence):
        processor.flatten(tiny_vit.state_dict())
    with pytest.raises(LayoutError, match=r"absent in this Linear.*the installed transformers .*a different network"):
        make_processor(tiny_vit, "last_norms").check_model(nn.Linear(2, 2))
