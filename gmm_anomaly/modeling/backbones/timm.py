"""Any timm model with a feature pyramid as a Detectron2 backbone."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from ..norm import usable_norm
from .checkpointing import KEY as CHECKPOINTING_KEY
from .freezing import FreezableBackbone
from .timm_weights import create_timm_model, load_timm_weights

logger = logging.getLogger(__name__)

# Any image size, and shifted windows in every second block of the last stage too: at the 224 pixels of
# ImageNet that stage is one window, and timm would leave its shift out at all sizes.
SWIN_OPTIONS = {"strict_img_size": False, "always_partition": True}
# The branches' maps as HRNetV2 uses them, without the wider layers of its classification head.
HRNET_OPTIONS = {"feature_location": ""}
# Networks whose stages end without a norm; the official segmentation code adds one to each output.
NORM_FREE_STAGES = ("swin", "convnext")


class TimmBackbone(FreezableBackbone):
    """Features of a timm model, NCHW, under the names ``level<i>`` for the chosen ``out_indices``.

    ``FREEZE_AT`` 1 freezes what comes before the first of the model's last four stages, 2 that stage too, up
    to 5. The norms of the outputs stay trainable.

    Args:
        name: timm model name.
        out_indices: feature levels, ascending.
        output_stride: 8, 16 or 32; under 32 the last stages are dilated, where the model can be.
        output_norm: "LN" (a LayerNorm over channels on every output), "" (none) or "auto" ("LN" for Swin
            and ConvNeXt).
        drop_path: stochastic depth of the last block; negative: the model's own.
        weights: "" (random), "hub", a file, or "package:NAME/FILE"; see :func:`load_timm_weights`.
        weights_required: False turns weights that cannot be found into a warning.
        in_channels: channels of the image.
        norm: "BN" (batch norms as the model has them) or "SyncBN" (synchronised ones).

    Raises:
        ValueError: a model timm does not know or that has no feature pyramid of these levels.
        FileNotFoundError: weights that do not exist, if they are required. OSError: weights of the hub that
            cannot be downloaded.
    """

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        output_stride: int = 32,
        output_norm: str = "auto",
        drop_path: float = -1.0,
        weights: str = "",
        weights_required: bool = True,
        in_channels: int = 3,
        norm: str = "BN",
    ) -> None:
        super().__init__()
        import timm.layers

        # Whether the weights asked for were not found.
        self.lacks_weights = False
        if output_norm not in ("auto", "LN", ""):
            raise ValueError(f'MODEL.TIMM.OUTPUT_NORM: expected "auto", "LN" or "", found {output_norm!r}')
        if norm not in ("BN", "SyncBN"):
            raise ValueError(f'MODEL.TIMM.NORM: expected "BN" or "SyncBN", found {norm!r}')
        options: dict[str, object] = {"out_indices": tuple(out_indices)}
        if in_channels != 3:
            options["in_chans"] = in_channels
        if output_stride != 32:
            options["output_stride"] = output_stride
        if drop_path >= 0:
            options["drop_path_rate"] = drop_path
        is_swin = name.startswith("swin")
        if is_swin:
            options.update(SWIN_OPTIONS)
        self.is_hrnet = name.startswith("hrnet")
        if self.is_hrnet:
            options.update(HRNET_OPTIONS)
        try:
            self.model = create_timm_model(
                name, weights=weights, key="MODEL.TIMM.WEIGHTS", features_only=True, **options
            )
        except OSError:
            raise
        except Exception as error:
            raise ValueError(
                f"MODEL.TIMM: timm cannot build a feature pyramid of {name!r} with OUT_INDICES "
                f"{list(out_indices)} and OUTPUT_STRIDE {output_stride}: {error}. timm.list_models() names "
                "the known models"
            ) from error
        if is_swin:
            from .swin import pad_before_shifting

            pad_before_shifting(self.model)
        if weights not in ("", "hub"):
            try:
                load_timm_weights(self.model, name, weights)
            except FileNotFoundError as error:
                if weights_required:
                    raise
                logger.warning(
                    "%s. Training starts from random weights (MODEL.TIMM.WEIGHTS_REQUIRED False)", error
                )
                self.lacks_weights = True
        if norm == "SyncBN":
            # timm's own, which knows its batch norms with an activation.
            self.model = timm.layers.convert_sync_batchnorm(self.model)
        self.name = name
        self._names = [f"level{index}" for index in out_indices]
        channels, strides = self.model.feature_info.channels(), self.model.feature_info.reduction()
        self._shapes = {
            level: ShapeSpec(channels=c, stride=s)
            for level, c, s in zip(self._names, channels, strides, strict=True)
        }
        if output_norm == "LN" or (output_norm == "auto" and name.startswith(NORM_FREE_STAGES)):
            self.output_norms: nn.ModuleDict | None = nn.ModuleDict(
                {level: nn.LayerNorm(shape.channels) for level, shape in self._shapes.items()}
            )
        else:
            self.output_norms = None
        output_format = getattr(self.model, "output_fmt", "NCHW")
        self._nhwc = getattr(output_format, "value", output_format) == "NHWC"

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: (B, 3, H, W) normalised images -> {level: (B, F, H / stride, W / stride)}."""
        features = dict(zip(self._names, self.model(x), strict=True))
        return {level: self._finished(level, feature) for level, feature in features.items()}

    def _finished(self, level: str, feature: Tensor) -> Tensor:
        """Normed where that is wanted, and NCHW."""
        if self.output_norms is not None:
            feature = self.output_norms[level](feature if self._nhwc else feature.permute(0, 2, 3, 1))
        elif not self._nhwc:
            return feature
        return feature.permute(0, 3, 1, 2).contiguous()

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    @property
    def size_divisibility(self) -> int:
        return max(shape.stride for shape in self._shapes.values())

    def stage_parts(self) -> list[list[nn.Module | nn.Parameter]]:
        """By the modules that give the model's last four feature levels.

        Raises:
            ValueError: a model in which timm does not name them.
        """
        if self.is_hrnet:
            from .hrnet import hrnet_stage_parts

            return hrnet_stage_parts(self.model)
        info = self.model.feature_info
        levels, last_used = len(info.info), max(info.out_indices)
        first = max(levels - 4, 0)

        def until(level: int) -> list[nn.Module | nn.Parameter]:
            # Nothing is left of the model behind the last level in use.
            everything = level == levels - 1 or level > last_used
            return [self.model] if everything else _path_to(self.model, info.info[level]["module"])

        try:
            stem = until(first - 1) if first else until(0)[:-1]
            return [stem, *(until(level) for level in range(first, levels))]
        except KeyError as error:
            raise ValueError(
                f"MODEL.BACKBONE.FREEZE_AT: timm does not say where the stages of {self.name} end; set it to "
                "0, or MODEL.BACKBONE.FREEZE to True"
            ) from error

    def set_grad_checkpointing(self) -> None:
        """By block where timm's stages can do that, else by stage.

        Raises:
            ValueError: a model that cannot.
        """
        if self.is_hrnet:
            from .hrnet import checkpoint_hrnet

            checkpoint_hrnet(self.model)
            return
        inner = [
            module
            for module in self.model.modules()
            if module is not self.model and hasattr(module, "grad_checkpointing")
        ]
        for module in inner:
            module.grad_checkpointing = True
        if not inner:
            try:
                self.model.set_grad_checkpointing(True)
            except (AssertionError, AttributeError) as error:
                raise ValueError(
                    f"{CHECKPOINTING_KEY}: timm's {self.name} has no gradient checkpointing; set it to False"
                ) from error


