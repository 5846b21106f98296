"""Folders and files are written atomically, wherever they lie and whatever interrupts the writing."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from pathlib import Path

import pytest

from pdiff_hf import Checkpoints, PDiffPipeline, load_checkpoints
from pdiff_hf.folders import (
    READY,
    UnwritableFolderError,
    finish_replacing,
    remove_folder,
    replace_folder,
    require_writable_folder,
    write_json,
    write_text,
)


class Interruption(Exception):
    """Stands for a killed process."""


def write(folder: str | Path, **texts: str) -> None:
    with replace_folder(folder) as temporary:
        for name, text in texts.items():
            (temporary / "part").mkdir(exist_ok=True)
            (temporary / "part" / name).write_text(text)
            (temporary / name).write_text(text)


def texts_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_folder_is_replaced_atomically(tmp_path):
    with replace_folder(tmp_path / "deep" / "folder") as folder:
        (folder / "a").write_text("first")
    with replace_folder(tmp_path / "deep" / "folder") as folder:
        (folder / "a").write_text("second")
        (folder / "b").write_text("new")

    texts = {path.name: path.read_text() for path in (tmp_path / "deep" / "folder").iterdir()}
    assert texts == {"a": "second", "b": "new"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["folder"]
    assert (tmp_path / "deep" / "folder").stat().st_mode & 0o777 == 0o755  # others can read it


@pytest.mark.parametrize("exists", [True, False])
def test_interrupted_folder_leaves_what_was_there(tmp_path, exists):
    if exists:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "a").write_text("old")

    def write_half() -> None:
        with replace_folder(tmp_path / "folder") as folder:
            (folder / "a").write_text("half")
            raise Interruption

    with pytest.raises(Interruption):
        write_half()

    assert [path.name for path in tmp_path.iterdir()] == (["folder"] if exists else [])
    assert not exists or (tmp_path / "folder" / "a").read_text() == "old"


def test_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "taken").write_text("mine")

    with (
        pytest.raises(UnwritableFolderError, match="taken': there is a file of that name"),
        replace_folder(tmp_path / "taken"),
    ):
        pass
    with pytest.raises(UnwritableFolderError, match="choose another output folder"):
        write_text(tmp_path / "taken" / "file.txt", "text")

    assert (tmp_path / "taken").read_text() == "mine"


def test_json_is_written_atomically(tmp_path):
    write_json(tmp_path / "new" / "metrics.json", {"accuracy": 0.5})

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "new" / "metrics.json", {"accuracy": math.nan})

    assert json.loads((tmp_path / "new" / "metrics.json").read_text()) == {"accuracy": 0.5}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("output", [".", "link", "dangling", "new"])
def test_folder_is_written_where_it_lies(tmp_path, monkeypatch, output):
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    for folder in (work, elsewhere):
        folder.mkdir()
        write_text(folder / "foreign", "stays")
    (work / "link").symlink_to(elsewhere)
    (work / "dangling").symlink_to(tmp_path / "deep" / "later")
    monkeypatch.chdir(work)
    before = Path(output).stat().st_ino if output in (".", "link") else None

    write(output, a="first")
    write(output, a="second")

    expected = {"a": "second", "part/a": "second"}
    assert expected.items() <= texts_of(Path(output)).items()
    assert (Path.cwd() / "foreign").read_text() == "stays"
    assert before in (None, Path(output).stat().st_ino)  # shells and processes that work there see the new content
    assert Path("link").readlink() == elsewhere
    assert Path("dangling").readlink() == tmp_path / "deep" / "later"
    assert not [path for path in tmp_path.rglob(".*") if path.name != "."]


def test_modes_and_groups_follow_the_umask_and_the_parent(tmp_path):
    tmp_path.chmod(0o2770)
    umask = os.umask(0o027)
    try:
        for output in (tmp_path / "new", tmp_path / "new"):  # made, then replaced
            with replace_folder(output) as folder:
                (folder / "part").mkdir()
                (folder / "part" / "weights").touch(mode=0o600)
            assert output.stat().st_mode & 0o7777 == 0o2750
            assert (output / "part").stat().st_mode & 0o7777 == 0o2750
            assert (output / "part" / "weights").stat().st_mode & 0o7777 == 0o640
    finally:
        os.umask(umask)


def test_stale_entries_go_and_others_stay(tmp_path):
    for name in ("00000", "00001", "mine"):
        write(tmp_path / "folder" / name, a="old")

    with replace_folder(tmp_path / "folder", stale="0000*") as folder:
        write(folder / "00000", b="new")

    assert {str(path) for path in texts_of(tmp_path / "folder")} == {
        *("00000/b", "00000/part/b"),
        *("mine/a", "mine/part/a"),
    }


def test_interrupted_exchange_is_finished_by_the_next_read(tmp_path):
    write(tmp_path / "folder", a="old", b="old", c="old")
    write(tmp_path / "folder" / READY, b="new", c="new")
    (tmp_path / "folder" / "a").write_text("new")  # was moved before the process was killed

    finish_replacing(tmp_path / "folder")

    part = {"part/b": "new", "part/c": "new"}
    assert texts_of(tmp_path / "folder") == {"a": "new", "b": "new", "c": "new", **part}


def test_killed_writers_leave_old_or_new_content_and_the_next_one_cleans_up(tmp_path):
    folder, randomness = tmp_path / "folder", random.Random(0)
    write(folder, **dict.fromkeys("abcdefgh", "0"))
    for number in range(50):
        if not (process := os.fork()):
            while True:
                write(folder, **dict.fromkeys("abcdefgh", f"{number} {time.perf_counter()}"))
        time.sleep(0.01 * randomness.random())
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)

        finish_replacing(folder)

        texts = {name: text for name, text in texts_of(folder).items() if not name.startswith(".")}
        assert len(texts) == 16
        assert len(set(texts.values())) == 1

    write(folder, a="last")
    assert not list(tmp_path.rglob(".*"))


def test_killed_exchange_is_finished_before_the_next_save_reads_the_folder(
    tmp_path: Path, tiny_pipeline: PDiffPipeline
):
    tiny_pipeline.save_pretrained(tmp_path / "out")
    with replace_folder(tmp_path / "out" / READY) as ready:
        write_text(ready / "README.md", "Written by hand.")

    tiny_pipeline.save_pretrained(tmp_path / "out")

    assert (tmp_path / "out" / "README.md").read_text() == "Written by hand."


def test_links_in_a_folder_are_not_followed(tmp_path: Path, tiny_pipeline: PDiffPipeline):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    tiny_pipeline.save_pretrained(out)
    (out / "denoiser").rename(elsewhere)
    write(elsewhere, **{"README.md": "secret", "LICENSE": "secret", "model.fp16.safetensors": "secret"})
    before = {path: (path.read_bytes(), path.stat().st_mode) for path in elsewhere.rglob("*") if path.is_file()}
    (out / "README.md").unlink()
    for link, target in (("README.md", "README.md"), ("LICENSE", "LICENSE"), ("denoiser", ""), ("logo.png", "gone")):
        (out / link).symlink_to(elsewhere / target)

    tiny_pipeline.save_pretrained(out)

    assert {path: (path.read_bytes(), path.stat().st_mode) for path in before} == before
    assert {path.name for path in out.iterdir() if path.is_symlink()} == {"LICENSE", "logo.png"}
    assert not [
        path for path in out.rglob("*") if path.is_file() and path.name != "LICENSE" and b"secret" in path.read_bytes()
    ]
    assert not list((out / "denoiser").glob("*.fp16.*"))


def test_link_in_new_content_leaves_what_it_leads_to_as_it_is(tmp_path: Path):
    (tmp_path / "private").touch(mode=0o600)

    with replace_folder(tmp_path / "out") as folder:
        (folder / "link").symlink_to(tmp_path / "private")

    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_folder_is_removed_atomically(tmp_path: Path):
    write(tmp_path / "state", a="text")

    remove_folder(tmp_path / "state")
    remove_folder(tmp_path / "missing")

    assert not list(tmp_path.iterdir())


def test_live_writers_are_not_disturbed_by_others(tmp_path):
    with replace_folder(tmp_path / "folder") as folder:
        write(tmp_path / "other", a="text")
        write(folder / "inner", a="text")
        (folder / "a").write_text("text")

    assert texts_of(tmp_path / "folder") == {"a": "text", "inner/a": "text", "inner/part/a": "text"}


@pytest.mark.parametrize("kind", ["pipeline", "checkpoints"])
def test_failed_save_leaves_the_old_content_loadable(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_pipeline: PDiffPipeline,
    tiny_checkpoints: Checkpoints,
    kind: str,
):
    save = tiny_pipeline.save_pretrained if kind == "pipeline" else tiny_checkpoints.save
    load = PDiffPipeline.from_pretrained if kind == "pipeline" else load_checkpoints
    save(tmp_path / "out")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def disk_is_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tiny_checkpoints.target_model), "save_pretrained", disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "out")

    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    load(tmp_path / "out")


def test_folder_that_cannot_be_written_is_named_before_the_work(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    with pytest.raises(UnwritableFolderError, match=r"Cannot write .*loop/folder': the folder .*loop'"):
        require_writable_folder(tmp_path / "loop" / "folder")
