"""Post-processes of anomaly scores. Importing this package registers all of them; it needs torch and fvcore
only."""

from . import boundary_suppression, guided_filter, picture_level, smoothing  # noqa: F401  (registration)
from .registry import (
    POSTPROCESS_REGISTRY,
    PostProcess,
    apply_chain,
    chain_name,
    get_postprocesses,
    known_postprocesses,
    register_postprocess,
)

__all__ = [
    "POSTPROCESS_REGISTRY",
    "PostProcess",
    "apply_chain",
    "chain_name",
    "get_postprocesses",
    "known_postprocesses",
    "register_postprocess",
]
