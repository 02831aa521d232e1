"""Real images to check an export on."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from torch import Tensor

from gmm_anomaly.data.reading import read_image
from gmm_anomaly.data.registration import get_records
from gmm_anomaly.data.streets.datasets import StreetSplit
from gmm_anomaly.prediction.inputs import as_rgb
from gmm_anomaly.prediction.sources import list_sources

# Streets that no data set of the project holds.
SYNTHETIC_SEED = 4242


def find_images(given: str | None, count: int) -> list[np.ndarray]:
    """Up to ``count`` images, spread over what was given.

    Args:
        given: a folder, a file, a pattern, or the name of a registered data set; None: synthetic streets
            with anomalies, 256 x 512.

    Returns:
        (H, W, 3) uint8 RGB arrays.

    Raises:
        FileNotFoundError: neither a file, a folder nor a data set. ValueError: no images in it.
    """
    if given is None:
        split = StreetSplit("export check", count, SYNTHETIC_SEED, anomalies=True)
        return [split[index][0] for index in range(count)]
    if given in DatasetCatalog:
        records = _spread(get_records(given), count)
        return [read_image(record, "RGB") for record in records]
    try:
        sources = [source for source in list_sources([given]) if not source.is_video]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"--images: {error}. Data sets are named as tools/check_datasets.py lists them"
        ) from None
    if not sources:
        raise ValueError(f"--images: expected images in {given}, found videos only")
    return [as_rgb(source.path) for source in _spread(sources, count)]


def check_batches(images: Sequence[np.ndarray], size: tuple[int, int] | None) -> list[Tensor]:
    """Batches (B, 3, H, W) uint8: every image alone; and two of them together, at another size if that is
    open, else resized to the fixed ``size``."""
    if size is not None:
        images = [_resized(image, size) for image in images]
    batches = [torch.from_numpy(image.transpose(2, 0, 1).copy())[None] for image in images]
    first, last = batches[0], batches[-1]
    if size is not None:
        return [*batches, torch.cat((first, last))]
    # Odd: no stride divides it.
    height, width = (
        max(min(a, b) * 2 // 3, 1) | 1 for a, b in zip(first.shape[2:], last.shape[2:], strict=True)
    )
    return [*batches, torch.cat([batch[..., -height:, :width] for batch in (first, last)])]


def _spread(items: Sequence, count: int) -> list:
    """``count`` of the items, in equal steps over all of them."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
