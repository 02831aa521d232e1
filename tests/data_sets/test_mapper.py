"""Inputs of the model, made from records."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from gmm_anomaly.data import get_records, read_image, read_label
from gmm_anomaly.data import mapper as mapper_module
from gmm_anomaly.data.mapper import SegmentationMapper


@pytest.fixture
def record(closed, tmp_path, make_pairs):
    make_pairs(tmp_path / "one", "a", values=(0, 1, 2, 255), size=(40, 60))
    return get_records("one")[0] | {"dataset_name": "one"}


@pytest.fixture
def plain(closed):
    """No augmentation at all."""
    closed.INPUT.CROP.ENABLED = False
    closed.INPUT.SCALE_RANGE = [1.0, 1.0]
    closed.INPUT.COLOR_JITTER = 0.0
    closed.INPUT.RANDOM_FLIP = "none"
    return closed


def pixels(mapped):
    return mapped["image"].numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_inputs_without_augmentation_are_the_data(plain, record, order):
    plain.INPUT.FORMAT = order
    mapped = SegmentationMapper(plain, True)(record)
    assert mapped["image"].dtype == torch.uint8 and mapped["sem_seg"].dtype == torch.int64
    np.testing.assert_array_equal(pixels(mapped), read_image(record, order))
    np.testing.assert_array_equal(mapped["sem_seg"], read_label(record, MetadataCatalog.get("one")))
    assert (mapped["height"], mapped["width"]) == (40, 60)
    assert (mapped["image_id"], mapped["file_name"]) == ("a", record["file_name"])
    # Evaluation reads no label.
    (record.pop("sem_seg_file_name"), record.pop("dataset_name"))
    mapped = SegmentationMapper(plain, False)(record)
    assert "sem_seg" not in mapped
    np.testing.assert_array_equal(pixels(mapped), read_image(record, order))
    plain.INPUT.MIN_SIZE_TEST = 20
    mapped = SegmentationMapper(plain, False)(record)
    assert mapped["image"].shape == (3, 20, 30) and (mapped["height"], mapped["width"]) == (40, 60)


def test_training_crops_have_their_size_and_padding(closed, record):
    closed.INPUT.CROP.SIZE = [64, 48]
    closed.INPUT.SCALE_RANGE = [0.5, 0.5]
    closed.MODEL.PIXEL_MEAN = [10.0, 20.0, 30.0]
    np.random.seed(0)
    mapped = SegmentationMapper(closed, True)(record)
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
    image, label = read_image(record, plain.INPUT.FORMAT), read_label(record, mapper.label_rules["one"])
    seen = set()
    for seed in range(20):
        np.random.seed(seed)
        mapped = mapper(record)
        flipped = np.array_equal(mapped["sem_seg"].numpy(), np.flip(label, axis))
        assert flipped or np.array_equal(mapped["sem_seg"].numpy(), label)
        np.testing.assert_array_equal(pixels(mapped), np.flip(image, axis) if flipped else image)
        seen.add(flipped)
    assert seen == {False, True}


def test_decoded_cache_reads_once_and_stays_clean(closed, record, monkeypatch):
    reads = []
    for name in ("read_image", "read_label"):
        function = getattr(mapper_module, name)

        def counted(*args, function=function, name=name, **options):
            reads.append(name)
            return function(*args, **options)

        monkeypatch.setattr(mapper_module, name, counted)
    closed.INPUT.CACHE_DECODED = True
    mapper = SegmentationMapper(closed, True)
    samples = []
    for _ in range(3):
        np.random.seed(1)
        mapped = mapper(record)
        samples.append((mapped["image"].clone(), mapped["sem_seg"].clone()))
        mapped["image"].fill_(0), mapped["sem_seg"].fill_(0)
    assert reads == ["read_image", "read_label"]
    assert all(torch.equal(*pair) for sample in samples for pair in zip(sample, samples[0], strict=True))


def test_what_fails_names_its_image(closed, record, monkeypatch):
    mapper = SegmentationMapper(closed, True)
    withheld = {key: value for key, value in record.items() if key != "sem_seg_file_name"}
    with pytest.raises(ValueError, match="one: the label of .*a.png is withheld"):
        mapper(withheld)
    monkeypatch.setattr(mapper, "augmentations", lambda inputs: 1 // 0)
    with pytest.raises(RuntimeError, match=r"images/a.png could not be prepared: ZeroDivisionError"):
        mapper(record)


@pytest.mark.parametrize(("most", "size"), [(4096, (1024, 2048)), (1333, (667, 1333)), (1024, (512, 1024))])
def test_a_longer_side_that_makes_images_smaller_is_named(cfg, most, size, caplog):
    """Cityscapes' size: Detectron2's limit of 1333 would shrink it; 1024 and 1024 asks for a longer side."""
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 1024, most
    (resize,) = mapper_module.test_augmentations(cfg)
    image = np.zeros((1024, 2048, 3), np.uint8)
    assert resize.get_transform(image).apply_image(image).shape == (*size, 3)
    found = "shorter side of 666 pixels, not INPUT.MIN_SIZE_TEST 1024: INPUT.MAX_SIZE_TEST is 1333"
    assert (found in caplog.text) == (most == 1333) == bool(caplog.records)
