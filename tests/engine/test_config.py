"""Configs: what does not fit is named with its file, what has no effect is named; what a config builds."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import hooks
from detectron2.modeling import build_model
from torch import nn

from gmm_anomaly.engine import Checkpointer, Trainer, build_config, inference_config
from gmm_anomaly.engine.config import ConfigError, key_values, read_config
from gmm_anomaly.engine.evaluation import verify_expected_results
from gmm_anomaly.engine.hooks import CheckpointHook
from gmm_anomaly.engine.trainer import build_optimizer, build_scheduler
from gmm_anomaly.values import check_values, rules

ROOT = Path(__file__).resolve().parents[2]
DEMO = "synthetic/effnetlite0_deeplabv3plus_gmm.yaml"
TINY = [
    "MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "test_efficientnet", "MODEL.BACKBONE.WEIGHTS", "",
    "MODEL.FEATURE_DISTANCE.FEATURES", [], "TEST.SCORES", ["msp"],
]  # fmt: skip


@pytest.mark.parametrize("inherited", [False, True])
@pytest.mark.parametrize(
    "text, message",
    [
        ("MODEL: {GMM: {NUM_COMPONENT: 3}}", r"no config key MODEL\.GMM\.NUM_COMPONENT; did you mean "),
        ("MODEL: {GMN: {LOGITS: x}}", r"no config key MODEL\.GMN; did you mean MODEL\.GMM\?"),
        ("MODEL: {GMM: 3}", r"MODEL\.GMM is a section; give its keys, such as MODEL\.GMM\.\w+"),
        ("MODEL: {GMM: {NUM_COMPONENTS: a}}", r"GMM\.NUM_COMPONENTS: expected int such as 5, found 'a'"),
        ("- SEED", "expected keys with values, found list"),
        ("VERSION: 7", "VERSION: expected 2, found 7"),
        ("_BASE_: 3", "_BASE_: expected a file or a list of files, found 3"),
        ("a: [", "cannot be read as YAML; "),
        ("SEED: 1\nINPUT: {FORMAT: BGR}\nINPUT: {}", "the key INPUT is given twice, in lines 2 and 3"),
        ("# gr\xfc\xdfe", "is not UTF-8 .*; save it as UTF-8"),
    ],
)
def test_a_file_is_named_with_what_does_not_fit(text, message, inherited, tmp_path):
    config = tmp_path / "bad.yaml"
    config.write_bytes(f"{text}\n".encode("latin-1"))
    if inherited:
        config = tmp_path / "child.yaml"
        config.write_text("_BASE_: bad.yaml\nSEED: 1\n")
    with pytest.raises(ConfigError, match=rf"--config-file: .*bad\.yaml.*{message}"):
        build_config(str(config))


@pytest.mark.parametrize(
    "pairs, message",
    [
        (["NUM_COMPONENTS", "3"], r"no config key NUM_COMPONENTS; did you mean MODEL\.GMM\.NUM_COMPONENTS\?"),
        (["MODEL.GMM.NUM_COMPONENTS", "abc"], "expected int such as 5, found 'abc'"),
        (["MODEL.GMM.NUM_COMPONENTS.X", "3"], r"no config key MODEL\.GMM\.NUM_COMPONENTS\.X"),
        (["MODEL.GMM", "3"], "is a section"),
        (["SEED", "3", "OUTPUT_DIR"], "found the key 'OUTPUT_DIR' without a value"),
    ],
)
def test_pairs_are_named(pairs, message):
    with pytest.raises(ConfigError, match=message):
        read_config(DEMO, pairs)


def test_files_give_what_detectron2_reads_from_them(tmp_path):
    """The oracle is Detectron2's own way to merge files."""
    (tmp_path / "base.yaml").write_text(
        "SEED: 4\nSOLVER: {BASE_LR: 1e-3, STEPS: [1, 2]}\nDATASETS: {TEST: [a]}"
    )
    (tmp_path / "other.yaml").write_text("SEED: 5\nTEST: {POSTPROCESS_OVERRIDES: {a: [], b_c: [x]}}")
    (tmp_path / "child.yaml").write_text(
        "_BASE_: [base.yaml, other.yaml]\nVERSION: 2\nSOLVER: {WEIGHT_DECAY_BIAS: 0.5}"
    )
    for file in (ROOT / "configs" / DEMO, tmp_path / "child.yaml"):
        expected = read_config()
        expected.merge_from_file(str(file))
        assert read_config(str(file)) == expected
    pairs = ["MODEL.GMM.NUM_COMPONENTS", "7", "SOLVER.WEIGHT_DECAY_BIAS", "0.5", "DATASETS.TRAIN", "('a',)"]
    expected.merge_from_list(pairs)
    assert read_config(str(file), pairs) == expected


