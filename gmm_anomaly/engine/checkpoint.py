"""Checkpoints that are whole or not there, and that fit the model or say why not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import torch
from detectron2.checkpoint import DetectionCheckpointer

from gmm_anomaly.data.atomic import replacing

from .checkpoint_history import TAG, CheckpointHistory
from .output_folder import free_space
from .weights import check_backbone_filled, check_own_names, load_weight_file

# The tensors whose first dimension is the number of classes, by classifier.
CLASS_TENSORS = ("classifier.bank.means", "classifier.predictor.weight")
# What only further training needs.
GUIDE = "classifier.guide."
TRAINING_STATE = ("classifier.bank.memory.", "classifier.bank.warm_start.", GUIDE)
# Counters of batch norm.
COUNTER = "num_batches_tracked"
# How the names of last checkpoints end.
FINAL = "_final"
# Stored features, which last checkpoints go without: they are many, and nothing but training reads them.
RING = ("memory.ring", "memory.slot_state")
# State that is fitted after training.
FITTED = ("feature_distance.", "max_logit_moments.")


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes and strict shapes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.history = CheckpointHistory(self.save_dir)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` under a temporary name, then rename it: a crash leaves the old file.

        The last one of a training, or of a fit, lacks the features in the memories of a GMM; their statistics
        are there.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self._model_state(rings=not name.endswith(FINAL))}
        data.update({key: entry.state_dict() for key, entry in self.checkpointables.items()})
        data.update(kwargs)
        self._write(name, data)
        with self._explaining(name):
            self.history.add(f"{name}.pth")
            self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str) -> None:
        """Write the model alone, as :meth:`save` does; ``--resume`` does not see it."""
        if self.save_dir and self.save_to_disk:
            self._write(name, {"model": self._model_state(rings=False)})

    def _model_state(self, *, rings: bool) -> dict[str, Any]:
        state: dict[str, Any] = self.model.state_dict()
        if not rings:
            for key in [key for key in state if key.endswith(RING)]:
                del state[key]
        return state

    def _write(self, name: str, data: dict[str, Any]) -> None:
        path = Path(self.save_dir) / f"{name}.pth"
        # One name for all: what a killed process left is overwritten by the next checkpoint.
        temporary = path.with_name(".checkpoint.partial")
        self.logger.info("Saving checkpoint to %s", path)
        try:
            with self._explaining(name):
                torch.save(data, temporary)
                with temporary.open("rb") as written:
                    # A power failure after the renaming must not leave an empty file.
                    os.fsync(written.fileno())
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _explaining(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            folder = Path(self.save_dir)
            raise OSError(
                f"the checkpoint {folder / name}.pth could not be written ({error}{free_space(folder)}); "
                "earlier checkpoints are intact. Free some space or set OUTPUT_DIR to a folder that can be "
                "written, then continue with --resume"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with replacing(Path(self.save_dir) / TAG) as temporary:
            temporary.write_text(last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """The run's last checkpoint in the folder that is whole, see :class:`CheckpointHistory`.

        Raises:
            FileNotFoundError: none is.
        """
        return str(self.history.find_usable())

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint of a whole model, or a pickle of Detectron2's model zoo.

        Raises:
            ValueError: a file of another network, or one that leaves parts of the backbone unfilled.
            FileNotFoundError: no such file.
        """
        self._source = path
        if path and "://" not in path and not Path(path).is_file():
            raise FileNotFoundError(f"MODEL.WEIGHTS: no file {path}")
        return super().load(path, *args, **kwargs)

    def load_for_evaluation(self, path: str, *, distances: bool = True) -> None:
        """Load weights that must be complete, without fitted distances and moments if not ``distances``; none
        are needed by a model that was built ``pretrained``.

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
        self._dispensable = self._training_state() + (() if distances else FITTED)
        try:
            self.load(path)
        finally:
            self._dispensable = None

    def _training_state(self) -> tuple[str, ...]:
        """Prefixes of the tensors that only further training of this model needs."""
        speaks = getattr(getattr(self.model, "classifier", None), "logits_from", None) == "softmax"
        return tuple(prefix for prefix in TRAINING_STATE if not (speaks and prefix == GUIDE))

    def _load_file(self, filename: str) -> dict[str, Any]:
        """A file in one of the formats that Detectron2 knows, see ``load_weight_file``."""
        loaded = load_weight_file(filename)
        if not isinstance(loaded, dict):
            raise ValueError(f"MODEL.WEIGHTS: {filename} holds no state dict, but {type(loaded).__name__}")
        by_shape = {"matching_heuristics": True}
        if filename.endswith(".pyth"):
            found = {"model": _without(loaded.get("model_state"), COUNTER), "__author__": "pycls"} | by_shape
        elif filename.endswith(".pkl") and not {"model", "__author__"} <= set(loaded):
            blobs = _without(loaded.get("blobs", loaded), "_momentum")
            found = {"model": blobs, "__author__": "Caffe2"} | by_shape
        else:
            found = loaded if "model" in loaded else {"model": loaded}
        if not isinstance(found["model"], dict):
            raise ValueError(f"MODEL.WEIGHTS: {filename} has something else where its state dict should be")
        asked = parse_qs(getattr(self._parsed_url_during_load, "query", ""))
        return found | by_shape if asked.get("matching_heuristics") == ["True"] else found

    # While a load must be complete: prefixes of tensors that may be missing all the same.
    _dispensable: tuple[str, ...] | None = None
    # What is being loaded, for messages.
    _source = ""

    def _load_model(self, checkpoint: Any) -> Any:
        check_own_names(self.model, checkpoint, self._source)
        self._check_classes(checkpoint["model"])
        if self._dispensable is not None and set(FITTED) <= set(self._dispensable):
            # Those in the file may be of other features.
            checkpoint["model"] = {
                name: value for name, value in checkpoint["model"].items() if not name.startswith(FITTED)
            }
        self._drop_other_rings(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        if incompatible is None:
            return None
        if incompatible.incorrect_shapes:
            listed = "; ".join(
                f"{name}: {tuple(found)} in the checkpoint, {tuple(wanted)} in the model"
                for name, found, wanted in incompatible.incorrect_shapes[:5]
            )
            only_fitted = all(name.startswith(FITTED) for name, *_ in incompatible.incorrect_shapes)
            cure = ", or fit new distances with train_net.py --fit-feature-distance" if only_fitted else ""
            raise ValueError(
                f"the checkpoint does not fit the model, {len(incompatible.incorrect_shapes)} shapes differ: "
                f"{listed}. Use the config it was trained with{cure}"
            )
        if self._dispensable is None:
            check_backbone_filled(incompatible.missing_keys, self._source)
            return incompatible
        missing = [name for name in incompatible.missing_keys if not name.startswith(self._dispensable)]
        if missing and all(name.startswith(FITTED) for name in missing):
            raise ValueError(
                "MODEL.WEIGHTS: the checkpoint lacks what some scores know of the training set "
                f"({', '.join(sorted({name.split('.')[0] for name in missing}))}); fit it with train_net.py "
                "--fit-feature-distance MODEL.WEIGHTS FILE, or do without (MODEL.FEATURE_DISTANCE.FEATURES "
                '[], no "sml" in TEST.SCORES)'
            )
        if missing:
            raise ValueError(
                f"MODEL.WEIGHTS: the checkpoint lacks {len(missing)} tensors of the model "
                f"({', '.join(missing[:5])}); use the config it was trained with"
            )
        return incompatible

    def _drop_other_rings(self, state: dict[str, Any]) -> None:
        """Rings of another size are done without, as those that a checkpoint lacks."""
        own = self.model.state_dict()
        for name in [name for name in state if name.endswith(RING)]:
            if name in own and own[name].shape != state[name].shape:
                del state[name]

    def _check_classes(self, state: dict[str, Any]) -> None:
        own = self.model.state_dict()
        for name in CLASS_TENSORS:
            if name in state and name in own and len(state[name]) != len(own[name]):
                raise ValueError(
                    f"the checkpoint was trained with {len(state[name])} classes, "
                    f"MODEL.CLASSIFIER.NUM_CLASSES is {len(own[name])}; use the config it was trained with, "
                    "or a backbone checkpoint without classifier"
                )


def _without(state: Any, ending: str) -> Any:
    """A state dict without the names that end so; anything else as it is."""
    if not isinstance(state, dict):
        return state
    return {name: value for name, value in state.items() if not str(name).endswith(ending)}
