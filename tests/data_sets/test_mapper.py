"""Inputs of the model, made from records."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from gmm_anomaly.data import get_records, read_image, read_label, register_segmentation_dataset
from gmm_anomaly.data import mapper as mapper_module
from gmm_anomaly.data.label_rule import LabelRule
from gmm_anomaly.data.mapper import SegmentationMapper


@pytest.fixture
def record(tmp_path, make_pairs, cfg):
    make_pairs(tmp_path / "set", ["a"], values=(0, 1, 2, 255), size=(40, 60))
    register_segmentation_dataset("closed", tmp_path / "set/images", tmp_path / "set/labels", classes="xyz")
    cfg.DATASETS.TRAIN = ("closed",)
    return get_records("closed")[0] | {"dataset_name": "closed"}


@pytest.fixture
def plain(cfg):
    """No augmentation at all."""
    cfg.INPUT.SCALE_RANGE = [1.0, 1.0]
    cfg.INPUT.COLOR_JITTER = 0.0
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_training_input_without_augmentation_is_the_data(plain, record, order):
    plain.INPUT.FORMAT = order
    mapped = SegmentationMapper(plain, True)(record)
    assert mapped["image"].dtype == torch.uint8 and mapped["sem_seg"].dtype == torch.int64
    np.testing.assert_array_equal(mapped["image"].numpy().transpose(1, 2, 0), read_image(record, order))
    np.testing.assert_array_equal(
        mapped["sem_seg"].numpy(), read_label(record, MetadataCatalog.get("closed"))
    )
    assert {key: mapped[key] for key in ("height", "width", "image_id", "file_name")} == {
        "height": 40,
        "width": 60,
        "image_id": "a",
        "file_name": record["file_name"],
    }


def test_training_crops_have_their_size_and_padding(cfg, record):
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [64, 48]
    cfg.INPUT.SCALE_RANGE = [0.5, 0.5]
    cfg.MODEL.PIXEL_MEAN = [10.0, 20.0, 30.0]
    np.random.seed(0)
    mapped = SegmentationMapper(cfg, True)(record)
    assert mapped["image"].shape == (3, 64, 48) and mapped["sem_seg"].shape == (64, 48)
    # 40 x 60 at half size is 20 x 30; the rest is padding.
    assert (mapped["sem_seg"][20:] == 255).all() and (mapped["sem_seg"][:, 30:] == 255).all()
    assert (mapped["sem_seg"][:20, :30] != 255).any()
    assert (mapped["image"][:, 20:].reshape(3, -1).T == torch.tensor([10, 20, 30])).all()
    assert (mapped["height"], mapped["width"]) == (40, 60)


@pytest.mark.parametrize(("kind", "axis"), [("horizontal", 1), ("vertical", 0)])
def test_flips_take_the_label_along(plain, record, save_image, kind, axis):
    save_image(record["sem_seg_file_name"], np.random.default_rng(1).integers(0, 3, (40, 60), np.uint8))
    plain.INPUT.RANDOM_FLIP = kind
    mapper = SegmentationMapper(plain, True)
    image, label = read_image(record, plain.INPUT.FORMAT), read_label(record, mapper.label_rules["closed"])
    seen = set()
    for seed in range(20):
        np.random.seed(seed)
        mapped = mapper(record)
        flipped = np.array_equal(mapped["sem_seg"].numpy(), np.flip(label, axis))
        assert flipped or np.array_equal(mapped["sem_seg"].numpy(), label)
        expected = np.flip(image, axis) if flipped else image
        np.testing.assert_array_equal(mapped["image"].numpy().transpose(1, 2, 0), expected)
        seen.add(flipped)
    assert seen == {False, True}


def test_one_seed_gives_one_sample(cfg, record):
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [24, 24]
    mapper = SegmentationMapper(cfg, True)

    def sample(seed):
        np.random.seed(seed)
        return mapper(record)

    for key in ("image", "sem_seg"):
        assert torch.equal(sample(3)[key], sample(3)[key])
        assert not torch.equal(sample(3)[key], sample(4)[key])


def test_evaluation_reads_no_label(cfg, record):
    (record.pop("sem_seg_file_name"), record.pop("dataset_name"))
    mapped = SegmentationMapper(cfg, False)(record)
    assert "sem_seg" not in mapped
    np.testing.assert_array_equal(
        mapped["image"].numpy().transpose(1, 2, 0), read_image(record, cfg.INPUT.FORMAT)
    )


def test_evaluation_at_another_size(cfg, record):
    cfg.INPUT.MIN_SIZE_TEST = 20
    mapped = SegmentationMapper(cfg, False)(record)
    assert mapped["image"].shape == (3, 20, 30)
    assert (mapped["height"], mapped["width"]) == (40, 60)


def test_withheld_label_cannot_be_trained_on(cfg, record):
    record.pop("sem_seg_file_name")
    with pytest.raises(ValueError, match="closed: the label of .*a.png is withheld"):
        SegmentationMapper(cfg, True)(record)


def test_decoded_cache_reads_once_and_stays_clean(cfg, record, monkeypatch):
    reads = []
    for name in ("read_image", "read_label"):
        function = getattr(mapper_module, name)
        monkeypatch.setattr(mapper_module, name, lambda *a, f=function, n=name: reads.append(n) or f(*a))
    cfg.INPUT.CACHE_DECODED = True
    mapper = SegmentationMapper(cfg, True)
    samples = []
    for _ in range(3):
        np.random.seed(1)
        samples.append(mapper(record))
        samples[-1]["image"].fill_(0), samples[-1]["sem_seg"].fill_(0)
    assert reads == ["read_image", "read_label"]
    cached_image, cached_label = mapper._decoded["closed", record["file_name"]]
    np.testing.assert_array_equal(cached_image, read_image(record, cfg.INPUT.FORMAT))
    np.testing.assert_array_equal(cached_label, read_label(record, mapper.label_rules["closed"]))
    assert not pickle.loads(pickle.dumps(mapper))._decoded


def test_pickled_mapper_needs_no_catalog(cfg, record):
    mapper = SegmentationMapper(cfg, True)
    np.random.seed(2)
    expected = mapper(record)
    copy = pickle.loads(pickle.dumps(mapper))
    MetadataCatalog.get("closed").label_map  # noqa: B018  there now ...
    vars(MetadataCatalog.get("closed")).pop("stuff_classes")  # ... and no longer of use
    np.random.seed(2)
    got = copy(record)
    assert torch.equal(got["image"], expected["image"]) and torch.equal(got["sem_seg"], expected["sem_seg"])


def test_explicit_arguments_need_no_config(record):
    rule = LabelRule.build("closed", None, num_classes=3)
    mapper = SegmentationMapper(image_format="RGB", augmentations=[], label_rules={"closed": rule})
    assert mapper(record)["sem_seg"].shape == (40, 60)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "INPUT.RANDOM_FLIP",
            "both",
            "INPUT.RANDOM_FLIP: expected 'horizontal', 'vertical' or 'none', found 'both'",
        ),
        ("INPUT.CROP.TYPE", "relative", "INPUT.CROP.TYPE: expected 'absolute', found 'relative'"),
        ("INPUT.FORMAT", "L", "INPUT.FORMAT: expected one of RGB, BGR, found 'L'"),
    ],
)
def test_bad_keys(cfg, record, key, value, message):
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [8, 8]
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        SegmentationMapper(cfg, True)


def test_what_fails_names_its_image(cfg, record, monkeypatch):
    mapper = SegmentationMapper(cfg, True)
    monkeypatch.setattr(mapper, "augmentations", lambda inputs: 1 // 0)
    with pytest.raises(RuntimeError, match=r"images/a.png could not be prepared: ZeroDivisionError"):
        mapper(record)

    def out_of_memory(record, format):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(mapper_module, "read_image", out_of_memory)
    with pytest.raises(RuntimeError, match=r"images/a.png could not be prepared: MemoryError: Unable to"):
        mapper(record)
