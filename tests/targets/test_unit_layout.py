"""The metric of units is that of what their numbers do to the logits."""

from __future__ import annotations

import torch
from torch.func import functional_call, jacrev

from pdiff_hf import MLPConfig, MLPForImageClassification, make_processor
from pdiff_hf.loops import seeded
from pdiff_hf.targets.symmetries import Symmetries
from pdiff_hf.targets.unit_layout import unit_layout, unit_metrics


def test_metrics_are_mean_squares_of_the_derivatives_of_centered_logits():
    with seeded(0):
        model = MLPForImageClassification(
            MLPConfig(image_size=2, num_channels=1, hidden_sizes=[3, 4], num_labels=3)
        ).eval()
    processor = make_processor(model, "full")
    generator = torch.Generator().manual_seed(0)
    zoo = 0.5 * torch.randn(150, processor.parameter_dim, generator=generator)
    images = torch.randn(8, 1, 2, 2, generator=generator)
    symmetries = Symmetries(model, processor, zoo[0], images)
    layout = unit_layout(symmetries)

    metrics = unit_metrics(model, symmetries, zoo, images)

    def logits(vector: torch.Tensor) -> torch.Tensor:
        values = functional_call(model, processor.unflatten(vector), (images,)).logits
        return (values - values.mean(-1, keepdim=True)).flatten()

    assert [count for count, _ in layout.groups] == [3, 4, 1]
    derivatives = torch.cat([jacrev(logits)(vector) for vector in zoo])  # (networks * images * classes, D)
    for metric, part in zip(metrics, layout.parts(derivatives), strict=True):
        rows = part.flatten(0, 1).double()
        expected = rows.T @ rows / (len(zoo) * len(images) * part.shape[1])
        assert metric is not None
        assert (metric - expected).norm() < 0.2 * expected.norm()
