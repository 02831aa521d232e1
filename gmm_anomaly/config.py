"""Every configuration key the project adds to Detectron2's defaults, with its meaning."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode as CN

logger = logging.getLogger(__name__)

# What MODEL.GMM.RULES "released" fixes: the released GMMSeg code has it that way and no other.
RELEASED = {
    "MODEL.CLASSIFIER.LOSS_AVERAGE": "all",
    "MODEL.GMM.PROJECTION": "released",
    "MODEL.GMM.VARIANCE_FLOOR": 1e-2,
    "MODEL.GMM.REDUCTION": "max",
    "MODEL.GMM.LOGITS": "density",
    "MODEL.GMM.ASSIGNMENT": "sinkhorn",
    "MODEL.GMM.SINKHORN_ITERATIONS": 3,
    "MODEL.GMM.SINKHORN_EPSILON": 0.05,
    "MODEL.GMM.WARM_START": False,
    "MODEL.GMM.FEATURE_GRADIENT": 1.0,
}


def with_rules(cfg: CN) -> CN:
    """``cfg``, or under ``MODEL.GMM.RULES`` "released" a frozen copy with the values of :data:`RELEASED`.

    A config of :func:`gmm_anomaly.engine.build_config` has them already; of any other one a warning names the
    keys that had other values.
    """
    if cfg.MODEL.GMM.RULES == "ours":
        return cfg
    ruled = cfg.clone()
    ruled.defrost()
    changed = []
    for key, value in RELEASED.items():
        _, section, name = key.split(".")
        if ruled.MODEL[section][name] != value:
            ruled.MODEL[section][name] = value
            changed.append(f"{key} {value}")
    ruled.freeze()
    if changed:
        logger.warning("MODEL.GMM.RULES released sets %s", ", ".join(changed))
    return ruled


def add_gmm_anomaly_config(cfg: CN) -> None:
    """Add the project's keys to ``cfg`` (a Detectron2 ``CfgNode`` from ``get_cfg()``), in place."""
    # The meta-architecture: "AnomalySegmentor" (backbone, then decoder, then classifier) or
    # "MaskAnomalySegmentor" (Mask2Former, MODEL.MASK2FORMER).
    cfg.MODEL.META_ARCHITECTURE = "AnomalySegmentor"

    # Detectron2's key: a checkpoint of a whole model, or a pickle of Detectron2's model zoo (--trust-pickle).
    cfg.MODEL.WEIGHTS = ""

    # Weights and activations in channels-last order; faster convolutions on CPUs and tensor cores, same
    # results.
    cfg.MODEL.CHANNELS_LAST = False
    # Compile backbone and decoder with torch.compile, for training and inference ("AnomalySegmentor" only):
    # the same results but for rounding. The first batch of each size waits for its compiling; after eight
    # (training and inference together) other sizes run uncompiled. Needs a C++ compiler on the CPU, triton on
    # a GPU. See docs/benchmarks.md.
    cfg.MODEL.COMPILE = False

    # Detectron2's ResNet gives its features of strides 4 to 32.
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Keys that Detectron2's dilated ResNet ("build_resnet_deeplab_backbone") reads: dilation of res4 (2:
    # output stride 8, with RES5_DILATION 4), multi-grid dilations of res5, and "basic" or "deeplab" stem.
    cfg.MODEL.RESNETS.RES4_DILATION = 1
    cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"

    # Pretrained weights of the backbone: "" (random); by name "torchvision:resnet50", "torchvision:NAME.TAG",
    # "timm:NAME.TAG", or "hub", those of the backbone's own name, downloaded and cached by the library (of a
    # mit, by transformers); "package:NAME/FILE", a file inside an installed Python package; or a file of
    # torchvision, timm, transformers, the network's authors or MMSegmentation. What does not fill the
    # backbone is refused.
    cfg.MODEL.BACKBONE.WEIGHTS = ""
    # Detectron2's key, which every backbone follows: 1 freezes the stem (patch embedding), 2 the first stage
    # too, up to 5, everything that is pretrained: no gradients, norm statistics and stochastic depth as at
    # inference. A plain ViT's stages are the quarters of its blocks. By default nothing is frozen (2 in
    # Detectron2).
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    # Stochastic depth of the last block of a timm model, mit or ViT; negative: the model's own (Swin and mit:
    # 0.1).
    cfg.MODEL.BACKBONE.DROP_PATH = -1.0
    # Compute activations again in the backward pass instead of keeping them: less memory, more time.
    cfg.MODEL.BACKBONE.GRADIENT_CHECKPOINTING = False

    # timm backbone (MODEL.BACKBONE.NAME "build_timm_backbone"). Its batch norms are synchronised where
    # MODEL.DECODER.NORM is "SyncBN".
    cfg.MODEL.TIMM = CN()
    # Any timm model that supports features_only.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Which of its feature levels to use (timm's out_indices).
    cfg.MODEL.TIMM.OUT_INDICES = [1, 2, 3, 4]
    # Stride of the last level; 8 or 16 dilates the last stages where the model supports it.
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 32

    # Mix Transformer, SegFormer's encoder ("build_mit_backbone").
    cfg.MODEL.MIT = CN()
    # "mit_b0" to "mit_b5".
    cfg.MODEL.MIT.NAME = "mit_b0"

    # Plain ViT of timm under a simple feature pyramid ("build_vit_backbone").
    cfg.MODEL.VIT = CN()
    # Any plain ViT of timm with patches of 16 or 14 pixels. With 14, images are reduced to 14/16 first, so
    # that strides are exact.
    cfg.MODEL.VIT.NAME = "vit_small_patch14_dinov2"
    # Channels of every level of the pyramid (p2 to p5, strides 4 to 32; with MODEL.DECODER.IN_FEATURES only
    # those that something reads).
    cfg.MODEL.VIT.OUT_CHANNELS = 256

    cfg.MODEL.DECODER = CN()
    # Name in the decoder registry.
    cfg.MODEL.DECODER.NAME = "DeepLabV3PlusDecoder"
    # Backbone features given to the decoder; empty: its own choice (UPerNet and SegFormer: all; DeepLabV3+:
    # the first and the last one; OCRNet and PSP: the last one).
    cfg.MODEL.DECODER.IN_FEATURES = []
    # DeepLabV3+: dilations of the three atrous branches ([6, 12, 18] at output stride 16, doubled at 8).
    cfg.MODEL.DECODER.ASPP_DILATIONS = [6, 12, 18]
    # Channels of the decoder's output, and of its branches.
    cfg.MODEL.DECODER.CHANNELS = 256
    # Backbone feature that an auxiliary head with a loss of its own reads ("" = no head), and the channels of
    # its convolution. Its classifier is a 1x1 convolution, beside MODEL.CLASSIFIER.NAME "prototype" cosine
    # prototypes, as PAnS has it. OCRNet always has the head, for its soft object regions; "" is the last
    # feature but one there, or with several IN_FEATURES all of them.
    cfg.MODEL.DECODER.AUX_FEATURE = ""
    cfg.MODEL.DECODER.AUX_CHANNELS = 256
    # Norm of the decoder's layers: "BN", "SyncBN", "GN" or "".
    cfg.MODEL.DECODER.NORM = "BN"

    cfg.MODEL.CLASSIFIER = CN()
    # "gmm" (class-conditional Gaussian mixtures), "softmax" (1x1 convolution) or "prototype" (cosine).
    cfg.MODEL.CLASSIFIER.NAME = "gmm"
    # Number of known classes; must equal the training set's.
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 19
    # Dropout on the decoder's features before the classifier.
    cfg.MODEL.CLASSIFIER.DROPOUT = 0.1
    # Pixels over which the mean of the cross-entropy is taken: "valid" (labelled pixels) or "all" (ignored
    # pixels count as zero loss, as in the released GMMSeg code).
    cfg.MODEL.CLASSIFIER.LOSS_AVERAGE = "valid"

    cfg.MODEL.PROTOTYPE = CN()
    # 0: prototypes are learned vectors; above: running means of their classes' labelled pixels, moved with
    # this momentum (0.99, say) once an iteration.
    cfg.MODEL.PROTOTYPE.MOMENTUM = 0.0

    cfg.MODEL.GMM = CN()
    # "ours", or "released": training as the released GMMSeg code does it. A memory full of random vectors
    # that count, EM of the newest batch's classes, decay of the head's norms, LOSS_AVERAGE "all", PROJECTION
    # "released", no WARM_START, and FEATURE_GRADIENT, REDUCTION, LOGITS, ASSIGNMENT, SINKHORN_* and
    # VARIANCE_FLOOR at their defaults. Another value of one of these keys is refused beside it.
    cfg.MODEL.GMM.RULES = "ours"
    # Components per class (M).
    cfg.MODEL.GMM.NUM_COMPONENTS = 5
    # Dimensions of the pixel embedding (D).
    cfg.MODEL.GMM.EMBED_DIM = 64
    # From the decoder's features to the embedding: "mlp" (1x1 convolution, norm, ReLU, 1x1 convolution),
    # "linear" (one convolution), "released" (1x1 convolution, norm, ReLU, as in the released code; nothing
    # where the decoder has EMBED_DIM channels) or "none" (the decoder's features as they are; EMBED_DIM is
    # not read).
    cfg.MODEL.GMM.PROJECTION = "mlp"
    # Slots of each component's feature memory (K).
    cfg.MODEL.GMM.MEMORY_SIZE = 32000
    # Storage type of the memory: "float32", "float16", or "auto", float16 where float32 takes more than 1 GB.
    cfg.MODEL.GMM.MEMORY_DTYPE = "auto"
    # Write the features of the memory into checkpoints (but not into the last one): gigabytes at the paper's
    # sizes. Their statistics are always there, and a resumed run goes on with those: 120 iterations on small
    # streets with a memory of 400 ended at 34.4 % mIoU and 72.5 % of the pixels, stopped and resumed without
    # it after 60 at 34.3 % and 72.4 %. With True a run of one process ends as if it had not been interrupted,
    # to the last digit; of several processes those of the first are written.
    cfg.MODEL.GMM.SAVE_MEMORY = False
    # Features that may enter a component's memory per iteration.
    cfg.MODEL.GMM.SAMPLES_PER_UPDATE = 20
    # The EM step runs every so many iterations.
    cfg.MODEL.GMM.UPDATE_INTERVAL = 5
    # Momentum of the means and of the standard deviations (0: replaced at each EM step).
    cfg.MODEL.GMM.MOMENTUM_MEAN = 0.999
    cfg.MODEL.GMM.MOMENTUM_SCALE = 0.0
    # Added to every variance, 1e-6 or more. 0.01 at 64 dimensions is the paper's; it should scale like
    # 1 / EMBED_DIM.
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
    # With an empty memory rare classes would starve: k-means for the first components, misclassified pixels
    # enter a component's memory until it holds 400 features, the LayerNorm over classes starts with weight 3,
    # the momentum of the means grows from 0.5 to MOMENTUM_MEAN over half of the schedule.
    # False: only correctly classified pixels are stored, random first means, constant momentum, weight 1, no
    # guide, as in the paper, but with a memory that starts empty; see RULES.
    cfg.MODEL.GMM.WARM_START = True
    # A class's mixture is initialised once this many of its features were seen.
    cfg.MODEL.GMM.WARM_START_FEATURES = 300
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
    # A class takes part once its memories are full to this share.
    contrast.MIN_FILL = 0.5

    # Mixtures on a frozen network (train_net.py --fit-mixture): passes over the training set.
    cfg.MODEL.GMM.FIT_PASSES = 3

    # Distances of features to the known classes (scores "feature_distance" and "hybrid").
    cfg.MODEL.FEATURE_DISTANCE = CN()
    # On what they are measured: levels of the backbone, and "embedding", what the classifier compares with
    # its classes (of "softmax" and "prototype" the decoder's features); empty: none.
    cfg.MODEL.FEATURE_DISTANCE.FEATURES = []
    # Weights of these in the sum of their standardised distances; empty: 1 each.
    cfg.MODEL.FEATURE_DISTANCE.WEIGHTS = []
    # Levels of the backbone as it was before training ("frozen": a copy stays in the model, of those parts
    # that MODEL.BACKBONE.FREEZE_AT does not freeze anyway), or as it was "trained".
    cfg.MODEL.FEATURE_DISTANCE.BACKBONE = "frozen"
    # Distances from the nearest of so many Gaussians with one covariance, found without labels; 0: from the
    # nearest class, one Gaussian each.
    cfg.MODEL.FEATURE_DISTANCE.COMPONENTS = 0
    # What "hybrid" adds them to: the classifier's "density", where it has one, or the "energy" of its logits.
    cfg.MODEL.FEATURE_DISTANCE.HYBRID_WITH = "density"
    # Training images, and labelled pixels of each image and level, on which they are fitted after training;
    # on as many images the score "sml" measures the largest logit of each class.
    cfg.MODEL.FEATURE_DISTANCE.NUM_IMAGES = 100
    cfg.MODEL.FEATURE_DISTANCE.PIXELS_PER_IMAGE = 600

    # Outlier exposure. A second density, of objects that are pasted into training images, on the features of
    # MODEL.FEATURE_DISTANCE, fitted after these: "gmm" (mixtures of the EM bank), "linear" (logistic
    # regression, which estimates the ratio to the known ones' density itself) or "" (none). Scores
    # "likelihood_ratio", "outlier_posterior", "dense_hybrid" and "exposed_distance".
    cfg.MODEL.OUTLIER = CN()
    cfg.MODEL.OUTLIER.NAME = ""
    # A loss on pasted objects while a network trains (INPUT.OUTLIERS.SHARE above 0): "rba" (softmax and mask
    # models; score "rba"), "pebal" (softmax; score "energy") or "" (none).
    cfg.MODEL.OUTLIER.LOSS = ""

    cfg.INPUT.OUTLIERS = CN()
    # The objects: "rendered" (unknown ones of the rendered streets, and their shapes filled with noise or a
    # piece of the image itself, turned and tinted), a folder of RGBA cut-outs, or of other photos to cut such
    # shapes out of, or a .json of COCO annotations beside its images.
    cfg.INPUT.OUTLIERS.SOURCE = "rendered"
    # Share of the training images that get some; their pixels belong to no class. MODEL.OUTLIER is fitted to
    # images that all have some.
    cfg.INPUT.OUTLIERS.SHARE = 0.0
    # Fewest and most objects an image, their smallest and largest height, and the highest and lowest place of
    # their feet, both in shares of the image's height.
    cfg.INPUT.OUTLIERS.OBJECTS = [3, 8]
    cfg.INPUT.OUTLIERS.HEIGHTS = [0.03, 0.45]
    cfg.INPUT.OUTLIERS.FEET = [0.42, 1.0]
    # How far light, colours, sharpness and outline are brought nearer to those of the place: 0 (pasted as
    # they are) to 1.
    cfg.INPUT.OUTLIERS.BLENDING = 1.0

    # Mask2Former of the package transformers (MODEL.META_ARCHITECTURE "MaskAnomalySegmentor").
    keys = cfg.MODEL.MASK2FORMER = CN()
    # Weights, and with them the architecture: a model name of the hub or a folder with config.json and
    # model.safetensors; "" builds ARCHITECTURE with random weights.
    keys.WEIGHTS = ""
    # With True, WEIGHTS of another number of classes get a new class layer, to be trained.
    keys.REPLACE_CLASSES = False
    # Queries of the score "maskomaly" that light up on anomalies, and on the road. They hold for one
    # checkpoint only; `gmm-anomaly find-queries` finds them and writes these keys.
    keys.ANOMALY_QUERIES = []
    keys.ROAD_QUERIES = []
    # In config files: arguments of transformers' Mask2FormerConfig by name, and under backbone_config those
    # of the config that its model_type names ("swin"; "timm_backbone" takes MODEL.BACKBONE.WEIGHTS). What is
    # not given is transformers' own.
    keys.ARCHITECTURE = CN(new_allowed=True)

    # Detectron2's keys: length of the shorter side at inference, 0 being the image's own size, and the longer
    # side beyond which an image is made smaller than that, with a warning (1333 in Detectron2).
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.INPUT.MAX_SIZE_TEST = 4096
    # Random scaling of training images: factor range; [1.0, 1.0] switches it off.
    cfg.INPUT.SCALE_RANGE = [0.5, 2.0]
    # Shorter and longer side within which training images are fitted before that factor applies, as
    # MMSegmentation does for ADE20K and COCO-Stuff ([512, 2048]); empty: the factor is of the image as it is.
    cfg.INPUT.SCALE_BASE = []
    # Random brightness, contrast and saturation of training images: each factor is drawn from 1 +- this.
    cfg.INPUT.COLOR_JITTER = 0.25
    # Training crops (Detectron2's INPUT.CROP.ENABLED and SIZE) need INPUT.CROP.TYPE "absolute": height and
    # width in pixels. Smaller images are padded with the pixel mean, and 255 in the label.
    # Largest share of a training crop that one class may cover (1.0: any); a crop is redrawn up to ten times.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Keep decoded images and labels in memory (per worker process) after the first read.
    cfg.INPUT.CACHE_DECODED = False
    # DATALOADER.SAMPLER_TRAIN also knows "ClassBalancedSampler": a class is drawn, then an image that has it.

    # The synthetic streets (data sets synthetic_street_train, _val and _anomaly).
    cfg.DATASETS.SYNTHETIC = CN()
    # Size of the frames in pixels, how many there are of each split, and their seed.
    cfg.DATASETS.SYNTHETIC.HEIGHT = 256
    cfg.DATASETS.SYNTHETIC.WIDTH = 512
    cfg.DATASETS.SYNTHETIC.NUM_TRAIN = 400
    cfg.DATASETS.SYNTHETIC.NUM_VAL = 50
    cfg.DATASETS.SYNTHETIC.NUM_ANOMALY = 50
    cfg.DATASETS.SYNTHETIC.SEED = 0
    # Folder for rendered frames; "" renders on the fly.
    cfg.DATASETS.SYNTHETIC.CACHE_DIR = ""

    # "SGD" or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # With Detectron2's SOLVER.AMP.ENABLED: "float16", "bfloat16", or "auto", the first on a GPU and the
    # second on the CPU.
    cfg.SOLVER.AMP.DTYPE = "auto"
    # Learning-rate factor of everything outside the backbone.
    cfg.SOLVER.HEAD_LR_FACTOR = 1.0
    # LR_SCHEDULER_NAME also knows "WarmupPolyLR"; this is its power.
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # Norm layers are not decayed.
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    # So many of a run's last checkpoints, one every CHECKPOINT_PERIOD iterations (Detectron2's key), stay on
    # disk; 0: all. Should the last one be damaged, --resume goes on from the one before.
    cfg.SOLVER.CHECKPOINT_KEEP = 3
    # A step whose loss, features or gradients are NaN or infinite ends the training ("stop") or is left out
    # ("skip"): no optimiser step, nothing recorded for EM, running statistics of norms as before it. Ten such
    # steps in a row end the training too.
    cfg.SOLVER.NON_FINITE = "stop"
    # Where curves go beside metrics.json and TensorBoard's files: "tensorboard" (nowhere else), "wandb" or
    # "mlflow", whose package has to be installed and whose own variables say which server and project.
    cfg.SOLVER.LOGGER = "tensorboard"

    # Anomaly scores computed from one forward pass; the first one is the model's "anomaly_score". Empty: what
    # the model can give, its classifier's own score first.
    cfg.TEST.SCORES = []
    # NaN or infinity in a score ends the evaluation ("stop"), or counts as the largest finite score of its
    # map ("anomalous").
    cfg.TEST.NON_FINITE_SCORES = "stop"
    # The weights of the best evaluation (every EVAL_PERIOD iterations) stay in OUTPUT_DIR/model_best.pth: by
    # this number, named as in results.json ("camvid_test/sem_seg/mIoU"), the smallest FPR95 and ECE or the
    # largest of any other; "": none do.
    cfg.TEST.BEST_METRIC = ""
    # Post-processes of every score, in the order they are applied ("boundary_suppression",
    # "dilated_smoothing", "gaussian_smoothing", "guided_filter", "picture_level"); each score is reported
    # without and with them.
    cfg.TEST.POSTPROCESS = []
    # Other lists for some data sets, by name, in a config file: {road_obstacle: []}. Smoothing erases objects
    # of less than about 10 pixels.
    cfg.TEST.POSTPROCESS_OVERRIDES = CN(new_allowed=True)
    # Component metrics on the anomaly data sets, with the object sizes of a track of SegmentMeIfYouCan:
    # "anomaly", "obstacle" or "none"; "" is each data set's own.
    cfg.TEST.COMPONENT_TRACK = ""
    # Write every score map to OUTPUT_DIR/scores/<data set>/<score>/<image id>.npy (float16).
    cfg.TEST.SAVE_SCORES = False
    # Overlays of the first so many images of each data set, in OUTPUT_DIR/visualizations; of anomaly sets
    # also of half as many where the first score's AP is highest, and of half as many where it is lowest.
    cfg.TEST.NUM_VISUALIZATIONS = 8
    # What scores are computed on: "logits" (class evidence, enlarged to the image) or "features" (evidence at
    # the decoder's resolution; the score map is enlarged). Means over windows, scales and mirrored images are
    # taken of the evidence, logits and log-densities, in the first case, and of the scores in the second.
    cfg.TEST.SCORE_ON = "logits"
    # Inference in overlapping windows of SIZE (height, width) every STRIDE pixels, as MMSegmentation slides
    # them, instead of the whole image at once.
    cfg.TEST.SLIDING_WINDOW = CN()
    cfg.TEST.SLIDING_WINDOW.ENABLED = False
    cfg.TEST.SLIDING_WINDOW.SIZE = [768, 768]
    cfg.TEST.SLIDING_WINDOW.STRIDE = [512, 512]
    # Images of more pixels are looked at in windows of 768 x 768 every 512 pixels even so; 0: never. (Images
    # above twice PIL.Image.MAX_IMAGE_PIXELS, 179 megapixels, are not read at all.)
    cfg.TEST.MAX_WHOLE_PIXELS = 8_000_000
    # Detectron2's TEST.AUG.ENABLED looks at several scales, and with TEST.AUG.FLIP at mirrored images too.
    # The scales are factors of the test image's size (Detectron2's MIN_SIZES and MAX_SIZE are not used).
    cfg.TEST.AUG.SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
