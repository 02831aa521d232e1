#!/usr/bin/env python
"""Make a finished run into one small file to hand on: parameters in half precision, config and threshold
inside, and README.md beside it with where it comes from and the file's own figures.

The bundled model was made so: python tools/publish.py RUN_DIR --out gmm_anomaly/bundled/road.pth
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from detectron2.data import MetadataCatalog  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from tabulate import tabulate  # noqa: E402
from tqdm import tqdm  # noqa: E402

from gmm_anomaly import AnomalyPredictor  # noqa: E402
from gmm_anomaly.data.reading import CLOSED_SET  # noqa: E402
from gmm_anomaly.engine import Checkpointer, build_config, inference_config  # noqa: E402
from gmm_anomaly.engine.trained_model import save_model  # noqa: E402

CARD = """# {name}, {megabytes:.1f} MB

- Trained by `python {command}` (commit {commit}); parameters then halved in precision by `tools/publish.py`.
- Data: {data}. Their terms hold for what was learnt from them (datasets/README.md).
- Threshold of `{score}`: {value:.4g}; above it lie {fpr:.2f} % of the known pixels of {dataset}.
- Config and threshold are inside: `--weights {name}` needs no `--config-file`.

Figures of this very file, in percent:

{figures}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN_DIR", help="OUTPUT_DIR of the training")
    add("--weights", default="model_final.pth", help="file in RUN_DIR (model_final.pth)")
    add("--out", type=Path, required=True, metavar="FILE.pth")
    add("--threshold-on", metavar="DATASET", help="default: the first of known classes in DATASETS.TEST")
    add("--target-fpr", type=float, default=0.05, help="of known pixels, for the threshold (0.05)")
    parser.epilog = "KEY VALUE pairs at the end are for the config inside, such as DATASETS.TEST"
    args, pairs = parser.parse_known_args()
    cfg = build_config(str(args.run / "config.yaml"), pairs)
    closed = [name for name in cfg.DATASETS.TEST if MetadataCatalog.get(name).evaluator_type == CLOSED_SET]
    if not (args.threshold_on or closed):
        parser.error(f"{args.run}/config.yaml: DATASETS.TEST has no known classes; give --threshold-on")
    model = build_model(inference_config(cfg))
    Checkpointer(model, cfg=cfg).load_for_evaluation(str(args.run / args.weights))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_model(cfg, model, args.out, half=True)
    predictor = AnomalyPredictor.from_config(args.out)
    threshold = predictor.fit_threshold(args.threshold_on or closed[0], args.target_fpr, progress=tqdm)
    save_model(cfg, model, args.out, half=True, threshold=asdict(threshold))
    folder = args.run / "published"
    out = str(args.out.resolve())
    command = ["train_net.py", "--eval-only", "--config-file", out, "MODEL.WEIGHTS", out]
    subprocess.run([sys.executable, *command, "OUTPUT_DIR", str(folder.resolve())], cwd=ROOT, check=True)
    made = json.loads((args.run / "run.json").read_text()) if (args.run / "run.json").is_file() else {}
    made = made.get("command", ["train_net.py", "--config-file", str(args.run / "config.yaml")])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    card = CARD.format(
        name=args.out.name,
        megabytes=args.out.stat().st_size / 1e6,
        command=shlex.join(made),
        commit=commit.stdout.strip() or "unknown",
        data=", ".join(cfg.DATASETS.TRAIN),
        score=threshold.score,
        value=threshold.value,
        fpr=100 * threshold.measured_fpr,
        dataset=threshold.dataset,
        figures=figures(json.loads((folder / "results.json").read_text())["datasets"]),
    )
    (args.out.parent / "README.md").write_text(card)


def figures(datasets: dict) -> str:
    """The table of a ``results.json``, one line a data set and score."""
    shown = ("AP", "AUROC", "FPR95")
    lines = []
    for data, found in datasets.items():
        if "sem_seg" in found:
            lines.append([data, "mIoU", f"{found['sem_seg']['mIoU']:.1f}"])
        for score, numbers in found.get("anomaly", {}).items():
            lines.append([data, score, "", *(f"{100 * numbers[name]:.1f}" for name in shown)])
    return tabulate(lines, ["data", "score", "mIoU", *shown], "github", disable_numparse=True)


if __name__ == "__main__":
    main()
