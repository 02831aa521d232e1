"""What each verb of `gmm-anomaly` takes; its docstring is what --help says of it. An option is spelt one way
for all verbs, and nothing is imported that --help would have to wait for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_fits, add_json, add_model, add_register, at_least_one, image_size

# fmt: off

def train(parser: argparse.ArgumentParser) -> None:
    """Train a model; the evaluation follows. What is written lies in OUTPUT_DIR."""
    launched(parser)
    add = parser.add_argument
    add("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR if there is one")
    add_fits(parser)
    add("--eval-only", action="store_true", help=argparse.SUPPRESS)


def evaluate(parser: argparse.ArgumentParser) -> None:
    """Metrics of a trained model on DATASETS.TEST, as a table and in OUTPUT_DIR/results.json."""
    launched(parser)
    parser.set_defaults(eval_only=True)


def launched(parser: argparse.ArgumentParser) -> None:
    """What train_net.py takes either way."""
    add_model(parser)
    add_register(parser)
    add = parser.add_argument
    add("--out", metavar="DIR", help="the config's OUTPUT_DIR")
    add("--num-gpus", metavar="N", help="processes on this machine; 0: one, on the CPU")
    add("--num-machines", metavar="N", help="machines (1)")
    add("--machine-rank", metavar="K", help="which of them this one is, from 0")
    add("--dist-url", metavar="URL", help="where processes meet, with several machines")


def fit(parser: argparse.ArgumentParser) -> None:
    """Fit a detector of anomalies to a folder of ordinary frames of a camera, without labels or training.

    Ten frames are enough, a few hundred take a minute or two on two CPU cores. predict, evaluate and export
    take the file written as --weights, without a config.

    Exit status: 0; 1 after an error, or if a frame could not be read (the others are used).
    """
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="frames of what is normal; folders inside count too")
    add("--out", type=Path, default=Path("detector.pth"), metavar="FILE", help="default: detector.pth")
    add("--config-file", default="detector/effnetlite0.yaml", metavar="FILE",
        help="the network and its levels; default: detector/effnetlite0.yaml")
    add("--outliers", metavar="SOURCE",
        help="paste objects into the frames once more and fit to them what tells them apart: 'rendered' (no "
        "download), a folder of RGBA cut-outs or of photos to cut pieces of, or a .json of COCO annotations")
    add("--device", help="cpu, cuda or cuda:N; default: a GPU where there is one")


def predict(parser: argparse.ArgumentParser) -> None:
    """Predict anomalies in images and videos.

    Writes into --out: overlays/, segmentation/ and, if asked for, scores/ and components/ for images; videos/
    for videos, with a line of JSON per frame. A threshold makes pixels anomalous: the bundled model has one,
    for others give --threshold-on, --threshold-file or --threshold; without one there are heat maps only.

    Exit status: 0; 1 after an error, or if an input could not be read, or not wholly (the others are
    predicted); 2 for a bad argument or config.
    """
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT",
        help="image, video, folder of these, or a pattern in quotes ('**' goes into subfolders)")
    add_model(parser)
    add_register(parser)
    add("--out", type=Path, default=Path("scored"), metavar="DIR", help="folder to write into (scored)")
    add("--score", metavar="NAME[+POST...]",
        help="which of TEST.SCORES, with post-processes after it; default: the first, with TEST.POSTPROCESS")
    add("--batch-size", type=at_least_one, default=1, metavar="N", help="images of one size at a time (1)")
    add("--half", action="store_true", help="half precision: float16, on the CPU bfloat16")
    add("--save-score", choices=("npy", "png16"),
        help="raw scores as float32 .npy, or as 16-bit .png with scale and offset in its text chunks")
    add("--range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="scores of the darkest and brightest colour; default: those of the threshold's data set, else "
        "those of the first image, for all that follow")
    threshold = parser.add_mutually_exclusive_group()
    threshold.add_argument(
        "--threshold-on", metavar="DATASET",
        help="find the threshold on the known pixels of a registered data set with labels, and write it to "
        "threshold.json in --out",)
    threshold.add_argument("--threshold-file", metavar="FILE", help="one that --threshold-on wrote")
    threshold.add_argument("--threshold", type=float, metavar="X", help="a score: above it is anomalous")
    add("--target-fpr", type=float, metavar="RATE",
        help="with --threshold-on: the share of known pixels that may be called anomalous (0.05)")
    add("--min-area", type=int, metavar="N", help="with a threshold: smallest anomaly in pixels (50)")
    add_json(parser)


def score(parser: argparse.ArgumentParser) -> None:
    """Metrics of score maps that any program saved."""
    add = parser.add_argument
    add("--scores", type=Path, required=True, metavar="DIR",
        help="one map per image, named as the image: .npy, .npz, .hdf5 (dataset 'value'), or 16-bit .png, of "
        "which only the ranks count (text chunks 'scale' and 'offset' are used if present)")
    add("--dataset", required=True, metavar="NAME", help="a registered data set with labels")
    add("--protocol", choices=("pooled", "fishyscapes", "smiyc", "smiyc_uniform", "per_image"),
        help="default: that of the data set's own benchmark; docs/protocols.md says what each counts")
    add("--components", choices=("anomaly", "obstacle", "none"),
        help="component metrics with the sizes of this SegmentMeIfYouCan track; default: the data set's own")
    add("--precision", choices=("float16", "float32"),
        help="what scores are rounded to; default: float16 under smiyc, float32 under fishyscapes, else none")
    add("--method", metavar="NAME", help="name in the table; default: the folder's")
    add("--suffix", default="", help="what the maps' stems end with beyond the image's name")
    add("--key", help="name of the array in .npz and HDF5 files")
    add("--resize", action="store_true", help="interpolate maps of another size than the label")
    add("--json", nargs="?", type=Path, const=Path("-"), metavar="FILE",
        help="write the results there as well; without FILE they are printed as JSON instead of the table")
    add_register(parser)


def export(parser: argparse.ArgumentParser) -> None:
    """Export a trained model: image in, segmentation and anomaly score out.

    Normalisation, channel order, padding and the score are inside the file, and its metadata holds class
    names, palette, score, threshold, version and what an image must be. At the end the file runs on real
    images beside PyTorch: above a relative error of 1e-3 it is refused and not written. FILE.json keeps what
    was found.

    Exit status: 0; 1 after an error or a refusal; 2 for a bad argument or config.
    """
    add_model(parser, device=False)
    add_register(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    add("--format", choices=("onnx", "torch-export"), default="onnx", help="default: onnx")
    add("--score", metavar="NAME", help="which score of the model; default: the first of TEST.SCORES")
    add("--size", type=image_size, metavar="HxW",
        help="fix height and width, such as 512x1024; default: any, where the network allows that")
    add("--input-type", choices=("uint8", "float32"), default="uint8", help="of the image, 0 to 255 (uint8)")
    add("--threshold-file", metavar="FILE", help="one that `gmm-anomaly predict --threshold-on` wrote")
    add("--images", metavar="DIR_OR_DATASET",
        help="what to check with: a folder, file, pattern or registered data set; default: synthetic streets")
    add("--num-images", type=at_least_one, default=4, metavar="N", help="how many of them (4)")
    add_json(parser)


def report(parser: argparse.ArgumentParser) -> None:
    """One self-contained HTML page of a run, or of several side by side."""
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN_DIR", help="OUTPUT_DIR of a training or evaluation")
    add("--out", type=Path, metavar="FILE",
        help="the page; default: report.html in the run's folder, or in the current one for several runs")
    add("--pictures", type=int, default=3, metavar="K",
        help="so many of the best and of the worst images of a data set (3)")
    add_json(parser)


def datasets(parser: argparse.ArgumentParser) -> None:
    """Say for each data set whether it is there, what to download and where to put it, or download it.

    Sizes, licences and checksums stand below the list. A download that was interrupted goes on when the
    command is given again; --download asks for no consent, so read the licence first.

    Exit status: 0 if all that were asked for are there and complete; 1 if not; 2 for a bad argument.
    """
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="data sets, or patterns such as 'camvid*'; none: all")
    add("--download", action="append", default=[], metavar="NAME",
        help="get a data set that is public, check it and unpack it below $DETECTRON2_DATASETS (may be "
        "repeated)")
    add("--deep", action="store_true", help="open every file, and check label values and sizes")
    add_register(parser)
    add_json(parser)


def convert(parser: argparse.ArgumentParser) -> None:
    """Convert a checkpoint of MMSegmentation, the released GMMSeg's among them, or a file of a backbone alone
    (torchvision's ResNets, official Swin and SegFormer files) to a checkpoint for MODEL.WEIGHTS.

    Prints what matched. Nothing is written unless every tensor of the config's model is filled, but for those
    that --allow-missing names.
    """
    add_model(parser, weights=False, device=False)
    add = parser.add_argument
    add("input", type=Path, metavar="INPUT.pth", help="the checkpoint to convert")
    add("--out", dest="output", type=Path, metavar="OUTPUT.pth",
        help="the checkpoint to write; its name may also stand behind INPUT.pth")
    add("output", nargs="?", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("--allow-missing", action="append", default=[], metavar="PREFIX",
        help="write without the model's tensors that begin so (may be repeated)")


def submit(parser: argparse.ArgumentParser) -> None:
    """Write a submission to SegmentMeIfYouCan: one HDF5 file of float16 scores per frame, in its layout.

    An interrupted run goes on where it stopped. Every file is read back after it is written.
    """
    add_model(parser)
    add_register(parser)
    add = parser.add_argument
    add("--out", type=Path, default=Path("output/smiyc"), metavar="DIR",
        help="folder that will hold outputs/ (output/smiyc)")
    add("--method", required=True, metavar="NAME", help="the method's name in the benchmark")
    add("--score", metavar="NAME[+POST...]",
        help="score to submit, with the post-processes after it, as in results.json; default: the first")
    add("--dataset", action="append", metavar="NAME[=FOLDER]",
        help="registered data set, and the benchmark's folder for it where its name does not tell (may be "
        "repeated); default: road_anomaly21_all and road_obstacle21_all")
    add("--offset", type=float, default=0.0,
        help="(score - OFFSET) / SCALE is stored, one pair for every frame. Not needed unless scores exceed "
        "65504; but float16 keeps 11 bits, so scores near 0 are told apart best")
    add("--scale", type=float, default=1.0, help="see --offset; above 0")
    add("--overwrite", action="store_true", help="begin a submission of this name anew")


def find_queries(parser: argparse.ArgumentParser) -> None:
    """Find the queries of a mask model that light up on anomalies, and on the road, for the score maskomaly.

    The queries hold for one checkpoint. They are found with labels: report no figures on the images used.
    The file written is a config: the given one with the query sets, the weights they hold for, and the
    overrides of MODEL and INPUT in it.
    """
    add_model(parser)
    add_register(parser)
    add = parser.add_argument
    add("--out", type=Path, default=Path("output/maskomaly.yaml"), metavar="FILE",
        help="config to write (output/maskomaly.yaml)")
    add("--dataset", required=True, metavar="NAME", help="registered anomaly data set with labels")
    add("--road-dataset", metavar="NAME",
        help="registered closed set with labels; without it the config's road queries stay as they are")
    add("--road-class", metavar="NAME", help="its class (road)")
    add("--minimum-iou", type=float, default=0.25, metavar="X",
        help="mean IoU that a query needs (0.25, Maskomaly's)")
    add("--at-least", type=int, default=0, metavar="N",
        help="anomaly queries to take even if fewer reach it (0)")
    add("--mask-threshold", type=float, default=0.9, metavar="X",
        help="mask value above which a pixel is covered (0.9, Maskomaly's)")


def doctor(parser: argparse.ArgumentParser) -> None:
    """Say what is installed, what is missing and how to mend it, which data sets and weights are found."""
    add_json(parser)


VERBS = {
    "train": train, "evaluate": evaluate, "fit": fit, "predict": predict, "score": score, "export": export,
    "report": report, "datasets": datasets, "convert": convert, "submit": submit,
    "find-queries": find_queries, "doctor": doctor,
}
