"""Networks of timm's families that are small enough to test with, configs and inputs of small segmentors."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from timm.models import register_model
from timm.models.convnext import _create_convnext
from timm.models.resnet import BasicBlock, Bottleneck, _create_resnet
from timm.models.swin_transformer import _create_swin_transformer
from timm.models.vision_transformer import _create_vision_transformer

from gmm_anomaly.compat import add_upstream_keys
from gmm_anomaly.config import add_gmm_anomaly_config


@register_model
def resnet_test(pretrained=False, **options):
    shape = {"block": BasicBlock, "layers": (2, 2, 2, 2), "channels": (64, 64, 64, 64)}
    return _create_resnet("resnet_test", pretrained, **shape, **options)


@register_model
def resnet_deep_test(pretrained=False, **options):
    shape = {"block": Bottleneck, "layers": (1, 2, 2, 1), "channels": (4, 8, 16, 32)}
    stem = {"stem_width": 32, "stem_type": "deep"}
    return _create_resnet("resnet_deep_test", pretrained, **shape, **stem, **options)


@register_model
def swin_test(pretrained=False, **options):
    shape = {"window_size": 7, "embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 3, 4)}
    return _create_swin_transformer("swin_test", pretrained, **shape, **options)


@register_model
def convnext_test(pretrained=False, **options):
    shape = {"depths": (1, 2, 2, 1), "dims": (8, 16, 24, 32)}
    return _create_convnext("convnext_test", pretrained, **shape, **options)


@register_model
def vit_test_dinov2(pretrained=False, **options):
    shape = {"patch_size": 14, "img_size": 518, "embed_dim": 24, "depth": 4, "num_heads": 2}
    return _create_vision_transformer("vit_test_dinov2", pretrained, init_values=1e-5, **shape, **options)


# A segmentor of little width.
SMALL = [
    "MODEL.CLASSIFIER.NUM_CLASSES", 5, "MODEL.GMM.NUM_COMPONENTS", 2, "MODEL.GMM.EMBED_DIM", 8,
    "MODEL.GMM.MEMORY_SIZE", 50, "MODEL.GMM.WARM_START_FEATURES", 40, "MODEL.DECODER.CHANNELS", 16,
    "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "tf_efficientnet_lite0",
]  # fmt: skip


def config_of(*overrides):
    """All keys, on the CPU."""
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    add_upstream_keys(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *overrides])
    return cfg


def batch(*sizes, classes=5):
    """Random images of these heights and widths, with labels; by default two."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator),
            "sem_seg": torch.randint(0, classes, size, generator=generator),
        }
        for size in sizes or ((64, 96), (70, 90))
    ]


@pytest.fixture(scope="session")
def config():
    """``config(*overrides)``: see :func:`config_of`."""
    return config_of


@pytest.fixture(scope="session")
def shaken():
    """``shaken(network)``: lively values everywhere, as norms and biases of ones and zeros hide mistakes."""

    def shake(network):
        generator = torch.Generator().manual_seed(1)
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.mul_(0.9 + 0.2 * noise).add_(0.02 * torch.rand(tensor.shape, generator=generator))
        return network.eval()

    return shake
