"""Checkpoints that are whole or not there, and that fit the model or say why not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

# The tensors whose first dimension is the number of classes, by classifier.
CLASS_TENSORS = ("classifier.bank.means", "classifier.predictor.weight")
# What only further training needs.
GUIDE = "classifier.guide."
TRAINING_STATE = ("classifier.bank.memory.", "classifier.bank.warm_start.", GUIDE)
# State that is fitted after training.
CALIBRATION = ("feature_distance.", "max_logit_moments.")


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes and strict shapes."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` under a temporary name, then rename it: a crash leaves the old file."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: entry.state_dict() for key, entry in self.checkpointables.items()})
        data.update(kwargs)
        self.tag_last_checkpoint(self._write(name, data).name)

    def save_weights(self, name: str) -> None:
        """Write the model alone, as :meth:`save` does; ``--resume`` does not see it."""
        if self.save_dir and self.save_to_disk:
            self._write(name, {"model": self.model.state_dict()})

    def _write(self, name: str, data: dict[str, Any]) -> Path:
        path = Path(self.save_dir) / f"{name}.pth"
        temporary = path.with_suffix(".tmp")
        self.logger.info("Saving checkpoint to %s", path)
        try:
            torch.save(data, temporary)
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise OSError(
                f"the checkpoint {path} could not be written ({error}); earlier checkpoints are intact. Free "
                "some space or set OUTPUT_DIR to a folder that can be written, then continue with --resume"
            ) from error
        return path

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        tag = Path(self.save_dir) / "last_checkpoint"
        temporary = tag.with_suffix(".tmp")
        temporary.write_text(last_filename_basename)
        os.replace(temporary, tag)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if path and "://" not in path and not Path(path).is_file():
            raise FileNotFoundError(f"MODEL.WEIGHTS: no file {path}")
        return super().load(path, *args, **kwargs)

    def load_for_evaluation(self, path: str, *, calibrated: bool = True) -> None:
        """Load weights that must be complete, but for what calibration fits if not ``calibrated``; none are
        needed by a model that was built ``pretrained``.

        Raises:
            ValueError: no path, or a checkpoint that lacks tensors of the model.
            FileNotFoundError: no such file.
        """
        if not path:
            if getattr(self.model, "pretrained", False):
                return
            raise ValueError(
                "MODEL.WEIGHTS: evaluation needs the weights of a trained model; add MODEL.WEIGHTS FILE to "
                "the command"
            )
        self._dispensable = self._training_state() + (() if calibrated else CALIBRATION)
        try:
            self.load(path)
        finally:
            self._dispensable = None

    def _training_state(self) -> tuple[str, ...]:
        """Prefixes of the tensors that only further training of this model needs."""
        speaks = getattr(getattr(self.model, "classifier", None), "logits_from", None) == "softmax"
        return tuple(prefix for prefix in TRAINING_STATE if not (speaks and prefix == GUIDE))

    # While a load must be complete: prefixes of tensors that may be missing all the same.
    _dispensable: tuple[str, ...] | None = None

    def _load_model(self, checkpoint: Any) -> Any:
        self._check_classes(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        if incompatible is None:
            return None
        if incompatible.incorrect_shapes:
            listed = "; ".join(
                f"{name}: {tuple(found)} in the checkpoint, {tuple(wanted)} in the model"
                for name, found, wanted in incompatible.incorrect_shapes[:5]
            )
            raise ValueError(
                f"the checkpoint does not fit the model, {len(incompatible.incorrect_shapes)} shapes differ: "
                f"{listed}. Use the config it was trained with"
            )
        if self._dispensable is None:
            return incompatible
        missing = [name for name in incompatible.missing_keys if not name.startswith(self._dispensable)]
        if missing and all(name.startswith(CALIBRATION) for name in missing):
            raise ValueError(
                "MODEL.WEIGHTS: the checkpoint lacks what some scores know of the training set "
                f"({', '.join(sorted({name.split('.')[0] for name in missing}))}); fit it with train_net.py "
                "--calibrate MODEL.WEIGHTS FILE, or do without (MODEL.FEATURE_DISTANCE.FEATURES [], no "
                '"sml" in TEST.SCORES)'
            )
        if missing:
            raise ValueError(
                f"MODEL.WEIGHTS: the checkpoint lacks {len(missing)} tensors of the model "
                f"({', '.join(missing[:5])}); use the config it was trained with"
            )
        return incompatible

    def _check_classes(self, state: dict[str, Any]) -> None:
        own = self.model.state_dict()
        for name in CLASS_TENSORS:
            if name in state and name in own and len(state[name]) != len(own[name]):
                raise ValueError(
                    f"the checkpoint was trained with {len(state[name])} classes, "
                    f"MODEL.CLASSIFIER.NUM_CLASSES is {len(own[name])}; use the config it was trained with, "
                    "or a backbone checkpoint without classifier"
                )
