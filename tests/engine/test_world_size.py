"""SOLVER.REFERENCE_WORLD_SIZE: fewer processes train longer, slower and on smaller batches."""

from __future__ import annotations

import pytest
from detectron2.engine import hooks

from gmm_anomaly.engine import Trainer, build_config
from gmm_anomaly.engine.checkpoint_hook import CheckpointHook


def trainer(folder, *overrides):
    return Trainer(
        build_config(
            "configs/synthetic/effnetlite0_deeplabv3plus_gmm.yaml",
            [
                "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.WEIGHTS", "", "MODEL.GMM.MEMORY_SIZE", 50,
                "MODEL.FEATURE_DISTANCE.FEATURES", [], "TEST.SCORES", ["msp"], "DATALOADER.NUM_WORKERS", 0,
                "DATASETS.SYNTHETIC.NUM_TRAIN", 3, "DATASETS.SYNTHETIC.HEIGHT", 64,
                "DATASETS.SYNTHETIC.WIDTH", 128, "DATASETS.SYNTHETIC.CACHE_DIR", "",
                "INPUT.CROP.SIZE", [64, 64], "SOLVER.IMS_PER_BATCH", 8, "SOLVER.BASE_LR", 0.02,
                "SOLVER.HEAD_LR_FACTOR", 1.0, "SOLVER.MAX_ITER", 100, "SOLVER.WARMUP_ITERS", 10,
                "SOLVER.CHECKPOINT_PERIOD", 20, "TEST.EVAL_PERIOD", 50,
                "OUTPUT_DIR", str(folder), *overrides,
            ],
        )
    )  # fmt: skip


@pytest.mark.parametrize("reference, factor", [(0, 1), (1, 1), (4, 4)])
def test_one_process_instead_of_several(tmp_path, reference, factor):
    """The linear rule: batch and rate by 1 / 4, iterations and periods by 4."""
    built = trainer(tmp_path, "SOLVER.REFERENCE_WORLD_SIZE", reference)
    assert built.max_iter == 100 * factor
    assert len(next(iter(built.data_loader))) == 8 // factor
    assert built.optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.02 / factor)
    (checkpoints,) = [hook for hook in built._hooks if isinstance(hook, CheckpointHook)]
    (evaluation,) = [hook for hook in built._hooks if isinstance(hook, hooks.EvalHook)]
    assert (checkpoints.period, evaluation._period) == (20 * factor, 50 * factor)
    # Halfway through the longer schedule the rate is what it is halfway through the other one.
    scheduler = built.scheduler
    for _ in range(50 * factor):
        built.optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr()[0] == pytest.approx(0.02 / factor * 0.5**0.9, rel=1e-6)