def test_a_base_that_is_not_there_or_never_ends(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: none.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"_BASE_ chain of .*a\.yaml names .*none\.yaml"):
        read_config(str(tmp_path / "a.yaml"))
    (tmp_path / "none.yaml").write_text("_BASE_: a.yaml\n")
    with pytest.raises(ConfigError, match=r"_BASE_ chain of .*a\.yaml never ends"):
        read_config(str(tmp_path / "a.yaml"))


def test_configs_are_found_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_config(DEMO) == read_config(f"configs/{DEMO}") == read_config(str(ROOT / "configs" / DEMO))
    with pytest.raises(
        FileNotFoundError, match=r"no file synthetic/effnetlite0\.yaml, here .*mean synthetic/"
    ):
        read_config("synthetic/effnetlite0.yaml")


def test_keys_that_have_no_effect_are_named(caplog):
    keys = ["MODEL.RPN.NMS_THRESH", 0.5, "INPUT.MIN_SIZE_TRAIN", (640,), "SOLVER.STEPS", (5,)]
    with caplog.at_level(logging.WARNING):
        build_config(DEMO, [*TINY, *keys, "MODEL.PROTOTYPE.MOMENTUM", 0.5])
    (line,) = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert line.split(": ")[1].split(", ") == [
        "MODEL.RPN.NMS_THRESH", "MODEL.PROTOTYPE.MOMENTUM (MODEL.CLASSIFIER.NAME is 'gmm')",
        "INPUT.MIN_SIZE_TRAIN", "SOLVER.STEPS (SOLVER.LR_SCHEDULER_NAME is 'WarmupPolyLR')",
    ]  # fmt: skip
    caplog.clear()
    for file in (ROOT / "configs").glob("[!b]*/*.yaml"):
        build_config(str(file), ["MODEL.DEVICE", "cpu"])
    assert "no effect" not in caplog.text


# One of them is what no key of that type can be.
WRONG = {
    int: (-1, 0, 7, 254, 2**32),
    float: (-0.5, 0.0, 1.5, math.nan),
    str: ("cudo", ""),
    list: ([], [0, 0], [-1.0, 1.0], ["a", "a"], [1, 2, 3.5]),
    tuple: ((-1,), ("a", "a"), (3,)),
    type(None): (-1, "a"),
}


def test_every_key_with_numbers_has_a_rule_and_each_rule_names_its_key():
    values, ruled = key_values(read_config()), {key for key, _, _ in rules()}
    own = [key for key in values if key not in key_values(get_cfg()) and not key.startswith("DATASETS.SYN")]
    assert {key for key in own if type(values[key]) in (int, float, list)} <= ruled
    for key, expected, _ in rules():
        refused = []
        for value in WRONG[type(values[key])]:
            try:
                check_values(values | {key: value})
            except ValueError as error:
                refused.append(str(error))
        assert any(text.startswith(f"{key}: expected {expected}, found ") for text in refused), (key, refused)


