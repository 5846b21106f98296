"""What may be shared and what may be read: safetensors, JSON, parquet, Markdown and PNG, inside their folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

SHARED_SUFFIXES = (".safetensors", ".json", ".parquet", ".md", ".png")
SHARED_NAMES = ("LICENSE", "LICENSE.txt", ".gitattributes")
TEXT_SUFFIXES = (".json", ".md")
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
# No configuration of a network that fits in its file names a size beyond the number of values in that file; small
# files are given this much, for sizes that are no dimension of a tensor (the pixels of an image, say).
LEAST_SIZE = 10_000


class UnsafeFileError(ValueError):
    """A file may not be shared or read: its kind, its place or its content."""


class BrokenFileError(ValueError):
    """A file is damaged, or does not fit the files beside it."""


def shareable_files(folder: str | os.PathLike, further_suffixes: Iterable[str] = ()) -> list[str]:
    """Returns the files of a folder that go to the Hub, as sorted relative paths; hidden ones stay.

    Raises:
        UnsafeFileError: If there is a file of another kind (a pickle or a training state, say), a link that leads
            out of the folder, or a text with a Hub token in it.
    """
    root = Path(folder).resolve()
    allowed = (*SHARED_SUFFIXES, *further_suffixes)
    names = []
    for path in sorted(p for p in root.rglob("*") if p.is_file() or p.is_symlink()):
        name = path.relative_to(root).as_posix()
        if any(part.startswith(".") for part in name.split("/")) and path.name not in SHARED_NAMES:
            continue
        if not path.is_file():
            raise UnsafeFileError(f"{name!r} in {str(folder)!r} is a link to {path.resolve()}, which is no file.")
        if path.suffix.lower() not in allowed and path.name not in SHARED_NAMES:
            raise UnsafeFileError(
                f"{name!r} in {str(folder)!r} is not shared: only {', '.join(allowed)} files are. Move it out of the "
                "folder (the state of a training belongs beside it)."
            )
        if not path.resolve().is_relative_to(root):
            raise UnsafeFileError(f"{name!r} in {str(folder)!r} is a link to {path.resolve()}, outside of the folder.")
        if path.suffix.lower() in TEXT_SUFFIXES and TOKEN.search(path.read_bytes()):
            raise UnsafeFileError(f"{name!r} in {str(folder)!r} holds what looks like a Hub token; remove it.")
        names.append(name)
    return names


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Tells whether a file's name matches one of the fnmatch patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def require_inside(name: str) -> None:
    """Raises unless a file's name in a repository stays inside the folder it is put into.

    Raises:
        UnsafeFileError: If it is absolute, or climbs out.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise UnsafeFileError(f"The file name {name!r} leads out of its repository; nothing of it was read.")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        BrokenFileError: If it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenFileError(f"{str(path.parent)!r} has no {path.name}, which is needed.") from None
    except (ValueError, RecursionError) as error:
        raise BrokenFileError(f"{str(path)!r} is no JSON file: {error}") from error


def build(cls: Any, config: Any, where: str, from_config: Callable[[], Any] | None = None) -> Any:
    """Makes an object of a class from a configuration that may be damaged in any way.

    Args:
        cls: The class; its `from_config` is called.
        config: What a JSON file holds.
        where: Which one, for the message.
        from_config: Called in place of the class's.

    Raises:
        BrokenFileError: If it cannot be made.
    """
    if not isinstance(config, dict):
        raise BrokenFileError(f"{where} has no configuration that is a mapping, but {type(config).__name__}.")
    try:
        return from_config() if from_config is not None else cls.from_config(config)
    # A damaged configuration makes a constructor fail in any way there is.
    except Exception as error:
        raise BrokenFileError(
            f"{where}: its configuration cannot be built ({type(error).__name__}: {error})."
        ) from error


