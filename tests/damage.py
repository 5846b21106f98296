"""Damaged copies of folders, each made from a seed, and the outcome of loading them in a forked process."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from pdiff_hf import (
    BrokenFileError,
    CheckpointsError,
    HubError,
    LayoutError,
    NonFiniteParametersError,
    PDiffPipeline,
    UnknownTargetError,
    UnsafeFileError,
    load_checkpoints,
)

OWN_ERRORS = (
    BrokenFileError,
    CheckpointsError,
    HubError,
    LayoutError,
    NonFiniteParametersError,
    UnknownTargetError,
    UnsafeFileError,
)
# What may be opened beside the files of the folder: the libraries'.
PLACES = (sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix), "/proc", "/sys", "/dev/null", "/usr/lib")
DEADLINE = 10  # seconds per load; then SIGALRM ends the process
MEMORY = 2**30  # bytes that the loads may take beyond what was in memory before them
FORBIDDEN = ("socket.connect", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "subprocess.Popen")

HUGE = (9_999, 9_999, 10**12, 2**31, 2**63, 2**64, 10**400, -(10**12), 1e300, -1e300)
ODD_NUMBERS = (0, -1, 1, 2, 3, 7, 0.5, -0.5, 1e-30, True, False, float("nan"), float("inf"), float("-inf"))
STRINGS = ("", "a", "None", "0", "../..", "/etc/passwd", "__import__('os').system('true')", "\ud800", "x" * 10_000)
NAMES = ("os", "system", "subprocess", "Popen", "torch", "nn.Linear", "diffusers", "transformers", "pdiff_hf", "evil")
KEYS = (*NAMES, "quantization_config", "auto_map", "dtype", "torch_dtype", "_class_name")
LISTS = ([9_999] * 4, [], [[]], [None], [[1, 2], [3]], [0] * 1000, ["os", "system"], [1, 2, 3, 4])
NESTED = (*LISTS, {}, {"a": {"b": []}})
DTYPES = ("F64", "F16", "BF16", "F8_E4M3", "I64", "I32", "U8", "BOOL", "F4", "float32", "")
DEEP = "<deep>"  # in place of a deeply nested value


def mutate(folder: Path, seed: int) -> tuple[str, str, bytes]:
    """Returns a file of the folder, a description of the damage, and the damaged content."""
    chance = random.Random(seed)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    name = chance.choice([file for file in files if file.endswith((".json", ".parquet", ".safetensors"))])
    content = (folder / name).read_bytes()
    if chance.random() < 0.05:
        other = (folder / chance.choice(files)).read_bytes()
        return name, *chance.choice([("emptied", b""), ("another file", other), ("noise", chance.randbytes(200))])
    # Weights have no checksum in a folder, so a safetensors file is only damaged in its header.
    ways: dict[str, list[Callable]] = {
        ".json": [mutate_json, mutate_json, mutate_bytes],
        ".parquet": [mutate_bytes],
        ".safetensors": [mutate_safetensors],
    }
    return name, *chance.choice(ways[Path(name).suffix])(content, chance)


def mutate_bytes(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Flips, removes, repeats, inserts or clears bytes, or cuts the end off."""
    start = chance.randrange(len(content) + 1)
    end = min(len(content), start + chance.choice((1, 1, 2, 8, 100)))
    before, middle, after = content[:start], content[start:end], content[end:]
    ways = {
        "flip": before + bytes(byte ^ (1 << chance.randrange(8)) for byte in middle) + after,
        "truncate": before,
        "insert": before + chance.randbytes(end - start) + middle + after,
        "cut": before + after,
        "repeat": before + 2 * middle + after,
        "zero": before + bytes(end - start) + after,
    }
    way = chance.choice(("flip", *ways))
    return f"{way} {start}-{end}", ways[way]


