"""Component metrics written plainly: a pass over the image for every pair of components.

The tests compare the numbers of :mod:`gmm_anomaly.metrics.component` with it, the benchmark the times.
"""

from __future__ import annotations

import cv2
import numpy as np


def plain_components(
    score: np.ndarray, label: np.ndarray, threshold: float, min_prediction_size: int, min_anomaly_size: int
) -> tuple[list[float], list[float]]:
    """sIoU of every anomaly and PPV of every predicted component of one frame.

    Args:
        score: (H, W) float. label: (H, W) uint8, 0 known, 1 anomaly, 255 void.
        threshold: a pixel is predicted where its score is larger.
        min_prediction_size, min_anomaly_size: smallest sizes kept, in pixels.
    """
    valid = label != 255
    predicted = (score.astype(np.float64) > threshold) & valid
    _, anomalies = cv2.connectedComponents((label == 1).astype(np.uint8), connectivity=8)
    _, predictions = cv2.connectedComponents(predicted.astype(np.uint8), connectivity=8)

    numbers, sizes = np.unique(predictions, return_counts=True)
    predictions[np.isin(predictions, numbers[sizes < min_prediction_size])] = 0
    numbers, sizes = np.unique(anomalies, return_counts=True)
    valid[np.isin(anomalies, numbers[sizes < min_anomaly_size])] = False
    anomalies[~valid] = predictions[~valid] = 0

    masks = [[image == one for one in np.unique(image[image > 0])] for image in (anomalies, predictions)]
    overlap = np.array([[np.count_nonzero(one & other) for other in masks[1]] for one in masks[0]])
    overlap = overlap.reshape(len(masks[0]), len(masks[1]))
    siou = []
    for row, anomaly in zip(overlap, masks[0], strict=True):
        touching = [column for column, pixels in enumerate(row) if pixels]
        union = anomaly.sum() + sum(masks[1][column].sum() for column in touching)
        siou.append(float(row.sum() / (union - overlap[:, touching].sum())))
    return siou, [float(overlap[:, j].sum() / mask.sum()) for j, mask in enumerate(masks[1])]