def network_config(folder: Path) -> dict[str, Any]:
    """Reads the configuration of a transformers network that is complete in its folder.

    Raises:
        BrokenFileError: If it is missing or damaged.
        UnsafeFileError: If it would make transformers run code, or fetch something from elsewhere.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise BrokenFileError(f"{str(folder / 'config.json')!r} holds a {type(config).__name__} and no mapping.")
    elsewhere = [key for part in _mappings(config) for key, value in part.items() if _leads_elsewhere(key, value)]
    if (folder / "adapter_config.json").exists():
        elsewhere.append("adapter_config.json")
    if elsewhere:
        raise UnsafeFileError(
            f"The network in {str(folder)!r} is not complete in itself: {', '.join(elsewhere)} would have code run or "
            "something else fetched. Only plain networks are read."
        )
    return config


def _leads_elsewhere(key: str, value: Any) -> bool:
    kernel = key in ("attn_implementation", "_attn_implementation") and "/" in str(value)
    return kernel or (key in ("auto_map", "quantization_config") and value is not None)


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Yields a configuration and those inside of it."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _mappings(inner)


def load_network(folder: Path, auto_class: Any) -> PreTrainedModel:
    """Loads a transformers network from its folder, whole or not at all.

    Args:
        folder: Where `config.json` and the safetensors weights are.
        auto_class: Its class.

    Raises:
        BrokenFileError: If files are missing, damaged or do not fit one another.
        UnsafeFileError: If it is not complete in itself.
    """
    where = f"the network in {str(folder)!r}"
    config = network_config(folder)
    shapes = tensor_shapes(sorted(folder.glob("*.safetensors")))
    if not shapes:
        raise BrokenFileError(f"{where} has no safetensors weights.")
    check_sizes(config, shapes, where)

    def outline() -> PreTrainedModel:
        with torch.device("meta"):
            return auto_class(auto_class.config_class.from_dict(config))

    check_weights(build(auto_class, config, where, from_config=outline), shapes, where)
    model, loading = build(
        auto_class,
        config,
        where,
        from_config=lambda: auto_class.from_pretrained(folder, use_safetensors=True, output_loading_info=True),
    )
    if loading["missing_keys"]:
        raise BrokenFileError(f"{where} lacks the weights {sorted(loading['missing_keys'])[:3]}.")
    return model


def tensor_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Reads names and shapes from the headers of safetensors files, and no weights.

    Raises:
        BrokenFileError: If a header is damaged or does not fit the size of its file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118  (a safe_open handle is not iterable)
                    shapes[name] = tuple(weights.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise BrokenFileError(
                f"{file.name!r} in {str(file.parent)!r} is no whole safetensors file: {error}"
            ) from error
    return shapes


def check_sizes(config: Any, shapes: dict[str, tuple[int, ...]], where: str) -> None:
    """Raises if a configuration names a size that the weights beside it cannot have, before memory is taken for it.

    Raises:
        BrokenFileError: If it does.
    """
    largest = max(LEAST_SIZE, sum(torch.Size(shape).numel() for shape in shapes.values()))

    def visit(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for inner, content in value.items():
                visit(content, str(inner))
        elif isinstance(value, list):
            for content in value:
                visit(content, key)
        elif isinstance(value, int | float) and abs(value) > largest and value == value and abs(value) != float("inf"):
            raise BrokenFileError(
                f"{where} says {key} = {value}, but the weights beside it hold at most {largest} numbers; the file is "
                "damaged, or belongs to other weights."
            )

    visit(config, "")


def check_weights(model: nn.Module, shapes: dict[str, tuple[int, ...]], where: str) -> list[str]:
    """Compares a model built on the meta device with the tensors of its file.

    Returns:
        The names that the model has and the file lacks; tied tensors count once.

    Raises:
        BrokenFileError: If a tensor has another shape than the configuration says.
    """
    expected = model.state_dict(keep_vars=True)
    present = {id(tensor) for name, tensor in expected.items() if name in shapes}
    for name, tensor in expected.items():
        if name in shapes and shapes[name] != tuple(tensor.shape):
            raise BrokenFileError(
                f"{where}: the configuration says that {name!r} has shape {tuple(tensor.shape)}, but its file has "
                f"{shapes[name]}."
            )
    return [name for name, tensor in expected.items() if id(tensor) not in present]
