"""Checkpoints that are whole or not there, and that fit the model or say why not."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode

from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.modeling.backbones.weights import load_weight_file, require_trust

from .belonging import (
    BELONGS_TO,
    belongings,
    check_backbone_filled,
    check_own_names,
    own_state,
    require_same,
)

logger = logging.getLogger(__name__)

TAG, HISTORY = "last_checkpoint", "checkpoint_history.json"
# How the names of last checkpoints end.
FINAL = "_final"
# The tensors whose first dimension is the number of classes, by classifier.
CLASS_TENSORS = ("classifier.bank.means", "classifier.predictor.weight")
# What only further training needs.
GUIDE = "classifier.guide."
TRAINING_STATE = ("classifier.bank.memory.", "classifier.bank.warm_start.", "outlier_loss.")
WAITING, WAITING_COUNT = "classifier.bank.warm_start.features", "classifier.bank.warm_start.count"
# Stored features, which last checkpoints go without: they are many, and nothing but training reads them.
RING = ("memory.ring", "memory.slot_state")
# What is fitted to a network after its training.
DISTANCES = ("feature_distance.", "max_logit_moments.")
OUTLIERS = "feature_distance.outliers."
FIT_DISTANCES = "train_net.py --fit-feature-distance MODEL.WEIGHTS FILE"


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes, strict shapes, and a list of what it has written.

    That list, ``checkpoint_history.json``, lets ``--resume`` pass over a damaged checkpoint. Files of earlier
    runs in the folder are not on it: they are neither resumed nor removed.

    Args:
        cfg: of the model. Checkpoints then hold what they belong to (:func:`belongings`), and one that was
            made for other classes is refused, but as the start of a training.

    Attributes:
        names: file names of the run's checkpoints, oldest first; empty until ``save`` or
            ``get_checkpoint_file``.
    """

    # While a load must be complete: prefixes of tensors that may be missing all the same.
    _dispensable: tuple[str, ...] | None = None
    _adapted: Callable[[dict[str, Any]], dict[str, Any]] = dict
    # What is being loaded, for messages, and whether all of a training's state is.
    _source, _resumes = "", False

    def __init__(self, *args: Any, cfg: CfgNode | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.names: list[str] = []
        self.belongs_to = belongings(cfg) if cfg is not None else None

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` under a temporary name, then rename it: a crash leaves the old file.

        The last one of a training, or of a fit, lacks the features in the memories of a GMM; their statistics
        are there.

        Raises:
            OSError: it cannot be written; says how much room there is, and that earlier ones are intact.
        """
        data = {key: entry.state_dict() for key, entry in self.checkpointables.items()} | kwargs
        self._write(name, self._model_state(rings=not name.endswith(FINAL)) | data, resumable=True)

    def save_weights(self, name: str) -> None:
        """Write the model alone, as :meth:`save` does; ``--resume`` does not see it."""
        self._write(name, self._model_state(rings=False), resumable=False)

    def keep_last(self, number: int) -> None:
        """Remove all but the run's last ``number`` checkpoints from disk."""
        old, self.names = self.names[:-number], self.names[-number:]
        if old:
            self._write_history()
        for name in old:
            (Path(self.save_dir) / name).unlink(missing_ok=True)

    def _write_history(self) -> None:
        with replacing(Path(self.save_dir) / HISTORY) as temporary:
            temporary.write_text(json.dumps({"checkpoints": self.names}))

    def _model_state(self, *, rings: bool) -> dict[str, Any]:
        state = self.model.state_dict()
        model = {name: value for name, value in state.items() if rings or not name.endswith(RING)}
        return {"model": model, BELONGS_TO: self.belongs_to}

    def _write(self, name: str, data: dict[str, Any], *, resumable: bool) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        folder = Path(self.save_dir)
        path = folder / f"{name}.pth"
        # One name for all: what a killed process left is overwritten by the next checkpoint.
        temporary = folder / ".checkpoint.partial"
        self.logger.info("Saving checkpoint to %s", path)
        try:
            torch.save(data, temporary)
            with temporary.open("rb") as written:
                # A power failure after the renaming must not leave an empty file.
                os.fsync(written.fileno())
            os.replace(temporary, path)
            if resumable:
                self.names = [known for known in self.names if known != path.name] + [path.name]
                self._write_history()
                with replacing(folder / TAG) as tag:
                    tag.write_text(path.name)
        except (OSError, RuntimeError) as error:
            free = shutil.disk_usage(folder).free / 1e6
            raise OSError(
                f"the checkpoint {path} could not be written ({error}; {free:.0f} MB are free there); "
                "earlier checkpoints are intact. Free some space or set OUTPUT_DIR to a folder that can be "
                "written, then continue with --resume"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def get_checkpoint_file(self) -> str:
        """The run's last checkpoint that is whole; what came after it is forgotten. Damaged ones are logged.

        Raises:
            FileNotFoundError: there is none; lists what was wrong with each.
        """
        folder = Path(self.save_dir)
        try:
            listed = json.loads((folder / HISTORY).read_text())["checkpoints"]
        except (OSError, ValueError, KeyError, TypeError):
            listed = []
        if self.has_checkpoint():
            # The tag may have been set back by hand.
            last = (folder / TAG).read_text().strip()
            listed = [*(listed[: listed.index(last)] if last in listed else listed), last]
        flaws: list[str] = []
        while listed:
            path = folder / listed[-1]
            flaw = find_flaw(path)
            if flaw is None:
                if flaws:
                    logger.warning("Going on from the checkpoint before: %s", path)
                self.names = listed
                return str(path)
            flaws.append(f"{path} {flaw}")
            logger.warning("Checkpoint %s %s", path, flaw)
            listed.pop()
        raise FileNotFoundError(
            f"--resume: no checkpoint in {folder} can be used: {'; '.join(flaws)}. Restore one of them, or "
            "start anew without --resume (MODEL.WEIGHTS FILE takes over the weights of another file)"
        )

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint of a whole model, or a pickle of Detectron2's model zoo.

        Raises:
            ValueError: a file of another network, or one that leaves parts of the backbone unfilled; one of
                other classes, but as the start of a training (``checkpointables`` []).
            FileNotFoundError: no such file.
        """
        self._source, self._resumes = path, checkpointables is None
        if path and "://" not in path and not Path(path).is_file():
            raise FileNotFoundError(f"MODEL.WEIGHTS: no file {path}")
        return super().load(path, checkpointables)

    def load_for_evaluation(self, path: str, *, distances: bool = True, outliers: bool = True) -> dict:
        """Load weights that must be complete, without fitted feature distances and moments of logits if not
        ``distances``, without fitted outliers if not ``outliers``; none are needed by a model that was built
        ``pretrained``. Returns what else is in the file.

        Raises:
            ValueError: no path, or a checkpoint that lacks tensors of the model.
            FileNotFoundError: no such file.
        """
        if not path and getattr(self.model, "pretrained", False):
            return {}
        if not path:
            raise ValueError(
                "MODEL.WEIGHTS: evaluation needs the weights of a trained model; add MODEL.WEIGHTS FILE to "
                "the command"
            )
        unneeded = [*(() if distances else DISTANCES), *(() if outliers else (OUTLIERS,))]
        return self.load_complete(path, *unneeded)

    def load_complete(
        self, path: str, *unneeded: str, adapted: Callable[[dict[str, Any]], dict[str, Any]] = dict
    ) -> dict[str, Any]:
        """Load a checkpoint that must have all tensors but those that only further training of this model
        needs, and those whose names begin with ``unneeded``; ``adapted`` changes its state dict before."""
        # A guide that gives the logits of an inference is no training state.
        speaks = getattr(getattr(self.model, "classifier", None), "logits_from", None) == "softmax"
        self._dispensable = (*TRAINING_STATE, *(() if speaks else (GUIDE,)), *unneeded)
        self._adapted = adapted
        try:
            return self.load(path, checkpointables=[])
        finally:
            self._dispensable, self._adapted = None, dict

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            require_trust(filename)
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        found = load_weight_file(f)
        state = own_state(found, self.model.state_dict().keys(), f)
        if isinstance(found, dict) and state is not None and not found.get("matching_heuristics"):
            return found | {"model": state}
        if not isinstance(found, dict) or not isinstance(found.get("model", found), dict):
            raise ValueError(f"MODEL.WEIGHTS: {f} holds no state dict")
        return found

    def _load_model(self, checkpoint: Any) -> Any:
        check_own_names(self.model, checkpoint, self._source)
        state = checkpoint["model"] = self._adapted(checkpoint["model"])
        own = self.model.state_dict()
        for name in CLASS_TENSORS:
            if name in state and name in own and len(state[name]) != len(own[name]):
                raise ValueError(
                    f"the checkpoint was trained with {len(state[name])} classes, "
                    f"MODEL.CLASSIFIER.NUM_CLASSES is {len(own[name])}; use the config it was trained with, "
                    "or a backbone checkpoint without classifier"
                )
        stored, strict = checkpoint.get(BELONGS_TO), self._resumes or self._dispensable is not None
        other = require_same(stored, self.belongs_to, f"weights {self._source}", strict=strict)
        # Of another size it is collected anew.
        if WAITING in state and WAITING in own and own[WAITING].shape != state[WAITING].shape:
            del state[WAITING], state[WAITING_COUNT]
        for name in list(state):
            unneeded = self._dispensable is not None and name.startswith(self._dispensable)
            # Distances that were fitted before may be of other features than those that will be.
            if unneeded and name.startswith(DISTANCES):
                del state[name]
            # What only training needs may have other sizes, a ring always.
            elif (name.endswith(RING) or unneeded) and name in own and own[name].shape != state[name].shape:
                del state[name]
        incompatible = super()._load_model(checkpoint)
        wrong = incompatible.incorrect_shapes
        if wrong:
            listed = "; ".join(
                f"{name}: {tuple(found)} in the checkpoint, {tuple(wanted)} in the model"
                for name, found, wanted in wrong[:5]
            )
            of_distances = all(name.startswith(DISTANCES) for name, *_ in wrong)
            raise ValueError(
                f"the checkpoint does not fit the model, {len(wrong)} shapes differ: {listed}. Use the "
                f"config it was trained with ({'; '.join(other) or 'other keys of MODEL'})"
                + (f", or fit new distances with {FIT_DISTANCES}" if of_distances else "")
            )
        if self._dispensable is None:
            check_backbone_filled(incompatible.missing_keys, self._source)
            return incompatible
        missing = [name for name in incompatible.missing_keys if not name.startswith(self._dispensable)]
        if missing and all(name.startswith(DISTANCES) for name in missing):
            raise ValueError(
                "MODEL.WEIGHTS: the checkpoint lacks what some scores know of the training set "
                f"({', '.join(sorted({name.split('.')[0] for name in missing}))}); fit it with "
                f"{FIT_DISTANCES}, or do without (MODEL.FEATURE_DISTANCE.FEATURES [], no sml in TEST.SCORES)"
            )
        if missing:
            trained = all(name.startswith("frozen_backbone.") for name in missing)
            raise ValueError(
                f"MODEL.WEIGHTS: the checkpoint lacks {len(missing)} tensors of the model "
                f"({', '.join(missing[:5])}); use the config it was trained with"
                + (", or set MODEL.FEATURE_DISTANCE.BACKBONE trained" if trained else "")
            )
        return incompatible


def find_flaw(path: Path) -> str | None:
    """What keeps a file from being read as a checkpoint, or None. Reads all of it, against its checksums."""
    if not path.is_file():
        return "is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile:
        return f"is truncated or damaged: its {path.stat().st_size} bytes have no end of archive"
    except OSError as error:
        return f"cannot be read: {error}"
    return None if damaged is None else f"is damaged: the checksum of {damaged} is wrong"
