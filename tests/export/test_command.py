"""The command, its refusals, and that nothing is left of a file that was refused."""

from __future__ import annotations

import importlib.util
import json

import cv2
import pytest
import torch

from gmm_anomaly.export import checking, command, job, packages
from gmm_anomaly.export.checking import Comparison, ExportMismatchError, compare, require_equal
from gmm_anomaly.export.command import main
from gmm_anomaly.export.exportable import ExportableSegmentor
from gmm_anomaly.export.images import check_batches, find_images
from gmm_anomaly.export.metadata import ExportMetadata
from gmm_anomaly.prediction.threshold import Threshold


class Perturbed(ExportableSegmentor):
    """Off by a hundredth of the scores' spread at one pixel."""

    def forward(self, image):
        segmentation, score = super().forward(image)
        return segmentation, score + 0.01 * (score.amax() - score.amin())


@pytest.mark.parametrize("format", ["torchscript", "torch-export"])
def test_a_file_that_differs_is_refused(format, streets, tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(job, "ExportableSegmentor", Perturbed)
    with pytest.raises(ExportMismatchError, match="scores differ from PyTorch's by 0.0.*no file was written"):
        job.export(tiny.predictor(), tmp_path / "model", format=format, images=streets, repeats=1)
    assert not list(tmp_path.iterdir())


def constant(score, segmentation=0):
    def network(image):
        size = (len(image), *image.shape[2:])
        return torch.full(size, segmentation), torch.full(size, score)

    return network


def ramp(image):
    score = torch.arange(image[:, 0].numel(), dtype=torch.float32).view(image[:, 0].shape)
    return torch.zeros(score.shape, dtype=torch.int64), score


def test_errors_are_relative_to_the_spread_of_the_scores():
    image = torch.zeros(1, 3, 10, 20)
    shifted = lambda image: (ramp(image)[0], ramp(image)[1] + 0.5)  # noqa: E731
    assert compare(ramp, shifted, [image]) == [Comparison((1, 3, 10, 20), 0.5, 0.5 / 199, 0.0)]
    require_equal(compare(ramp, ramp, [image]), 0.0)
    # No spread: relative to the score itself.
    assert compare(constant(4.0), constant(5.0), [image])[0].relative == 0.25


def test_other_classes_shapes_types_and_nan_are_refused():
    image = torch.zeros(1, 3, 4, 5)
    with pytest.raises(ExportMismatchError, match="classes differ"):
        require_equal(compare(constant(1.0, 0), constant(1.0, 1), [image]))
    with pytest.raises(ExportMismatchError, match="scores differ"):
        require_equal(compare(ramp, constant(float("nan")), [image]))
    with pytest.raises(ExportMismatchError, match="float32, the exported network gives .* torch.float64"):
        compare(ramp, lambda image: (ramp(image)[0], ramp(image)[1].double()), [image])
    with pytest.raises(ExportMismatchError, match="fails on a batch"):
        compare(ramp, lambda image: image.view(7), [image])


def test_a_size_that_became_a_constant_is_fixed_and_said(streets, tmp_path, monkeypatch, tiny):
    class AtOneSize(ExportableSegmentor):
        def forward(self, image):
            assert int(image.shape[2]) == 70, "only 70 rows"
            return super().forward(image)

    monkeypatch.setattr(job, "ExportableSegmentor", AtOneSize)
    found = job.export(tiny.predictor(), tmp_path / "model", format="torch-export", images=streets, repeats=1)
    assert found.size == (70, 131)
    assert "with an open height and width (AssertionError: only 70 rows)" in found.reason


def test_missing_packages_name_the_extra(monkeypatch, capsys, tmp_path):
    def without(name):
        return None if name in packages.ONNX_PACKAGES else importlib.util.find_spec(name)

    monkeypatch.setattr(packages, "find_spec", without)
    assert main(["--config-file", "none.yaml", "--out", str(tmp_path / "m.onnx")]) == 1
    error = capsys.readouterr().err
    assert "onnx, onnxscript, onnxruntime" in error and "extra `export`" in error


def test_metadata_of_another_program_is_refused():
    with pytest.raises(ValueError, match="expected an entry 'class_names', found none"):
        ExportMetadata.parse({})
    with pytest.raises(ValueError, match="'class_names' is not JSON"):
        ExportMetadata.parse({"class_names": "road"})


def test_images_of_a_folder_a_file_and_nowhere(tmp_path):
    street = find_images(None, 2)
    assert [image.shape for image in street] == [(256, 512, 3)] * 2
    for index in range(5):
        cv2.imwrite(str(tmp_path / f"{index}.png"), street[0][: 20 + index, :30, ::-1])
    assert [len(image) for image in find_images(str(tmp_path), 2)] == [20, 22]
    assert (find_images(str(tmp_path / "3.png"), 4)[0] == street[0][:23, :30]).all()
    with pytest.raises(FileNotFoundError, match="--images: .*no such file or folder"):
        find_images(str(tmp_path / "none"), 1)
    resized = check_batches(street, (40, 60))
    assert [tuple(batch.shape) for batch in resized] == [(1, 3, 40, 60), (1, 3, 40, 60), (2, 3, 40, 60)]


@pytest.fixture
def trained(tmp_path):
    """Config and checkpoint as a training leaves them."""
    from detectron2.modeling import build_model

    from gmm_anomaly.engine import build_config

    cfg = build_config(
        "configs/synthetic/effnetlite0_deeplabv3plus_softmax.yaml",
        [
            "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.WEIGHTS", "", "MODEL.FEATURE_DISTANCE.FEATURES", "[]",
            "MODEL.BACKBONE.NAME", "four_strides", "TEST.SCORES", "['energy', 'msp']",
            "MODEL.DECODER.IN_FEATURES", "[]", "INPUT.MIN_SIZE_TEST", 64,
        ],
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg)
    model.classifier.predictor.weight.data.mul_(100)
    config, weights = tmp_path / "config.yaml", tmp_path / "model_final.pth"
    config.write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, weights)
    return ["--config-file", str(config), "--weights", str(weights)]


