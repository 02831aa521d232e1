"""A data set of your own, in three lines: replace the name and the two folders.

    python train_net.py --config-file CONFIG --register datasets/own_dataset_example.py --eval-only \
        MODEL.WEIGHTS CHECKPOINT DATASETS.TEST '("own_anomalies",)'

The folders hold images (any of png, jpg, webp) and labels of the same stems: 8-bit single-channel PNGs with 0
known, 1 anomaly, 255 ignored. Other values get a meaning with label_map, for example label_map={0: 0, 2: 1,
255: 255}.
"""

from gmm_anomaly.data import register_anomaly_dataset

register_anomaly_dataset("own_anomalies", "datasets/own/images", "datasets/own/labels")
