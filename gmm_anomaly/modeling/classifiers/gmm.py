"""The generative classifier of GMMSeg (Liang et al., NeurIPS 2022): densities of Gaussian mixtures."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.layers import get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtureBank, class_log_density, own_class_log_prob, sinkhorn_assign_all
from gmm_anomaly.gmm.density import EXCLUDED
from gmm_anomaly.gmm.gpu import Replayed
from gmm_anomaly.scores import PixelOutputs

from ..losses import (
    IGNORED_COMPONENT,
    SampledContrast,
    component_contrast,
    pixel_cross_entropy,
    resized_labels,
)
from ..registry import CLASSIFIER_REGISTRY, usable_norm
from .softmax import PixelClassifier, SoftmaxClassifier

logger = logging.getLogger(__name__)

# With a warm start: slots that misclassified pixels may fill too, and first weight of the norm over classes.
WARM_START_FILL, WARM_START_LOGIT_SCALE = 400, 3.0
LARGE_MEMORY = 1e9  # bytes


class GMMClassifier(PixelClassifier):
    """Projection to D dimensions, LayerNorm, unit length; class densities; LayerNorm over classes: logits.

    Everything from the embedding on is float32, whatever autocast says. While training, a forward pass only
    *records* pixels in the bank; the EM hook updates it. Without that hook nothing is recorded, and a warning
    says so once. At inference a class that was never fitted is left out, and a warning names it.

    Args:
        in_channels: channels of the pixel features. dropout: rate of channel dropout before the projection.
        bank: the mixtures; its sizes give C, M and D.
        projection: "mlp" (1x1 convolution, norm, ReLU, 1x1 convolution), "linear" (one convolution),
            "released" (1x1 convolution, norm, ReLU; nothing where ``in_channels`` is D: the released code's)
            or "none" (the pixel features as they are, D channels).
        norm: of the projection, a Detectron2 name. logit_scale: first weight of the LayerNorm over classes.
        contrast_weight: weight of the component contrast loss (0.01 in the paper).
        guide_weight: weight of a softmax classifier's loss on the same pixel features, while training only;
            0 (the paper) has no such classifier.
        feature_gradient: factor of the gradient of this classifier's own losses where it enters the pixel
            features: with 1 (the paper) the network learns from the mixtures, with 0 from the guide alone.
        logits_from: those of an inference: "density" (the generative classifier) or "softmax" (the softmax
            classifier beside it, which learns only with a ``guide_weight``).
        sampled_contrast: contrast with vectors drawn from the mixtures; None (GMMSeg): none.
        assignment: of pixels to their class's components: "sinkhorn" (GMMSeg) or "em" (most responsible).
        sinkhorn_iterations, sinkhorn_epsilon: see :func:`sinkhorn_assign`. loss_average: "valid" or "all".
        class_names: of the C classes, for messages; None: their indices.
    """

    generative = True

    def __init__(
        self,
        in_channels: int,
        bank: GaussianMixtureBank,
        *,
        dropout: float = 0.1,
        projection: str = "mlp",
        norm: str = "BN",
        logit_scale: float = 1.0,
        contrast_weight: float = 0.01,
        guide_weight: float = 0.0,
        feature_gradient: float = 1.0,
        logits_from: str = "density",
        sampled_contrast: SampledContrast | None = None,
        assignment: str = "sinkhorn",
        sinkhorn_iterations: int = 3,
        sinkhorn_epsilon: float = 0.05,
        loss_average: str = "valid",
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(bank.num_classes, bank.dim)
        self.class_names = None if class_names is None else list(class_names)
        if feature_gradient == 0 and guide_weight == 0:
            raise ValueError(
                "MODEL.GMM.FEATURE_GRADIENT 0 leaves backbone and decoder without a loss: it needs the "
                "guiding classifier (MODEL.GMM.WARM_START True and a GUIDE_WEIGHT above 0)"
            )
        self.guide_weight = guide_weight
        self.feature_gradient = feature_gradient
        self.logits_from = logits_from
        self.bank = bank
        layers = _projection(projection, in_channels, bank.dim, norm)
        self.project = nn.Sequential(nn.Dropout2d(dropout), *layers)
        self.feature_norm = nn.LayerNorm(bank.dim)
        self.class_norm = nn.LayerNorm(bank.num_classes)
        nn.init.constant_(self.class_norm.weight, logit_scale)
        self.contrast_weight = contrast_weight
        self.sampled_contrast = sampled_contrast
        self.assignment = assignment
        self.sinkhorn = sinkhorn_iterations, sinkhorn_epsilon
        self.loss_average = loss_average
        self._left_out: list[str] = []
        self._warned_without_hook = False
        self._assigned = Replayed(self._assign_known, bank.buffers)
        if guide_weight or logits_from == "softmax":
            guide = SoftmaxClassifier(
                in_channels, bank.num_classes, dropout=dropout, loss_average=loss_average
            )
            self.guide = guide.requires_grad_(bool(guide_weight))

    def embed(self, features: Tensor) -> Tensor:
        """features: (B, F, h, w) -> (B*h*w, D) float32 of unit length, pixels in (b, h, w) order."""
        projected = self.project(features)
        with torch.autocast(device_type=features.device.type, enabled=False):
            pixels = projected.float().permute(0, 2, 3, 1).reshape(-1, self.bank.dim)
            return F.normalize(self.feature_norm(pixels), dim=1)

    def logits(self, density: Tensor) -> Tensor:
        """density: (N, C) class log-densities -> (N, C) logits. At inference a class never fitted has
        the logit :data:`EXCLUDED`, and no part in the norm."""
        if self.training or all(map(any, self.bank.fitted_components)):
            return self.class_norm(density)
        known = self.bank.known_classes
        norm = self.class_norm
        of_known = F.layer_norm(
            density[:, known], (int(known.sum()),), norm.weight[known], norm.bias[known], norm.eps
        )
        return torch.full_like(density, EXCLUDED).index_copy(1, known.nonzero()[:, 0], of_known)

    def forward(self, features: Tensor) -> PixelOutputs:
        if not self.training:
            self._warn_of_unseen_classes()
        batch, _, height, width = features.shape
        embedding = self.embed(features)
        with torch.autocast(device_type=features.device.type, enabled=False):
            density = self.bank.class_log_density(embedding)
            logits, log_density, embedding = (
                values.view(batch, height, width, -1).permute(0, 3, 1, 2)
                for values in (self.logits(density), density, embedding)
            )
        if self.logits_from == "softmax":
            logits = self.guide(features).logits
        return PixelOutputs(logits, log_density, embedding)

    def losses(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        losses = self._mixture_losses(features, labels)
        if self.guide_weight:
            losses["loss_guide"] = self.guide_weight * self.guide.losses(features, labels)["loss_ce"]
        return losses

    def _mixture_losses(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        batch, _, height, width = features.shape
        if self.feature_gradient < 1:
            features = torch.lerp(features.detach(), features, self.feature_gradient)
        embedding = self.embed(features)
        with torch.autocast(device_type=features.device.type, enabled=False):
            log_prob = self.bank.log_prob(embedding)
            logits = self.logits(class_log_density(log_prob, self.bank.reduction))
            small = resized_labels(labels, (height, width)).flatten()
            correct = logits.argmax(1) == small
            target = self._record(embedding, log_prob, correct, small)
            maps = logits.view(batch, height, width, -1).permute(0, 3, 1, 2)
            losses = {"loss_ce": pixel_cross_entropy(maps, labels, average=self.loss_average)}
            if self.contrast_weight:
                losses["loss_contrast"] = self.contrast_weight * component_contrast(log_prob, target)
            if self.sampled_contrast is not None:
                losses |= self.sampled_contrast.losses(self.bank, embedding, small, correct)
        return losses

    @torch.no_grad()
    def assign(self, own_log_prob: Tensor, labels: Tensor) -> Tensor:
        """Components of pixels. own_log_prob: (N, M) log-densities under the components of each pixel's own
        class; labels: (N,) int64 -> (N,) int64, any component where the label is no class or a density is not
        finite (a pixel that overflowed must not have a say in where the others of its class go)."""
        finite = own_log_prob.isfinite().all(dim=1)
        labels = torch.where(finite, labels, -1)
        own_log_prob = torch.where(finite[:, None], own_log_prob, 0.0)
        if self.assignment == "em":
            # Components weigh the same, so the largest responsibility is the largest density.
            return own_log_prob.argmax(dim=1)
        return sinkhorn_assign_all(own_log_prob, labels, self.num_classes, *self.sinkhorn)[0]

    @torch.no_grad()
    def _record(self, embedding: Tensor, log_prob: Tensor, correct: Tensor, labels: Tensor) -> Tensor:
        """Assign pixels to components, record them for EM; returns the contrast's (N,) targets."""
        # Ignored pixels count with the last class until they are left out.
        own = own_class_log_prob(log_prob.detach(), labels.clamp(0, self.num_classes - 1))
        assignment, target = self._assigned(own, labels)
        if self.bank.em_attached:
            self.bank.record(embedding, labels, assignment, correct)
        elif not self._warned_without_hook:
            self._warned_without_hook = True
            logger.warning(
                "the GMM classifier is trained without EMHook, so its mixtures will never be fitted and the "
                "pixels of this training are not recorded; register "
                "gmm_anomaly.engine.EMHook.from_config(cfg, model.bank) among the trainer's hooks"
            )
        return target

    def _assign_known(self, own_log_prob: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`assign`, and the contrast's targets; (N,) int64 both."""
        assignment = self.assign(own_log_prob, labels)
        known = (labels >= 0) & (labels < self.num_classes)
        index = torch.where(known, labels, 0)
        # A class that waits for its warm start has no components worth contrasting yet.
        contrasted, place = known & self.bank.started[index], index * self.bank.num_components + assignment
        return assignment, torch.where(contrasted, place, IGNORED_COMPONENT)

    @property
    def unseen_classes(self) -> list[str]:
        """Names, or else indices, of the classes that were never fitted: predictions leave them out."""
        left_out = [index for index, of in enumerate(self.bank.fitted_components) if not any(of)]
        return [self.class_names[index] if self.class_names else str(index) for index in left_out]

    def _warn_of_unseen_classes(self) -> None:
        """Whenever they change. Without any fitted class the bank itself refuses."""
        names = self.unseen_classes if self.bank.is_fitted else []
        if names and names != self._left_out:
            logger.warning(
                "the mixtures of %d of %d classes were never fitted, for too few of their pixels were seen; "
                "predictions and scores leave them out: %s. Train longer or with images that have them, or "
                "lower MODEL.GMM.WARM_START_FEATURES",
                len(names), self.num_classes, ", ".join(names),
            )  # fmt: skip
        self._left_out = names


def _class_names(cfg: CfgNode) -> list[str] | None:
    """The classes of the training set, where it is registered and has as many as the model."""
    name = cfg.DATASETS.TRAIN[0] if cfg.DATASETS.TRAIN else None
    names = MetadataCatalog.get(name).get("stuff_classes") if name in MetadataCatalog else None
    return list(names) if names and len(names) == cfg.MODEL.CLASSIFIER.NUM_CLASSES else None


def _projection(kind: str, in_channels: int, dim: int, norm: str) -> list[nn.Module]:
    def norm_relu(out_channels: int) -> list[nn.Module]:
        convolution = nn.Conv2d(in_channels, out_channels, 1, bias=not norm)
        return [convolution, *([get_norm(norm, out_channels)] if norm else []), nn.ReLU(inplace=True)]

    if kind == "none" or (kind == "released" and in_channels == dim):
        return []
    if kind == "linear":
        return [nn.Conv2d(in_channels, dim, kernel_size=1)]
    if kind == "released":
        weight_init.c2_msra_fill((layers := norm_relu(dim))[0])
        return layers
    return [*norm_relu(2 * dim), nn.Conv2d(2 * dim, dim, kernel_size=1)]


@CLASSIFIER_REGISTRY.register()
def gmm(cfg: CfgNode, in_channels: int) -> GMMClassifier:
    keys = cfg.MODEL.GMM
    released = keys.RULES == "released"
    dim = in_channels if keys.PROJECTION == "none" else keys.EMBED_DIM
    memory = keys.MEMORY_DTYPE
    if memory == "auto":
        numbers = cfg.MODEL.CLASSIFIER.NUM_CLASSES * keys.NUM_COMPONENTS * keys.MEMORY_SIZE * dim
        memory = "float16" if 4 * numbers > LARGE_MEMORY else "float32"
    contrast = {key.lower(): value for key, value in keys.SAMPLED_CONTRAST.items()}
    bank = GaussianMixtureBank(
        cfg.MODEL.CLASSIFIER.NUM_CLASSES,
        keys.NUM_COMPONENTS,
        dim,
        keys.MEMORY_SIZE,
        keys.SAMPLES_PER_UPDATE,
        keys.MOMENTUM_MEAN,
        keys.MOMENTUM_SCALE,
        keys.VARIANCE_FLOOR,
        reduction=keys.REDUCTION,
        fill_slots=WARM_START_FILL if keys.WARM_START else 0,
        warm_start_features=keys.WARM_START_FEATURES if keys.WARM_START else 0,
        initial_memory="random" if released else "empty",
        update_classes="batch" if released else "seen",
        memory_dtype=getattr(torch, memory),
        save_memory=keys.SAVE_MEMORY,
    )
    return GMMClassifier(
        in_channels,
        bank,
        dropout=cfg.MODEL.CLASSIFIER.DROPOUT,
        projection=keys.PROJECTION,
        norm=usable_norm(cfg.MODEL.DECODER.NORM, cfg.MODEL.DEVICE),
        logit_scale=WARM_START_LOGIT_SCALE if keys.WARM_START else 1.0,
        contrast_weight=keys.CONTRAST_WEIGHT,
        guide_weight=keys.GUIDE_WEIGHT if keys.WARM_START else 0.0,
        feature_gradient=keys.FEATURE_GRADIENT,
        logits_from=keys.LOGITS,
        sampled_contrast=SampledContrast(**contrast) if contrast["weight"] else None,
        assignment=keys.ASSIGNMENT,
        sinkhorn_iterations=keys.SINKHORN_ITERATIONS,
        sinkhorn_epsilon=keys.SINKHORN_EPSILON,
        loss_average=cfg.MODEL.CLASSIFIER.LOSS_AVERAGE,
        class_names=_class_names(cfg),
    )
