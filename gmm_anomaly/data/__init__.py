"""Data sets, their labels, and loaders for training and evaluation; importing it registers the data sets."""

from detectron2.config import get_cfg

from gmm_anomaly.config import add_gmm_anomaly_config

from .benchmarks import BENCHMARKS
from .build import build_test_loader, build_train_loader, check_num_classes
from .mapper import SegmentationMapper
from .pairing import LayoutError, MissingDataError
from .reading import LabelRule, read_image, read_label
from .registration import get_records, register, register_anomaly_dataset, register_segmentation_dataset
from .stream import ClassBalancedSampler
from .streets.datasets import configure_synthetic

__all__ = [
    "ClassBalancedSampler",
    "LabelRule",
    "LayoutError",
    "MissingDataError",
    "SegmentationMapper",
    "build_test_loader",
    "build_train_loader",
    "check_num_classes",
    "configure_synthetic",
    "get_records",
    "read_image",
    "read_label",
    "register_all",
    "register_anomaly_dataset",
    "register_segmentation_dataset",
]


def register_all() -> None:
    """Enter the project's data sets into Detectron2's catalogs; touches no files."""
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    configure_synthetic(cfg)
    for spec in BENCHMARKS:
        register(spec)


register_all()
