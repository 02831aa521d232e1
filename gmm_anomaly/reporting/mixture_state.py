"""The state of the mixtures in a checkpoint, class by class."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np


@dataclass(frozen=True)
class MixtureState:
    """Numbers of C classes with M components of D dimensions.

    Attributes:
        dim: D.
        fitted: (C, M) bool.
        sigma: (C, 3) float64, the smallest, the mean and the largest standard deviation of the class's fitted
            components; NaN without one.
        effective: (C,) float64, effective number of components by the features each holds in memory; NaN with
            an empty memory.
        stored: (C,) int64, features in the class's memories.
    """

    dim: int
    fitted: np.ndarray
    sigma: np.ndarray
    effective: np.ndarray
    stored: np.ndarray


def read_mixture_state(checkpoint: Path) -> MixtureState | None:
    """The mixtures of a checkpoint; None if it has none.

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
            return None
        scales, fitted = state[f"{prefix}scales"].double(), state[f"{prefix}fitted"]
        count = state[f"{prefix}memory.count"].reshape(fitted.shape)
    except (RuntimeError, OSError, EOFError, AttributeError, KeyError) as error:
        raise ValueError(f"{checkpoint} cannot be read as a checkpoint: {error}") from error
    except (pickle.UnpicklingError, BadZipFile) as error:
        raise ValueError(f"{checkpoint} cannot be read as a checkpoint") from error
    sigma = np.full((len(fitted), 3), np.nan)
    for index, own in enumerate(fitted):
        values = scales[index][own]
        if len(values):
            sigma[index] = [float(values.min()), float(values.mean()), float(values.max())]
    return MixtureState(
        dim=scales.shape[-1],
        fitted=fitted.numpy().copy(),
        sigma=sigma,
        effective=effective_components(count).numpy(),
        stored=count.sum(dim=1).numpy(),
    )
