"""Something on the Hub beside the folder that it was pushed from, so that a load can be compared with both."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pdiff_hf import Checkpoints, CheckpointSplit, PDiffPipeline

from .server.faults import damaged
from .server.model import Blob, Repo


@dataclasses.dataclass
class Shared:
    """A pipeline or a checkpoints dataset on the Hub."""

    repo: Repo
    folder: Path  # where it was pushed from
    load: Callable[..., Any]  # from a folder or, with a cache, from the Hub
    content: Callable[[Any], dict[str, Any]]  # all that it holds, for comparison

    def pull(self, cache: Path, **how: Any) -> Any:
        """Loads it from the Hub."""
        return self.load(self.repo.id, cache_dir=cache, **how)

    def places(self, cache: Path) -> tuple[tuple[str | Path, dict[str, Any]], ...]:
        """The repository and the folder, each with the loader's further arguments."""
        return (self.repo.id, {"cache_dir": cache}), (self.folder, {})

    def assert_same(self, loaded: Any) -> None:
        """Asserts that what was loaded is what was pushed."""
        found, expected = self.content(loaded), self.content(self.load(self.folder))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            same = torch.equal(value, found[name]) if isinstance(value, torch.Tensor) else value == found[name]
            assert same, name

    def cached(self, cache: Path) -> Path:
        """Where the repository is in a cache."""
        return cache / f"{self.repo.type}s--{self.repo.id.replace('/', '--')}"

    def blobs(self, cache: Path) -> dict[str, Path]:
        """The cached files by their names in the repository."""
        (snapshot,) = self.cached(cache).glob("snapshots/*")
        return {p.relative_to(snapshot).as_posix(): p.resolve() for p in sorted(snapshot.rglob("*")) if p.is_file()}

    def put(self, name: str, content: bytes) -> None:
        """Puts a small file into the repository, where it is not checked, and into the folder."""
        self.repo.at().tree[name] = Blob.regular(content)
        (self.folder / name).write_bytes(content)

    def rewrite(self, name: str, change: Callable[[Any], Any]) -> None:
        """Changes a JSON file in the repository and in the folder."""
        self.put(name, json.dumps(change(json.loads((self.folder / name).read_text(encoding="utf-8")))).encode())


def content_of_pipeline(pipe: PDiffPipeline) -> dict[str, Any]:
    """Configurations and weights of a pipeline."""
    content = {"processor": dict(pipe.processor.config), "scheduler": dict(pipe.scheduler.config)}
    for part in ("autoencoder", "denoiser", "target_model"):
        content |= {f"{part}.{name}": tensor for name, tensor in getattr(pipe, part).state_dict().items()}
    for config in (content["processor"], content["scheduler"]):
        config.pop("_name_or_path", None)
    return content


def content_of_checkpoints(checkpoints: Checkpoints) -> dict[str, Any]:
    """Rows, target and history of a checkpoints dataset."""
    content = {f"target_model.{n}": tensor for n, tensor in checkpoints.target_model.state_dict().items()}
    for split, zoo in checkpoints.splits.items():
        content |= {f"{split}.{field.name}": getattr(zoo, field.name) for field in dataclasses.fields(CheckpointSplit)}
    collection = {name: value for name, value in checkpoints.collection.items() if name != "repo_id"}
    return content | {"collection": collection, "preprocessing": checkpoints.preprocessing}


def flip(path: Path, position: int) -> None:
    """Flips all bits of one byte of a file."""
    path.write_bytes(damaged(path.read_bytes(), position))
