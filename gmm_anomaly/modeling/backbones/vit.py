"""Plain Vision Transformers of timm under a simple feature pyramid (Li et al., "Exploring Plain Vision
Transformer Backbones for Object Detection", ECCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from torch import Tensor, nn
from torch.nn import functional as F

from .base import FreezableBackbone, Part

STRIDE = 16
PATCHES = (14, 16)
LEVELS = {"p2": 4.0, "p3": 2.0, "p4": 1.0, "p5": 0.5}


class PlainVit(Backbone):
    """The last map of a plain Vision Transformer, after its norm, at stride 16, under the name ``last``.

    With patches of 14 pixels the image is reduced to 14/16 first, so that there is one patch for every 16
    pixels of the image, at its place, and strides are exact. Position embeddings are resampled to the size
    of the map.

    Args:
        name: timm model name, with patches of 14 or 16 pixels.
        drop_path: stochastic depth of the last block; negative: the model's own.
        in_channels: channels of the image.

    Raises:
        ValueError: a model timm does not know, or that is no plain ViT with such patches.
    """

    def __init__(self, name: str, *, drop_path: float = -1.0, in_channels: int = 3) -> None:
        super().__init__()
        import timm

        options = {"drop_path_rate": drop_path} if drop_path >= 0 else {}
        try:
            self.vit = timm.create_model(
                name, num_classes=0, global_pool="", in_chans=in_channels, dynamic_img_size=True, **options
            )
            patch = tuple(self.vit.patch_embed.patch_size)
        except Exception as error:  # whatever a model's own code raises
            raise ValueError(
                f"MODEL.VIT.NAME: timm cannot build a plain ViT {name!r} for images of any size: {error}. "
                'timm.list_models("vit_*") names the known models'
            ) from error
        if patch not in [(size, size) for size in PATCHES]:
            raise ValueError(f"MODEL.VIT.NAME: expected patches of 14 or 16 pixels, {name} has {patch}")
        self.patch_size = patch[0]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: (B, 3, H, W) normalised images, multiples of 16 -> {"last": (B, D, H / 16, W / 16)}."""
        if self.patch_size != STRIDE:
            size = [length // STRIDE * self.patch_size for length in x.shape[-2:]]
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        last = self.vit.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        return {"last": last[0]}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"last": ShapeSpec(channels=self.vit.embed_dim, stride=STRIDE)}


class VitBackbone(SimpleFeaturePyramid, FreezableBackbone):
    """Features of strides 4, 8, 16 and 32 under the names ``p2`` to ``p5``, from the last map of a plain ViT.

    ``FREEZE_AT`` 1 freezes the embeddings of patches and positions, 2 to 5 the first quarter to all of the
    transformer. The pyramid stays trainable.

    Args:
        name: timm model name. net: the transformer.
        out_channels: channels of every level.
        levels: names of the levels to give, also "last", the transformer's own map; empty: the pyramid.
    """

    network = "net.vit"

    def __init__(
        self, name: str, net: PlainVit, *, out_channels: int = 256, levels: Sequence[str] = ()
    ) -> None:
        super().__init__(
            net=net, in_feature="last", out_channels=out_channels, scale_factors=list(LEVELS.values())
        )
        self.name, self.hub = name, f"timm:{name}"
        self.keep(levels or LEVELS)
        if "last" in levels:
            self._out_features.append("last")
            self.stages.append(nn.Identity())
            self._out_feature_channels["last"], self._out_feature_strides["last"] = net.vit.embed_dim, STRIDE

    @property
    def size_divisibility(self) -> int:
        return STRIDE

    def level_layers(self) -> dict[str, nn.Module]:
        layers = dict(zip(self._out_features, self.stages, strict=True))
        return {level: layers[level] for level in LEVELS if level in layers}

    def drop(self, level: str) -> None:
        delattr(self, f"simfp_{level.removeprefix('p')}")
        del self.stages[self._out_features.index(level)]
        self._out_features.remove(level)

    def frozen_parts(self, freeze_at: int) -> list[Part]:
        vit = self.net.vit
        if freeze_at == 5:
            return [vit]
        stem = [
            part
            for name in ("patch_embed", "pos_drop", "norm_pre", "cls_token", "reg_token", "pos_embed")
            if isinstance(part := getattr(vit, name, None), (nn.Module, nn.Parameter))
        ]
        return [*stem, *vit.blocks[: len(vit.blocks) * (freeze_at - 1) // 4]]

    def set_grad_checkpointing(self) -> None:
        """By block."""
        self.net.vit.set_grad_checkpointing(True)


@BACKBONE_REGISTRY.register()
def build_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> VitBackbone:
    """``MODEL.BACKBONE.NAME`` "build_vit_backbone": keys ``MODEL.VIT.*``.

    Where ``MODEL.DECODER.IN_FEATURES`` says what the decoder reads, the pyramid has no other levels than it,
    the auxiliary head and the feature distance need.
    """
    keys, decoder = cfg.MODEL.VIT, cfg.MODEL.DECODER
    read = [decoder.AUX_FEATURE, *cfg.MODEL.FEATURE_DISTANCE.FEATURES, *decoder.IN_FEATURES]
    net = PlainVit(keys.NAME, drop_path=cfg.MODEL.BACKBONE.DROP_PATH, in_channels=input_shape.channels)
    levels = read if decoder.IN_FEATURES else [*LEVELS, *cfg.MODEL.FEATURE_DISTANCE.FEATURES]
    return VitBackbone(keys.NAME, net, out_channels=keys.OUT_CHANNELS, levels=levels)
