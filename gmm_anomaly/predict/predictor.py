"""The predictor: one image in, its anomaly score, segmentation and anomalous regions out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from torch import nn

from gmm_anomaly.compat import BUNDLED, find_config, quiet
from gmm_anomaly.data.build import closed_set
from gmm_anomaly.data.mapper import test_augmentations
from gmm_anomaly.data.reading import CLOSED_SET, IGNORE_LABEL, read_image, read_label
from gmm_anomaly.data.registration import get_records
from gmm_anomaly.engine.belonging import belongings, inference_config
from gmm_anomaly.engine.checkpoint import Checkpointer
from gmm_anomaly.engine.config import build_config, read_config
from gmm_anomaly.engine.output_dir import with_run_weights
from gmm_anomaly.engine.trained_model import first_score
from gmm_anomaly.evaluation.files import distinct_colors, file_digest

from .inputs import AnyImage, as_rgb
from .result import MIN_AREA, Prediction
from .threshold import Threshold, find_threshold


class AnomalyPredictor:
    """Predicts images, as the evaluation of this project scores them.

    ::

        predictor = AnomalyPredictor()  # the model that comes along
        result = predictor("street.jpg")  # result.score, .segmentation, .components
        predictor = AnomalyPredictor.from_config("config.yaml", "model_final.pth")
        predictor.fit_threshold("my_street_val", target_fpr=0.01)

    Args:
        model: a segmentor that gives the score; it is put into evaluation mode. None: the bundled one, as
            :meth:`from_config` makes it, with its threshold.
        score: one of the model's scores, with the post-processes after it ("msp+gaussian_smoothing").
        image_format: channel order the model was trained on, "RGB" or "BGR".
        resize: Detectron2 augmentations of test images, such as a resize.
        class_names, class_colors: by class id.
        half: float16 on a GPU, bfloat16 on the CPU, wherever torch's autocast says it is safe.
        min_area: components with fewer pixels are dropped.
        weights: the checkpoint's file, for messages.
        weights_sha256, belongs_to: of the checkpoint, and what decides scores beside it
            (:func:`gmm_anomaly.engine.belonging.belongings`), so that thresholds are not mixed up.

    Attributes:
        threshold: a pixel is anomalous above it; None: not known. fitted_threshold: how it was found, if that
            is known.
        color_range: scores of an overlay's darkest and brightest colours; None: each image's own.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        score: str = "",
        *,
        image_format: str = "RGB",
        resize: Sequence[T.Augmentation] = (),
        class_names: Sequence[str] = (),
        class_colors: Sequence[Sequence[int]] = (),
        half: bool = False,
        min_area: int = MIN_AREA,
        weights: str = "",
        weights_sha256: str | None = None,
        belongs_to: Mapping[str, Any] | None = None,
    ) -> None:
        if model is None:
            vars(self).update(vars(self.from_config(score=score or None, half=half, min_area=min_area)))
            return
        self.model = model.eval()
        self.score = score
        self.image_format = image_format
        self.resize = T.AugmentationList(list(resize))
        self.class_names = tuple(class_names)
        self.class_colors = tuple((int(r), int(g), int(b)) for r, g, b in class_colors)
        self.half = half
        self.min_area = min_area
        self.weights = weights
        self.weights_sha256 = weights_sha256
        self.belongs_to = belongs_to
        self.threshold: float | None = None
        self.fitted_threshold: Threshold | None = None
        self.color_range: tuple[float, float] | None = None

    @classmethod
    def from_config(
        cls,
        config: str | os.PathLike[str] = BUNDLED,
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
            config: a config of the repository, the config.yaml that a training wrote, a file of a model with
                its config inside (`gmm-anomaly fit` writes such), or "bundled": the model that comes along.
            weights: the checkpoint; by default the config's ``MODEL.WEIGHTS``, or for a run's config.yaml
                the last checkpoint of that run.
            score: "NAME+POST+POST"; by default the config's first, with its post-processes.
            threshold: a number, what :meth:`fit_threshold` returned, or the file it was saved to; by default
                that of the file of a model that has one for this score.
            device: "cpu", "cuda", "cuda:1"; by default the config's, and the CPU where there is no GPU.
            half, min_area: see the class.
            opts: "KEY", "VALUE", ... for the config.

        Raises:
            FileNotFoundError: no such config, weights or threshold file.
            ValueError: no weights, weights that do not fit, a score the model cannot give, no such device.
        """
        if score is None:
            score = first_score(read_config(os.fspath(config), list(opts)))
        name, *chain = score.split("+")
        overrides = [*map(str, opts), "TEST.POSTPROCESS", str(chain), "TEST.SCORES", str([name])]
        if weights is None and Path(find_config(config)).suffix == ".pth":
            weights = find_config(config)
        if weights is not None:
            overrides += ["MODEL.WEIGHTS", os.fspath(weights)]
        if device is not None:
            try:
                torch.empty(0, device=device)
            except (RuntimeError, AssertionError) as error:
                raise ValueError(
                    f"device: expected cpu, cuda or cuda:N of this machine, found {device!r}"
                ) from error
            overrides += ["MODEL.DEVICE", device]
        cfg = with_run_weights(build_config(os.fspath(config), overrides), os.fspath(config), overrides)
        # A config may name what a training starts from. A Mask2Former of the hub comes trained.
        if weights is None and not cfg.MODEL.MASK2FORMER.WEIGHTS and not Path(cfg.MODEL.WEIGHTS).is_file():
            raise ValueError(
                "no weights were given (--weights FILE). A training makes them; this one takes five minutes "
                "on two CPU cores: gmm-anomaly train --num-gpus 0 --config-file "
                "synthetic/effnetlite0_deeplabv3plus_gmm.yaml"
            )
        model = build_model(inference_config(cfg))
        # Without the list of tensors that only training needs; what is missing is an error of its own.
        with quiet("fvcore.common.checkpoint", "detectron2"):
            stored = Checkpointer(model, cfg=cfg).load_for_evaluation(cfg.MODEL.WEIGHTS).get("threshold")
        # Nothing is computed but the one that is asked for.
        scoring = model.scoring
        scoring.scores = {name: scoring.scores[name]}
        scoring.chains = scoring.chains[:1] if chain else []
        count = cfg.MODEL.CLASSIFIER.NUM_CLASSES
        closed = closed_set(cfg)
        names = closed.stuff_classes if closed else [f"class {index}" for index in range(count)]
        colors = closed and closed.get("stuff_colors") or distinct_colors(count)
        file = cfg.MODEL.WEIGHTS
        predictor = cls(
            model, score, image_format=cfg.INPUT.FORMAT, resize=test_augmentations(cfg), class_names=names,
            class_colors=colors, half=half, min_area=min_area,
            weights=file or cfg.MODEL.MASK2FORMER.WEIGHTS, weights_sha256=file_digest(file) if file else None,
            belongs_to=belongings(cfg, scores=True),
        )  # fmt: skip
        if threshold is None and stored and stored["score"] == score:
            threshold = Threshold(**stored | {"weights_sha256": predictor.weights_sha256})
        if threshold is not None:
            predictor.use_threshold(threshold)
        return predictor

    def __call__(self, image: AnyImage, format: str = "RGB") -> Prediction:
        """Predict one image.

        Args:
            image: (H, W, 3) uint8 array, PIL image, path, or (3, H, W) uint8 tensor.
            format: channel order of arrays and tensors: "RGB", or "BGR" as OpenCV reads them.

        Raises:
            FileNotFoundError, ValueError, TypeError: see :func:`~gmm_anomaly.predict.inputs.as_rgb`.
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

        def read() -> Iterator[tuple[np.ndarray, str]]:
            for number, image in enumerate(images, 1):
                source = os.fspath(image) if isinstance(image, str | os.PathLike) else ""
                try:
                    yield as_rgb(image, format), source
                except (ValueError, TypeError) as error:
                    raise type(error)(f"image number {number}: {error}") from error

        for _, neighbours in groupby(read(), lambda pair: pair[0].shape):
            while batch := list(islice(neighbours, batch_size)):
                yield from self._predict(batch)

    def fit_threshold(self, dataset: str, target_fpr: float = 0.05, *, progress: Any = iter) -> Threshold:
        """Find the threshold above which ``target_fpr`` of a data set's known pixels lie, and use it.

        Known are the pixels labelled 0 of an anomaly set, and those of any class of a closed set.

        Args:
            dataset: name of a registered closed or anomaly set with labels; not the one to report on.
            target_fpr: in (0, 1).
            progress: wraps the list of records, to show how far it is; tqdm's ``tqdm`` for example.

        Returns:
            The threshold, to be saved and given to :meth:`from_config` later. Its colour range is that of
            this data set.

        Raises:
            ValueError: an unknown data set, or one without labels. FileNotFoundError: it is not on disk.
        """
        records, metadata = get_records(dataset), MetadataCatalog.get(dataset)
        closed = metadata.get("evaluator_type") == CLOSED_SET

        def frames() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for record in progress(records):
                label = read_label(record, metadata)
                (found,) = self._predict([(read_image(record, "RGB"), "")])
                yield found.score, label != IGNORE_LABEL if closed else label == 0

        found = find_threshold(
            frames(), target_fpr, score=self.score, dataset=dataset, weights_sha256=self.weights_sha256,
            belongs_to=self.belongs_to,
        )  # fmt: skip
        self.use_threshold(found)
        return found

    def use_threshold(self, threshold: float | Threshold | str | os.PathLike[str]) -> None:
        """Use a number, a :class:`~gmm_anomaly.predict.threshold.Threshold`, or a file of one.

        Raises:
            ValueError: NaN, or a threshold of another score or checkpoint. FileNotFoundError: no such file.
        """
        if isinstance(threshold, str | os.PathLike):
            threshold = Threshold.load(threshold)
        self.fitted_threshold = None
        if isinstance(threshold, Threshold):
            self.fitted_threshold = threshold
            threshold.require(self.score, self.weights_sha256, self.belongs_to)
            self.color_range = threshold.color_range
            threshold = threshold.value
        if np.isnan(threshold):
            raise ValueError("threshold: expected a number, found NaN")
        self.threshold = float(threshold)

    @torch.no_grad()
    def _predict(self, batch: Sequence[tuple[np.ndarray, str]]) -> list[Prediction]:
        """batch: (H, W, 3) uint8 RGB arrays of one size, and where each comes from."""
        inputs = []
        for image, source in batch:
            # As the mapper of the evaluation makes it.
            given = T.AugInput(image if self.image_format == "RGB" else image[..., ::-1])
            self.resize(given)
            pixels = torch.from_numpy(np.array(given.image.transpose(2, 0, 1), order="C"))
            height, width, _ = image.shape
            inputs.append({"image": pixels, "height": height, "width": width, "file_name": source})
        dtype = torch.float16 if self.model.device.type == "cuda" else torch.bfloat16
        with torch.autocast(self.model.device.type, dtype=dtype, enabled=self.half):
            outputs = self.model(inputs)
        return [
            Prediction(
                image=image,
                score=output["anomaly_scores"][self.score].float().cpu().numpy(),
                segmentation=output["sem_seg"].argmax(dim=0).to(torch.uint8).cpu().numpy(),
                score_name=self.score, class_names=self.class_names, class_colors=self.class_colors,
                threshold=self.threshold, color_range=self.color_range, min_area=self.min_area, source=source,
            )
            for (image, source), output in zip(batch, outputs, strict=True)
        ]  # fmt: skip