def test_the_command_writes_file_and_report(trained, tmp_path, capsys):
    from gmm_anomaly.evaluation.submission import file_digest
    from gmm_anomaly.export.torch_export_format import read_torch_export_metadata

    threshold = Threshold(
        -1.5, "msp", (0.0, 1.0), 0.05, 0.04, "some_val", 3, 100, file_digest(tmp_path / "model_final.pth")
    )
    threshold.save(tmp_path / "threshold.json")
    out = tmp_path / "deep" / "model.pt2"
    options = ["--format", "torch-export", "--score", "msp", "--num-images", "1", "--repeats", "1"]
    given = [*trained, "--out", str(out), *options, "--threshold-file", str(tmp_path / "threshold.json")]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "any height and width" in printed and "shorter side of 64" in printed and "torch.export" in printed
    written = json.loads((tmp_path / "deep" / "model.pt2.json").read_text())
    assert written["max_relative_error"] < checking.MAX_ERROR and written["fixed_size"] is None
    assert set(written["milliseconds"]) == {"PyTorch", "torch.export"}
    assert written["timed_size"] == [64, 128]
    metadata = read_torch_export_metadata(out)
    assert (metadata.score, metadata.threshold) == ("msp", -1.5)
    assert metadata.input_rule["resize_shorter_side"] == 64
    assert metadata.class_names[0] == "road" and len(metadata.palette) == len(metadata.class_names)


def test_errors_are_said_and_leave_nothing(trained, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out" / "model.pt"
    given = [*trained, "--out", str(out), "--format", "torchscript"]
    assert main([*given, "--images", str(tmp_path / "none")]) == 1
    assert "no such file or folder" in capsys.readouterr().err
    assert main([*given, "--score", "gmm_density"]) == 1
    assert "needs class densities" in capsys.readouterr().err
    assert main([*given, "TEST.SLIDING_WINDOW.ENABLED", "True"]) == 1
    assert "SLIDING_WINDOW.ENABLED False" in capsys.readouterr().err
    trusted = []
    monkeypatch.setattr(command, "trust_pickles", trusted.append)
    for flags in ([], ["--trust-pickle"]):
        assert main([*given, *flags, "--images", str(tmp_path / "none")]) == 1
    assert trusted == [False, True]
    with pytest.raises(SystemExit) as left:
        main([*given, "--size", "512"])
    assert left.value.code == 2 and "expected HEIGHTxWIDTH" in capsys.readouterr().err
    assert not out.parent.exists()
