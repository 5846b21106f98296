"""Damaged copies of a folder, each made from a number, and what comes of loading them; a process of its own runs it.

python tests/damage.py FIRST LAST KIND=FOLDER...
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEADLINE = 20  # seconds that one load may take; then the process ends by SIGALRM
MEMORY = 2**30  # bytes that the process may grow by
FORBIDDEN = ("socket.connect", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "subprocess.Popen")

HUGE = (9_999, 9_999, 10**12, 2**31, 2**63, 2**64, 10**400, -(10**12), 1e300, -1e300)
ODD_NUMBERS = (0, -1, 1, 2, 3, 7, 0.5, -0.5, 1e-30, True, False, float("nan"), float("inf"), float("-inf"))
STRINGS = ("", "a", "None", "0", "../..", "/etc/passwd", "__import__('os').system('true')", "\ud800", "x" * 10_000)
NAMES = ("os", "system", "subprocess", "Popen", "torch", "nn.Linear", "diffusers", "transformers", "pdiff_hf", "evil")
NESTED = (
    [9_999] * 4,
    [],
    {},
    [[]],
    [None],
    [[1, 2], [3]],
    {"a": {"b": []}},
    [0] * 1000,
    ["os", "system"],
    [1, 2, 3, 4],
)
DTYPES = ("F64", "F16", "BF16", "F8_E4M3", "I64", "I32", "U8", "BOOL", "F4", "float32", "")

DEEP = "a value nested deep"

Content = dict[str, bytes]
Node = tuple[Any, Any]  # a mapping or list, and a key of it


def mutant(folder: Path, seed: int) -> tuple[str, Content]:
    """Returns what is done to a folder, and the changed files; a file of None is removed."""
    chance = random.Random(seed)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    name = chance.choice([file for file in files if file.endswith((".json", ".parquet", ".safetensors"))])
    content = (folder / name).read_bytes()
    kind = name.rpartition(".")[2]
    # The values of weights have no checksum in a folder: what is changed there is a change, and no damage.
    ways = {
        "json": (change_json, change_json, change_bytes),
        "parquet": (change_bytes,),
        "safetensors": (change_header,),
    }
    way = chance.choice(ways[kind])
    if chance.random() < 0.05:
        other = (folder / chance.choice(files)).read_bytes()
        said, changed = chance.choice([("emptied", b""), ("another file", other), ("noise", chance.randbytes(200))])
    else:
        said, changed = way(content, chance)
    return f"{name}: {said}", {name: changed}


def change_bytes(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Flips, cuts out, repeats or inserts bytes, or cuts the end off."""
    start = chance.randrange(len(content) + 1)
    end = min(len(content), start + chance.choice((1, 1, 2, 8, 100)))
    changed = bytearray(content)
    match way := chance.choice(("flip", "flip", "truncate", "insert", "cut", "repeat", "zero")):
        case "flip":
            for position in range(start, end):
                changed[position] ^= 1 << chance.randrange(8)
        case "truncate":
            del changed[start:]
        case "insert":
            changed[start:start] = chance.randbytes(end - start)
        case "cut":
            del changed[start:end]
        case "repeat":
            changed[start:start] = content[start:end]
        case "zero":
            changed[start:end] = bytes(end - start)
    return f"{way} {start}-{end}", bytes(changed)


