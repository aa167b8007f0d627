import argparse
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from deqcert.checkpoints import read_checkpoint
from deqcert.errors import CheckpointError
from deqcert.interchange import read_weights, write_checkpoint, write_safetensors

ARCHITECTURE = {"network": "Small", "settings": {"mean": [0.5, 0], "start": "zero", "affine": True}}
WEIGHTS = {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.tensor([1.0, -2.0])}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("holder", [None, "state_dict", "model_state_dict", "model", "net", "params", "ema"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_weights_are_found_plain_or_beside_other_things(tmp_path, holder, zipped):
    content = WEIGHTS if holder is None else {holder: WEIGHTS, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / "w.pth")
    assert same(found.tensors, WEIGHTS)
    assert found.beside == ({} if holder is None else {"epoch": "no weights", "optimizer": "no weights"})
    assert found.sigma is None


def test_of_several_weights_the_others_are_named(tmp_path):
    other = {name: 2 * tensor for name, tensor in WEIGHTS.items()}
    torch.save({"ema": other, "epoch": 3, "model": WEIGHTS}, tmp_path / "w.pth")
    found = read_weights(tmp_path / "w.pth")
    assert same(found.tensors, WEIGHTS)
    assert found.beside == {"ema": "other weights; those of model are taken", "epoch": "no weights"}


def test_a_view_is_written_without_the_rest_of_its_storage(tmp_path):
    whole = torch.arange(100_000.0)
    write_checkpoint(tmp_path / "w.ckpt", {"some": whole[:1000], "transposed": whole[:6].view(2, 3).T}, 0.5, None)
    assert (tmp_path / "w.ckpt").stat().st_size < 10_000
    found = read_weights(tmp_path / "w.ckpt").tensors
    assert torch.equal(found["network.some"], whole[:1000])
    assert torch.equal(found["network.transposed"], whole[:6].view(2, 3).T)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("w.pth", b"\n<!DOCTYPE html>\n<html>", "is a web page, not a file of weights"),
        ("w.pth", b"<HTML lang=en>", "is a web page, not a file of weights"),
        ("w.safetensors", b"<!doctype html>", "is a web page, not a file of weights"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "is a pointer of git-lfs"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-lfs"),
    ],
)
def test_what_often_stands_in_place_of_weights_is_named(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=complaint):
        read_weights(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"^ckpt_path = .*{complaint}"):
        read_checkpoint(tmp_path / name)


def test_what_is_written_is_a_checkpoint_of_ours_and_can_be_read(tmp_path):
    write_checkpoint(tmp_path / "w.ckpt", WEIGHTS, 0.25, ARCHITECTURE)
    checkpoint = read_checkpoint(tmp_path / "w.ckpt")
    assert checkpoint["hyper_parameters"] == {"sigma": 0.25}
    found = read_weights(tmp_path / "w.ckpt")
    assert same(found.tensors, {f"network.{name}": tensor for name, tensor in WEIGHTS.items()})
    assert (found.sigma, found.architecture) == (0.25, ARCHITECTURE)
    assert "architecture" not in found.beside
    write_checkpoint(tmp_path / "unknown.ckpt", WEIGHTS, 0.25, None)
    assert "architecture" not in read_checkpoint(tmp_path / "unknown.ckpt")


@pytest.mark.parametrize("sigma", [0.1, None])
def test_safetensors_come_back_bit_for_bit(tmp_path, sigma):
    weights = {**WEIGHTS, "odd": torch.arange(6.0).view(2, 3).T, "count": torch.tensor(7), "shared": WEIGHTS["fc.bias"]}
    write_safetensors(tmp_path / "w.safetensors", weights, sigma, "0f" * 32)
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        stated = {} if sigma is None else {"sigma": "0.1"}
        assert file.metadata() == {"format": "pt", "source_sha256": "0f" * 32} | stated
    found = read_weights(tmp_path / "w.safetensors")
    assert same(found.tensors, weights)
    assert (found.sigma, found.architecture) == (sigma, None)


def test_safetensors_carry_the_architecture(tmp_path):
    write_safetensors(tmp_path / "w.safetensors", WEIGHTS, 0.5, "", ARCHITECTURE)
    assert read_weights(tmp_path / "w.safetensors").architecture == ARCHITECTURE


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "cannot be read as safetensors"),
        ("[" * 100_000, "cannot be read as safetensors"),
        ("[]", "architecture must have"),
        ('{"network": "MDEQ", "settings": {"mean": {"a": 1}}}', "architecture must have numbers"),
    ],
)
def test_a_bad_architecture_of_safetensors_is_refused(tmp_path, text, complaint):
    save_file(WEIGHTS, tmp_path / "w.safetensors", {"architecture": text})
    with pytest.raises(CheckpointError, match=rf"w\.safetensors: {complaint}"):
        read_weights(tmp_path / "w.safetensors")


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_is_refused_and_not_run(tmp_path, zipped):
    evil = tmp_path / "evil.pth"
    torch.save(
        {"state_dict": WEIGHTS, "x": Harmful(str(tmp_path / "harm"))}, evil, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(
        CheckpointError, match=r"evil\.pth: damaged, or holds more than tensors \(refused: posix\.mkdir\)"
    ):
        read_weights(evil)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (argparse.Namespace(lr=1), r"argparse\.Namespace"),
        (np.ones(2), r"numpy\._?core\.multiarray\._reconstruct"),
        (np.float64(0.9), r"numpy\._?core\.multiarray\.scalar"),
    ],
    ids=["namespace", "array", "number"],
)
def test_objects_beside_the_weights_are_refused_by_name(tmp_path, value, name, zipped):
    torch.save({"state_dict": WEIGHTS, "x": value}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=rf"\(refused: {name}\); save its state_dict alone$"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncated_files_are_refused(tmp_path, share, zipped):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": nn.Linear(30, 30).state_dict()}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"w\.pth: damaged"):
        read_weights(path)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_plain_pickle_is_refused_without_advice_to_trust_it(tmp_path, protocol):
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"state_dict": {"w": [1.0]}}, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"w\.pth: damaged, or holds more than tensors") as refused:
        read_weights(path)
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_tensor_larger_than_its_file_is_refused(tmp_path, zipped):
    content = {"w\x1b[2J": torch.zeros(1).expand(10**13)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"w\\x1b\[2J has shape \(10000000000000,\), larger than the file"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("sigma", [float("nan"), float("inf"), -1.0, True, "0.5", 10**400])
def test_a_bad_sigma_is_refused(tmp_path, sigma):
    torch.save({"state_dict": WEIGHTS, "hyper_parameters": {"sigma": sigma}}, tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match=r"w\.ckpt must have a finite sigma >= 0"):
        read_weights(tmp_path / "w.ckpt")


@pytest.mark.parametrize(
    ("sigma", "complaint"),
    [("nan", " must have a finite sigma"), ("half", ": cannot be read as safetensors: could not")],
)
def test_a_bad_sigma_of_safetensors_is_refused(tmp_path, sigma, complaint):
    save_file(WEIGHTS, tmp_path / "w.safetensors", {"sigma": sigma})
    with pytest.raises(CheckpointError, match=rf"w\.safetensors{complaint}"):
        read_weights(tmp_path / "w.safetensors")


def write(path: Path, content: object) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "damaged"),
        (b"\x00\xff" * 100, "damaged"),
        (b"idx\tlabel\n", "damaged"),
        (b"PK\x03\x04 and so on", "damaged"),
        ([1, 2], "must hold a dictionary of weights, not a list"),
        ({}, "holds no weights"),
        ({"state_dict": {}}, "holds no weights"),
        ({"epoch": 3}, "epoch must be a dense tensor with data, not int"),
        ({"state_dict": {3: torch.ones(1)}}, "names in state_dict must be strings"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, content, complaint):
    path = write(tmp_path / "bad.pth", content)
    with pytest.raises(CheckpointError, match=rf"bad\.pth: .*{complaint}"):
        read_weights(path)


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors"])
def test_missing_files_are_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match=name):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:20], lambda b: b[:-3], lambda b: b"\xff" * 50])
def test_damaged_safetensors_are_refused(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, WEIGHTS, 0.5, "")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"w\.safetensors: cannot be read as safetensors"):
        read_weights(path)


def test_a_flipped_bit_of_an_archive_is_noticed(tmp_path):
    torch.save(nn.Linear(50, 50).state_dict(), tmp_path / "w.pth")
    content = bytearray((tmp_path / "w.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="wrong checksum"):
        read_weights(tmp_path / "w.pth")
