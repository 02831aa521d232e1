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
    predicted = (score.astype(np.float64) > threshold) & (label != 255)
    valid = label != 255
    _, anomalies = cv2.connectedComponents((label == 1).astype(np.uint8), connectivity=8)
    _, predictions = cv2.connectedComponents(predicted.astype(np.uint8), connectivity=8)

    numbers, sizes = np.unique(predictions, return_counts=True)
    predictions[np.isin(predictions, numbers[sizes < min_prediction_size])] = 0
    numbers, sizes = np.unique(anomalies, return_counts=True)
    valid[np.isin(anomalies, numbers[sizes < min_anomaly_size])] = False
    anomalies[~valid] = 0
    predictions[~valid] = 0

    anomaly_numbers = np.unique(anomalies[anomalies > 0])
    prediction_numbers = np.unique(predictions[predictions > 0])
    overlap = np.zeros((len(anomaly_numbers), len(prediction_numbers)), np.int64)
    for row, anomaly in enumerate(anomaly_numbers):
        for column, prediction in enumerate(prediction_numbers):
            overlap[row, column] = np.count_nonzero((anomalies == anomaly) & (predictions == prediction))
    prediction_sizes = [np.count_nonzero(predictions == prediction) for prediction in prediction_numbers]

    siou = []
    for row, anomaly in enumerate(anomaly_numbers):
        union = np.count_nonzero(anomalies == anomaly)
        for column, size in enumerate(prediction_sizes):
            if overlap[row, column]:
                others = [other for other in range(len(anomaly_numbers)) if other != row]
                union += size - overlap[row, column] - sum(overlap[other, column] for other in others)
        siou.append(float(overlap[row].sum() / union))
    ppv = [float(overlap[:, column].sum() / size) for column, size in enumerate(prediction_sizes)]
    return siou, ppv
