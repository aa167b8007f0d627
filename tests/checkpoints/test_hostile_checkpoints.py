"""Whatever stands in a checkpoint: a clear error, and nothing is run or copied."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from digits_runs import fit, model

from deqcert.checkpoints import read_checkpoint
from deqcert.errors import CheckpointError
from deqcert.training import DEQClassifier

NAME = "network.mdeq_head.classifier.bias"
COUNT = "network.stem.1.num_batches_tracked"


@pytest.fixture(scope="module")
def state():
    return model().state_dict()


@pytest.fixture
def save(tmp_path, state):
    """Writes a checkpoint; keyword arguments replace its parts."""

    def save(**parts):
        path = tmp_path / "model.ckpt"
        content = {"state_dict": state, "hyper_parameters": {"sigma": 0.25}, "stream_seed": 7}
        torch.save({**content, "pytorch-lightning_version": "2.6.6", **parts}, path)
        return path

    return save


def load(path):
    return DEQClassifier.load_from_checkpoint(path, network=model(seed=1).network)


def assert_refused(path, message):
    """Both by the command line's check and by the module's own method."""
    with pytest.raises(CheckpointError, match=rf"^ckpt_path = '.*{path.name}': .*{message}"):
        read_checkpoint(str(path))
    with pytest.raises(CheckpointError, match=rf"^checkpoint_path = .*{message}"):
        load(path)


def test_a_sound_checkpoint_is_loaded(save, state):
    module = load(save())
    assert module.sigma == 0.25
    assert module.stream_seed == 7
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())


# Files.


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"no checkpoint", bytes(10_000), pickle.dumps({"state_dict": {}}), b"\x80\x02" * 1000],
    ids=["empty", "magic", "text", "zeros", "pickle", "protocols"],
)
def test_files_that_are_no_checkpoint(tmp_path, content):
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    assert_refused(path, "damaged" if content.startswith(b"PK") else "not a checkpoint written by fit")


def test_a_big_file_that_is_no_checkpoint_is_not_read(tmp_path):
    path = tmp_path / "big.ckpt"
    with path.open("wb") as stream:
        stream.truncate(2**40)
    assert_refused(path, "not a checkpoint written by fit")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "dangling"])
def test_paths_that_are_no_files(tmp_path, kind):
    path = tmp_path / "path.ckpt"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    assert_refused(path, "must be an existing checkpoint file")


@pytest.mark.parametrize("path", ["a" * 5000, "nul\0.ckpt", ""])
def test_impossible_paths(path):
    with pytest.raises(CheckpointError, match="must be an existing checkpoint file"):
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_truncated_file(save, share):
    path = save()
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(path, "damaged")


def test_compressed_archive(save):
    """A small one could fill the memory."""
    path = save(zeros=torch.zeros(10**6))
    packed = path.with_name("packed.ckpt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    assert_refused(packed, "compressed")


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("place", ["state_dict", "hyper_parameters", "callbacks"])
def test_pickled_code_is_not_run(save, tmp_path, place):
    victim = tmp_path / "victim"
    path = save(**{place: Payload(victim)})
    assert_refused(path, "holds more than tensors")
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists(), "the payload does not work, so that the test shows nothing"


# Content.


@pytest.mark.parametrize("content", [[], 3, torch.zeros(2), {"model": {}}, {}, None])
def test_archives_without_weights(tmp_path, content):
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    assert_refused(path, "no state_dict")


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(3), None, "weights"])
def test_state_dict_must_be_a_dictionary(save, value):
    assert_refused(save(state_dict=value), "state_dict must be a dictionary")


@pytest.mark.parametrize("key", [3, None, ("a", "b")])
def test_names_must_be_strings(save, state, key):
    assert_refused(save(state_dict={**state, key: torch.zeros(1)}), "names in state_dict must be strings")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    "make",
    [
        lambda: 0.5,
        lambda: [0.5],
        lambda: None,
        lambda: torch.zeros(10).to_sparse(),
        lambda: torch.zeros(10, device="meta"),
        lambda: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)]),
    ],
    ids=["float", "list", "none", "sparse", "meta", "nested"],
)
def test_weights_must_be_dense_tensors(save, state, make):
    assert_refused(save(state_dict={**state, NAME: make()}), f"{NAME} must be a dense tensor")


# Weights: named by the module, in whatever way they come.


def assert_weights_refused(path, message):
    with pytest.raises(CheckpointError, match=rf"^ckpt_path: .*{message}"):
        load(path)
    started = model(seed=3, weights=str(path))
    before = {name: tensor.clone() for name, tensor in started.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"^model\.weights: .*{message}"):
        fit(started, 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in started.state_dict().items())


def changed(state, name, change):
    return {key: change(value.clone()) if key == name else value for key, value in state.items()}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [NAME, "network.stem.1.running_var"])
def test_weights_that_are_not_finite(save, state, value, name):
    def spoil(tensor):
        tensor[-1] = value
        return tensor

    assert_weights_refused(save(state_dict=changed(state, name, spoil)), rf"must be finite.* {name}$")


def test_weights_that_overflow_in_the_type_of_the_model(save, state):
    path = save(state_dict=changed(state, NAME, lambda tensor: torch.full_like(tensor, 1e300, dtype=torch.float64)))
    assert_weights_refused(path, rf"must be finite.* {NAME}$")


def test_other_floats_are_converted(save, state):
    halved = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    weights = load(save(state_dict=halved)).state_dict()
    assert all(torch.equal(weights[name], tensor.to(weights[name].dtype)) for name, tensor in halved.items())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (NAME, torch.int64),
        (NAME, torch.bool),
        (NAME, torch.complex64),
        (NAME, torch.float8_e5m2),
        (COUNT, torch.float32),
        (COUNT, torch.int32),
    ],
)
def test_types_of_weights(save, state, name, dtype):
    path = save(state_dict=changed(state, name, lambda tensor: tensor.to(dtype)))
    assert_weights_refused(path, rf"{name} is {dtype}, the model needs")


def test_shapes_and_names_of_weights(save, state):
    few = {key: value for key, value in state.items() if key != NAME}
    assert_weights_refused(save(state_dict=few), f"missing {NAME}")
    assert_weights_refused(
        save(state_dict={**state, "more\x1b[31m\n": torch.zeros(1)}), r"unexpected more\\x1b\[31m\\n$"
    )
    assert_weights_refused(save(state_dict=changed(state, NAME, lambda tensor: tensor[:-1])), f"{NAME} has shape")
    assert_weights_refused(save(state_dict={}), "missing .* and .* more")


def test_a_tensor_far_larger_than_its_file(save, state):
    path = save(state_dict=changed(state, NAME, lambda tensor: tensor[:1].expand(10**15)))
    assert path.stat().st_size < 10**6
    assert_weights_refused(path, rf"{NAME} has shape \(1000000000000000,\)")


# Hyperparameters and progress.


@pytest.mark.parametrize("field", ["hyper_parameters", "hparams", "module_arguments"])
@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"_instantiator": "os.system"}, "_instantiator"),
        ({"_instantiator": "lightning.pytorch.cli.instantiate_module", "_class_path": "a.B"}, "_class_path, _inst"),
        ({"class_path": "subprocess.Popen", "init_args": {"args": "ls"}}, "class_path"),
    ],
)
def test_hyperparameters_that_name_code(save, field, value, named):
    assert_refused(save(**{field: value}), f"{field} names code to run .*{named}")


def test_lightning_would_follow_an_instantiator(save):
    """Otherwise the check would not be needed."""
    path = save(hyper_parameters={"_instantiator": "os.system"})
    with pytest.raises(ValueError, match=r"instantiator 'os\.system'"):
        super(DEQClassifier, DEQClassifier).load_from_checkpoint(path, weights_only=True)


@pytest.mark.parametrize("value", [[], "sigma", 3, None])
def test_hyperparameters_must_be_a_dictionary(save, value):
    assert_refused(save(hyper_parameters=value), "hyper_parameters must be a dictionary")


@pytest.mark.parametrize("sigma", ["0.5", None, float("nan"), float("inf"), -1.0, True, 10**400, torch.ones(2), [1]])
def test_sigma_of_the_checkpoint(save, sigma):
    assert_refused(save(hyper_parameters={"sigma": sigma}), "hyper_parameters must have a finite sigma >= 0")


@pytest.mark.parametrize(
    "value",
    [
        [],
        "MDEQ",
        {"network": "MDEQ"},
        {"network": 3, "settings": {}},
        {"network": "MDEQ", "settings": []},
        {"network": "MDEQ", "settings": {}, "class_path": "os.system"},
        {"network": "MDEQ", "settings": {3: 3}},
        {"network": "MDEQ", "settings": {"mean": torch.ones(1)}},
        {"network": "MDEQ", "settings": {"mean": [torch.ones(1)]}},
        {"network": "MDEQ", "settings": {"solver": {"class_path": "os.system"}}},
    ],
)
def test_architecture_of_the_checkpoint(save, value):
    assert_refused(save(architecture=value), "architecture must have")


def test_an_architecture_cannot_command_the_terminal(save):
    path = save(architecture={"network": "MDEQ", "settings": {"start": "\x1b[2J", "\x1b[3J": 1}})
    with pytest.raises(CheckpointError, match=r"\.start = 'zero', must be '\\x1b\[2J'; \\x1b\[3J = 1 is not "):
        load(path)
    with pytest.raises(CheckpointError, match=r"model\.network is MDEQ, must be \\x1b\[2J$"):
        load(save(architecture={"network": "\x1b[2J", "settings": {}}))


@pytest.mark.parametrize("seed", ["7", -1, 2**64, 0.5, None, True])
def test_seed_of_the_checkpoint(save, seed):
    assert_refused(save(stream_seed=seed), "stream_seed must be an integer")


def test_weights_alone_cannot_be_resumed(save):
    with pytest.raises(CheckpointError, match=r"holds weights only .* model\.weights"):
        fit(model(), 1, ckpt_path=save())


def test_a_checkpoint_is_checked_however_lightning_has_read_it(save, state):
    path = save(state_dict=changed(state, NAME, lambda tensor: tensor * float("nan")), optimizer_states=[{}])
    with pytest.raises(CheckpointError, match="must be finite"):
        fit(model(), 1, ckpt_path=path)
    path = save(state_dict={**state, NAME: 0.5})
    with pytest.raises(CheckpointError, match="must be a dense tensor"):
        fit(model(), 1, ckpt_path=path)


def test_what_load_from_checkpoint_does_not_take(save, tmp_path):
    path = save()
    hparams = tmp_path / "hparams.yaml"
    hparams.write_text("_instantiator: os.system\n")
    for unsafe in ({"hparams_file": hparams}, {"weights_only": False}):
        with pytest.raises(TypeError, match=next(iter(unsafe))):
            DEQClassifier.load_from_checkpoint(path, network=model().network, **unsafe)
    with path.open("rb") as stream, pytest.raises(TypeError):
        DEQClassifier.load_from_checkpoint(stream, network=model().network)


def _loads(path):
    try:
        torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


def test_any_byte_may_be_wrong(save, state):
    """Refused, or the weights are those that were written: torch.load alone does not look at checksums."""
    path = save()
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    copy = path.with_name("copy.ckpt")
    shutil.copy(path, copy)
    refused = silent = 0
    for _ in range(60):
        place = int(torch.randint(len(content), (), generator=generator))
        copy.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
        try:
            checkpoint = read_checkpoint(str(copy))
        except CheckpointError:
            refused += 1
            silent += _loads(copy)
            continue
        assert all(torch.equal(state[name], tensor) for name, tensor in checkpoint["state_dict"].items())
    assert refused > silent > 0