@pytest.mark.parametrize(
    "key, value",
    [
        ("TEST.SCORES", ["msp", "msp"]),
        ("MODEL.META_ARCHITECTURE", "SemanticSegmentor"),
        ("MODEL.CLASSIFIER.NAME", "gm"),
        ("INPUT.CROP.SIZE", [64]),
        ("INPUT.CROP.TYPE", "relative"),
        ("SOLVER.REFERENCE_WORLD_SIZE", 3),
        ("TEST.POSTPROCESS", ["x"]),
        ("TEST.EXPECTED_RESULTS", [["synthetic_street_val", "mIoU", 1.0, 99.0]]),
        ("TEST.EXPECTED_RESULTS", [["sem_seg", "mIoU", 1.0]]),
        ("TEST.EXPECTED_RESULTS", [["synthetic_street_val/sem_seg", "mIou", 1.0, 99.0]]),
        ("TEST.BEST_METRIC", "synthetic_street_val/mIoU"),
        ("TEST.BEST_METRIC", "synthetic_street_anomaly/anomaly/smiyc/hybrid/AP"),
        ("TEST.BEST_METRIC", "synthetic_street_anomaly/anomaly/pooled/hybird/AP"),
    ],
)
def test_values_that_cannot_be_are_named_at_the_start(key, value):
    with pytest.raises(ValueError, match=rf"{key}: "):
        build_config(DEMO, [*TINY, key, value])


def test_expected_results_are_found_by_their_names():
    expected = [["val/sem_seg", "mIoU", 50, 2], ["sem_seg", "IoU-a/b", 1.0, 0.1]]
    cfg = read_config("", ["TEST.EXPECTED_RESULTS", expected])
    verify_expected_results(cfg, {"val": {"sem_seg": {"mIoU": 51.0, "IoU-a/b": 1.0}}})
    verify_expected_results(cfg, {})
    with pytest.raises(ValueError, match=r"val/sem_seg/mIoU is nan, expected 50 \+- 2; .*IoU-a/b is none"):
        verify_expected_results(cfg, {"val": {"sem_seg": {"mIoU": math.nan}}})


def test_a_classifier_alone_is_a_config(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    keys = ["MODEL.CLASSIFIER.NAME", "softmax", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", "~/run"]
    cfg = build_config("", [*keys, "MODEL.BACKBONE.WEIGHTS", "~/w.pth"])
    assert cfg.TEST.SCORES == [] and cfg.OUTPUT_DIR == "/home/me/run"
    assert cfg.MODEL.BACKBONE.WEIGHTS == "/home/me/w.pth" and cfg.MODEL.WEIGHTS == ""
    (found,) = build_model(build_config("", keys)).eval()([{"image": torch.zeros(3, 64, 70)}])
    assert list(found["anomaly_scores"]) == ["msp", "max_logit", "energy", "entropy"]


def test_a_checkpoint_predicts_the_same_without_memory_and_pretrained_weights(tmp_path):
    cfg = build_config(DEMO, [*TINY, "MODEL.GMM.MEMORY_SIZE", 500, "MODEL.GMM.SAVE_MEMORY", True])
    torch.manual_seed(0)
    trained = build_model(cfg).eval()
    bank = trained.bank
    bank.means.copy_(nn.functional.normalize(torch.randn_like(bank.means), dim=-1))
    bank.fitted.fill_(True)
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
    for name in ("sem_seg", "anomaly_score"):
        assert torch.equal(found[name], expected[name]), name
    assert cfg.MODEL.GMM.MEMORY_SIZE == 500 and cfg.MODEL.GMM.SAVE_MEMORY, "the training's config stays"


def test_one_process_instead_of_several(tmp_path):
    """SOLVER.REFERENCE_WORLD_SIZE, the linear rule: batch and rate by 1 / 4, iterations and periods by 4."""
    keys = [
        "MODEL.GMM.MEMORY_SIZE", 50, "DATALOADER.NUM_WORKERS", 0, "DATASETS.SYNTHETIC.NUM_TRAIN", 3,
        "DATASETS.SYNTHETIC.HEIGHT", 64, "DATASETS.SYNTHETIC.WIDTH", 128, "DATASETS.SYNTHETIC.CACHE_DIR", "",
        "MODEL.GMM.HEALTH_PERIOD", 0, "INPUT.CROP.SIZE", [32, 32], "SOLVER.IMS_PER_BATCH", 8,
        "SOLVER.BASE_LR", 0.02, "SOLVER.HEAD_LR_FACTOR", 1.0, "SOLVER.MAX_ITER", 100,
        "SOLVER.WARMUP_ITERS", 10, "SOLVER.CHECKPOINT_PERIOD", 20, "TEST.EVAL_PERIOD", 50,
        "OUTPUT_DIR", str(tmp_path), "SOLVER.REFERENCE_WORLD_SIZE", 4,
    ]  # fmt: skip
    built = Trainer(build_config(DEMO, [*TINY, *keys]))
    assert built.max_iter == 400
    assert len(next(iter(built.data_loader))) == 2
    assert built.optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.005)
    (checkpoints,) = [hook for hook in built._hooks if isinstance(hook, CheckpointHook)]
    (evaluation,) = [hook for hook in built._hooks if isinstance(hook, hooks.EvalHook)]
    assert (checkpoints.period, evaluation._period) == (80, 200)
    # Halfway through the longer schedule the rate is what it is halfway through the other one.
    for _ in range(200):
        built.optimizer.step()
        built.scheduler.step()
    assert built.scheduler.get_last_lr()[0] == pytest.approx(0.005 * 0.5**0.9, rel=1e-6)


def test_optimizer_groups_follow_the_keys():
    model = nn.ModuleDict(
        {"backbone": nn.Linear(2, 2), "head": nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))}
    )
    keys = [
        "SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", 0.001, "SOLVER.HEAD_LR_FACTOR", 10.0,
        "SOLVER.WEIGHT_DECAY", 0.01, "SOLVER.WEIGHT_DECAY_NORM", 0.0,
    ]  # fmt: skip
    optimizer = build_optimizer(read_config("", keys), model)
    assert isinstance(optimizer, torch.optim.AdamW)
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found[parameter] = (group["lr"], group["weight_decay"])
    assert found[model["backbone"].weight] == (0.001, 0.01)
    assert found[model["head"][0].weight] == (0.01, 0.01)
    assert found[model["head"][1].weight] == (0.01, 0.0)
    with pytest.raises(ValueError, match=r'SOLVER\.OPTIMIZER: expected "SGD" or "ADAMW", found \'LION\''):
        build_optimizer(read_config("", ["SOLVER.OPTIMIZER", "LION"]), model)


