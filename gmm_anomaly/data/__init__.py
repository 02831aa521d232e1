"""Data sets, their labels, and loaders for training and evaluation; importing it registers the data sets."""

from .benchmarks import register_benchmarks
from .build import build_test_loader, build_train_loader, check_num_classes
from .label_rule import LabelRule
from .mapper import SegmentationMapper
from .pairing import LayoutError, MissingDataError
from .reading import read_image, read_label
from .registration import get_records, register_anomaly_dataset, register_segmentation_dataset
from .stream import ClassBalancedSampler
from .streets.datasets import configure_synthetic, register_streets

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
    register_streets()
    register_benchmarks()


register_all()
