"""Models. Importing this package registers the meta-architecture, backbones, decoders and classifiers."""

from .backbones import TimmBackbone, build_backbone
from .classifiers import GMMClassifier, SoftmaxClassifier, build_classifier
from .decoders import DeepLabV3PlusDecoder, build_decoder
from .mask_segmentor import MaskAnomalySegmentor
from .registry import CLASSIFIER_REGISTRY, DECODER_REGISTRY
from .segmentor import AnomalySegmentor

__all__ = [
    "CLASSIFIER_REGISTRY",
    "DECODER_REGISTRY",
    "AnomalySegmentor",
    "DeepLabV3PlusDecoder",
    "GMMClassifier",
    "MaskAnomalySegmentor",
    "SoftmaxClassifier",
    "TimmBackbone",
    "build_backbone",
    "build_classifier",
    "build_decoder",
]
