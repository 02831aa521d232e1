"""A trained model that only predicts: without its memory and without pretrained weights, the same outputs."""

from __future__ import annotations

import torch
from detectron2.modeling import build_model

from gmm_anomaly.engine import Checkpointer, build_config, inference_config
from tools.benchmarks.models import make_ready


def test_a_checkpoint_predicts_the_same_without_memory_and_pretrained_weights(tmp_path):
    cfg = build_config(
        "configs/synthetic/effnetlite0_deeplabv3plus_gmm.yaml",
        [
            "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.WEIGHTS", "", "MODEL.GMM.MEMORY_SIZE", 500,
            "MODEL.GMM.SAVE_MEMORY", True, "MODEL.FEATURE_DISTANCE.FEATURES", [], "TEST.SCORES", ["msp"],
        ],
    )  # fmt: skip
    torch.manual_seed(0)
    trained = build_model(cfg).eval()
    make_ready(trained)
    bank = trained.bank
    components = bank.num_classes * bank.num_components
    bank.memory.fill(torch.randn(components, 500, bank.dim), torch.zeros(components, dtype=torch.int64))
    Checkpointer(trained, str(tmp_path)).save("trained")

    cfg.defrost()
    cfg.MODEL.BACKBONE.WEIGHTS = str(tmp_path / "not_here.pth")
    cfg.freeze()
    light = build_model(inference_config(cfg)).eval()
    Checkpointer(light).load_for_evaluation(str(tmp_path / "trained.pth"))
    kept, full = (sum(b.nbytes for b in model.bank.memory.buffers()) for model in (light, trained))
    assert kept < 0.1 * full
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        found, expected = light([{"image": image}])[0], trained([{"image": image}])[0]
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert cfg.MODEL.GMM.MEMORY_SIZE == 500 and cfg.MODEL.GMM.SAVE_MEMORY, "the training's config stays"
