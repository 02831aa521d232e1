"""Weight files are data: what would be run as they are read is not run, and is named."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from gmm_anomaly.engine.checkpoint import Checkpointer
from gmm_anomaly.modeling.backbones.weights import load_weight_file, tensors_of, trust_pickles


class MakesFolder:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
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

    def make(name):
        content = {"model": {"weight": np.ones(2)}, "__author__": "a", "x": MakesFolder(tmp_path / "hacked")}
        if name.endswith(".pkl"):
            (tmp_path / name).write_bytes(pickle.dumps(content))
        else:
            content["model"] = {"weight": torch.ones(2)}
            torch.save(content, tmp_path / name, _use_new_zipfile_serialization=name != "legacy.pth")
        return tmp_path / name

    return make


@pytest.mark.parametrize("name", ["new.pth", "legacy.pth", "zoo.pkl"])
def test_nothing_in_a_file_is_run_unless_it_is_trusted(hostile, tmp_path, name):
    path = hostile(name)
    for read in (load_weight_file, lambda path: Checkpointer(nn.Linear(2, 2)).load(str(path))):
        with pytest.raises(ValueError, match=rf"MODEL\.WEIGHTS: .*{name} is a pickle.*--trust-pickle"):
            read(path)
    assert not (tmp_path / "hacked").exists()
    trust_pickles(True)
    assert float(load_weight_file(path)["model"]["weight"].sum()) == 2
    assert (tmp_path / "hacked").is_dir()


@pytest.mark.parametrize("extension", [".pkl", ".pth", ".safetensors"])
def test_checkpointer_reads_detectron2s_formats(tmp_path, extension):
    model = nn.Linear(2, 3)
    state = {"weight": np.full((3, 2), 5, np.float32), "bias": np.ones(3, np.float32)}
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    path = tmp_path / f"weights{extension}"
    if extension == ".pkl":
        path.write_bytes(pickle.dumps({"model": state, "__author__": "zoo"}, protocol=2))
        trust_pickles(True)
    elif extension == ".safetensors":
        from safetensors.torch import save_file

        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    Checkpointer(model).load(str(path))
    for name, expected in state.items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), expected)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: {"model": nn.DataParallel(net).state_dict()},
        lambda net: {
            "epoch": 1,
            "state_dict": nn.ModuleDict({"model": net, "loss": nn.PReLU()}).state_dict(),
        },
        lambda net: {"ema_state_dict": torch.optim.swa_utils.AveragedModel(net).state_dict(), "step": 3},
        lambda net: {
            "state_dict_ema": nn.Sequential(net).state_dict(),
            "optimizer": {"state": {0: {"m": 1}}},
        },
        lambda net: {"model_ema": {k: v + 1 for k, v in net.state_dict().items()}, "model": net.state_dict()},
        lambda net: {"a": {"b": nn.ModuleDict({"ema": nn.Linear(2, 3), "net": net}).state_dict()}},
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_what_wrappers_put_around_a_network_is_taken_off(wrap, inside, tmp_path, caplog):
    """The oracle is the state dict of the network itself; what is not plain is said."""
    plain, net = (nn.ModuleDict({"backbone": nn.Linear(2, 3)}) for _ in range(2))
    compiled = nn.Module()
    compiled.add_module(
        "backbone", nn.ModuleDict({"_orig_mod": plain.backbone}) if inside else plain.backbone
    )
    torch.save(wrap(compiled), tmp_path / "wrapped.pth")
    loaded = torch.load(tmp_path / "wrapped.pth")
    Checkpointer(net).load(str(tmp_path / "wrapped.pth"))
    for name, value in plain.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)
        assert torch.equal(tensors_of(loaded, "file")[name], value)
    assert (list(loaded) == ["model"]) != ("are taken" in caplog.text)


def test_files_that_hold_nothing_are_named(tmp_path):
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save({"model": {"weight": torch.ones(9)}}, tmp_path / "torn.pth")
    (tmp_path / "torn.pth").write_bytes((tmp_path / "torn.pth").read_bytes()[:200])
    for name in ("text.pth", "torn.pth"):
        with pytest.raises(ValueError, match=rf"INPUT: .*{name} cannot be read as a file of tensors"):
            load_weight_file(tmp_path / name, "INPUT")
    with pytest.raises(FileNotFoundError, match=r"INPUT: no file .*none\.pth"):
        load_weight_file(tmp_path / "none.pth", "INPUT")
    for name, content in (("a.pth", [1, 2]), ("b.pth", {"model": 3})):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=f"MODEL.WEIGHTS: .*{name} .*state dict"):
            Checkpointer(nn.Linear(2, 2)).load(str(tmp_path / name))
