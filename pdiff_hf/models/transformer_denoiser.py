"""The unit denoiser: a transformer over unit tokens, with messages along the edges between units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_1d import UNet1DOutput
from torch import nn

from .condition_embedding import ConditionEmbedding


def zero_init(layer: nn.Linear) -> nn.Linear:
    """Sets the weights of a layer to zero, so that what it adds is nothing when training starts."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class EdgeMessages(nn.Module):
    """Messages between two groups of units along the edges e (target, source, feature) that join them.

    As a network's own forward and backward pass go along its weights: for each feature f, with h the normalized hidden
    states and N the numbers of units,
    `target += O sum_s e_tsf A_f h_s / sqrt(N_source)` and `source += O' sum_t e_tsf A'_f h_t / sqrt(N_target)`.
    """

    def __init__(self, width: int, features: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.forward_in = nn.Linear(width, features * rank, bias=False)  # A
        self.forward_out = zero_init(nn.Linear(features * rank, width, bias=False))  # O
        self.backward_in = nn.Linear(width, features * rank, bias=False)  # A'
        self.backward_out = zero_init(nn.Linear(features * rank, width, bias=False))  # O'

    def forward(
        self, source: torch.Tensor, target: torch.Tensor, edges: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what is added to `source` `(n, N_source, width)` and to `target` `(n, N_target, width)`.

        `edges` are `(n, features, N_target, N_source)`.
        """
        ahead = self.forward_in(self.norm(source)).unflatten(-1, (-1, self.rank))  # (n, N_source, features, rank)
        back = self.backward_in(self.norm(target)).unflatten(-1, (-1, self.rank))  # (n, N_target, features, rank)
        ahead = edges @ ahead.transpose(1, 2) / source.shape[1] ** 0.5  # (n, features, N_target, rank)
        back = edges.mT @ back.transpose(1, 2) / target.shape[1] ** 0.5  # (n, features, N_source, rank)
        to_target = self.forward_out(ahead.transpose(1, 2).flatten(2))  # (n, N_target, width)
        to_source = self.backward_out(back.transpose(1, 2).flatten(2))  # (n, N_source, width)
        return to_source, to_target


class EdgeOutput(nn.Module):
    """Reads the prediction for each edge out of its two units: `(Q h_t) · (K h_s) / sqrt(rank) + s(time) e_ts`."""

    def __init__(self, width: int, features: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.query = zero_init(nn.Linear(width, features * rank))
        self.key = nn.Linear(width, features * rank)
        self.skip = zero_init(nn.Linear(width, features))

    def forward(
        self, source: torch.Tensor, target: torch.Tensor, edges: torch.Tensor, time: torch.Tensor
    ) -> torch.Tensor:
        """Returns `(n, features, N_target, N_source)`; the arguments are those of `EdgeMessages`, and `(n, width)`."""
        query = self.query(target).unflatten(-1, (-1, self.rank)).transpose(1, 2)  # (n, features, N_target, rank)
        key = self.key(source).unflatten(-1, (-1, self.rank)).transpose(1, 2)  # (n, features, N_source, rank)
        return query @ key.mT / self.rank**0.5 + self.skip(time)[:, :, None, None] * edges


class TransformerBlock(nn.Module):
    """Attention and an MLP, each scaled, shifted and gated by the time, with gates that start at zero.

    The adaLN-Zero block of DiT (Peebles & Xie, arXiv 2212.09748, section 3.2).
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zero_init(nn.Linear(width, 6 * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_in = nn.Linear(width, mlp_ratio * width)
        self.mlp_out = nn.Linear(mlp_ratio * width, width)

    def forward(self, hidden: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """`hidden` is `(n, tokens, width)`, `time` `(n, width)`."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(time)[:, None].chunk(6, dim=-1)
        qkv = self.qkv(self.norm1(hidden) * (1 + scale1) + shift1)  # (n, tokens, 3 * width)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        # Written out: on CPUs, torch's own attention is slow in bfloat16, slower than all the rest of a training step.
        weights = (query @ key.mT / key.shape[-1] ** 0.5).softmax(-1)  # (n, heads, tokens, tokens)
        attended = weights.to(value.dtype) @ value  # (n, heads, tokens, width / heads)
        hidden = hidden + gate1 * self.attention_out(attended.transpose(1, 2).flatten(2))
        inner = nn.functional.gelu(self.mlp_in(self.norm2(hidden) * (1 + scale2) + shift2))
        return hidden + gate2 * self.mlp_out(inner)  # (n, tokens, width)


class TransformerParameterDenoiser(ModelMixin, ConfigMixin):
    """A transformer on the latents `(n, latent_dim)` of a unit autoencoder, one token a unit.

    A latent is the concatenation, in this order, of the codes of each group of units, `(count, codes)`, and of each
    set of edges between two groups, `(count of target, count of source, features)`, all row-major. What belongs to no
    unit is a group of one token. Units exchange messages along the edges before each attention, and the prediction for
    an edge is read out of its two units.

    Without `positions`, permuting the units of a group with their edges permutes the prediction and changes nothing
    else: networks need not be aligned to one another. All outputs are initialized to zero; in v-prediction, training
    starts from the exact denoiser of a standard Gaussian (see `MLPParameterDenoiser`).

    Raises:
        ValueError: If the groups and edges do not add up to `latent_dim`, an edge names no group, or the heads do not
            divide the width.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int,  # length of a latent
        token_groups: Sequence[Sequence[int]],  # [count, codes] of each group of units
        token_edges: Sequence[Sequence[int]] = (),  # [source group, target group, features] of each set of edges
        width: int = 128,  # of a token's hidden state
        num_blocks: int = 4,  # transformer blocks
        num_heads: int = 4,  # attention heads; they divide the width
        mlp_ratio: int = 3,  # hidden units of a block's MLP, in widths
        edge_rank: int = 32,  # numbers that a message carries for each feature of an edge
        positions: bool = False,  # learn an embedding of each token's place, for zoos of aligned networks
        condition_dim: int = 0,  # length of a condition; 0 for none
    ) -> None:
        super().__init__()
        groups = [(count, codes) for count, codes in token_groups]
        self._require_sizes(latent_dim, groups, token_edges, width, num_heads)
        self.token_sizes = [count * codes for count, codes in groups]
        self.edge_shapes = [(groups[target][0], groups[source][0], f) for source, target, f in token_edges]
        self.edge_sizes = [math.prod(shape) for shape in self.edge_shapes]
        self.time_embedding = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.condition_embedding = ConditionEmbedding(condition_dim, width) if condition_dim else None
        self.inputs = nn.ModuleList(nn.Linear(codes, width) for _, codes in groups)
        tokens = sum(count for count, _ in groups)
        self.position_embedding = nn.Parameter(0.02 * torch.randn(tokens, width)) if positions else None
        self.blocks = nn.ModuleList(TransformerBlock(width, num_heads, mlp_ratio) for _ in range(num_blocks))
        self.messages = nn.ModuleList(
            nn.ModuleList(EdgeMessages(width, features, edge_rank) for _, _, features in token_edges)
            for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.outputs = nn.ModuleList(zero_init(nn.Linear(width, codes)) for _, codes in groups)
        self.edge_outputs = nn.ModuleList(EdgeOutput(width, features, edge_rank) for _, _, features in token_edges)

    @staticmethod
    def _require_sizes(
        latent_dim: int,
        groups: Sequence[tuple[int, int]],
        token_edges: Sequence[Sequence[int]],
        width: int,
        num_heads: int,
    ) -> None:
        if any(not 0 <= group < len(groups) for edge in token_edges for group in edge[:2]):
            raise ValueError(f"token_edges={list(token_edges)} name groups that are not among the {len(groups)}.")
        described = sum(count * codes for count, codes in groups)
        described += sum(groups[target][0] * groups[source][0] * features for source, target, features in token_edges)
        if described != latent_dim:
            raise ValueError(
                f"token_groups and token_edges describe {described} numbers, but latent_dim is {latent_dim}; take all "
                "three from the configuration of the unit autoencoder."
            )
        if width % num_heads or width % 2:
            raise ValueError(f"width={width} must be even and a multiple of num_heads={num_heads}.")

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        condition: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet1DOutput | tuple[torch.Tensor]:
        """Predicts the noise or the velocity, as the scheduler's `prediction_type` states, of noisy latents.

        `sample` is `(n, latent_dim)`, `timestep` one for all latents or `(n,)`. `condition` is `(n, condition_dim)`;
        without one, and for rows of NaN, the prediction is unconditional.
        """
        # 1. Embed the time and the condition, and split a latent into tokens and edges.
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        time = self.time_embedding(get_timestep_embedding(timesteps, self.config.width).to(sample.dtype))  # (n, width)
        pieces = sample.split([*self.token_sizes, *self.edge_sizes], dim=1)
        counts = [count for count, _ in self.config.token_groups]
        codes = [piece.unflatten(1, (count, -1)) for piece, count in zip(pieces, counts, strict=False)]
        edges = [
            piece.unflatten(1, shape).permute(0, 3, 1, 2)  # (n, features, N_target, N_source)
            for piece, shape in zip(pieces[len(counts) :], self.edge_shapes, strict=True)
        ]
        hidden = torch.cat([layer(code) for layer, code in zip(self.inputs, codes, strict=True)], dim=1)
        if self.position_embedding is not None:
            hidden = hidden + self.position_embedding  # (n, tokens, width)
        if self.condition_embedding is not None:
            embedded = self.condition_embedding(condition, sample)  # (n, width)
            time, hidden, counts = time + embedded, torch.cat([hidden, embedded[:, None]], dim=1), [*counts, 1]
        time = nn.functional.silu(time)

        # 2. In each block, units hear from those that they are joined to, then from all.
        for block, messages in zip(self.blocks, cast(Iterable[nn.ModuleList], self.messages), strict=True):
            units = list(hidden.split(counts, dim=1))  # each (n, count, width)
            for (source, target, _), message, edge in zip(self.config.token_edges, messages, edges, strict=True):
                to_source, to_target = message(units[source], units[target], edge)
                units[source] = units[source] + to_source
                units[target] = units[target] + to_target
            hidden = block(torch.cat(units, dim=1), time)  # (n, tokens, width)

        # 3. Read the prediction for tokens out of units, and for edges out of pairs of them.
        units = list(self.norm(hidden).split(counts, dim=1))
        predicted = [layer(unit).flatten(1) for layer, unit in zip(self.outputs, units, strict=False)]
        for (source, target, _), layer, edge in zip(self.config.token_edges, self.edge_outputs, edges, strict=True):
            read = layer(units[source], units[target], edge, time)  # (n, features, N_target, N_source)
            predicted.append(read.permute(0, 2, 3, 1).flatten(1))
        joined = torch.cat(predicted, dim=1)  # (n, latent_dim)
        return UNet1DOutput(sample=joined) if return_dict else (joined,)
