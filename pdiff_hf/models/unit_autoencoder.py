"""The unit autoencoder: whitened codes of hidden units and of the weights between them, fitted in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

RIDGE = 1e-3  # added to a metric, relative to its mean eigenvalue
RANK_TOLERANCE = 1e-12  # share of the largest variance below which a direction does not vary


class UnitCodes(nn.Module):
    """Principal codes that all units of a group, or all edges between two groups, share."""

    mean: torch.Tensor
    encoder: torch.Tensor
    decoder: torch.Tensor

    def __init__(self, features: int, codes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("encoder", torch.zeros(features, codes))
        self.register_buffer("decoder", torch.zeros(codes, features))

    def encode(self, numbers: torch.Tensor) -> torch.Tensor:
        """`(n, count, features)` to `(n, count, codes)`."""
        return (numbers - self.mean) @ self.encoder

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """`(n, count, codes)` to `(n, count, features)`."""
        return self.mean + codes @ self.decoder


class UnitParameterAutoencoder(ModelMixin, ConfigMixin):
    """Maps parameter vectors `(n, parameter_dim)` to codes of their hidden units `(n, latent_dim)` and back.

    A vector is cut into tokens, one per hidden unit and one for the rest, which belongs to none, and into edges, the
    weights between two groups of units. A latent holds the codes of the units, group after group, then those of the
    edges, all row-major: permuted units of a vector are permuted tokens of its latent. The codes of a group are
    principal components pooled over units and checkpoints: over the zoo they have mean 0 and variance 1. With a metric
    they are the components of what changes the network's outputs, not of the weights as such. Components that are left
    out are decoded as their mean, so that a latent stands for one network.

    Rescalings and shifts of units are not undone here: a zoo is brought to canonical form before it is fitted. What
    does not vary has one code, which is always 0. Statistics stay float32 under any dtype conversion.
    """

    _keep_in_fp32_modules = ["codes", "latent_weights"]
    needs_training = False  # `from_zoo` fits all of it
    codes: Any  # of each part, `UnitCodes`

    @register_to_config
    def __init__(
        self,
        parameter_dim: int,  # length D of a parameter vector
        latent_dim: int,  # all codes of all tokens and edges
        token_groups: Sequence[Sequence[int]],  # [tokens, codes of each] of each group; the rest is the last one
        token_features: Sequence[int],  # numbers of a vector in each token of each group
        token_edges: Sequence[Sequence[int]] = (),  # [source group, target group, codes of each edge]
        edge_features: Sequence[int] = (),  # numbers of a vector in each edge
    ) -> None:
        super().__init__()
        tokens = [count for count, _ in token_groups]
        # Parts are the tokens of a group, or the edges between two: what `order` lists one after the other.
        self.counts = tokens + [tokens[source] * tokens[target] for source, target, _ in token_edges]
        self.features = [*token_features, *edge_features]
        codes = [size for _, size in token_groups] + [size for *_, size in token_edges]
        self.lengths = [count * size for count, size in zip(self.counts, codes, strict=True)]  # in a latent
        numbers = [count * size for count, size in zip(self.counts, self.features, strict=True)]
        if (sum(numbers), sum(self.lengths)) != (parameter_dim, latent_dim):
            raise ValueError(
                f"Tokens and edges have {sum(numbers)} numbers and {sum(self.lengths)} codes in all, but "
                f"parameter_dim is {parameter_dim} and latent_dim is {latent_dim}."
            )
        self.codes = nn.ModuleList(UnitCodes(*sizes) for sizes in zip(self.features, codes, strict=True))
        self.register_buffer("order", torch.arange(parameter_dim))  # entries of a vector, part after part
        self.register_buffer("latent_weights", torch.ones(latent_dim))  # standard deviations relative to their mean

    @classmethod
    @torch.no_grad()
    def from_zoo(
        cls,
        parameters: torch.Tensor,
        sizes: Sequence[int] | None = None,
        order: torch.Tensor | None = None,
        groups: Sequence[Sequence[int]] | None = None,
        edges: Sequence[Sequence[int]] = (),
        metrics: Sequence[torch.Tensor | None] | None = None,
        explained_variance: float = 0.9998,
    ) -> UnitParameterAutoencoder:
        """Fits the codes of a zoo, which should be in canonical form.

        Args:
            parameters: The zoo's parameter vectors, `(n, D)`.
            sizes: Lengths of the tensors of a vector; codes do not depend on them.
            order: The entries of a vector, `(D,)` int64, in the order of tokens (group after group, unit after unit)
                and edges (target after target, source after source); by default as they are.
            groups: `[units, numbers of each]` of each group, the rest last; by default a vector is all rest.
            edges: `[source group, target group, numbers of each]` of each two groups that weights lead between.
            metrics: Of each group and then each pair of groups, what a change of its numbers does, `(numbers,
                numbers)` symmetric and positive semidefinite; None for plain variance.
            explained_variance: Share of the variance, in that metric, that the codes of each part keep, in (0, 1].

        Raises:
            ValueError: If all vectors are equal, or the groups and edges do not have their length.
        """
        if (parameters == parameters[0]).all():
            raise ValueError(
                f"All {len(parameters)} parameter vectors are equal; a generator needs checkpoints that differ."
            )
        length = parameters.shape[1]
        groups = [[1, length]] if groups is None else groups
        order = torch.arange(length) if order is None else order
        parts = [tuple(group) for group in groups]
        parts += [(groups[source][0] * groups[target][0], size) for source, target, size in edges]
        described = sum(count * size for count, size in parts)
        if not described == len(order) == length:
            raise ValueError(
                f"Groups and edges describe {described} numbers, and their order {len(order)}, but the vectors have "
                f"{length}; describe all of them, those of no unit as a last group of one unit."
            )
        pieces = parameters[:, order].split([count * size for count, size in parts], dim=1)
        fitted = [
            _principal_codes(piece.reshape(len(piece) * count, size), metric, explained_variance)
            for piece, (count, size), metric in zip(pieces, parts, metrics or [None] * len(parts), strict=True)
        ]
        found = [len(std) for *_, std in fitted]
        autoencoder = cls(
            parameter_dim=length,
            latent_dim=sum(count * codes for (count, _), codes in zip(parts, found, strict=True)),
            token_groups=[[count, codes] for (count, _), codes in zip(groups, found, strict=False)],
            token_features=[size for _, size in groups],
            token_edges=[[*edge[:2], codes] for edge, codes in zip(edges, found[len(groups) :], strict=True)],
            edge_features=[size for *_, size in edges],
        )
        autoencoder.order.copy_(order)
        for codes, (mean, encoder, decoder, _) in zip(autoencoder.codes, fitted, strict=True):
            codes.mean.copy_(mean)
            codes.encoder.copy_(encoder)
            codes.decoder.copy_(decoder)
        weights = torch.cat([std.repeat(count) for (count, _), (*_, std) in zip(parts, fitted, strict=True)])
        autoencoder.latent_weights.copy_(weights / weights.mean())
        return autoencoder.eval()

    def to(self, *args: Any, **kwargs: Any) -> UnitParameterAutoencoder:
        """Moves to a device; a dtype is ignored, since generated weights must not be rounded."""
        device, _, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        return self if device is None else super().to(device=device, non_blocking=non_blocking)

    def half(self) -> UnitParameterAutoencoder:
        """Does nothing, as `to` does with a dtype."""
        return self

    bfloat16 = half

    @apply_forward_hook
    def encode(self, sample: torch.Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[torch.Tensor]:
        """Encodes vectors `(n, D)` as standardized latents `(n, latent_dim)`."""
        lengths = [count * size for count, size in zip(self.counts, self.features, strict=True)]
        pieces = sample.float()[:, self.order].split(lengths, dim=1)
        coded = [
            codes.encode(piece.unflatten(1, (count, size))).flatten(1)  # (n, count * codes)
            for codes, piece, count, size in zip(self.codes, pieces, self.counts, self.features, strict=True)
        ]
        latents = torch.cat(coded, dim=1)
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Decodes standardized latents `(n, latent_dim)` as float32 vectors `(n, D)`."""
        pieces = latents.float().split(self.lengths, dim=1)
        decoded = [
            codes.decode(piece.unflatten(1, (count, -1))).flatten(1)  # (n, count * features)
            for codes, piece, count in zip(self.codes, pieces, self.counts, strict=True)
        ]
        ordered = torch.cat(decoded, dim=1)
        sample = torch.zeros_like(ordered).index_copy(1, self.order, ordered)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Reconstructs vectors `(n, D)`."""
        return self.decode(self.encode(sample).latents, return_dict=return_dict)


def _principal_codes(
    numbers: torch.Tensor, metric: torch.Tensor | None, explained_variance: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns mean `(F,)`, encoder `(F, k)`, decoder `(k, F)` and standard deviations `(k,)` of codes of `(m, F)`.

    With the metric M, codes are principal components of M^(1/2) (x - mean), divided by their standard deviations.
    """
    mean = numbers.double().mean(0)
    centered, (count, features) = numbers.double() - mean, numbers.shape
    root = None
    if metric is not None and metric.any():
        ridge = RIDGE * metric.double().diagonal().mean() * torch.eye(features, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(metric.double() + ridge)
        root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T
        centered = centered @ root
    if not centered.any():  # nothing varies: one code, which is 0
        return mean, torch.zeros(features, 1), torch.zeros(1, features), torch.zeros(1)
    if count >= features:
        variance, directions = torch.linalg.eigh(centered.T @ centered / (count - 1))
        variance, directions = variance.flip(0).clamp(min=0), directions.T.flip(0)
    else:
        _, singular, directions = torch.linalg.svd(centered, full_matrices=False)
        variance = singular**2 / (count - 1)
    share = variance.cumsum(0) / variance.sum()
    rank = int((variance > RANK_TOLERANCE * variance[0]).sum())
    kept = min(rank, int((share < explained_variance).sum()) + 1)
    std, directions = variance[:kept].sqrt(), directions[:kept]
    encoder, decoder = directions.T / std, std[:, None] * directions
    return (mean, encoder, decoder, std) if root is None else (mean, root @ encoder, decoder @ inverse, std)
