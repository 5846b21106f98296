"""From networks to latents and back, and along the way between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..targets.processing_parameters import LayoutError
from .checks import as_count, check_latents
from .drawn_networks import DrawnNetworks
from .pipeline_output import PDiffPipelineOutput, number_draws

Networks = nn.Module | Sequence[nn.Module] | torch.Tensor


class LatentSpaceMixin:
    """What a pipeline does without its denoiser: encoding, decoding and interpolating networks."""

    autoencoder: Any
    config: Any
    metrics: dict[str, Any] | None
    processor: Any
    target_model: PreTrainedModel
    _execution_device: torch.device
    _source: Any

    @torch.no_grad()
    def encode(self, networks: Networks) -> torch.Tensor:
        """Returns the standardized latents of networks, `(n, latent_dim)` float32.

        Of networks that the generator was fitted to, or drew, `decode` gives nearly the same ones back; of others it
        gives what the autoencoder can express.

        Args:
            networks: One network of the target's class and with its trunk, several, or vectors `(n, D)`.

        Raises:
            LayoutError: If a network is of another class, or differs from the target outside of the generated tensors;
                or vectors are of another length.
            NonFiniteParametersError: If a value is NaN or infinite.
        """
        if isinstance(networks, DrawnNetworks):
            networks = networks.parameters
        if isinstance(networks, nn.Module):
            networks = [networks]
        if not isinstance(networks, torch.Tensor):
            networks = torch.stack([self._vector(network) for network in networks])
        self.processor.check(networks)
        if networks.ndim != 2:
            raise LayoutError(f"Vectors are (n, D), but those given are {tuple(networks.shape)}; pass vector[None].")
        return self.autoencoder.encode(networks.to(self._execution_device).float()).latents

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> PDiffPipelineOutput:
        """Returns the networks of standardized latents `(n, latent_dim)`, as a call returns those that it draws.

        Latents come from `encode`, or from a call with `output_type="latent"`.

        Raises:
            ValueError: If they are not of that shape, or not finite.
            NonFiniteParametersError: If a parameter is NaN or infinite.
        """
        count = len(latents) if isinstance(latents, torch.Tensor) and latents.ndim else 1
        check_latents(latents, (count, self.autoencoder.config.latent_dim))
        parameters = self.autoencoder.decode(latents.to(self._execution_device).float()).sample  # (n, D)
        self.processor.check(parameters)
        provenance = number_draws(count, None, self._source, None, {"num_inference_steps": None, "temperature": None})
        return PDiffPipelineOutput(parameters=parameters, models=self._networks(parameters, provenance))

    def interpolate(self, a: nn.Module | torch.Tensor, b: nn.Module | torch.Tensor, n: int) -> PDiffPipelineOutput:
        """Returns n networks on the way from a to b, both included: of spherically interpolated latents.

        Args:
            a: A latent `(latent_dim,)`, or a network as `encode` takes it.
            b: The other end.
            n: How many, at least 2.

        Raises:
            ValueError: If n is less than 2, or an end is no latent and no network of this generator.
        """
        if as_count("n", n) < 2:
            raise ValueError("n must be at least 2, since both ends are included.")
        start, end = (self.encode(end)[0] if isinstance(end, nn.Module) else self._latent(end) for end in (a, b))
        return self.decode(slerp(start, end, torch.linspace(0, 1, n)))

    def _latent(self, latent: Any) -> torch.Tensor:
        flat = latent.flatten() if isinstance(latent, torch.Tensor) else latent
        check_latents(flat, (self.autoencoder.config.latent_dim,))
        return flat.float().to(self._execution_device)

    def _vector(self, network: Any) -> torch.Tensor:
        """Returns the generated tensors of a network as a vector `(D,)` on the CPU."""
        target = self.target_model
        if type(network) is not type(target):
            raise LayoutError(
                f"This generator is of {type(target).__name__} networks, but a {type(network).__name__} was given; "
                "pass a network of that class, several, or vectors (n, D)."
            )
        given, dtypes = (
            network.state_dict(),
            dict(zip(self.processor.names, self.processor.config.dtypes, strict=True)),
        )
        own = {name: tensor for name, tensor in given.items() if name in dtypes}
        vector = self.processor.flatten({name: t.to("cpu", getattr(torch, dtypes[name])) for name, t in own.items()})
        changing = {*self.processor.names, *self.processor.own_buffers}
        for name, tensor in target.state_dict().items():
            if name not in changing and not same_tensor(tensor, given.get(name)):
                raise LayoutError(
                    f"{name!r} of the network is not that of the target, but this generator draws "
                    f"{len(self.processor.names)} tensors only ({self.processor.names[0]!r}, …); all others must be "
                    "those of pipe.target_model, or the decoded network would be another one."
                )
        return vector

    def _networks(self, parameters: torch.Tensor, provenance: list[dict[str, Any]]) -> DrawnNetworks:
        preprocessing = self.config.image_processor_config or {}
        data = (self.metrics or {}).get("data") or {}
        if "license" in data:  # of an imported zoo
            provenance = [{**one, "license": data["license"]} for one in provenance]
        return DrawnNetworks(self.target_model, self.processor, parameters, preprocessing, provenance)


def same_tensor(tensor: torch.Tensor, other: torch.Tensor | None) -> bool:
    """Tells whether two tensors have the same values, whatever their device and precision."""
    if other is None or other.shape != tensor.shape:
        return False
    if other.data_ptr() == tensor.data_ptr() and other.stride() == tensor.stride():
        return True  # networks that were drawn share the trunk's memory
    tensor, other = tensor.cpu(), other.cpu()
    return torch.equal(tensor.to(other.dtype), other) or torch.equal(tensor, other.to(tensor.dtype))


def slerp(start: torch.Tensor, end: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Interpolates two vectors `(d,)` spherically at `steps` `(n,)` in [0, 1], `(n, d)` (Shoemake 1985).

    Unlike a straight line it keeps the length that draws have. Vectors in one direction, in opposite ones, or of
    length 0 are interpolated on a straight line.
    """
    steps = steps.to(start.device)[:, None]  # (n, 1)
    cosine = (start @ end) / (start.norm() * end.norm()).clamp(min=1e-12)
    angle = cosine.clamp(-1, 1).acos()
    if cosine.abs() > 1 - 1e-6 or not start.any() or not end.any():
        return (1 - steps) * start + steps * end
    return (((1 - steps) * angle).sin() * start + (steps * angle).sin() * end) / angle.sin()
