"""What the folder of a run holds: everything a report shows, and what is missing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .mixture_state import MixtureState, read_mixture_state
from .training_log import Series, read_training_log

CHECKPOINTS = ("model_final.pth", "model_calibrated.pth", "mixtures_final.pth")


@dataclass
class Run:
    """One run.

    Attributes:
        path: its folder. name: what the page calls it.
        config: content of ``config.yaml``; config_text: the file as it is.
        scalars: of the training, by name.
        results: content of ``results.json``.
        curves: {data set: content of ``curves/<data set>.json``}.
        weights: the checkpoint that is shown, None without one.
        mixtures: of that checkpoint; None without mixtures.
        notes: what could not be read, and why.
    """

    path: Path
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    scalars: Mapping[str, Series] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights: Path | None = None
    mixtures: MixtureState | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def datasets(self) -> Mapping[str, Mapping[str, Any]]:
        """{data set: its results}."""
        return self.results.get("datasets", {})

    @property
    def anomaly_sets(self) -> dict[str, Mapping[str, Any]]:
        """{data set: {score: numbers}}."""
        return {name: found["anomaly"] for name, found in self.datasets.items() if found.get("anomaly")}

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of the config by its dotted key."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value

    def picture(self, dataset: str, image_id: str) -> Path | None:
        """The overlay of an image if it was drawn."""
        path = self.path / "visualizations" / dataset / f"{image_id}.png"
        return path if path.is_file() else None

    def pictures(self, dataset: str) -> list[Path]:
        """All overlays of a data set, sorted by name."""
        return sorted((self.path / "visualizations" / dataset).glob("*.png"))

    def evaluation_command(self, *settings: str) -> str:
        """The command that evaluates this run again, into its folder."""
        folder = str(self.path)
        weights = str(self.weights) if self.weights else str(self.path / CHECKPOINTS[0])
        config = str(self.path / "config.yaml")
        command = ["python", "train_net.py", "--eval-only", "--config-file", config]
        return shlex.join([*command, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", folder, *settings])

    def training_command(self) -> str:
        """The command that continues this run's training."""
        config = str(self.path / "config.yaml")
        return shlex.join(
            ["python", "train_net.py", "--resume", "--config-file", config, "OUTPUT_DIR", str(self.path)]
        )


def read_run(path: Path, name: str | None = None) -> Run:
    """Read the folder of a run; what it lacks stays empty.

    Args:
        path: ``OUTPUT_DIR`` of the run. name: what to call it, by default the folder's name.

    Raises:
        FileNotFoundError: no such folder, or one that no run left.
        ValueError: a file that is not what its name says.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; give the OUTPUT_DIR of a run of train_net.py")
    config_file, log_file, results_file = (
        path / file for file in ("config.yaml", "metrics.json", "results.json")
    )
    if not any(file.is_file() for file in (config_file, log_file, results_file)):
        raise FileNotFoundError(
            f"{path} holds no config.yaml, metrics.json or results.json; give the OUTPUT_DIR of a run of "
            "train_net.py"
        )
    run = Run(path, name or path.resolve().name)
    if config_file.is_file():
        run.config_text = config_file.read_text(encoding="utf-8", errors="replace")
        run.config = _mapping(config_file, _yaml(config_file, run.config_text))
    if log_file.is_file():
        run.scalars = read_training_log(log_file)
    if results_file.is_file():
        run.results = _mapping(results_file, _json(results_file))
    run.curves = {file.stem: _mapping(file, _json(file)) for file in sorted((path / "curves").glob("*.json"))}
    run.weights = _checkpoint(path, run.results)
    if run.weights is not None:
        try:
            run.mixtures = read_mixture_state(run.weights)
        except ValueError as error:
            run.notes.append(str(error))
    return run


def _checkpoint(path: Path, results: Mapping[str, Any]) -> Path | None:
    named = path / "last_checkpoint"
    last = [path / named.read_text().strip()] if named.is_file() else []
    evaluated = [Path(str(results["weights"]))] if results.get("weights") else []
    candidates = [path / file for file in CHECKPOINTS] + last + evaluated
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; evaluate the run again") from error


def _yaml(path: Path, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error


def _mapping(path: Path, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{path}: expected keys with values, found {type(value).__name__}")
    return value
