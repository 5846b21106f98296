"""Files of others that are damaged, hostile or of another network: named, and nothing of them is run or extracted."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published_files import save_all, saved, small, special, write_tar
from safetensors.torch import save, save_file
from transformers import PreTrainedModel

from pdiff_hf import Checkpoints, CheckpointsError, MLPConfig, MLPForImageClassification, load_checkpoints


@pytest.fixture
def networks() -> list[PreTrainedModel]:
    return [small(seed) for seed in range(12)]


def broken_state_dicts() -> dict[str, tuple[Callable[[dict], object], str]]:
    name = "classifier.weight"
    return {
        "missing": (lambda s: {k: t for k, t in s.items() if k != name}, r"'classifier.weight' missing"),
        "surplus": (lambda s: s | {"more": torch.ones(2)}, r"'more' surplus"),
        "shape": (lambda s: s | {name: torch.ones(4, 7)}, r"\(4, 7\) torch.float32 instead of \(4, 8\) torch.float32"),
        "dtype": (lambda s: s | {name: s[name].half()}, r"\(4, 8\) torch.float16 instead of \(4, 8\) torch.float32"),
        "nan": (lambda s: s | {name: s[name] * torch.nan}, r"'classifier.weight' has values that are NaN or infinite"),
        "no state dict": (lambda s: {"epoch": 3}, r"holds no state dict.*\['epoch'\]"),
        "meta": (lambda s: s | {name: s[name].to("meta")}, "without plain numbers instead of"),
        "sparse": (lambda s: s | {name: s[name].to_sparse()}, "without plain numbers instead of"),
    }


@pytest.mark.parametrize("fault", broken_state_dicts())
def test_networks_that_do_not_fit_are_named_with_what_was_expected(tmp_path, networks, fault):
    change, reason = broken_state_dicts()[fault]
    save_all(networks, tmp_path / "zoo")
    torch.save(change(small(9).state_dict()), tmp_path / "zoo/odd.pth")

    with pytest.raises(CheckpointsError, match=f"(?s)1 of 13 checkpoints.*--skip_broken.*  odd.pth: .*{reason}"):
        Checkpoints.from_files([tmp_path / "zoo"], small())


def test_broken_files_are_left_out_and_listed_if_asked(tmp_path, networks):
    paths = save_all(networks, tmp_path / "zoo")
    paths[3].write_bytes(paths[3].read_bytes()[:-7])
    paths[5].write_bytes(b"")

    with pytest.raises(CheckpointsError, match=r"(?s)2 of 12.*net_03.safetensors: .*net_05.safetensors: "):
        Checkpoints.from_files([tmp_path / "zoo"], small())
    imported = Checkpoints.from_files([tmp_path / "zoo"], small(), skip_broken=True)
    imported.save(tmp_path / "saved")

    assert sum(len(rows) for rows in imported.splits.values()) == 10
    left_out = load_checkpoints(tmp_path / "saved").collection["imported"]["left_out"]
    assert list(left_out) == ["net_03.safetensors", "net_05.safetensors"]
    assert "2 that could not be read, or did not fit, were left out" in (tmp_path / "saved/README.md").read_text()


def test_nothing_is_imported_if_all_files_are_broken(tmp_path):
    (tmp_path / "one.safetensors").write_bytes(b"nothing")

    with pytest.raises(CheckpointsError, match=r"None of the 1 checkpoints can be imported:\n  one.safetensors"):
        Checkpoints.from_files([tmp_path], small(), skip_broken=True)


class Execute:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("write", [saved, pickle.dumps])
def test_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, write, archived):
    content = write({"state_dict": Execute(tmp_path / "executed")})
    if archived:
        path = write_tar(tmp_path / "zoo.tar", [("evil.pth", content)])
    else:
        path = tmp_path / "evil.pth"
        path.write_bytes(content)

    with pytest.raises(CheckpointsError, match=r"evil.pth: .*could run code, so nothing was loaded"):
        Checkpoints.from_files([path], small())

    assert not (tmp_path / "executed").exists()


def test_archive_members_that_are_no_files_inside_of_it_are_named_and_not_read(tmp_path):
    good, secret = save(small().state_dict()), tmp_path / "secret.safetensors"
    secret.write_bytes(good)
    archive = write_tar(
        tmp_path / "zoo.tar",
        [
            ("good.safetensors", good),
            ("../climbing.safetensors", good),
            ("/absolute.safetensors", good),
            special("symbolic.safetensors", tarfile.SYMTYPE, str(secret)),
            special("hard.safetensors", tarfile.LNKTYPE, "good.safetensors"),
            special("device.safetensors", tarfile.CHRTYPE),
            special("pipe", tarfile.FIFOTYPE),
        ],
    )

    with pytest.raises(CheckpointsError, match=r"6 of 7 checkpoints.*nothing was") as error:
        Checkpoints.from_files([archive], small())
    imported = Checkpoints.from_files([archive], small(), skip_broken=True)

    for name in ("climbing", "absolute"):
        assert f"{name}.safetensors: The member is not read: its name leads out of the archive." in str(error.value)
    for name in ("symbolic.safetensors", "hard.safetensors", "device.safetensors", "pipe"):
        assert f"{name}: The member is not read: it is no regular file" in str(error.value)
    assert torch.equal(imported.zoo.parameters[0], imported.processor.flatten(small().state_dict()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.safetensors", "zoo.tar"]
    assert not (tmp_path.parent / "climbing.safetensors").exists()


def test_member_that_claims_to_be_huge_is_not_read(tmp_path):
    info = tarfile.TarInfo("huge.safetensors")
    info.size = 2**30
    with gzip.open(tmp_path / "zoo.tar.gz", "wb", compresslevel=1) as file:
        file.write(info.tobuf())
        for _ in range(2**10):
            file.write(bytes(2**20))
        file.write(bytes(1024))

    with pytest.raises(
        CheckpointsError, match=r"huge.safetensors: .*it has 1073741824 bytes, but checkpoints of this"
    ):
        Checkpoints.from_files([tmp_path / "zoo.tar.gz"], small())


def test_header_that_claims_a_huge_name_is_refused(tmp_path):
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**32
    (tmp_path / "zoo.tar").write_bytes(info.tobuf() + bytes(4096))

    with pytest.raises(CheckpointsError, match=r"is damaged after 0 members .*claims 4294967"):
        Checkpoints.from_files([tmp_path / "zoo.tar"], small())


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.999])
@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tgz", "w:gz")])
def test_truncated_archive_is_refused(tmp_path, networks, suffix, mode, kept):
    members = [(f"net_{i}.safetensors", save(network.state_dict())) for i, network in enumerate(networks)]
    path = write_tar(tmp_path / f"zoo{suffix}", members, mode)
    content = path.read_bytes().rstrip(b"\0") if mode == "w" else path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])

    with pytest.raises(CheckpointsError, match=f"zoo{suffix}' is damaged after"):
        Checkpoints.from_files([path], small())


def test_compressed_torch_file_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(10_000_000))

    with pytest.raises(CheckpointsError, match=r"bomb.pth: The file is compressed"):
        Checkpoints.from_files([tmp_path / "bomb.pth"], small())


def test_large_file_is_not_read(tmp_path):
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 2**40))
        file.truncate(2**40)

    with pytest.raises(
        CheckpointsError, match=r"'large.safetensors' has 1099511627776 bytes, but checkpoints of this"
    ):
        Checkpoints.from_files([tmp_path], small())


def test_index_that_leads_out_of_its_folder_is_refused(tmp_path):
    save_file(small().state_dict(), tmp_path / "secret.safetensors")
    (tmp_path / "net").mkdir()
    (tmp_path / "net/model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')

    with pytest.raises(CheckpointsError, match=r"'../secret.safetensors' leads out"):
        Checkpoints.from_files([tmp_path / "net"], small())


@pytest.mark.parametrize("place", ["empty", "absent", "notes.txt", "*.nothing"])
def test_places_without_checkpoints_are_refused(tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no network")

    with pytest.raises(CheckpointsError, match=r"There are no checkpoints at '.*safetensors, .pth"):
        Checkpoints.from_files([tmp_path / place], small())


def test_archive_without_checkpoints_is_refused(tmp_path):
    write_tar(tmp_path / "zoo.tar", [("README.md", b"no networks")])

    with pytest.raises(CheckpointsError, match="The archives hold no checkpoints"):
        Checkpoints.from_files([tmp_path / "zoo.tar"], small())


def test_tied_tensors_that_differ_in_a_file_are_refused(tmp_path):
    network = MLPForImageClassification(MLPConfig(image_size=4, num_channels=1, hidden_sizes=[16, 16], num_labels=4))
    state_dict = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.layers[1].weight = network.layers[0].weight
    save_file(state_dict, tmp_path / "untied.safetensors")
    del state_dict["layers.1.weight"]
    save_file(state_dict, tmp_path / "tied.safetensors")

    imported = Checkpoints.from_files([tmp_path / "tied.safetensors"], network)
    assert imported.zoo.parameters.shape == (1, 16 * 16 + 16 + 16 + 16 * 4 + 4)
    with pytest.raises(CheckpointsError, match=r"'layers.\d.weight' differs from 'layers.\d.weight', to which"):
        Checkpoints.from_files([tmp_path / "untied.safetensors"], network)
