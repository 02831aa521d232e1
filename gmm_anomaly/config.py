"""Every configuration key the project adds to Detectron2's defaults, with its meaning."""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_gmm_anomaly_config(cfg: CN) -> None:
    """Add the project's keys to ``cfg`` (a Detectron2 ``CfgNode`` from ``get_cfg()``), in place."""
    _add_model(cfg)
    _add_gmm(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    _add_test(cfg)


def _add_model(cfg: CN) -> None:
    # The meta-architecture: backbone, then decoder, then classifier.
    cfg.MODEL.META_ARCHITECTURE = "AnomalySegmentor"

    # Weights and activations in channels-last order; faster convolutions on CPUs and tensor cores, same
    # results.
    cfg.MODEL.CHANNELS_LAST = False

    # Detectron2's ResNet gives its features of strides 4 to 32.
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Keys that Detectron2's dilated ResNet ("build_resnet_deeplab_backbone") reads: dilation of res4 (2:
    # output stride 8, with RES5_DILATION 4), multi-grid dilations of res5, and "basic" or "deeplab" stem.
    cfg.MODEL.RESNETS.RES4_DILATION = 1
    cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"

    # timm backbone (MODEL.BACKBONE.NAME "build_timm_backbone").
    cfg.MODEL.TIMM = CN()
    # Any timm model that supports features_only.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Which of its feature levels to use (timm's out_indices).
    cfg.MODEL.TIMM.OUT_INDICES = [1, 2, 3, 4]
    # Stride of the last level; 8 or 16 dilates the last stages where the model supports it.
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 32
    # Where ImageNet weights come from: "" (random), "hub" (timm's hub download), a local file, or
    # "package:NAME/FILE" (a weight file shipped inside an installed Python package).
    cfg.MODEL.TIMM.WEIGHTS = ""
    # With True, weights that cannot be found are an error; with False training starts from scratch with a
    # warning.
    cfg.MODEL.TIMM.WEIGHTS_REQUIRED = True

    cfg.MODEL.DECODER = CN()
    # Name in the decoder registry.
    cfg.MODEL.DECODER.NAME = "DeepLabV3PlusDecoder"
    # Backbone features given to the decoder, from high to low resolution; empty: the first and the last one.
    cfg.MODEL.DECODER.IN_FEATURES = []
    # Channels of the atrous spatial pyramid pooling branches.
    cfg.MODEL.DECODER.ASPP_CHANNELS = 256
    # Dilations of its three atrous branches ([6, 12, 18] at output stride 16, doubled at 8).
    cfg.MODEL.DECODER.ASPP_DILATIONS = [6, 12, 18]
    # Dropout after the pyramid pooling.
    cfg.MODEL.DECODER.ASPP_DROPOUT = 0.1
    # Channels of the skip connection's projection, and of the decoder's output.
    cfg.MODEL.DECODER.PROJECT_CHANNELS = 48
    cfg.MODEL.DECODER.CHANNELS = 256
    # Depthwise separable convolutions in the pyramid pooling and the decoder.
    cfg.MODEL.DECODER.DEPTHWISE_SEPARABLE = False
    # Norm of the decoder's layers: "BN", "SyncBN", "GN" or "".
    cfg.MODEL.DECODER.NORM = "BN"

    cfg.MODEL.CLASSIFIER = CN()
    # "gmm" (class-conditional Gaussian mixtures) or "softmax" (1x1 convolution).
    cfg.MODEL.CLASSIFIER.NAME = "gmm"
    # Number of known classes; must equal the training set's.
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 19
    # Dropout on the decoder's features before the classifier.
    cfg.MODEL.CLASSIFIER.DROPOUT = 0.1
    # Pixels over which the mean of the cross-entropy is taken: "valid" (labelled pixels) or "all" (ignored
    # pixels count as zero loss, as in the released GMMSeg code).
    cfg.MODEL.CLASSIFIER.LOSS_AVERAGE = "valid"


def _add_gmm(cfg: CN) -> None:
    cfg.MODEL.GMM = CN()
    # Components per class (M).
    cfg.MODEL.GMM.NUM_COMPONENTS = 5
    # Dimensions of the pixel embedding (D).
    cfg.MODEL.GMM.EMBED_DIM = 64
    # From the decoder's features to the embedding: "mlp" (1x1 convolution, norm, ReLU, 1x1 convolution),
    # "linear" (one convolution) or "released" (1x1 convolution, norm, ReLU, as in the released code).
    cfg.MODEL.GMM.PROJECTION = "mlp"
    # Slots of each component's feature memory (K).
    cfg.MODEL.GMM.MEMORY_SIZE = 32000
    # Storage type of the memory: "float32" or "float16".
    cfg.MODEL.GMM.MEMORY_DTYPE = "float32"
    # Write the memory into checkpoints. Its statistics are always there, so a resumed run continues without
    # it; with it the continuation is exact.
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
    # Assignment of pixels to components: Sinkhorn rounds and temperature.
    cfg.MODEL.GMM.SINKHORN_ITERATIONS = 3
    cfg.MODEL.GMM.SINKHORN_EPSILON = 0.05
    # Weight of the component contrast loss.
    cfg.MODEL.GMM.CONTRAST_WEIGHT = 0.01
    # Start that does not starve rare classes. False: the paper's rules (only correctly classified pixels are
    # stored, random first means, constant momentum, logit scale 1).
    cfg.MODEL.GMM.WARM_START = True
    # A class's mixture is initialised by k-means once this many of its features were seen...
    cfg.MODEL.GMM.WARM_START_FEATURES = 300
    # ... with this many rounds of spherical k-means.
    cfg.MODEL.GMM.WARM_START_KMEANS_ROUNDS = 10
    # Misclassified pixels enter a component's memory too until it holds this many features.
    cfg.MODEL.GMM.WARM_START_FILL = 400
    # Momentum of the means at the first iteration; it reaches MOMENTUM_MEAN when WARM_START_RAMP of the
    # schedule is over (1 - momentum falls geometrically).
    cfg.MODEL.GMM.WARM_START_MOMENTUM = 0.5
    cfg.MODEL.GMM.WARM_START_RAMP = 0.5
    # First weight of the LayerNorm over classes that turns densities into logits.
    cfg.MODEL.GMM.WARM_START_LOGIT_SCALE = 3.0


def _add_input(cfg: CN) -> None:
    # Detectron2's key; 0 tests at the image's own size.
    cfg.INPUT.MIN_SIZE_TEST = 0
    # Random scaling of training images: factor range; [1.0, 1.0] switches it off.
    cfg.INPUT.SCALE_RANGE = [0.5, 2.0]
    # Random brightness, contrast and saturation of training images: each factor is drawn from 1 +- this.
    cfg.INPUT.COLOR_JITTER = 0.25
    # Training crops (Detectron2's INPUT.CROP.ENABLED and SIZE) need INPUT.CROP.TYPE "absolute": height and
    # width in pixels. Smaller images are padded with the pixel mean, and 255 in the label.
    # Largest share of a training crop that one class may cover (1.0: any); a crop is redrawn up to ten times.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Keep decoded images and labels in memory (per worker process) after the first read.
    cfg.INPUT.CACHE_DECODED = False
    # DATALOADER.SAMPLER_TRAIN also knows "ClassBalancedSampler": a class is drawn, then an image that has it.
    # Its index of classes per image is kept in this folder ("": OUTPUT_DIR).
    cfg.DATALOADER.CLASS_INDEX_DIR = ""

    # The synthetic streets (data sets synthetic_street_train, _val and _anomaly).
    cfg.DATASETS.SYNTHETIC = CN()
    cfg.DATASETS.SYNTHETIC.HEIGHT = 256
    cfg.DATASETS.SYNTHETIC.WIDTH = 512
    cfg.DATASETS.SYNTHETIC.NUM_TRAIN = 400
    cfg.DATASETS.SYNTHETIC.NUM_VAL = 50
    cfg.DATASETS.SYNTHETIC.NUM_ANOMALY = 50
    cfg.DATASETS.SYNTHETIC.SEED = 0
    # Folder for rendered frames; "" renders on the fly.
    cfg.DATASETS.SYNTHETIC.CACHE_DIR = ""


def _add_solver(cfg: CN) -> None:
    # "SGD" or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Learning-rate factor of everything outside the backbone.
    cfg.SOLVER.HEAD_LR_FACTOR = 1.0
    # LR_SCHEDULER_NAME also knows "WarmupPolyLR"; this is its power.
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # Norm layers are not decayed.
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0


def _add_test(cfg: CN) -> None:
    # Anomaly scores computed from one forward pass; the first one is the model's "anomaly_score".
    cfg.TEST.SCORES = ["gmm_density", "msp", "max_logit", "energy", "entropy"]
    # Write every score map to OUTPUT_DIR/scores/<data set>/<score>/<image id>.npy (float16).
    cfg.TEST.SAVE_SCORES = False
    # Overlays of the first so many images of each anomaly data set, in OUTPUT_DIR/visualizations.
    cfg.TEST.NUM_VISUALIZATIONS = 8
