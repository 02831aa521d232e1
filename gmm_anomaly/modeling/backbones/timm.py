"""Any timm model with a feature pyramid as a Detectron2 backbone."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from ..registry import usable_norm
from .base import FreezableBackbone, Part

# Any image size, and shifted windows in every second block of the last stage too: at the 224 pixels of
# ImageNet that stage is one window, and timm would leave its shift out at all sizes.
SWIN_OPTIONS = {"strict_img_size": False, "always_partition": True}
# The branches' maps as HRNetV2 uses them, without the wider layers of its classification head.
HRNET_OPTIONS = {"feature_location": ""}
# Networks whose stages end without a norm; the official segmentation code adds one to each output.
NORM_FREE_STAGES = ("swin", "convnext")
# Networks that take any size; others may add maps of several strides inside, or cut patches. TensorFlow's
# ("tf_...") pad each layer by the parity of its size, at multiples of 32 always as in training: unpadded,
# frames of odd size lost 6 to 13 points of pixel accuracy (docs/extending.md).
ANY_SIZE = (
    "resnet", "resnext", "wide_resnet", "seresnet", "regnet", "convnext", "hrnet", "swin", "efficientnet",
    "mobilenet",
)  # fmt: skip


class TimmBackbone(FreezableBackbone):
    """Features of a timm model, NCHW, under the names ``level<i>`` for the chosen ``out_indices``.

    Those of Swin and ConvNeXt get a LayerNorm over the channels. ``FREEZE_AT`` 1 freezes what comes before
    the first of the model's last four stages, 2 that stage too, up to 5.

    Args:
        name: timm model name.
        out_indices: feature levels, ascending.
        output_stride: 8, 16 or 32; under 32 the last stages are dilated, where the model can be.
        drop_path: stochastic depth of the last block; negative: the model's own.
        in_channels: channels of the image.
        synchronised: whether batch norms are synchronised between processes.

    Raises:
        ValueError: a model timm does not know or that has no feature pyramid of these levels.
    """

    network = "model"

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        output_stride: int = 32,
        drop_path: float = -1.0,
        in_channels: int = 3,
        synchronised: bool = False,
    ) -> None:
        super().__init__()
        # Here, as it takes as long to import as torch.
        import timm

        options: dict[str, object] = {"out_indices": tuple(out_indices), "in_chans": in_channels}
        # Not every model knows these.
        if output_stride != 32:
            options["output_stride"] = output_stride
        if drop_path >= 0:
            options["drop_path_rate"] = drop_path
        if name.startswith("swin"):
            options.update(SWIN_OPTIONS)
        self.is_hrnet = name.startswith("hrnet")
        if self.is_hrnet:
            options.update(HRNET_OPTIONS)
        try:
            self.model = timm.create_model(name, features_only=True, **options)
        except Exception as error:  # whatever a model's own code raises
            raise ValueError(
                f"MODEL.TIMM: timm cannot build a feature pyramid of {name!r} with OUT_INDICES "
                f"{list(out_indices)} and OUTPUT_STRIDE {output_stride}: {error}. timm.list_models() names "
                "the known models"
            ) from error
        if name.startswith(("swin", "hrnet")):
            from .timm_families import adapt

            adapt(self.model)
        if synchronised:
            # timm's own, which knows its batch norms with an activation.
            self.model = timm.layers.convert_sync_batchnorm(self.model)
        self.name, self.hub = name, f"timm:{name}"
        info = self.model.feature_info
        self._shapes: dict[str, ShapeSpec] = {}
        for index, channels, stride in zip(out_indices, info.channels(), info.reduction(), strict=True):
            self._shapes[f"level{index}"] = ShapeSpec(channels=channels, stride=stride)
        self._names = list(self._shapes)
        self.output_norms: nn.ModuleDict | None = None
        if name.startswith(NORM_FREE_STAGES):
            self.output_norms = nn.ModuleDict(
                {
                    level: nn.LayerNorm(shape.channels, eps=1e-5 if name.startswith("swin") else 1e-6)
                    for level, shape in self._shapes.items()
                }
            )
        output_format = getattr(self.model, "output_fmt", "NCHW")
        self._nhwc = getattr(output_format, "value", output_format) == "NHWC"

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: (B, 3, H, W) normalised images -> {level: (B, F, H / stride, W / stride)}, rounded up, of
        ConvNeXt down."""
        outputs = {}
        for level, feature in zip(self._names, self.model(x), strict=True):
            if level not in self._shapes:
                continue
            if self.output_norms is not None:
                feature = self.output_norms[level](feature if self._nhwc else feature.permute(0, 2, 3, 1))
            if self.output_norms is not None or self._nhwc:
                feature = feature.permute(0, 3, 1, 2).contiguous()
            outputs[level] = feature
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    @property
    def size_divisibility(self) -> int:
        return 0 if self.name.startswith(ANY_SIZE) else max(shape.stride for shape in self._shapes.values())

    def level_layers(self) -> dict[str, nn.Module]:
        if self.is_hrnet:
            rows = self.model.stage4[-1].fuse_layers
            return {level: rows[int(level[5:]) - 1] for level in self._shapes if level != "level0"}
        return dict(self.output_norms or {})

    def drop(self, level: str) -> None:
        del self._shapes[level]
        if self.is_hrnet:
            self.model.stage4[-1].fuse_layers[int(level[5:]) - 1] = nn.ModuleList()
        else:
            del self.output_norms[level]

    def frozen_parts(self, freeze_at: int) -> list[Part]:
        """By the modules that give the model's last four feature levels.

        Raises:
            ValueError: a model in which timm does not name them.
        """
        model = self.model
        if freeze_at == 5:
            return [model]
        if self.is_hrnet:
            stem = [model.conv1, model.bn1, model.conv2, model.bn2]
            stages = [model.layer1, model.transition1, model.stage2, model.transition2, model.stage3]
            return [*stem, *stages[: max(2 * freeze_at - 3, 0)]]
        levels = model.feature_info.info
        level = max(len(levels) - 4, 0) + freeze_at - 2
        if level >= len(levels) - 1 or level > max(model.feature_info.out_indices):
            # Nothing is left of the model behind the last level in use.
            return [model]
        try:
            # Without a level before the last four the stem is what comes before the first of them.
            return _path_to(model, levels[max(level, 0)]["module"])[: None if level >= 0 else -1]
        except KeyError as error:
            raise ValueError(
                f"MODEL.BACKBONE.FREEZE_AT: timm does not say where the stages of {self.name} end; set it to "
                "0 or 5"
            ) from error

    def set_grad_checkpointing(self) -> None:
        """By block where timm's stages can do that, else by stage.

        Raises:
            ValueError: a model that cannot.
        """
        model = self.model
        if self.is_hrnet:
            from .timm_families import checkpoint_hrnet

            checkpoint_hrnet(model)
            return
        inner = [
            module
            for module in model.modules()
            if module is not model and hasattr(module, "grad_checkpointing")
        ]
        for module in inner:
            module.grad_checkpointing = True
        if not inner:
            try:
                model.set_grad_checkpointing(True)
            except (AssertionError, AttributeError) as error:
                raise ValueError(
                    f"MODEL.BACKBONE.GRADIENT_CHECKPOINTING: timm's {self.name} has no gradient "
                    "checkpointing; set it to False"
                ) from error


def _path_to(model: nn.Module, name: str) -> list[Part]:
    """Everything that runs up to and including the module ``name``; children run in their order.

    A feature pyramid takes ``layers.0`` out of its sequence as ``layers_0``.

    Raises:
        KeyError: no such module.
    """
    children = [child for child, _ in model.named_children()]
    flat = name.replace(".", "_", 1)
    parts: list[Part] = []
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
    """``MODEL.BACKBONE.NAME`` "build_timm_backbone": keys ``MODEL.TIMM.*``, and the norm of the decoder."""
    keys = cfg.MODEL.TIMM
    return TimmBackbone(
        keys.NAME,
        out_indices=keys.OUT_INDICES,
        output_stride=keys.OUTPUT_STRIDE,
        drop_path=cfg.MODEL.BACKBONE.DROP_PATH,
        in_channels=input_shape.channels,
        synchronised=usable_norm(cfg.MODEL.DECODER.NORM, cfg.MODEL.DEVICE) == "SyncBN",
    )
