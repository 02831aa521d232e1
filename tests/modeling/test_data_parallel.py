"""Every backbone under every decoder trains in two gloo processes: no parameter is left without a gradient.

Run as a script, this file is the two ranks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.modeling import build_model

from gmm_anomaly.compat import wrap_distributed
from gmm_anomaly.modeling.registry import DECODER_REGISTRY
from tests.modeling.conftest import config_of
from tests.modeling.test_backbones import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *("MODEL.CLASSIFIER.NAME", "softmax", "MODEL.CLASSIFIER.NUM_CLASSES", 3),
    *("MODEL.DECODER.CHANNELS", 8, "MODEL.DECODER.AUX_CHANNELS", 8),
    *("MODEL.FEATURE_DISTANCE.BACKBONE", "trained"),
]
# "none" belongs to what is not trained; the other two families are of the same classes.
COMBINATIONS = [
    (family, decoder)
    for family in FAMILIES
    for decoder, _ in DECODER_REGISTRY
    if decoder != "NoDecoder" and family not in ("timm-resnet-stride8", "vit-patch14")
]
# Decoders of two features that leave a network's tail unread.
WITHOUT_THE_LAST = {
    "resnet50": ["res2", "res3"], "mit": ["stage1", "stage3"], "efficientnet": ["level1", "level3"],
    "swin": ["level0", "level2"], "convnext": ["level1", "level2"], "hrnet": ["level1", "level2"],
}  # fmt: skip


def train(rank: int, *overrides) -> None:
    cfg = config_of("MODEL.DECODER.IN_FEATURES", [], *TINY, *overrides)
    torch.manual_seed(0)
    segmentor = build_model(cfg).train()
    model = wrap_distributed(segmentor)
    assert not model.find_unused_parameters
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(2):
        inputs = [
            {
                "image": torch.randint(0, 256, (3, 64, 64), generator=generator),
                "sem_seg": torch.randint(0, 3, (64, 64), generator=generator),
            }
            for _ in range(2)
        ]
        optimizer.zero_grad()
        sum(model(inputs).values()).backward()
        optimizer.step()
    idle = [name for name, p in segmentor.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle, idle
    total = torch.stack([p.detach().sum() for p in segmentor.parameters()])
    other = total.clone()
    dist.broadcast(other, 0)
    assert torch.equal(total, other)


def run_rank(rank: int, meeting: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for family, decoder in COMBINATIONS:
        print(family, decoder, flush=True)
        # A level that distances are measured on, which few decoders read.
        measured = {"res": "res4", "mit": "stage3", "vit": "p4"}.get(family[:3], "level3")
        more = ("MODEL.DECODER.NAME", decoder, "MODEL.FEATURE_DISTANCE.FEATURES", [measured])
        train(rank, *FAMILIES[family][0], *more)
    for family, levels in WITHOUT_THE_LAST.items():
        print(family, "tail", flush=True)
        train(rank, *FAMILIES[family][0], "MODEL.DECODER.IN_FEATURES", levels)
    dist.destroy_process_group()


def test_every_backbone_under_every_decoder(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    command = [sys.executable, "-W", "ignore", __file__, str(tmp_path / "meeting")]
    done = subprocess.run(
        command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-4000:]
    assert done.stdout.count("\n") == 2 * (len(COMBINATIONS) + len(WITHOUT_THE_LAST)) > 100


if __name__ == "__main__":
    # Forked after the imports, which take most of the time.
    child = os.fork()
    run_rank(0 if child else 1, sys.argv[1])
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
