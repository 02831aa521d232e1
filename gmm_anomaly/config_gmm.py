"""The configuration keys of the mixtures (``MODEL.GMM``), with their meaning."""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_gmm_config(cfg: CN) -> None:
    cfg.MODEL.GMM = CN()
    # Components per class (M).
    cfg.MODEL.GMM.NUM_COMPONENTS = 5
    # Dimensions of the pixel embedding (D).
    cfg.MODEL.GMM.EMBED_DIM = 64
    # From the decoder's features to the embedding: "mlp" (1x1 convolution, norm, ReLU, 1x1 convolution),
    # "linear" (one convolution), "released" (1x1 convolution, norm, ReLU, as in the released code) or "none"
    # (the decoder's features as they are; EMBED_DIM is not read).
    cfg.MODEL.GMM.PROJECTION = "mlp"
    # Slots of each component's feature memory (K).
    cfg.MODEL.GMM.MEMORY_SIZE = 32000
    # Storage type of the memory: "float32" or "float16".
    cfg.MODEL.GMM.MEMORY_DTYPE = "float32"
    # Write the features of the memory into checkpoints (but not into the last one): gigabytes at the paper's
    # sizes. Their statistics are always there, and a resumed run goes on with those. With True a run of one
    # process ends as if it had not been interrupted, to the last digit; of several processes those of the
    # first are written.
    cfg.MODEL.GMM.SAVE_MEMORY = False
    # Features that may enter a component's memory per iteration.
    cfg.MODEL.GMM.SAMPLES_PER_UPDATE = 20
    # The EM step runs every so many iterations.
    cfg.MODEL.GMM.UPDATE_INTERVAL = 5
    # Momentum of the means and of the standard deviations (0: replaced at each EM step).
    cfg.MODEL.GMM.MOMENTUM_MEAN = 0.999
    cfg.MODEL.GMM.MOMENTUM_SCALE = 0.0
    # Added to every variance. 0.01 at 64 dimensions is the paper's; it should scale like 1 / EMBED_DIM.
    cfg.MODEL.GMM.VARIANCE_FLOOR = 1e-2
    # How components combine into a class density: "max" (the released code) or "logsumexp" (the mixture).
    cfg.MODEL.GMM.REDUCTION = "max"
    # Where the logits of an inference come from: "density" (the mixtures) or "softmax" (the classifier of
    # GUIDE_WEIGHT; with --fit-mixture that of the frozen network).
    cfg.MODEL.GMM.LOGITS = "density"
    # Assignment of pixels to components: "sinkhorn" (balanced) or "em" (largest responsibility).
    cfg.MODEL.GMM.ASSIGNMENT = "sinkhorn"
    # Sinkhorn rounds and temperature.
    cfg.MODEL.GMM.SINKHORN_ITERATIONS = 3
    cfg.MODEL.GMM.SINKHORN_EPSILON = 0.05
    # Weight of the component contrast loss.
    cfg.MODEL.GMM.CONTRAST_WEIGHT = 0.01
    # The mixtures' health, numbers and a picture of the embedding, goes to TensorBoard every so many
    # iterations and after the last one (0: never): of four labelled images of the first closed set in
    # DATASETS.TEST, or of the training set if there is none.
    cfg.MODEL.GMM.HEALTH_PERIOD = 500
    # Start that does not starve rare classes: k-means for the first components, misclassified pixels enter a
    # component's memory until it holds 400 features, and the LayerNorm over classes starts with weight 3.
    # False: the paper's rules (only correctly classified pixels are stored, random first means, constant
    # momentum, weight 1, no guide).
    cfg.MODEL.GMM.WARM_START = True
    # A class's mixture is initialised once this many of its features were seen.
    cfg.MODEL.GMM.WARM_START_FEATURES = 300
    # Momentum of the means at the first iteration; it reaches MOMENTUM_MEAN when half of the schedule is over
    # (1 - momentum falls geometrically).
    cfg.MODEL.GMM.WARM_START_MOMENTUM = 0.5
    # Weight of the loss of a softmax classifier on the same pixel features, which is used in training only,
    # for the whole of it; not read without WARM_START.
    cfg.MODEL.GMM.GUIDE_WEIGHT = 1.0
    # Factor of the gradient of the mixtures' losses where it enters backbone and decoder: 1 trains them for
    # the mixtures (the paper), 0 for that softmax classifier alone, and only the embedding for the mixtures.
    cfg.MODEL.GMM.FEATURE_GRADIENT = 1.0

    # Contrast of pixels with vectors drawn from the mixtures of all classes (GMM4AnomalySeg).
    contrast = cfg.MODEL.GMM.SAMPLED_CONTRAST = CN()
    # Weight of the loss, 0.05 in the GMM4AnomalySeg configs; 0: none. It is taken every fifth iteration, of
    # at most 50 pixels of each class against 32 vectors drawn from each class.
    contrast.WEIGHT = 0.0
    # First iteration with the loss, and iterations over which its weight then grows linearly.
    contrast.START = 1500
    contrast.RAMP = 5000
    # Temperature of the InfoNCE.
    contrast.TEMPERATURE = 0.1
    # Factor of the standard deviations in the draws; 1 lies far outside the classes, 0 draws the means.
    contrast.NOISE_SCALE = 0.5
    # A class takes part once its memories are full to this share.
    contrast.MIN_FILL = 0.5

    # Mixtures on a frozen network (train_net.py --fit-mixture): passes over the training set.
    cfg.MODEL.GMM.FIT_PASSES = 3
