"""A detector of anomalies that needs no training: fitted to frames of what is normal."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image

from gmm_anomaly.data.mapper import test_augmentations
from gmm_anomaly.engine.belonging import belongings
from gmm_anomaly.engine.config import build_config
from gmm_anomaly.engine.fit_detector import (
    CONFIG,
    fit_detector,
    frame_files,
)
from gmm_anomaly.engine.trained_model import first_score, save_model

from .inputs import AnyImage, as_rgb
from .predictor import AnomalyPredictor
from .result import Prediction


class AnomalyDetector(AnomalyPredictor):
    """An :class:`AnomalyPredictor` of a network that nothing was trained for.

    ::

        detector = AnomalyDetector.fit("frames/")
        detector.predict("street.jpg").score  # (H, W) float32, higher = more anomalous
        detector.save("detector.pth")
        detector = AnomalyDetector.load("detector.pth")

    Attributes:
        cfg: of its network, its levels and its input size.
    """

    cfg: CfgNode

    @classmethod
    def fit(
        cls,
        images: str | os.PathLike[str] | Iterable[AnyImage],
        *,
        config: str | os.PathLike[str] = CONFIG,
        device: str | None = None,
        opts: Sequence[str] = (),
        **options: Any,
    ) -> AnomalyDetector:
        """Fit to frames of what is normal, of any sizes; each is seen once.

        Args:
            images: a folder, or images as :meth:`__call__` takes them; two are enough. Files that cannot be
                read are named in the log and left out.
            config, opts: other networks, levels or sizes, see :func:`fit_detector`.
            device: "cpu", "cuda", "cuda:1"; by default a GPU where there is one.
            options: of :class:`AnomalyPredictor`: ``half``, ``min_area``.

        Raises:
            FileNotFoundError: no such folder, or no images in it; no weights of the network.
            ValueError: no image that can be read, or a config that is no detector's.
        """
        pairs = [*opts, *(["MODEL.DEVICE", device] if device else [])]
        cfg = build_config(os.fspath(config), pairs)
        if isinstance(images, str | os.PathLike):
            frames: Iterable[Path | np.ndarray] = frame_files(images)
        else:
            frames = (Path(one) if isinstance(one, str | os.PathLike) else as_rgb(one) for one in images)
        model = fit_detector(cfg, frames)
        resize = test_augmentations(cfg)
        score = first_score(cfg)
        detector = cls(
            model, score, image_format=cfg.INPUT.FORMAT, resize=resize,
            belongs_to=belongings(cfg, scores=True), **options,
        )  # fmt: skip
        detector.cfg = cfg
        return detector

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> AnomalyDetector:
        """One that :meth:`save` or ``gmm-anomaly fit`` wrote; options of :meth:`from_config`."""
        detector = cls.from_config(path, **options)
        detector.cfg = build_config(os.fspath(path))
        return detector

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write network, distances and config into one file, which commands take for ``--weights``."""
        save_model(self.cfg, self.model, path)

    def predict(self, images: AnyImage | Iterable[AnyImage], **options: Any) -> Prediction | list[Prediction]:
        """The prediction of an image, or those of several, as :meth:`AnomalyPredictor.predict` gives them."""
        if isinstance(images, str | os.PathLike | np.ndarray | torch.Tensor | Image.Image):
            return super().predict([images], **options)[0]
        return super().predict(images, **options)
