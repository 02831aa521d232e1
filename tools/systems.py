"""The published systems as runs of train_net.py, for the tables that put them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finished_run import ROOT, FinishedRun, finished_run

SOFTMAX = "effnetlite0_deeplabv3plus_softmax"
GMM = "effnetlite0_deeplabv3plus_gmm"
EDGES = "+boundary_suppression+dilated_smoothing"


@dataclass(frozen=True)
class System:
    """One run, and the scores to show of it, the system's own one first.

    Args:
        config: a file of configs/<set>, without its suffix.
        scores: of its results.
        onto: the run whose network gets mixtures, instead of a training.
    """

    config: str
    scores: tuple[str, ...]
    onto: str | None = None


SYSTEMS = {
    "softmax": System(SOFTMAX, ("msp", "energy", "hybrid")),
    "prototypes": System("effnetlite0_deeplabv3plus_prototype", ("prototype_distance", "energy", "hybrid")),
    "GMMSeg": System(GMM, ("gmm_density", "hybrid")),
    "GMM4AnomalySeg": System(
        "effnetlite0_deeplabv3plus_gmm4anomaly",
        (f"gmm_density{EDGES}", "gmm_density", f"hybrid{EDGES}"),
    ),
    "PAnS": System("effnetlite0_psp_pans", ("prototype_distance",)),
    "fitted mixtures": System(GMM, ("gmm_density", "hybrid"), onto=SOFTMAX),
}


def run_system(
    system: System, config_set: str, output: Path, overrides: Sequence[str] = ()
) -> tuple[FinishedRun, Path]:
    """Train and evaluate, unless that was done: the results, and the folder of the run under ``output``."""
    config = ROOT / "configs" / config_set / f"{system.config}.yaml"
    if system.onto is None:
        folder = output / system.config
        return finished_run(config, folder, overrides), folder
    network = output / system.onto
    weights = ["MODEL.WEIGHTS", str(network / "model_final.pth")]
    folder = network / "mixtures"
    return finished_run(config, folder, ["--fit-mixture", *overrides, *weights]), folder
