"""The command, its refusals, and that nothing is left of a file that was refused."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import pytest
import torch
from detectron2.data import transforms as T

from gmm_anomaly import AnomalyPredictor, cli
from gmm_anomaly.export import command
from gmm_anomaly.export.command import check_batches, compare, find_images

CONFIG = "synthetic/effnetlite0_deeplabv3plus_softmax.yaml"


def constant(score, segmentation=0):
    def network(image):
        size = (len(image), *image.shape[2:])
        return torch.full(size, segmentation), torch.full(size, score)

    return network


def ramp(image):
    score = torch.arange(image[:, 0].numel(), dtype=torch.float32).view(image[:, 0].shape)
    return torch.zeros(score.shape, dtype=torch.int64), score


def test_errors_are_relative_to_the_spread_of_the_scores_and_refused():
    image = torch.zeros(1, 3, 10, 20)
    shifted = lambda image: (ramp(image)[0], ramp(image)[1] + 0.5)  # noqa: E731
    (found,) = compare(ramp, shifted, [image], 1)
    assert found == {"batch": [1, 3, 10, 20], "absolute": 0.5, "relative": 0.5 / 199, "classes": 0.0}
    compare(ramp, ramp, [image], 0.0)
    # No spread: relative to the score itself.
    assert compare(constant(4.0), constant(5.0), [image], 1)[0]["relative"] == 0.25
    with pytest.raises(ValueError, match="classes differ"):
        compare(constant(1.0, 0), constant(1.0, 1), [image], 0.5)
    with pytest.raises(ValueError, match="scores differ"):
        compare(ramp, constant(float("nan")), [image], 0.5)
    with pytest.raises(ValueError, match="fails on a batch"):
        compare(ramp, lambda image: image.view(7), [image], 0.5)


@pytest.fixture
def without_graphs(monkeypatch):
    """Files hold nothing: what is loaded from them is ``perturb`` of the network that was to be traced. Sizes
    are open unless ``only`` is set."""
    options = {"perturb": lambda score: score, "only": False}
    traced = []

    def graph(module, size, *_):
        if options["only"] and size is None:
            raise ValueError("only one size")
        traced.append(module)

    def load(path, *_):
        assert path.read_bytes() == b"graph"

        def run(image):
            segmentation, score = traced[-1](image)
            return segmentation, options["perturb"](score)

        return run

    monkeypatch.setattr(command, "export_graph", graph)
    monkeypatch.setattr(command, "write", lambda path, *_: path.write_bytes(b"graph"))
    monkeypatch.setattr(command, "load", load)
    return options


def test_a_file_that_differs_is_refused(without_graphs, streets, tmp_path, tiny):
    without_graphs["perturb"] = lambda score: score + 0.01 * (score.amax() - score.amin())
    with pytest.raises(ValueError, match="scores differ from PyTorch's by 0.0.*no file was written"):
        command.export(tiny.predictor(), tmp_path / "model", format="torch-export", images=streets)
    assert not list(tmp_path.iterdir())


def test_a_size_that_became_a_constant_is_fixed_and_said(without_graphs, streets, tmp_path, tiny):
    without_graphs["only"] = True
    options = {"format": "torch-export", "images": streets}
    found = command.export(tiny.predictor(), tmp_path / "model", **options)
    assert (found["fixed_size"], found["fixed_because"]) == ((70, 131), "only one size")
    assert found["metadata"]["input_rule"]["height"] == 70 and found["timed_size"] == [70, 131]
    assert "70x131 only" in command.report(found) and "size fixed: only one size" in command.report(found)


def test_images_of_a_folder_a_file_and_nowhere(tmp_path):
    street = find_images(None, 2)
    assert [image.shape for image in street] == [(256, 512, 3)] * 2
    for index in range(5):
        cv2.imwrite(str(tmp_path / f"{index}.png"), street[0][: 20 + index, :30, ::-1])
    assert [len(image) for image in find_images(str(tmp_path), 2)] == [20, 22]
    assert (find_images(str(tmp_path / "3.png"), 4)[0] == street[0][:23, :30]).all()
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_images(str(tmp_path / "none"), 1)
    resized = check_batches(street, (40, 60))
    assert [tuple(batch.shape) for batch in resized] == [(1, 3, 40, 60), (1, 3, 40, 60), (2, 3, 40, 60)]


def test_the_command_writes_file_and_report(without_graphs, streets, tmp_path, capsys, monkeypatch, tiny):
    predictor = tiny.predictor(resize=[T.ResizeShortestEdge(48, 1000)], score="msp")
    predictor.use_threshold(-1.5)
    asked = []
    monkeypatch.setattr(
        AnomalyPredictor, "from_config", lambda *given, **options: asked.append((given, options)) or predictor
    )
    image, out = tmp_path / "street.png", tmp_path / "deep" / "model.pt2"
    cv2.imwrite(str(image), streets[0])
    given = f"export --config-file {CONFIG} --weights w.pth --out {out} --format torch-export --score msp"
    given = [*given.split(), "--threshold-file", "t.json", "--images", str(image), "SEED", "3"]
    assert cli.main(given) == 0
    ((config, weights), options) = asked[0]
    assert config.endswith(CONFIG) and weights == "w.pth"
    assert options == {"score": "msp", "threshold": "t.json", "device": "cpu", "opts": ["SEED", "3"]}
    printed = capsys.readouterr().out
    assert "any height and width" in printed and "shorter side of 48" in printed and "torch-export" in printed
    written = json.loads((tmp_path / "deep" / "model.pt2.json").read_text())
    assert written["max_relative_error"] < command.MAX_ERROR and written["fixed_size"] is None
    assert set(written["milliseconds"]) == {"PyTorch", "torch-export"}
    assert written["timed_size"] == [48, 90]
    metadata = written["metadata"]
    assert (metadata["score"], metadata["threshold"]) == ("msp", -1.5)
    assert metadata["input_rule"]["resize_shorter_side"] == 48

    predictor.weights = str(out)
    assert cli.main(given) == 1 and "is what is exported, and would be lost" in capsys.readouterr().err
    predictor.model.inference = replace(predictor.model.inference, flip=True)
    other = [*given[:6], str(tmp_path / "out" / "model.pt2"), "--format", "torch-export"]
    assert cli.main(other) == 1
    assert "error: export: looks at mirrored images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
