"""Files of each format: what they compute, and what they say about themselves."""

from __future__ import annotations

import io
import json

import pytest
import torch

from gmm_anomaly import __version__
from gmm_anomaly.export import formats
from gmm_anomaly.export.command import MAX_ERROR, check_batches, compare, export, normal_inference
from gmm_anomaly.export.formats import export_graph, load, write
from gmm_anomaly.export.network import ExportableSegmentor
from gmm_anomaly.modeling.backbones import mit
from gmm_anomaly.modeling.registry import DECODER_REGISTRY

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

FORMATS = ("onnx", "torch-export")
LIMIT = 1e-4


def read_metadata(path, format):
    if format == "onnx":
        return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    names = ("class_names", "palette", "score", "threshold", "input_rule", "version", "weights_sha256")
    entries = dict.fromkeys(names, "")
    torch.export.load(io.BytesIO(path.read_bytes()), extra_files=entries)
    return {name: json.loads(value) for name, value in entries.items()}


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, streets, tmp_path_factory, tiny):
    """A GMM model in each format: the predictor, what was found, the file and its format."""
    predictor = tiny.predictor("MODEL.FEATURE_DISTANCE.FEATURES", ["s1"], score="hybrid")
    predictor.use_threshold(1.5)
    path = tmp_path_factory.mktemp("exported") / "model"
    found = export(predictor, path, format=request.param, images=streets, repeats=1)
    return predictor, found, path, request.param


def test_a_file_takes_any_size(exported, streets):
    predictor, found, path, format = exported
    assert (found["fixed_size"], found["fixed_because"]) == (None, "")
    # Two sizes alone, and two images together at a third one; written at none of them.
    batches = check_batches(streets, None)
    assert [check["batch"] for check in found["checks"]] == [list(batch.shape) for batch in batches]
    assert len({batch.shape[2:] for batch in batches}) == 3 and len(batches[-1]) == 2
    assert found["max_relative_error"] < LIMIT
    compare(normal_inference(predictor), load(path, format), batches, LIMIT)
    assert [file.name for file in path.parent.iterdir()] == ["model"]
    if format == "onnx":
        model = onnx.load(path)
        assert model.opset_import[0].version >= 17
        image, segmentation, score = [*model.graph.input, *model.graph.output]
        types = [value.type.tensor_type.elem_type for value in (image, segmentation, score)]
        assert types == [onnx.TensorProto.UINT8, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT]
        open_dimensions = [bool(axis.dim_param) for axis in image.type.tensor_type.shape.dim]
        assert open_dimensions == [True, False, True, True]


def test_a_file_says_what_it_is(exported):
    _, found, path, format = exported
    metadata = read_metadata(path, format)
    assert metadata == json.loads(json.dumps(found["metadata"]))
    assert metadata["class_names"] == ["class 0", "class 1", "class 2", "class 3"]
    assert metadata["palette"][3] == [3, 6, 252]
    assert (metadata["score"], metadata["threshold"], metadata["version"]) == ("hybrid", 1.5, __version__)
    assert metadata["input_rule"]["height"] is None and metadata["input_rule"]["padded_inside_to"] == 32


def require_formats(written, predictor, images, tmp_path, *, size=None, dtype=torch.uint8, limit=LIMIT):
    module = ExportableSegmentor(predictor.model, predictor.score)
    program = export_graph(module, size, module.min_side, dtype)
    batches = [batch.to(dtype) for batch in check_batches(images, size)]
    for format in written:
        write(tmp_path / format, format, program, {})
        compare(normal_inference(predictor), load(tmp_path / format, format), batches, limit)


# With some decoder each classifier is written in each format; the GMM is above.
CLASSIFIERS = {
    "SegFormerDecoder": ("softmax", "energy"),
    "OCRNetDecoder": ("prototype", "prototype_distance"),
}


@pytest.mark.parametrize("decoder", sorted({name for name, _ in DECODER_REGISTRY} - {"DeepLabV3PlusDecoder"}))
def test_decoders_and_classifiers(decoder, streets, tmp_path, tiny):
    """Else torch.export needs no test: ONNX is made from its graph."""
    classifier, score = CLASSIFIERS.get(decoder, ("softmax", "msp"))
    options = ("MODEL.DECODER.NAME", decoder, "MODEL.CLASSIFIER.NAME", classifier)
    written, dtype = (FORMATS, torch.float32) if decoder in CLASSIFIERS else (["onnx"], torch.uint8)
    require_formats(written, tiny.predictor(*options, score=score), streets, tmp_path, dtype=dtype)


BACKBONES = {
    "resnet": ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18,
               "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3"]],
    "same padding": ["MODEL.BACKBONE.NAME", "build_timm_backbone",
                     "MODEL.TIMM.NAME", "tf_mobilenetv3_small_minimal_100"],
    "mit": ["MODEL.BACKBONE.NAME", "build_mit_backbone", "MODEL.MIT.NAME", "mit_b0"],
    "swin": ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "swin_tiny_patch4_window7_224",
             "MODEL.TIMM.OUT_INDICES", [0, 1]],
    "vit": ["MODEL.BACKBONE.NAME", "build_vit_backbone", "MODEL.VIT.NAME", "test_vit",
            "MODEL.VIT.OUT_CHANNELS", 16, "MODEL.DECODER.IN_FEATURES", ["p3", "p5"]],
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_onnx_of_the_backbones(name, streets, tmp_path, monkeypatch, tiny):
    """Of networks that repeat a block, few of them."""
    monkeypatch.setitem(mit.MIT_SHAPES, "mit_b0", mit.MitShape((32, 64, 160, 256), (1, 1, 1, 1)))
    options = ("MODEL.DECODER.NAME", "SegFormerDecoder", "MODEL.CLASSIFIER.NAME", "softmax", *BACKBONES[name])
    # Swin's windows and masks are traced at a fixed size.
    size = (64, 96) if name == "swin" else None
    predictor = tiny.predictor(*options, score="energy")
    require_formats(["onnx"], predictor, streets[:1], tmp_path, size=size, limit=MAX_ERROR)


class OneSize(torch.nn.Module):
    def forward(self, image):
        assert int(image.shape[2]) == 70, "only 70 rows"
        return image[:, 0].long(), image[:, 0].float()


def test_a_fixed_size(tmp_path):
    with pytest.raises(ValueError, match=r"with an open height and width \(AssertionError: only 70 rows\)"):
        export_graph(OneSize(), None)
    write(tmp_path / "model", "torch-export", export_graph(OneSize(), (70, 90)), {})
    network = load(tmp_path / "model", "torch-export")
    assert network(torch.ones(3, 3, 70, 90, dtype=torch.uint8))[1].shape == (3, 70, 90)
    with pytest.raises(Exception, match="(?i)dimension|shape|size"):
        network(torch.ones(1, 3, 64, 90, dtype=torch.uint8))


def test_missing_packages_name_the_extra(monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="onnx, onnxscript, onnxruntime.*extra `export`"):
        formats.require_onnx()