def change_json(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Changes a value, a key or the structure of a JSON text that stays one."""
    document = json.loads(content)
    said = change_document(document, chance)
    text = json.dumps(document)
    if said == DEEP:
        depth = chance.choice((10, 500, 950, 10_000))
        text = text.replace('"<deep>"', "[" * depth + "]" * depth)
    if chance.random() < 0.1 and isinstance(document, dict) and document:
        key, value = chance.choice(list(document)), chance.choice(some_values(chance))
        text = text[:-1] + f", {json.dumps(key)}: {json.dumps(value)}" + "}"
        said += f", and {key!r} twice"
    return said, text.encode("utf-8", "surrogatepass")


def change_document(document: Any, chance: random.Random) -> str:
    """Changes a JSON document in place and says how."""
    nodes = list(nodes_of(document))
    if not nodes:
        return "nothing"
    parent, key = chance.choice(nodes)
    match chance.choice(("value", "value", "value", "value", "remove", "rename", "swap", "deep", "add")):
        case "value":
            before, parent[key] = parent[key], chance.choice(some_values(chance))
            return f"{key!r} from {str(before)[:60]} to {str(parent[key])[:60]}"
        case "remove":
            del parent[key]
            return f"without {key!r}"
        case "rename" if isinstance(parent, dict):
            new = chance.choice(("", "a", str(key) + "_", str(key)[:-1]))
            parent[new] = parent.pop(key)
            return f"{key!r} renamed {new!r}"
        case "swap":
            other, there = chance.choice(nodes)
            parent[key], other[there] = other[there], parent[key]
            # One of the two may hold the other.
            try:
                json.dumps(document)
            except ValueError:
                parent[key] = None
            return f"{key!r} and {there!r} swapped"
        case "deep":
            parent[key] = "<deep>"
            return DEEP
    target = parent if isinstance(parent, dict) else document
    if isinstance(target, dict):
        new, value = (
            chance.choice((*NAMES, "quantization_config", "auto_map", "dtype", "torch_dtype", "_class_name")),
            0,
        )
        target[new] = value = chance.choice(some_values(chance))
        return f"{new!r} added as {str(value)[:60]}"
    return "nothing"


def some_values(chance: random.Random) -> list[Any]:
    """Returns one value of each kind."""
    kinds = (HUGE, ODD_NUMBERS, STRINGS, NAMES, NESTED, (None,), (chance.randrange(-5, 300),), (chance.random(),))
    return [json.loads(json.dumps(chance.choice(values))) for values in kinds]


def nodes_of(document: Any) -> Iterator[Node]:
    """Yields every place of a JSON document that holds a value."""
    if isinstance(document, dict | list):
        for key in list(document) if isinstance(document, dict) else range(len(document)):
            yield document, key
            yield from nodes_of(document[key])


def change_header(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Changes what a safetensors file says of its tensors, or its length."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    match way := chance.choice(("json", "json", "tensor", "tensor", "tensor", "bytes", "length", "size")):
        case "json":
            said, header = change_json(header, chance)
        case "tensor":
            said, header = change_tensor(json.loads(header), chance)
        case "bytes":
            said, header = change_bytes(header, chance)
        case "length":
            wrong = chance.choice((0, 1, length - 1, length + 1, 2 * length, len(content), 2**31, 2**63, 2**64 - 1))
            return f"{way} {wrong}", wrong.to_bytes(8, "little") + header + data
        case "size":
            cut = chance.randrange(len(content))
            return chance.choice([(f"cut to {cut}", content[:cut]), ("longer", content + chance.randbytes(8))])
    return f"{way} {said}", len(header).to_bytes(8, "little") + header + data


def change_tensor(header: dict[str, Any], chance: random.Random) -> tuple[str, bytes]:
    """Changes the name, the shape, the type or the place of one tensor."""
    name = chance.choice([name for name in header if name != "__metadata__"])
    tensor = header[name]
    match way := chance.choice(("rename", "remove", "shape", "dtype", "offsets", "copy")):
        case "rename":
            header[chance.choice((name + "_", name[:-1], "", "a.b", name.upper()))] = header.pop(name)
        case "remove":
            del header[name]
        case "shape":
            shape = tensor["shape"]
            tensor["shape"] = chance.choice(
                ([], shape[::-1], [*shape, 1], [10**12], [0], [-1], [2**63, 2**63], shape * 2)
            )
        case "dtype":
            tensor["dtype"] = chance.choice(DTYPES)
        case "offsets":
            first, last = tensor["data_offsets"]
            tensor["data_offsets"] = chance.choice(
                ([last, first], [0, 10**12], [first, last + 4], [first + 4, last], [0, 0])
            )
        case "copy":
            header[name] = header[chance.choice(list(header))]
    return f"{name!r} {way}", json.dumps(header).encode()


def main() -> None:
    """Loads every mutant from FIRST to LAST of the folders in turn; prints one JSON line before and after each."""
    run = {"pipeline": draw_one, "checkpoints": read_all}
    first, last = int(sys.argv[1]), int(sys.argv[2])
    folders = [argument.split("=") for argument in sys.argv[3:]]
    from pdiff_hf import (
        BrokenFileError,
        CheckpointsError,
        HubError,
        LayoutError,
        NonFiniteParametersError,
        UnsafeFileError,
    )
    from pdiff_hf.targets.loading import UnknownTargetError

    allowed = (BrokenFileError, UnsafeFileError, LayoutError, NonFiniteParametersError, CheckpointsError, HubError)
    allowed += (UnknownTargetError,)
    for kind, folder in folders:
        run[kind](Path(folder))
    forbidden: list[str] = []
    sys.addaudithook(lambda event, _: forbidden.append(event) if event.startswith(FORBIDDEN) else None)
    for seed in range(first, last):
        kind, folder = folders[seed % len(folders)]
        said, changed = mutant(Path(folder), seed)
        print(json.dumps({"seed": seed, "what": said}), flush=True)
        before = peak()
        signal.alarm(DEADLINE)
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(shutil.copytree(folder, Path(temporary) / "copy"))
            for name, content in changed.items():
                (copy / name).write_bytes(content)
            outcome = judge(lambda kind=kind, copy=copy: run[kind](copy), allowed)
        signal.alarm(0)
        if peak() - before > MEMORY:
            outcome = f"memory: {(peak() - before) / 2**20:.0f} MB"
        if forbidden:
            outcome = f"forbidden: {forbidden}"
            forbidden.clear()
        print(json.dumps({"seed": seed, "outcome": outcome}), flush=True)


def judge(load: Callable[[], str | None], allowed: tuple[type[Exception], ...]) -> str:
    """Returns "loaded", the name of an error that is one of the package's, or what went wrong."""
    try:
        return load() or "loaded"
    except allowed as error:
        return type(error).__name__
    except Exception as error:
        return f"raised: {type(error).__module__}.{type(error).__name__}: {str(error)[:300]}"


def peak() -> int:
    """Returns the most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def draw_one(folder: Path) -> str | None:
    """Draws a network from a pipeline's folder; returns what is wrong with it."""
    import torch

    from pdiff_hf import PDiffPipeline

    pipe = PDiffPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipe(1, num_inference_steps=2, generator=generator, output_type="pt").parameters
    if drawn.shape != (1, pipe.processor.parameter_dim) or not drawn.isfinite().all():
        return f"wrong: {tuple(drawn.shape)}, {int(drawn.isfinite().sum())} finite"
    return None


def read_all(folder: Path) -> str | None:
    """Reads a checkpoints folder; returns what is wrong with it."""
    from pdiff_hf import load_checkpoints

    checkpoints = load_checkpoints(folder)
    for split, zoo in checkpoints.splits.items():
        width = checkpoints.processor.parameter_dim
        if zoo.parameters.shape != (len(zoo), width) or not zoo.parameters.isfinite().all():
            return f"wrong: {split} is {tuple(zoo.parameters.shape)}"
    checkpoints.processor.check_model(checkpoints.target_model)
    return None


if __name__ == "__main__":
    main()
