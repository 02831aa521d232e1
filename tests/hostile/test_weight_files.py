"""Weight files are data: what would be run as they are read is not run, and is named."""

from __future__ import annotations

import importlib.util
import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gmm_anomaly.engine.checkpoint import Checkpointer
from gmm_anomaly.engine.conversion import read_source
from gmm_anomaly.engine.frozen_network import trained_classifier
from gmm_anomaly.modeling.backbones.weights import read_state_dict
from gmm_anomaly.weight_files import read_weights, trust_pickles

ROOT = Path(__file__).parents[2]


class WritesFile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(autouse=True)
def no_trust():
    yield
    trust_pickles(False)


@pytest.fixture
def hostile(tmp_path):
    """``hostile(name)``: a weight file that makes the folder "hacked" if what it holds is run."""

    def make(name: str) -> Path:
        content = {"model": {"weight": np.ones(2)}, "__author__": "a", "x": WritesFile(tmp_path / "hacked")}
        if name.endswith(".pkl"):
            (tmp_path / name).write_bytes(pickle.dumps(content))
        else:
            content["model"] = {"weight": torch.ones(2)}
            torch.save(content, tmp_path / name, _use_new_zipfile_serialization=name != "legacy.pth")
        return tmp_path / name

    return make


READERS = {
    "checkpoint": lambda path: Checkpointer(nn.Linear(2, 2)).load(str(path)),
    "conversion": read_source,
    "backbone": lambda path: read_state_dict(path, "MODEL.TIMM.WEIGHTS"),
    "fit": lambda path: trained_classifier(str(path)),
}


@pytest.mark.parametrize("name", ["new.pth", "legacy.pth", "zoo.pkl"])
@pytest.mark.parametrize("reader", READERS)
def test_nothing_in_a_file_is_run(hostile, tmp_path, reader, name):
    path = hostile(name)
    with pytest.raises(
        ValueError, match=rf"{name} .* is a pickle that names (posix|nt)\.mkdir.*--trust-pickle"
    ):
        READERS[reader](path)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("name", ["new.pth", "zoo.pkl"])
def test_trusted_pickles_are_read_and_said(hostile, tmp_path, name, caplog):
    path = hostile(name)
    trust_pickles(True)
    assert float(read_weights(path)["model"]["weight"].sum()) == 2
    assert (tmp_path / "hacked").is_dir() and "--trust-pickle" in caplog.text


@pytest.mark.parametrize("tool", ["train_net", "tools/convert_weights", "tools/find_anomaly_queries"])
def test_the_flag_grants_trust(tool, monkeypatch):
    spec = importlib.util.spec_from_file_location(Path(tool).name, ROOT / f"{tool}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    said = []
    monkeypatch.setattr(module, "trust_pickles", said.append)
    needed = {"train_net": [], "tools/convert_weights": ["a.pth", "b.pth"]}.get(tool, ["--dataset", "none"])
    for flag in ([], ["--trust-pickle"]):
        args = module.parser().parse_args(["--config-file", "no such file", *flag, *needed])
        with pytest.raises((FileNotFoundError, ValueError)):
            (module.main if tool == "train_net" else module.run)(args)
    assert said == [False, True]


ARRAYS = {
    "plain": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "by columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "half": np.array([1.5, -2], np.float16),
    "integers": np.arange(-3, 3),
    "bytes": np.arange(200, 256, dtype=np.uint8),
    "booleans": np.array([True, False]),
    "big endian": np.arange(4, dtype=">f4"),
    "no values": np.zeros((0, 3), np.float32),
    "a number": np.array(2.5),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_the_model_zoo_need_no_trust(tmp_path, protocol):
    path = tmp_path / "zoo.pkl"
    content = {"model": ARRAYS, "__author__": "somebody", "scalar": np.float32(3), "list": [1, (2.0, None)]}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_weights(path)
    assert (found["__author__"], found["scalar"], found["list"]) == ("somebody", 3, [1, (2.0, None)])
    assert list(found["model"]) == list(ARRAYS)
    for name, expected in ARRAYS.items():
        assert found["model"][name].dtype == expected.dtype, name
        np.testing.assert_array_equal(found["model"][name], expected)


def test_arrays_of_python_2(tmp_path):
    # As Python 2 wrote them: bytes in strings, names as bytes.
    stored = (
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x00\x00\x80?\x00\x00\xc0\xbftbs."
    )
    (tmp_path / "caffe2.pkl").write_bytes(stored)
    assert np.array_equal(read_weights(tmp_path / "caffe2.pkl")["w"], [1, -1.5])


@pytest.mark.parametrize("extension", [".pkl", ".pyth", ".pth"])
def test_checkpointer_reads_detectron2s_formats(tmp_path, extension):
    model = nn.Linear(2, 3)
    state = {"weight": np.full((3, 2), 5, np.float32), "bias": np.ones(3, np.float32)}
    path = tmp_path / f"weights{extension}"
    if extension == ".pkl":
        path.write_bytes(pickle.dumps({"model": state, "__author__": "zoo"}, protocol=2))
    else:
        tensors = {name: torch.from_numpy(array) for name, array in state.items()}
        torch.save({"model_state": tensors} if extension == ".pyth" else tensors, path)
    Checkpointer(model).load(str(path))
    for name, expected in state.items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), expected)


def test_caffe2_files_lose_their_momentum(tmp_path):
    path = tmp_path / "caffe2.pkl"
    blobs = {"weight": np.ones((3, 2), np.float32), "weight_momentum": np.ones(1, np.float32)}
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    found = Checkpointer(nn.Linear(2, 3))._load_file(str(path))
    assert list(found["model"]) == ["weight"] and found["matching_heuristics"]


class Crafted:
    """An array whose type claims to hold objects, and whose content are raw bytes."""

    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)


class FromCodec:
    def __reduce__(self):
        import _codecs

        return _codecs.encode, (zlib.compress(bytes(100)).decode("latin1"), "zlib")


class HugeBytes:
    def __reduce__(self):
        return bytes, (10**12,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([None, {}], dtype=object), "arrays of type 'O8'"),
        (Crafted(), "arrays of type 'O8'"),
        (np.array(["text"]), "arrays of type 'U4'"),
        (np.zeros(2, [("a", "f4")]), "arrays of type 'V4'"),
        (FromCodec(), "encoding 'zlib'"),
        (HugeBytes(), "bytes made from something else"),
        (ARRAYS, "torn"),
    ],
)
def test_other_content_of_pickles_is_refused(tmp_path, content, message):
    path = tmp_path / "zoo.pkl"
    packed = pickle.dumps({"model": content}, protocol=2)
    path.write_bytes(packed[: len(packed) // 2] if message == "torn" else packed)
    expected = r"cannot be read as a file of tensors" if message == "torn" else message
    with pytest.raises(ValueError, match=rf"MODEL.WEIGHTS: .*zoo.pkl.*{expected}"):
        read_weights(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(ValueError, match="pipe.pth is not a regular file"):
        read_weights(tmp_path / "pipe.pth")


@pytest.mark.parametrize(
    ("name", "content"), [("a.pth", [1, 2]), ("a.pth", {"model": 3}), ("a.pyth", {"weight": torch.ones(1)})]
)
def test_files_without_a_state_dict_are_named(tmp_path, name, content):
    torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=f"MODEL.WEIGHTS: .*{name} .*state dict"):
        Checkpointer(nn.Linear(2, 2)).load(str(tmp_path / name))
