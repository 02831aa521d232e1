"""The predictor: one image in, its anomaly score, segmentation and anomalous regions out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from torch import nn

from .data.mapper import test_augmentations
from .engine.checkpoint import Checkpointer
from .engine.config import build_config
from .engine.inference_config import inference_config
from .evaluation.submission import file_digest
from .prediction.components import MIN_AREA
from .prediction.inputs import AnyImage, as_rgb, describe
from .prediction.loading import class_names_and_colors, device_override, quiet_loading
from .prediction.required_weights import require_weights
from .prediction.results import Prediction
from .prediction.threshold import Threshold, calibration_records, find_threshold


class AnomalyPredictor:
    """Predicts images, as the evaluation of this project scores them.

    ::

        predictor = AnomalyPredictor.from_config("config.yaml", "model_final.pth")
        result = predictor("street.jpg")
        result.score          # (H, W) float32, higher = more anomalous
        result.segmentation   # (H, W) uint8, class ids
        predictor.calibrate("my_street_val", target_fpr=0.01)
        predictor("street.jpg").components

    Args:
        model: in evaluation mode.
        score: which of its scores, with the post-processes after it ("msp+gaussian_smoothing").
        image_format: channel order the model was trained on, "RGB" or "BGR".
        resize: Detectron2 augmentations of test images, such as a resize.
        class_names, class_colors: by class id.
        half: float16 on a GPU, bfloat16 on the CPU, wherever torch's autocast says it is safe.
        min_area: components with fewer pixels are dropped.
        weights_sha256: of the checkpoint, so that thresholds are not mixed up.
    """

    def __init__(
        self,
        model: nn.Module,
        score: str,
        *,
        image_format: str = "RGB",
        resize: Sequence[T.Augmentation] = (),
        class_names: Sequence[str] = (),
        class_colors: Sequence[Sequence[int]] = (),
        half: bool = False,
        min_area: int = MIN_AREA,
        weights_sha256: str | None = None,
    ) -> None:
        self.model = model.eval()
        self.score = score
        self.image_format = image_format
        self.resize = T.AugmentationList(list(resize))
        self.class_names = tuple(class_names)
        self.class_colors = tuple((int(r), int(g), int(b)) for r, g, b in class_colors)
        self.half = half
        self.min_area = min_area
        self.weights_sha256 = weights_sha256
        # A pixel is anomalous above it; None: not known.
        self.threshold: float | None = None
        # Scores of an overlay's darkest and brightest colours; None: each image's own.
        self.color_range: tuple[float, float] | None = None

    @classmethod
    def from_config(
        cls,
        config: str | os.PathLike[str],
        weights: str | os.PathLike[str] | None = None,
        *,
        score: str | None = None,
        threshold: float | Threshold | str | os.PathLike[str] | None = None,
        device: str | None = None,
        half: bool = False,
        min_area: int = MIN_AREA,
        opts: Sequence[str] = (),
    ) -> AnomalyPredictor:
        """The predictor of a config file and a checkpoint.

        Args:
            config: a config of the repository, or the config.yaml that a training wrote.
            weights: the checkpoint; by default the config's ``MODEL.WEIGHTS``.
            score: by default the first of ``TEST.SCORES``; "NAME+POST+POST" with post-processes.
            threshold: a number, what :meth:`calibrate` returned, or the file it was saved to.
            device: "cpu", "cuda", "cuda:1"; by default the config's, and the CPU where there is no GPU.
            half, min_area: see the class.
            opts: "KEY", "VALUE", ... for the config.

        Raises:
            FileNotFoundError: no such config, weights or threshold file.
            ValueError: no weights, weights that do not fit, a score the model cannot give, no such device.
        """
        path = os.fspath(config)
        overrides = [*map(str, opts), *device_override(device)]
        if weights is not None:
            overrides += ["MODEL.WEIGHTS", os.fspath(weights)]
        if score is None:
            score = build_config(path, overrides).TEST.SCORES[0]
        name, *chain = score.split("+")
        overrides += ["TEST.SCORES", str([name]), "TEST.POSTPROCESS", str(chain)]
        cfg = build_config(path, overrides)
        require_weights(cfg, given=weights is not None)
        model = build_model(inference_config(cfg)).eval()
        with quiet_loading():
            Checkpointer(model).load_for_evaluation(cfg.MODEL.WEIGHTS)
        names, colors = class_names_and_colors(cfg)
        predictor = cls(
            model,
            score,
            image_format=cfg.INPUT.FORMAT,
            resize=test_augmentations(cfg),
            class_names=names,
            class_colors=colors,
            half=half,
            min_area=min_area,
            weights_sha256=file_digest(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None,
        )
        if threshold is not None:
            predictor.use_threshold(threshold)
        return predictor

    @property
    def device(self) -> torch.device:
        return self.model.device

    def __call__(self, image: AnyImage, format: str = "RGB") -> Prediction:
        """Predict one image.

        Args:
            image: (H, W, 3) uint8 array, PIL image, path, or (3, H, W) uint8 tensor.
            format: channel order of arrays and tensors: "RGB", or "BGR" as OpenCV reads them.

        Raises:
            FileNotFoundError, ValueError, TypeError: see :func:`~gmm_anomaly.prediction.inputs.as_rgb`.
        """
        return self.predict([image], format=format)[0]

    def predict(
        self, images: Iterable[AnyImage], *, format: str = "RGB", batch_size: int = 1
    ) -> list[Prediction]:
        """Predictions of several images, in their order; arguments as :meth:`stream`."""
        return list(self.stream(images, format=format, batch_size=batch_size))

    def stream(
        self, images: Iterable[AnyImage], *, format: str = "RGB", batch_size: int = 1
    ) -> Iterator[Prediction]:
        """Predictions of any number of images, one after the other, in their order.

        Args:
            images: each as :meth:`__call__` takes it; they are read when their turn comes.
            format: as in :meth:`__call__`.
            batch_size: how many neighbours of one size go through the network together. Images of different
                sizes never do: padding one to the other's size would change its result.

        Raises:
            ValueError: ``batch_size`` below 1; or as :meth:`__call__`, naming the image.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}")
        batch: list[tuple[np.ndarray, str]] = []
        for index, image in enumerate(images):
            try:
                array = as_rgb(image, format)
            except (ValueError, TypeError) as error:
                if isinstance(image, str | os.PathLike):
                    raise
                raise type(error)(f"{describe(image, index)}: {error}") from error
            if batch and batch[0][0].shape != array.shape:
                yield from self._predict(batch)
                batch = []
            batch.append((array, os.fspath(image) if isinstance(image, str | os.PathLike) else ""))
            if len(batch) == batch_size:
                yield from self._predict(batch)
                batch = []
        if batch:
            yield from self._predict(batch)

    def calibrate(self, dataset: str, target_fpr: float = 0.05, **options: Any) -> Threshold:
        """Find the threshold above which ``target_fpr`` of a data set's known pixels lie, and use it.

        Args:
            dataset: name of a registered closed or anomaly set with labels; not the one to report on.
            target_fpr: in (0, 1).
            options: ``progress`` of :func:`~gmm_anomaly.prediction.threshold.find_threshold`.

        Returns:
            The threshold, to be saved and given to :meth:`from_config` later. Its colour range is that of
            this data set.

        Raises:
            ValueError: an unknown data set, or one without labels. FileNotFoundError: it is not on disk.
        """
        records = calibration_records(dataset)
        found = find_threshold(
            records,
            (self._predict([(records.image(index), "")])[0].score for index in range(len(records))),
            target_fpr,
            score_name=self.score,
            weights_sha256=self.weights_sha256,
            **options,
        )
        self.use_threshold(found)
        return found

    def use_threshold(self, threshold: float | Threshold | str | os.PathLike[str]) -> None:
        """Use a number, a :class:`~gmm_anomaly.prediction.threshold.Threshold`, or a file of one.

        Raises:
            ValueError: NaN, or a threshold of another score or checkpoint. FileNotFoundError: no such file.
        """
        if isinstance(threshold, str | os.PathLike):
            threshold = Threshold.load(threshold)
        if isinstance(threshold, Threshold):
            threshold.require(self.score, self.weights_sha256)
            self.color_range = threshold.color_range
            threshold = threshold.value
        if np.isnan(threshold):
            raise ValueError("threshold: expected a number, found NaN")
        self.threshold = float(threshold)

    @torch.no_grad()
    def _predict(self, batch: Sequence[tuple[np.ndarray, str]]) -> list[Prediction]:
        """batch: (H, W, 3) uint8 RGB arrays of one size, and where each comes from."""
        dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        with torch.autocast(self.device.type, dtype=dtype, enabled=self.half):
            outputs = self.model([self._input(image, source) for image, source in batch])
        return [
            self._result(image, source, output)
            for (image, source), output in zip(batch, outputs, strict=True)
        ]

    def _input(self, image: np.ndarray, source: str) -> dict[str, Any]:
        """What the mapper of the evaluation makes of the image."""
        inputs = T.AugInput(image if self.image_format == "RGB" else image[..., ::-1])
        self.resize(inputs)
        pixels = np.array(inputs.image.transpose(2, 0, 1), order="C")
        return {
            "image": torch.from_numpy(pixels),
            "height": image.shape[0],
            "width": image.shape[1],
            "file_name": source,
        }

    def _result(self, image: np.ndarray, source: str, output: dict[str, Any]) -> Prediction:
        return Prediction(
            image=image,
            score=output["anomaly_scores"][self.score].float().cpu().numpy(),
            segmentation=output["sem_seg"].argmax(dim=0).to(torch.uint8).cpu().numpy(),
            score_name=self.score,
            class_names=self.class_names,
            class_colors=self.class_colors,
            threshold=self.threshold,
            color_range=self.color_range,
            min_area=self.min_area,
            source=source,
        )
