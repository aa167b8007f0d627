"""``deqcert:NAME``: the files of configurations and checkpoints, and what may come from elsewhere."""

from __future__ import annotations

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from command_lines import CHECKPOINT, ROOT

from deqcert import names
from deqcert.errors import CheckpointError, SettingError
from deqcert.files import file_digest
from deqcert.names import checkpoint_path, config_path

SHIPPED = sorted((ROOT / "checkpoints").glob("*/model.ckpt"))
NAME = "deqcert:cifar10_mdeq_small_cpu"
FILE = Path("cifar10_mdeq_small_cpu", "model.ckpt")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(names.CHECKPOINTS_VARIABLE, raising=False)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """As in an environment with the wheel, which has the digits checkpoint only."""
    folder = tmp_path / "installed"
    folder.mkdir()
    shutil.copy(ROOT / "checkpoints" / "SHA256SUMS", folder)
    shutil.copytree(CHECKPOINT.parent, folder / CHECKPOINT.parent.name)
    monkeypatch.setattr(names, "_CHECKPOINTS", folder)
    return folder


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_every_configuration_has_a_name():
    for path in (ROOT / "configs").rglob("*.yaml"):
        name = f"deqcert:{path.relative_to(ROOT / 'configs').as_posix().removesuffix('.yaml')}"
        assert config_path(name) == str(path)


@pytest.mark.parametrize("name", ["deqcert:certify/srs", "deqcert:", "deqcert:../pyproject", "deqcert:certify"])
def test_an_unknown_configuration_is_refused_with_those_there_are(name):
    with pytest.raises(SettingError, match=f"^config = '{name}': must be one of deqcert:certify/anchored_3a, .*3a, "):
        config_path(name)


def test_other_names_are_those_of_files():
    for name in ("certify/srs_3a.yaml", "", "./deqcert:certify/srs_3a", "{}"):
        assert config_path(name) == name
        assert checkpoint_path(name) == name


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_a_clone_has_every_checkpoint(path):
    assert checkpoint_path(f"deqcert:{path.parent.name}") == path


def test_the_sums_are_those_of_the_files():
    lines = [line.split("  ") for line in (ROOT / "checkpoints" / "SHA256SUMS").read_text().splitlines()]
    assert lines == [[file_digest(path), f"{path.parent.name}/model.ckpt"] for path in SHIPPED]


@pytest.mark.parametrize(
    "name", ["digits", "", "../x", "cifar10_mdeq_small_cpu/model.ckpt", "cifar10_mdeq_small_standing"]
)
def test_an_unknown_checkpoint_is_refused_with_those_there_are(name):
    with pytest.raises(
        CheckpointError, match=r"^source = .*: must be one of deqcert:cifar10.*, deqcert:digits_mdeq_tiny"
    ):
        checkpoint_path(f"deqcert:{name}", "source")


def test_without_a_place_to_look_the_error_says_how_to_name_one(installed):
    assert checkpoint_path("deqcert:digits_mdeq_tiny") == installed / "digits_mdeq_tiny" / "model.ckpt"
    with pytest.raises(CheckpointError, match=f"DEQCERT_CHECKPOINTS to the folder or URL that has {FILE}"):
        checkpoint_path(NAME)


def test_a_folder(installed, monkeypatch, tmp_path):
    folder = tmp_path / "models"
    monkeypatch.setenv(names.CHECKPOINTS_VARIABLE, str(folder))
    with pytest.raises(CheckpointError, match="DEQCERT_CHECKPOINTS"):
        checkpoint_path(NAME)
    shutil.copytree((ROOT / "checkpoints" / FILE).parent, folder / FILE.parent)
    assert checkpoint_path(NAME) == folder / FILE
    damage(folder / FILE)
    with pytest.raises(CheckpointError, match=f"{FILE}: has another SHA-256 than "):
        checkpoint_path(NAME)


def test_a_shipped_file_that_was_changed_is_not_used(installed):
    damage(installed / "digits_mdeq_tiny" / "model.ckpt")
    with pytest.raises(CheckpointError, match="has another SHA-256 than 7d7ede02"):
        checkpoint_path("deqcert:digits_mdeq_tiny")


class Silent(SimpleHTTPRequestHandler):
    requests: list[str]

    def log_request(self, *_):
        self.requests.append(self.path)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves a folder of checkpoints; its ``requests`` are the paths asked for."""
    folder = tmp_path / "served"
    shutil.copytree((ROOT / "checkpoints" / FILE).parent, folder / FILE.parent)
    requests: list[str] = []
    handler = partial(type("Handler", (Silent,), {"requests": requests}), directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(names.CHECKPOINTS_VARIABLE, f"http://127.0.0.1:{server.server_port}/")
        yield folder, requests
        server.shutdown()


def test_a_download_is_checked_and_kept(installed, server, monkeypatch, tmp_path):
    _, requests = server
    found = checkpoint_path(NAME)
    assert found.is_relative_to(tmp_path / "torch")
    assert found.read_bytes() == (ROOT / "checkpoints" / FILE).read_bytes()
    assert requests == [f"/{FILE}"]
    assert checkpoint_path(NAME) == found
    monkeypatch.delenv(names.CHECKPOINTS_VARIABLE)
    assert checkpoint_path(NAME) == found
    assert len(requests) == 1


def test_a_damaged_download_is_made_again(installed, server):
    damage(checkpoint_path(NAME))
    found = checkpoint_path(NAME)
    assert found.read_bytes() == (ROOT / "checkpoints" / FILE).read_bytes()


def test_another_file_than_the_known_one_is_not_kept(installed, server, tmp_path):
    folder, _ = server
    damage(folder / FILE)
    with pytest.raises(CheckpointError, match=r"^ckpt_path = .* cannot be used: invalid hash value"):
        checkpoint_path(NAME)
    assert not list((tmp_path / "torch").rglob("*.*"))


def test_a_download_that_fails_names_the_address(installed, server, monkeypatch):
    folder, _ = server
    (folder / FILE).unlink()
    with pytest.raises(CheckpointError, match=r"^ckpt_path = .*http://127.*model\.ckpt cannot be used: HTTP Error 404"):
        checkpoint_path(NAME)
    monkeypatch.setenv(names.CHECKPOINTS_VARIABLE, "nothing://here")
    with pytest.raises(CheckpointError, match="nothing://here/"):
        checkpoint_path(NAME)
