"""Networks as latents, latents as networks, and the way between two."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from pdiff_hf import LayoutError, NonFiniteParametersError, PDiffPipeline
from pdiff_hf.pipelines.latent_space import slerp


def draw(pipe: PDiffPipeline, output_type: str = "model"):
    return pipe(3, generator=torch.Generator().manual_seed(0), output_type=output_type)


# Encoding and decoding


def test_decoded_latents_of_a_draw_are_its_networks(tiny_pipeline: PDiffPipeline, random_images, tmp_path):
    out = tiny_pipeline.decode(draw(tiny_pipeline, "latent").latents)

    expected = draw(tiny_pipeline)
    assert type(out) is type(expected)
    assert torch.equal(out.parameters, expected.parameters)
    inputs = random_images(tiny_pipeline.target_model, 2)
    assert torch.equal(out.logits(inputs), expected.logits(inputs))
    out.save_pretrained(tmp_path)
    assert "decoded from latents that were given" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_networks_a_list_of_them_and_vectors_are_encoded_alike(tiny_pipeline: PDiffPipeline):
    out, latents = draw(tiny_pipeline), draw(tiny_pipeline, "latent").latents

    for networks in (out.models, list(out.models), out.parameters):
        torch.testing.assert_close(tiny_pipeline.encode(networks), latents, atol=1e-3, rtol=1e-3)
    one = tiny_pipeline.encode(out.models[1])
    assert one.shape == (1, 4)
    torch.testing.assert_close(one[0], latents[1], atol=1e-3, rtol=1e-3)
    assert tiny_pipeline.encode(out.models.build(1, share_trunk=False)).tolist() == one.tolist()


def test_a_network_of_another_class_is_not_encoded(tiny_pipeline: PDiffPipeline, tiny_vit: PreTrainedModel):
    with pytest.raises(LayoutError, match="is of MLPForImageClassification networks, but a ViTForImageClassification"):
        tiny_pipeline.encode(tiny_vit)
    with pytest.raises(LayoutError, match="but a str was given"):
        tiny_pipeline.encode(["a/network"])


def test_a_network_with_another_trunk_is_not_encoded(tiny_pipeline: PDiffPipeline):
    network = draw(tiny_pipeline).models.build(0, share_trunk=False)
    name, trunk = next((n, p) for n, p in network.named_parameters() if n not in tiny_pipeline.processor.names)
    with torch.no_grad():
        trunk += 1

    with pytest.raises(LayoutError, match=f"'{name}' of the network is not that of the target"):
        tiny_pipeline.encode(network)


def test_a_network_in_half_precision_is_encoded(tiny_pipeline: PDiffPipeline):
    network = draw(tiny_pipeline).models.build(0)

    latents = tiny_pipeline.encode(copy.deepcopy(network).to(torch.bfloat16))

    torch.testing.assert_close(latents, tiny_pipeline.encode(network), atol=0.2, rtol=0.1)


def test_vectors_and_latents_of_another_shape_are_refused(tiny_pipeline: PDiffPipeline):
    with pytest.raises(LayoutError, match="has 90 numbers, but the given one has shape"):
        tiny_pipeline.encode(torch.zeros(2, 91))
    with pytest.raises(LayoutError, match=r"Vectors are \(n, D\), but those given are \(90,\); pass vector\[None\]"):
        tiny_pipeline.encode(torch.zeros(90))
    with pytest.raises(NonFiniteParametersError):
        tiny_pipeline.encode(torch.full((1, 90), torch.nan))
    with pytest.raises(ValueError, match=r"latents must have shape \(2, 4\), but have \(2, 5\)"):
        tiny_pipeline.decode(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"latents must be a torch\.Tensor, but are a list"):
        tiny_pipeline.decode([[0.0] * 4])


# Interpolating


def test_an_interpolation_leads_from_one_network_to_the_other(tiny_pipeline: PDiffPipeline):
    networks = draw(tiny_pipeline).models

    out = tiny_pipeline.interpolate(networks[0], networks[1], 5)

    assert out.parameters.shape == (5, 90)
    torch.testing.assert_close(out.parameters[[0, 4]], networks.parameters[:2], atol=1e-3, rtol=1e-3)
    between = (networks.parameters[0] - out.parameters).norm(dim=1)
    assert between.tolist() == sorted(between.tolist())
    latents = tiny_pipeline.encode(networks)
    again = tiny_pipeline.interpolate(latents[0], latents[1:2], 5)
    torch.testing.assert_close(again.parameters, out.parameters)


def test_the_ends_of_an_interpolation_are_latents_or_networks(tiny_pipeline: PDiffPipeline):
    latent = torch.ones(4)
    with pytest.raises(ValueError, match=r"latents must have shape \(4,\), but have \(5,\)"):
        tiny_pipeline.interpolate(latent, torch.ones(5), 3)
    with pytest.raises(ValueError, match="n must be at least 2"):
        tiny_pipeline.interpolate(latent, -latent, 1)


def test_slerp_keeps_the_length_of_vectors_and_their_angle():
    start, end = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    end = end * start.norm() / end.norm()

    points = slerp(start, end, torch.linspace(0, 1, 5))

    torch.testing.assert_close(points.norm(dim=1), start.norm().expand(5))
    angles = torch.cosine_similarity(points[1:], points[:-1], dim=1).acos()
    torch.testing.assert_close(angles, angles[:1].expand(4), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("end", [torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 0.0]), torch.zeros(2)])
def test_slerp_is_a_straight_line_where_no_angle_leads_the_way(end: torch.Tensor):
    start = torch.tensor([1.0, 0.0])

    points = slerp(start, end, torch.tensor([0.0, 0.5, 1.0]))

    torch.testing.assert_close(points, torch.stack([start, (start + end) / 2, end]))
