"""A submission to SegmentMeIfYouCan: one HDF5 file of float16 scores a frame, in its layout.

An interrupted run (`gmm-anomaly submit`) goes on where it stopped, and every file is read back.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from tabulate import tabulate
from tqdm import tqdm

from gmm_anomaly.data import SegmentationMapper
from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.data.registration import get_records
from gmm_anomaly.modeling.scoring import score_names

from .command import load_model, model_config
from .files import file_digest, save_json
from .score_files import HDF5_KEY, require_h5py

logger = logging.getLogger(__name__)

DEFAULT_DATASETS = ("road_anomaly21_all", "road_obstacle21_all")
# The benchmark keeps all splits of a track in one folder; by the beginning of a data set's name here.
FOLDERS = {
    "road_anomaly21": "AnomalyTrack-all",
    "road_obstacle21": "ObstacleTrack-all",
    "lost_and_found_train": "LostAndFound-train",
    "lost_and_found": "LostAndFound-test",
}
_IMAGE_SUFFIX = "_leftImg8bit"  # LostAndFound's images have it, its score files do not

Record = Mapping[str, Any]
Predict = Callable[[Sequence[Record]], Iterable[np.ndarray]]


class Frame(NamedTuple):
    """One image and its score file."""

    record: Record
    target: Path


@dataclass
class Submission:
    """A method's score files: ``<root>/outputs/anomaly_p/<method>/<folder>/<frame>.hdf5``.

    Each holds one data set "value", (H, W) float16, gzip level 9. What the files were made from stands in
    ``<root>/<method>.json``, so that files of two models never mix.

    Args:
        root: folder that will hold ``outputs``.
        method: name of the method, a folder's name.
        made_from: what decides the scores (weights, config, score's name); must be the same when a run goes
            on.
        offset, scale: (score − offset) / scale is stored. One pair for the whole submission: a map per image
            of its own would change the ranking of pixels over images.

    Raises:
        ValueError: a method that is no folder's name, or a scale that is not above 0.
    """

    root: Path
    method: str
    made_from: Mapping[str, Any]
    offset: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.method in ("", ".", "..") or "/" in self.method or "\\" in self.method:
            raise ValueError(f"--method must be the name of a folder, found {self.method!r}")
        if not 0 < self.scale < math.inf or not math.isfinite(self.offset):
            raise ValueError(
                f"--scale must be above 0 and --offset finite, found {self.scale} and {self.offset}; a "
                "negative scale would make known pixels anomalous"
            )
        self.folder = self.root / "outputs" / "anomaly_p" / self.method
        self.manifest = self.root / f"{self.method}.json"
        self.identity = {**self.made_from, "offset": self.offset, "scale": self.scale}

    def frames(self, dataset_name: str, folder: str = "") -> list[Frame]:
        """Frames of a data set, labelled or not.

        Args:
            dataset_name: a registered data set.
            folder: the benchmark's name for it; "": by ``FOLDERS``.

        Raises:
            ValueError: an unknown data set, or one the benchmark has no folder for.
        """
        records = get_records(dataset_name)
        known = [name for beginning, name in FOLDERS.items() if dataset_name.startswith(beginning)]
        if not folder and not known:
            names = ", ".join(f"{beginning}*" for beginning in FOLDERS)
            raise ValueError(
                f"{dataset_name} is no data set of SegmentMeIfYouCan ({names}); for another one give the "
                f"folder too: --dataset {dataset_name}=FOLDER"
            )
        found = []
        for record in records:
            name = Path(str(record["file_name"])).stem.removesuffix(_IMAGE_SUFFIX)
            found.append(Frame(record, self.folder / (folder or known[0]) / f"{name}.hdf5"))
        return found

    def begin(self, frames: Sequence[Frame], *, overwrite: bool = False) -> None:
        """Start, or go on with, the submission.

        Args:
            frames: all that will be written.
            overwrite: forget what was written before, whatever it was made from.

        Raises:
            ValueError: what is there was made from something else, or two images have one score file.
        """
        images: dict[Path, str] = {}
        for frame in frames:
            image = str(frame.record["file_name"])
            if images.setdefault(frame.target, image) != image:
                raise ValueError(
                    f"{images[frame.target]} and {image} would both be written to {frame.target}"
                )
        if overwrite:
            for frame in frames:
                frame.target.unlink(missing_ok=True)
        elif self.manifest.is_file() and any(self.folder.rglob("*.hdf5")):
            earlier = json.loads(self.manifest.read_text()).get("identity", {})
            differing = sorted(key for key, value in self.identity.items() if earlier.get(key) != value)
            if differing:
                raise ValueError(
                    f"{self.manifest}: the submission {self.method!r} was begun with another "
                    f"{', '.join(differing)}; choose another --method, or --overwrite to begin it anew"
                )
        save_json(self.manifest, {"identity": self.identity, "complete": False})

    def write(self, frames: Sequence[Frame], predict: Predict) -> dict[str, int]:
        """Write the frames whose files are not there yet, or are not whole, and read each back.

        Args:
            frames: from :meth:`frames`.
            predict: (H, W) scores of the records of missing frames, in their order; called once.

        Returns:
            ``frames`` there are, ``kept`` that were there, ``written`` now.

        Raises:
            ValueError: a score map with NaN, or beyond float16.
            OSError: a file that was written does not hold what it should.
        """
        for folder in {frame.target.parent for frame in frames}:
            for left in folder.glob(".*.partial"):  # by a killed run
                left.unlink(missing_ok=True)
        missing = [frame for frame in frames if stored_score(frame.target) is None]
        for frame in missing:
            if frame.target.exists():
                logger.warning("%s is not whole, and written again", frame.target)
        maps = predict([frame.record for frame in missing]) if missing else ()
        for frame, score in zip(missing, tqdm(maps, self.method, len(missing), unit="frame"), strict=True):
            stored = self._stored(np.asarray(score), frame)
            with replacing(frame.target) as temporary, require_h5py().File(temporary, "w") as file:
                file.create_dataset(HDF5_KEY, data=stored, compression="gzip", compression_opts=9)
            found = stored_score(frame.target)
            if found is None or not np.array_equal(found, stored):
                raise OSError(f"{frame.target}: what was written cannot be read back; check the disk")
        return {"frames": len(frames), "kept": len(frames) - len(missing), "written": len(missing)}

    def _stored(self, score: np.ndarray, frame: Frame) -> np.ndarray:
        values = (score.astype(np.float64) - self.offset) / self.scale
        if np.isnan(values).any():
            raise ValueError(f"{frame.target.stem}: {int(np.isnan(values).sum())} scores are NaN")
        finite = values[np.isfinite(values)]
        if finite.size and np.abs(finite).max() > np.finfo(np.float16).max:
            raise ValueError(
                f"{frame.target.stem}: scores reach {finite.min():.6g} to {finite.max():.6g}, float16 ends "
                "at 65504; give --offset and --scale, constants of the whole submission, so that (score - "
                "offset) / scale fits"
            )
        return values.astype(np.float16)


def stored_score(path: Path) -> np.ndarray | None:
    """(H, W) float16 of a score file, read to its end; None if it is not there or not whole."""
    try:
        with require_h5py().File(path, "r") as file:
            found = np.asarray(file[HDF5_KEY][()])
    except (OSError, KeyError, RuntimeError):
        return None
    return found if found.dtype == np.float16 else None


def identity(cfg: CfgNode, score: str) -> dict[str, Any]:
    """What decides the scores: two runs that agree in it may share a submission."""
    plain = yaml.safe_load(cfg.dump())
    inference = ("SCORE_ON", "MAX_WHOLE_PIXELS", "SLIDING_WINDOW", "AUG")
    kept = {
        # The file's content counts, not where it or the model lies.
        "MODEL": {key: value for key, value in plain["MODEL"].items() if key not in ("WEIGHTS", "DEVICE")},
        "INPUT": plain["INPUT"],
        "TEST": {key: plain["TEST"][key] for key in inference},
    }
    # A pretrained mask model has no file; the config names it.
    digest = file_digest(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None
    return {"score": score, "weights_sha256": digest, "config": kept}


def run(args: argparse.Namespace) -> None:
    """`gmm-anomaly submit`."""
    score = args.score or score_names(model_config(args))[0]
    name, *chain = score.split("+")
    cfg = model_config(args, ["TEST.SCORES", str([name]), "TEST.POSTPROCESS", str(chain)])
    if not Path(cfg.MODEL.WEIGHTS).is_file() and not cfg.MODEL.MASK2FORMER.WEIGHTS:
        raise FileNotFoundError(
            f"--weights: no file {cfg.MODEL.WEIGHTS!r}; it must be a trained model's checkpoint"
        )
    submission = Submission(args.out, args.method, identity(cfg, score), args.offset, args.scale)
    named = [name.partition("=")[::2] for name in args.dataset or DEFAULT_DATASETS]
    frames = {name: submission.frames(name, folder) for name, folder in named}
    submission.begin([frame for group in frames.values() for frame in group], overwrite=args.overwrite)

    model = load_model(cfg)

    @torch.no_grad()
    def predict(records: Sequence[Record]) -> Iterable[np.ndarray]:
        mapper = SegmentationMapper(cfg, False)
        workers = cfg.DATALOADER.NUM_WORKERS
        for batch in build_detection_test_loader(list(records), mapper=mapper, num_workers=workers):
            for output in model(batch):
                yield output["anomaly_scores"][score].float().cpu().numpy()

    report = {
        name: submission.write(group, predict) | {"folder": group[0].target.parent.name}
        for name, group in frames.items()
    }
    done = {"identity": submission.identity, "complete": True, "weights": cfg.MODEL.WEIGHTS}
    save_json(submission.manifest, done | {"datasets": report})
    rows = [{"data set": name, **found} for name, found in report.items()]
    print(tabulate(rows, headers="keys", tablefmt="github"))
    print(
        f"\nEvery file was read back. Submit {submission.folder}; {submission.manifest} says what it was "
        f"made from, by {cfg.MODEL.WEIGHTS or cfg.MODEL.MASK2FORMER.WEIGHTS}."
    )
