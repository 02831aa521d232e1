"""Files of each format: what they compute, and what they say about themselves."""

from __future__ import annotations

import pytest
import torch

from gmm_anomaly import __version__
from gmm_anomaly.export.checking import compare, require_equal
from gmm_anomaly.export.images import check_batches
from gmm_anomaly.export.job import export, normal_inference
from gmm_anomaly.export.onnx_format import load_onnx, read_onnx_metadata
from gmm_anomaly.export.torch_export_format import load_torch_export, read_torch_export_metadata
from gmm_anomaly.export.torchscript_format import load_torchscript, read_torchscript_metadata
from gmm_anomaly.modeling.registry import DECODER_REGISTRY

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LOADERS = {
    "onnx": (lambda path: load_onnx(path, 1), read_onnx_metadata),
    "torchscript": (load_torchscript, read_torchscript_metadata),
    "torch-export": (load_torch_export, read_torch_export_metadata),
}


@pytest.mark.parametrize("decoder", sorted(name for name, _ in DECODER_REGISTRY))
def test_onnx_of_every_decoder_takes_any_size(decoder, streets, tmp_path, tiny):
    found = export(
        tiny.predictor("MODEL.DECODER.NAME", decoder),
        tmp_path / "model.onnx",
        format="onnx",
        images=streets,
        repeats=1,
    )
    assert (found.size, found.reason) == (None, "")
    # Two sizes alone, and two images together at a third one; written at none of them.
    assert sorted(comparison.batch[0] for comparison in found.comparisons) == [1, 1, 2]
    assert len({comparison.batch[2:] for comparison in found.comparisons}) == 3
    assert found.worst.relative < 1e-4
    model = onnx.load(found.file)
    assert model.opset_import[0].version >= 17
    image, segmentation, score = [*model.graph.input, *model.graph.output]
    types = [value.type.tensor_type.elem_type for value in (image, segmentation, score)]
    assert types == [onnx.TensorProto.UINT8, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT]
    open_dimensions = [bool(axis.dim_param) for axis in image.type.tensor_type.shape.dim]
    assert open_dimensions == [True, False, True, True]


@pytest.mark.parametrize("decoder", sorted(name for name, _ in DECODER_REGISTRY))
def test_torchscript_of_every_decoder_takes_any_size(decoder, streets, tmp_path, tiny):
    """torch.export needs no such test: ONNX is made from its graph."""
    predictor = tiny.predictor("MODEL.DECODER.NAME", decoder)
    found = export(predictor, tmp_path / "m", format="torchscript", images=streets, repeats=1)
    assert (found.size, found.reason) == (None, "") and found.worst.relative < 1e-4
    assert len({comparison.batch[2:] for comparison in found.comparisons}) == 3


@pytest.mark.parametrize(
    "classifier, score", [("softmax", "energy"), ("prototype", "prototype_distance"), ("gmm", "hybrid")]
)
def test_onnx_of_every_classifier(classifier, score, streets, tmp_path, tiny):
    distance = ["MODEL.FEATURE_DISTANCE.FEATURES", ["s1"]] if score == "hybrid" else []
    predictor = tiny.predictor("MODEL.CLASSIFIER.NAME", classifier, *distance, score=score)
    found = export(predictor, tmp_path / "m", format="onnx", images=streets, input_type="float32", repeats=1)
    assert found.size is None and found.metadata.score == score


@pytest.mark.parametrize("format", LOADERS)
def test_a_file_says_what_it_is(format, streets, tmp_path, tiny):
    predictor = tiny.predictor()
    predictor.use_threshold(1.5)
    found = export(predictor, tmp_path / "model", format=format, images=streets, repeats=1)
    load, read = LOADERS[format]
    metadata = read(found.file)
    assert metadata == found.metadata
    assert metadata.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert metadata.palette[3] == (3, 6, 252)
    assert (metadata.score, metadata.threshold, metadata.version) == ("gmm_density", 1.5, __version__)
    assert metadata.input_rule["height"] is None and metadata.input_rule["padded_inside_to"] == 32
    batches = check_batches(streets, None)
    require_equal(compare(normal_inference(predictor), load(found.file), batches), 1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("format", LOADERS)
def test_a_fixed_size(format, streets, tmp_path, tiny):
    found = export(
        tiny.predictor(), tmp_path / "model", format=format, images=streets, size=(50, 70), repeats=1
    )
    assert found.size == (50, 70) and found.reason == ""
    assert {comparison.batch[2:] for comparison in found.comparisons} == {(50, 70)}
    rule = found.metadata.input_rule
    assert (rule["height"], rule["width"]) == (50, 70)
    if format != "torchscript":
        with pytest.raises(Exception, match="(?i)dimension|shape|size"):
            LOADERS[format][0](found.file)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


BACKBONES = {
    "resnet": ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18,
               "MODEL.RESNETS.RES2_OUT_CHANNELS", 64],
    "lite0": ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "tf_efficientnet_lite0"],
    "mit": ["MODEL.BACKBONE.NAME", "build_mit_backbone", "MODEL.MIT.NAME", "mit_b0"],
    "swin": ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "swin_tiny_patch4_window7_224",
             "MODEL.TIMM.OUT_INDICES", [0, 1, 2, 3]],
    "vit": ["MODEL.BACKBONE.NAME", "build_vit_backbone", "MODEL.VIT.NAME", "vit_tiny_patch16_224",
            "MODEL.VIT.OUT_CHANNELS", 16],
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_onnx_of_the_backbones(name, streets, tmp_path, tiny):
    predictor = tiny.predictor("MODEL.DECODER.NAME", "SegFormerDecoder", *BACKBONES[name])
    # Swin's windows and masks are traced at a fixed size.
    size = (64, 96) if name == "swin" else None
    found = export(predictor, tmp_path / "model", format="onnx", images=streets[:1], size=size, repeats=1)
    assert (found.size, found.reason) == (size, "")
