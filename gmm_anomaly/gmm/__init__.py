"""Class-conditional Gaussian mixtures: densities, assignment, memory and EM. Needs torch only."""

from .assignment import sinkhorn_assign, sinkhorn_assign_all
from .bank import GaussianMixtureBank
from .density import class_log_density, component_log_prob, own_class_log_prob
from .memory import FeatureMemory
from .mixtures import GaussianMixtures, UnfittedMixtureError
from .tied_gaussians import TiedGaussians, TiedGaussianStatistics
from .warm_start import spherical_kmeans

__all__ = [
    "FeatureMemory",
    "GaussianMixtureBank",
    "GaussianMixtures",
    "TiedGaussianStatistics",
    "TiedGaussians",
    "UnfittedMixtureError",
    "class_log_density",
    "component_log_prob",
    "own_class_log_prob",
    "sinkhorn_assign",
    "sinkhorn_assign_all",
    "spherical_kmeans",
]
