"""What the folder of a run holds: everything a report shows, and what is missing."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml

CHECKPOINTS = ("model_final.pth", "model_with_distances.pth", "mixtures_final.pth")


@dataclass(frozen=True)
class ClassMixture:
    """The mixture of one class in a checkpoint.

    Attributes:
        fitted, components: how many components were fitted, of how many.
        effective: effective number of components by the features each holds in memory; NaN with an empty one.
        sigma: smallest, mean and largest standard deviation of the fitted components; NaN without one.
        stored, dim: features in the class's memories, and their dimension.
    """

    fitted: int
    components: int
    effective: float
    sigma: tuple[float, float, float]
    stored: int
    dim: int


@dataclass
class Run:
    """One run.

    Attributes:
        path: its folder. name: what the page calls it.
        settings: {dotted key: value} of ``config.yaml``; config_text: the file as it is.
        scalars: of the training: {name: (n, 2) float64, iterations (ascending) and values}.
        results: content of ``results.json``.
        curves: {data set: content of ``curves/<data set>.json``}, of the evaluation in ``results`` only.
        weights: the checkpoint that is shown, None without one.
        mixtures: of that checkpoint, class by class; empty without mixtures.
        notes: what could not be read, and why.
    """

    path: Path
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    scalars: Mapping[str, np.ndarray] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    curves: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    weights: Path | None = None
    mixtures: list[ClassMixture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def datasets(self) -> Mapping[str, Mapping[str, Any]]:
        """{data set: its results}."""
        return self.results.get("datasets", {})

    def pictures(self, dataset: str) -> dict[str, Path]:
        """{image: its overlay} of a data set, sorted by name."""
        folder = self.path / "visualizations" / dataset
        files = sorted(folder.rglob("*.png"))
        return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}

    def command(self, verb: str, *settings: str) -> str:
        """The command that evaluates this run again or goes on with its training, into its folder."""
        weights = str(self.weights or self.path / CHECKPOINTS[0])
        options = ["--resume"] if verb == "train" else ["--weights", weights]
        places = ["--config-file", str(self.path / "config.yaml"), *options, "--out", str(self.path)]
        return shlex.join(["gmm-anomaly", verb, *places, *settings])


def read_run(path: Path, name: str | None = None) -> Run:
    """Read the folder of a run; what it lacks stays empty.

    Args:
        path: ``OUTPUT_DIR`` of the run. name: what to call it, by default the folder's name.

    Raises:
        FileNotFoundError: no such folder, or one that no run left.
        ValueError: a file that is not what its name says.
    """
    files = [path / file for file in ("config.yaml", "metrics.json", "results.json")]
    if not any(file.is_file() for file in files):
        found = "holds no config.yaml, metrics.json or results.json" if path.is_dir() else "is no folder"
        raise FileNotFoundError(f"{path} {found}; give the OUTPUT_DIR of a run of train_net.py")
    config, log, results = files
    run = Run(path, name or path.resolve().name)
    if config.is_file():
        run.config_text = config.read_text(encoding="utf-8", errors="replace")
        run.settings = dict(_flattened(_mapping(config, yaml.safe_load)))
    if log.is_file():
        run.scalars = read_training_log(log)
    if results.is_file():
        run.results = _mapping(results, json.loads)
    for file in sorted((path / "curves").glob("*.json")):
        curves = _mapping(file, json.loads)
        if _belongs(curves, run.datasets.get(file.stem, {}).get("anomaly", {})):
            run.curves[file.stem] = curves
    named = path / "last_checkpoint"
    last = [path / named.read_text().strip()] if named.is_file() else []
    evaluated = [Path(str(run.results["weights"]))] if run.results.get("weights") else []
    candidates = [*last, *(path / file for file in CHECKPOINTS), *evaluated]
    run.weights = next((candidate for candidate in candidates if candidate.is_file()), None)
    if run.weights is not None:
        for file in evaluated:
            # A folder may have been moved.
            same = file.samefile(run.weights) if file.is_file() else file.name == run.weights.name
            if not same:
                run.notes.append(f"results.json is of {file}, not of this run's {run.weights.name}")
        try:
            run.mixtures = read_mixtures(run.weights)
        except ValueError as error:
            run.notes.append(str(error))
    return run


def read_training_log(path: Path) -> dict[str, np.ndarray]:
    """{scalar: (n, 2) float64} of ``metrics.json``, the lines of JSON that Detectron2 writes.

    A training that was resumed wrote some iterations twice: the later line counts. A last line that was cut
    off when the process was killed is left out.

    Raises:
        ValueError: another line is no JSON object with an iteration.
    """
    found: dict[str, dict[float, float]] = {}
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for position, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            iteration = float(entry["iteration"])
        except (ValueError, KeyError, TypeError) as error:
            if position == len(lines):
                break
            raise ValueError(
                f"{path}, line {position}: expected a JSON object with an iteration, as Detectron2 writes "
                f"them, found {line[:60]!r}"
            ) from error
        for key, value in entry.items():
            if key != "iteration" and isinstance(value, (int, float)):
                found.setdefault(key, {})[iteration] = float(value)
    return {key: np.array(sorted(values.items())) for key, values in sorted(found.items())}


def read_mixtures(checkpoint: Path) -> list[ClassMixture]:
    """The mixtures of a checkpoint, class by class; [] for a checkpoint without any.

    Raises:
        ValueError: the file cannot be read as a checkpoint.
    """
    import torch

    from gmm_anomaly.gmm.health import effective_components

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        state = content.get("model", content)
        prefix = next((key.removesuffix("means") for key in state if key.endswith("bank.means")), None)
        if prefix is None:
            return []
        scales, fitted = state[f"{prefix}scales"].double(), state[f"{prefix}fitted"]
        counts = state[f"{prefix}memory.count"].reshape(fitted.shape)
    except (RuntimeError, OSError, EOFError, AttributeError, KeyError, UnpicklingError, BadZipFile) as error:
        # Their messages speak of pickles, and some are many lines long.
        raise ValueError(f"{checkpoint} cannot be read as a checkpoint ({type(error).__name__})") from error
    mixtures = []
    for own, scale, count in zip(fitted, scales, counts, strict=True):
        used = scale[own]
        sigma = (math.nan,) * 3
        if used.numel():
            sigma = (float(used.min()), float(used.mean()), float(used.max()))
        numbers = int(own.sum()), len(own), float(effective_components(count)), sigma, int(count.sum())
        mixtures.append(ClassMixture(*numbers, scales.shape[-1]))
    return mixtures


def _mapping(path: Path, parse: Any) -> Mapping[str, Any]:
    try:
        value = parse(path.read_text(encoding="utf-8-sig", errors="replace"))
    except (ValueError, yaml.YAMLError) as error:
        kind = "YAML" if path.suffix == ".yaml" else "JSON"
        raise ValueError(f"{path} is no {kind}: {error}") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"{path}: expected keys with values, found {type(value).__name__}")
    return value


def _belongs(curves: Mapping[str, Any], results: Mapping[str, Any]) -> bool:
    """Whether a file of curves is of the evaluation that wrote the results: both have the same AP."""
    for score, drawn in curves.get("scores", {}).items():
        # NaN is null in both files; curves have seven digits.
        pair = [math.nan if one.get("AP") is None else one["AP"] for one in (results.get(score, {}), drawn)]
        if not np.isclose(*pair, rtol=1e-6, atol=0, equal_nan=True):
            return False
    return True


def _flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def as_text(value: Any) -> str:
    """A value of a config as people read it."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
