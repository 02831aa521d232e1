"""Config keys that do not exist and values of another type are named with their file; exit status 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmm_anomaly.engine import build_config
from gmm_anomaly.engine.config import read_config
from gmm_anomaly.engine.config_merge import ConfigError
from gmm_anomaly.export import command as export_command
from gmm_anomaly.prediction import command as predict_command

ROOT = Path(__file__).resolve().parents[2]
DEMO = "synthetic/effnetlite0_deeplabv3plus_gmm.yaml"


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "MODEL: {GMM: {NUM_COMPONENT: 3}}",
            r"no config key MODEL\.GMM\.NUM_COMPONENT; did you mean MODEL\.GMM",
        ),
        ("MODEL: {GMN: {LOGITS: x}}", r"no config key MODEL\.GMN; did you mean MODEL\.GMM\?"),
        ("MODEL: {GMM: 3}", r"MODEL\.GMM is a section; give its keys, such as MODEL\.GMM\.\w+"),
        ("MODEL: {GMM: {NUM_COMPONENTS: many}}", r"NUM_COMPONENTS: expected int such as 5, found 'many'"),
        ("- SEED", "expected keys with values, found list"),
        ("VERSION: 7", "Cannot merge a v7 config into a v2 config"),
        ("_BASE_: 3", "_BASE_: expected a file or a list of files, found 3"),
    ],
)
@pytest.mark.parametrize("inherited", [False, True])
def test_a_file_is_named_with_what_does_not_fit(text, message, inherited, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text(f"{text}\n")
    config = bad
    if inherited:
        config = tmp_path / "child.yaml"
        config.write_text("_BASE_: bad.yaml\nSEED: 1\n")
    # The version is compared once all files are one.
    named = config if "VERSION" in text else bad
    with pytest.raises(ConfigError, match=rf"--config-file: .*{named.name}: .*{message}"):
        build_config(str(config))


@pytest.mark.parametrize(
    "pairs, message",
    [
        (["MODEL.GMM.NUM_COMPONENT", "3"], r"did you mean MODEL\.GMM\.NUM_COMPONENTS\?"),
        (["NUM_COMPONENTS", "3"], r"no config key NUM_COMPONENTS; did you mean MODEL\.GMM\.NUM_COMPONENTS\?"),
        (["MODEL.GMM.NUM_COMPONENTS", "abc"], "expected int such as 5, found 'abc'"),
        (["MODEL.GMM.NUM_COMPONENTS.X", "3"], r"no config key MODEL\.GMM\.NUM_COMPONENTS\.X"),
        (["MODEL.GMM", "3"], "is a section"),
        (["SEED", "3", "OUTPUT_DIR"], "found the key 'OUTPUT_DIR' without a value"),
    ],
)
def test_pairs(pairs, message):
    with pytest.raises(ConfigError, match=message):
        read_config(DEMO, pairs)


def test_values_arrive():
    cfg = read_config(DEMO, ["MODEL.GMM.NUM_COMPONENTS", "7", "SOLVER.WEIGHT_DECAY_BIAS", "0.5"])
    assert (cfg.MODEL.GMM.NUM_COMPONENTS, cfg.SOLVER.WEIGHT_DECAY_BIAS) == (7, 0.5)


def test_a_base_that_is_not_there(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: none.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"_BASE_ chain of .*a\.yaml names .*none\.yaml"):
        read_config(str(tmp_path / "a.yaml"))


def test_configs_are_found_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_config(DEMO) == read_config(f"configs/{DEMO}") == read_config(str(ROOT / "configs" / DEMO))
    with pytest.raises(
        FileNotFoundError, match=r"no file synthetic/effnetlite0\.yaml, here .*mean synthetic/"
    ):
        read_config("synthetic/effnetlite0.yaml")


def test_verbs_leave_with_2(tmp_path, capsys):
    # train_net.py: tests/test_packaging.py.
    for main, arguments in (
        (predict_command.main, ["--config", DEMO, "--calibrate-on", "x", "--opts", "SEEDS", "1"]),
        (export_command.main, ["--config-file", DEMO, "--format", "torchscript", "SEEDS", "1"]),
    ):
        assert main(["--out", str(tmp_path / "out"), *arguments]) == 2
        assert "error: there is no config key SEEDS; did you mean SEED?" in capsys.readouterr().err
