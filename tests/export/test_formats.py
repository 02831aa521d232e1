"""Files of each format: what they compute, and what they say about themselves."""

from __future__ import annotations

import io
import json
from functools import lru_cache

import pytest
import torch

from gmm_anomaly import __version__
from gmm_anomaly.export import command, formats
from gmm_anomaly.export.command import MAX_ERROR, check_batches, compare, normal_inference
from gmm_anomaly.export.formats import export_graph, load, write
from gmm_anomaly.export.network import ExportableSegmentor
from gmm_anomaly.modeling.backbones import mit

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LIMIT = 1e-4
METADATA = ("class_names", "palette", "score", "threshold", "input_rule", "version", "weights_sha256")


@pytest.fixture(scope="module")
def gmm(streets, tmp_path_factory, tiny):
    """A GMM model, what was found as it was written in each format, and the files; its graph is made once."""
    predictor = tiny.predictor("MODEL.FEATURE_DISTANCE.FEATURES", ["s1"], score="hybrid")
    predictor.use_threshold(1.5)
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "export_graph", lru_cache(export_graph))
        patch.setattr(command, "ExportableSegmentor", lru_cache(ExportableSegmentor))
        found = {
            format: command.export(predictor, folder / format / "model", format=format, images=streets)
            for format in ("onnx", "torch-export")
        }
    return predictor, found, folder


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_a_file_takes_any_size_and_says_what_it_is(gmm, format, streets):
    predictor, found, path = gmm[0], gmm[1][format], gmm[2] / format / "model"
    assert (found["fixed_size"], found["fixed_because"]) == (None, "")
    # Two sizes alone, and two images together at a third one; written at none of them.
    batches = check_batches(streets, None)
    assert [check["batch"] for check in found["checks"]] == [list(batch.shape) for batch in batches]
    assert len({batch.shape[2:] for batch in batches}) == 3 and len(batches[-1]) == 2
    assert found["max_relative_error"] < LIMIT
    assert [file.name for file in path.parent.iterdir()] == ["model"]
    if format == "onnx":
        compare(normal_inference(predictor), load(path, format), batches, LIMIT)
        model = onnx.load(path)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert model.opset_import[0].version >= 17
        image, segmentation, score = [*model.graph.input, *model.graph.output]
        types = [value.type.tensor_type.elem_type for value in (image, segmentation, score)]
        assert types == [onnx.TensorProto.UINT8, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT]
        open_dimensions = [bool(axis.dim_param) for axis in image.type.tensor_type.shape.dim]
        assert open_dimensions == [True, False, True, True]
    else:
        metadata = dict.fromkeys(METADATA, "")
        program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=metadata)
        compare(normal_inference(predictor), program.module(), batches, LIMIT)
    metadata = {name: json.loads(value) for name, value in metadata.items()}
    assert metadata == json.loads(json.dumps(found["metadata"]))
    assert metadata["class_names"] == ["class 0", "class 1", "class 2", "class 3"]
    assert metadata["palette"][3] == [3, 6, 252]
    assert (metadata["score"], metadata["threshold"], metadata["version"]) == ("hybrid", 1.5, __version__)
    assert metadata["input_rule"]["height"] is None and metadata["input_rule"]["padded_inside_to"] == 32


# Each backbone, decoder and classifier that has operators of its own; the GMM and DeepLabV3+ are above.
NETWORKS = {
    "same padding": ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.DECODER.NAME", "UPerNetDecoder",
                     "MODEL.TIMM.NAME", "tf_mobilenetv3_small_minimal_100"],
    "mit": ["MODEL.BACKBONE.NAME", "build_mit_backbone", "MODEL.MIT.NAME", "mit_b0",
            "MODEL.DECODER.NAME", "OCRNetDecoder", "MODEL.CLASSIFIER.NAME", "prototype"],
    "vit": ["MODEL.BACKBONE.NAME", "build_vit_backbone", "MODEL.VIT.NAME", "test_vit",
            "MODEL.VIT.OUT_CHANNELS", 16, "MODEL.DECODER.IN_FEATURES", ["p3", "p5"]],
    "swin": ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "swin_tiny_patch4_window7_224",
             "MODEL.TIMM.OUT_INDICES", [0]],
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_of_the_networks(name, streets, tmp_path, monkeypatch, tiny):
    """torch.export needs no test of its own: ONNX is made from its graph."""
    monkeypatch.setitem(mit.MIT_SHAPES, "mit_b0", mit.MitShape((32, 64, 160, 256), (1, 1, 1, 1)))
    # Swin's windows and masks are traced at a fixed size.
    size, dtype = (64, 96) if name == "swin" else None, torch.float32 if name == "mit" else torch.uint8
    score = "prototype_distance" if name == "mit" else "energy"
    defaults = ("MODEL.DECODER.NAME", "SegFormerDecoder", "MODEL.CLASSIFIER.NAME", "softmax")
    predictor = tiny.predictor(*defaults, *NETWORKS[name], score=score)
    module = ExportableSegmentor(predictor.model, score)
    write(tmp_path / "model", "onnx", export_graph(module, size, module.min_side, dtype), {})
    batches = [batch.to(dtype) for batch in check_batches(streets, size)]
    # Swin and the plain ViT normalise tiny activations of random weights.
    limit = MAX_ERROR if name in ("swin", "vit") else LIMIT
    compare(normal_inference(predictor), load(tmp_path / "model", "onnx"), batches, limit)


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