def test_poly_schedule_with_warm_up_is_its_formula():
    keys = [
        "SOLVER.BASE_LR", 1.0, "SOLVER.MAX_ITER", 100, "SOLVER.WARMUP_ITERS", 10, "SOLVER.WARMUP_FACTOR", 0.1,
        "SOLVER.POLY_LR_POWER", 0.9,
    ]  # fmt: skip
    cfg = read_config("", keys)
    optimizer = build_optimizer(cfg, nn.Linear(1, 1))
    scheduler = build_scheduler(cfg, optimizer)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # The warm-up rises in a line, from a tenth, to where the polynomial is when it ends.
    end = (1 - 10 / 100) ** 0.9
    first = rates[0]
    assert rates[:10] == pytest.approx([first + (end - first) * i / 10 for i in range(10)], rel=1e-6)
    assert 0.05 < first <= 0.1
    assert rates[10:] == pytest.approx([(1 - i / 100) ** 0.9 for i in range(10, 100)], rel=1e-6)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir ['{target}']", "!!python/tuple [1, 2]"])
def test_tags_that_make_python_objects_are_not_run(tag, tmp_path):
    target = tmp_path / "hacked"
    (tmp_path / "bad.yaml").write_text(f"VERSION: 2\nSEED: {tag.format(target=target)}\n")
    (tmp_path / "child.yaml").write_text("_BASE_: bad.yaml\nVERSION: 2\n")
    for name in ("bad.yaml", "child.yaml"):
        with pytest.raises(ValueError, match=r"bad\.yaml cannot .* hold plain values only.*python/.*line 2"):
            build_config(str(tmp_path / name))
    cfg = build_config("", ["OUTPUT_DIR", f"__import__('os').mkdir('{target}')"])
    assert cfg.OUTPUT_DIR.startswith("__import__") and not target.exists()
