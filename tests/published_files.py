"""Files of small networks as others publish them: safetensors, what `torch.save` writes, and tar archives."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from pdiff_hf import MLPConfig, MLPForImageClassification
from pdiff_hf.loops import seeded

Member = tuple[str, bytes]


def small(seed: int = 0) -> PreTrainedModel:
    """An MLP of 214 numbers on 4x4 images."""
    with seeded(seed):
        return MLPForImageClassification(
            MLPConfig(image_size=4, num_channels=1, hidden_sizes=[8], num_labels=4)
        ).eval()


def write_tar(path: Path, members: list[Member | tarfile.TarInfo], mode: str = "w") -> Path:
    """Writes an archive of names with contents, or of members without."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def saved(content: object) -> bytes:
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member that is no regular file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def save_all(networks: list[PreTrainedModel], folder: Path) -> list[Path]:
    """Writes net_00.safetensors and so on, and returns their paths."""
    folder.mkdir()
    for i, network in enumerate(networks):
        save_file(network.state_dict(), folder / f"net_{i:02d}.safetensors")
    return sorted(folder.iterdir())