def mutate_json(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Changes a value, a key or the structure of a JSON document, which stays valid JSON."""
    document = json.loads(content)
    said = change_document(document, chance)
    depth = chance.choice((10, 500, 950, 10_000))
    text = json.dumps(document).replace(f'"{DEEP}"', "[" * depth + "]" * depth)
    if chance.random() < 0.1 and isinstance(document, dict) and document:
        key, value = chance.choice(list(document)), some_value(chance)
        text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(value)}}}"
        said += f", and {key!r} twice"
    return said, text.encode("utf-8", "surrogatepass")


def change_document(document: Any, chance: random.Random) -> str:
    """Changes a JSON document in place and returns a description."""
    nodes = list(nodes_of(document))
    if not nodes:
        return "nothing"
    parent, key = chance.choice(nodes)
    match way := chance.choice(("value", "value", "value", "value", "remove", "rename", "swap", "deep", "add")):
        case "value":
            parent[key] = some_value(chance)
        case "remove":
            del parent[key]
        case "rename" if isinstance(parent, dict):
            parent[chance.choice(("", "a", str(key) + "_", str(key)[:-1]))] = parent.pop(key)
        case "swap":
            other, there = chance.choice(nodes)
            parent[key], other[there] = other[there], parent[key]
            try:
                json.dumps(document)
            except ValueError:  # one of the two contained the other
                parent[key] = None
        case "deep":
            parent[key] = DEEP
        case "add":
            target = parent if isinstance(parent, dict) else document
            if isinstance(target, dict):
                target[chance.choice(KEYS)] = some_value(chance)
    return f"{way} at {key!r}"


def some_value(chance: random.Random) -> Any:
    """Returns a value of a random kind."""
    numbers, fractions = (chance.randrange(-5, 300),), (chance.random(),)
    kinds = (HUGE, ODD_NUMBERS, STRINGS, NAMES, NESTED, (None,), numbers, fractions)
    return json.loads(json.dumps(chance.choice(chance.choice(kinds))))


def nodes_of(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the container and the key of each value in a JSON document."""
    if isinstance(document, dict | list):
        for key in list(document) if isinstance(document, dict) else range(len(document)):
            yield document, key
            yield from nodes_of(document[key])


def mutate_safetensors(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Changes the header of a safetensors file, or the file's length."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    match way := chance.choice(("json", "json", "tensor", "tensor", "tensor", "bytes", "length", "size")):
        case "length":
            wrong = chance.choice((0, 1, length - 1, length + 1, 2 * length, len(content), 2**31, 2**63, 2**64 - 1))
            return f"{way} {wrong}", wrong.to_bytes(8, "little") + header + data
        case "size":
            changed = (content[: chance.randrange(len(content))], content + chance.randbytes(8))
            return way, chance.choice(changed)
        case "tensor":
            said, header = change_tensor(json.loads(header), chance)
        case _:
            said, header = (mutate_json if way == "json" else mutate_bytes)(header, chance)
    return f"{way} {said}", len(header).to_bytes(8, "little") + header + data


def change_tensor(header: dict[str, Any], chance: random.Random) -> tuple[str, bytes]:
    """Changes the name, shape, dtype or offsets of one tensor."""
    name = chance.choice([name for name in header if name != "__metadata__"])
    shape, (first, last) = header[name]["shape"], header[name]["data_offsets"]
    match way := chance.choice(("rename", "remove", "shape", "dtype", "offsets", "copy")):
        case "rename":
            header[chance.choice((name + "_", name[:-1], "", "a.b", name.upper()))] = header.pop(name)
        case "remove":
            del header[name]
        case "shape":
            shapes = ([], shape[::-1], [*shape, 1], [10**12], [0], [-1], [2**63, 2**63], shape * 2)
            header[name]["shape"] = chance.choice(shapes)
        case "dtype":
            header[name]["dtype"] = chance.choice(DTYPES)
        case "offsets":
            offsets = ([last, first], [0, 10**12], [first, last + 4], [first + 4, last], [0, 0])
            header[name]["data_offsets"] = chance.choice(offsets)
        case "copy":
            header[name] = header[chance.choice(list(header))]
    return f"{name!r} {way}", json.dumps(header).encode()


def outcomes(folders: list[Path], seeds: Iterable[int], work: Path) -> dict[int, str]:
    """Loads a damaged folder for each seed in a forked process, which may crash; returns the outcome of each.

    An outcome is "loaded", the name of an own error, or a sentence with whatever else happened.
    """
    log = work / "outcomes.jsonl"
    process = multiprocessing.get_context("fork").Process(target=_load_all, args=(folders, seeds, work, log))
    process.start()
    process.join()
    results = [json.loads(line) for line in log.read_text().splitlines()]
    found = {seed: outcome for seed, outcome, _ in results}
    if process.exitcode:
        seed, _, said = results[-1]
        found[seed] = f"{said}: the process ended with {process.exitcode}"
    return found


def _load_all(folders: list[Path], seeds: Iterable[int], work: Path, log: Path) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    forbidden: list[str] = []
    inside = (str(work / "copy"), *PLACES)

    def watch(event: str, args: tuple) -> None:
        leads_out = event == "open" and str(args[0]).startswith("/") and not str(args[0]).startswith(inside)
        if leads_out or event.startswith(FORBIDDEN):
            forbidden.append(f"{event} {args[0]}")

    sys.addaudithook(watch)
    before = peak()
    with log.open("w", buffering=1) as lines:
        for seed in seeds:
            folder = folders[seed % len(folders)]
            name, said, content = mutate(folder, seed)
            lines.write(json.dumps([seed, "started", f"{folder.name}/{name}: {said}"]) + "\n")
            copy = Path(shutil.copytree(folder, work / "copy"))
            (copy / name).write_bytes(content)
            forbidden.clear()
            signal.alarm(DEADLINE)
            outcome = load(copy)
            signal.alarm(0)
            if peak() - before > MEMORY:
                outcome = f"took {(peak() - before) / 2**20:.0f} MB"
            if forbidden:
                outcome = f"forbidden {forbidden}"
            if " " in outcome:
                outcome = f"{folder.name}/{name}: {said}: {outcome}"
            lines.write(json.dumps([seed, outcome, said]) + "\n")
            shutil.rmtree(copy)


def load(folder: Path) -> str:
    """Draws a network from a pipeline, or reads a checkpoints dataset, and returns the outcome."""
    try:
        vectors, width = (draw_one if (folder / "model_index.json").exists() else read_all)(folder)
    except OWN_ERRORS as error:
        return type(error).__name__
    except Exception as error:
        return f"raised {type(error).__module__}.{type(error).__name__}: {str(error)[:300]}"
    fits = all(vector.ndim == 2 and vector.shape[1] == width and vector.isfinite().all() for vector in vectors)
    return "loaded" if fits else f"wrong vectors {[tuple(vector.shape) for vector in vectors]}"


def draw_one(folder: Path) -> tuple[list[torch.Tensor], int]:
    pipe = PDiffPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipe(1, num_inference_steps=2, generator=generator, output_type="pt").parameters
    return [drawn], pipe.processor.parameter_dim


def read_all(folder: Path) -> tuple[list[torch.Tensor], int]:
    checkpoints = load_checkpoints(folder)
    checkpoints.processor.check_model(checkpoints.target_model)
    return [split.parameters for split in checkpoints.splits.values()], checkpoints.processor.parameter_dim


def peak() -> int:
    """Returns the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
