"""Data sets, their labels, and loaders for training and evaluation; importing it registers the data sets."""

from .build import build_test_loader, build_train_loader, check_num_classes
from .builtin import register_all
from .catalog import DatasetStatus, dataset_status, register_anomaly_dataset, register_segmentation_dataset
from .errors import LayoutError, MissingDataError
from .label_rule import LabelRule
from .mapper import SegmentationMapper
from .reading import read_image, read_label
from .registration import get_records
from .sampler import ClassBalancedSampler
from .streets.datasets import configure_synthetic

__all__ = [
    "ClassBalancedSampler",
    "DatasetStatus",
    "LabelRule",
    "LayoutError",
    "MissingDataError",
    "SegmentationMapper",
    "build_test_loader",
    "build_train_loader",
    "check_num_classes",
    "configure_synthetic",
    "dataset_status",
    "get_records",
    "read_image",
    "read_label",
    "register_anomaly_dataset",
    "register_segmentation_dataset",
]

register_all()
