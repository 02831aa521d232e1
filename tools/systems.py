"""The published systems as runs of train_net.py, for the tables that put them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finished_run import ROOT, FinishedRun, finished_run

SOFTMAX = "effnetlite0_deeplabv3plus_softmax"
GMM = "effnetlite0_deeplabv3plus_gmm"
EDGES = "+boundary_suppression+dilated_smoothing"
SMOOTHED = "+dilated_smoothing"
BEST_SCORES = ("hybrid", f"hybrid{SMOOTHED}", "feature_distance", f"feature_distance{SMOOTHED}")
FIT, CALIBRATE = "--fit-mixture", "--calibrate"


@dataclass(frozen=True)
class System:
    """One run, and the scores to show of it, the system's own one first.

    Args:
        config: a file of configs/<set>, without its suffix.
        scores: of its results.
        onto: the run whose network is used, instead of a training.
        how: with that network, ``FIT`` mixtures onto it or only ``CALIBRATE`` it.
    """

    config: str
    scores: tuple[str, ...]
    onto: str | None = None
    how: str = FIT

    @property
    def weights(self) -> str:
        """The file that its run leaves."""
        if self.onto is None:
            return "model_final.pth"
        return {FIT: "mixtures_final.pth", CALIBRATE: "model_calibrated.pth"}[self.how]

    def is_in(self, config_set: str) -> bool:
        """Whether that folder of configs has it."""
        return _config(config_set, self.config).is_file()


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
    # What scores best on classes that were held out (docs/ablations.md), and its twin with the same options.
    "GMMSeg (best)": System(f"{GMM}_best", ("gmm_density", *BEST_SCORES)),
    "softmax (best)": System(f"{SOFTMAX}_best", ("msp", "energy", *BEST_SCORES), onto=SOFTMAX, how=CALIBRATE),
}


def run_system(
    system: System, config_set: str, output: Path, overrides: Sequence[str] = ()
) -> tuple[FinishedRun, Path]:
    """Train and evaluate, unless that was done: the results, and the folder of the run under ``output``."""
    config = _config(config_set, system.config)
    if system.onto is None:
        folder = output / system.config
        return finished_run(config, folder, overrides), folder
    network = output / system.onto
    weights = ["MODEL.WEIGHTS", str(network / "model_final.pth")]
    folder = network / {FIT: "mixtures", CALIBRATE: "calibrated"}[system.how]
    return finished_run(config, folder, [system.how, *overrides, *weights]), folder


def _config(config_set: str, name: str) -> Path:
    return ROOT / "configs" / config_set / f"{name}.yaml"