def _path_to(model: nn.Module, name: str) -> list[nn.Module | nn.Parameter]:
    """Everything that runs up to and including the module ``name``; children run in their order.

    A feature pyramid takes ``layers.0`` out of its sequence as ``layers_0``.

    Raises:
        KeyError: no such module.
    """
    children = [child for child, _ in model.named_children()]
    flat = name.replace(".", "_", 1)
    parts: list[nn.Module | nn.Parameter] = []
    module = model
    for step in [flat] if flat in children else name.split("."):
        names = [child for child, _ in module.named_children()]
        if step not in names:
            raise KeyError(name)
        parts += list(module.children())[: names.index(step)]
        module = module.get_submodule(step)
    return [*parts, module]


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """``MODEL.BACKBONE.NAME`` "build_timm_backbone": keys ``MODEL.TIMM.*``."""
    keys = cfg.MODEL.TIMM
    backbone = TimmBackbone(
        keys.NAME,
        out_indices=keys.OUT_INDICES,
        output_stride=keys.OUTPUT_STRIDE,
        output_norm=keys.OUTPUT_NORM,
        drop_path=keys.DROP_PATH,
        weights=keys.WEIGHTS,
        weights_required=keys.WEIGHTS_REQUIRED,
        in_channels=input_shape.channels,
        norm=usable_norm(keys.NORM, cfg.MODEL.DEVICE),
    )
    backbone.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    return backbone
