"""The command `gmm-anomaly`: its verbs, what it hands on, exit statuses, and what it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from gmm_anomaly import __version__, cli
from gmm_anomaly.metrics import PROTOCOLS

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "synthetic/effnetlite0_deeplabv3plus_gmm.yaml"


@pytest.fixture
def started(monkeypatch):
    """The command lines that were to become train_net.py."""
    lines: list[list[str]] = []

    def become(program, words):
        assert program == words[0] == sys.executable and words[1] == str(ROOT / "train_net.py")
        lines.append(words[2:])
        sys.exit(0)

    monkeypatch.setattr(os, "execv", become)
    return lines


@pytest.fixture
def given(monkeypatch):
    """What the modules of verbs were given; the attribute ``error`` is what they raise."""
    calls = SimpleNamespace(args=[], error=None, trusted=[])

    def run(args):
        calls.args.append(args)
        if calls.error:
            raise calls.error

    modules = SimpleNamespace(run=run, trust_pickles=calls.trusted.append)
    monkeypatch.setattr(cli, "import_module", lambda name: modules)
    return calls


def test_help_waits_for_nothing_and_names_every_verb():
    code = (
        "import sys\nfrom gmm_anomaly import cli\n"
        "for verb in ['', *cli.VERBS]:\n"
        "    try:\n        cli.main([verb, '--help'] if verb else ['--help'])\n"
        "    except SystemExit as stop:\n        assert stop.code == 0\n"
        "heavy = {'torch', 'detectron2', 'cv2', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for verb in cli.VERBS:
        assert f"usage: gmm-anomaly {verb} " in done.stdout and f"\n    {verb} " in done.stdout
    # One spelling of every option; old ones are hidden.
    for old in cli.OLD_OPTIONS:
        assert f" {old} " not in done.stdout and f"[{old} " not in done.stdout
    assert f"{{{','.join(PROTOCOLS)}}}" in done.stdout


def test_every_verb_has_a_module():
    assert cli.MODULES.keys() | {"train", "evaluate"} == cli.VERBS.keys()
    for module in cli.MODULES.values():
        assert "\ndef run(args: " in Path(find_spec(module).origin).read_text()


def test_one_spelling_of_what_verbs_share():
    _, parsers = cli.build_parsers()
    having: dict[str, set[str]] = {}
    for verb, parser in parsers.items():
        for option in {word for action in parser._actions for word in action.option_strings}:
            having.setdefault(option, set()).add(verb)
        assert ("KEY VALUE" in (parser.epilog or "")) == (verb in having.get("--config-file", ()))
    models = {"train", "evaluate", "predict", "submit", "find-queries"}
    assert having["--config-file"] == models | {"fit", "export", "convert"}
    assert having["--weights"] == models | {"export"} and having["--device"] == models | {"fit"}
    assert having["--out"] == models | {"fit", "export", "report", "convert"}


def test_the_installed_command(capsys):
    assert 'gmm-anomaly = "gmm_anomaly.cli:main"' in (ROOT / "pyproject.toml").read_text()
    assert EntryPoint("gmm-anomaly", "gmm_anomaly.cli:main", "console_scripts").load() is cli.main
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"gmm-anomaly {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "arguments are required: VERB"),
        ("predit x.png", "invalid choice: 'predit'"),
        ("report run SEED 1", "unrecognized arguments: SEED 1"),
        (f"train --config-file {CONFIG} --resum", "unrecognized arguments: --resum"),
        ("train --config-file synthetic/effnetlite0_deeplabv3plus_gm.yaml", f"did you mean {CONFIG}"),
        (f"export --config-file {CONFIG} --out m.onnx --size 512", "expected HEIGHTxWIDTH such as 512x1024"),
        (f"predict x.png --config-file {CONFIG} --out o --batch-size 0", "expected 1 or more, found '0'"),
        ("datasets --register nowhere.py", "argument --register: there is no file nowhere.py"),
    ],
)
def test_bad_arguments_leave_with_2(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words.split())
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_training_and_evaluation_become_train_net(started):
    config, mine = str(ROOT / "configs" / CONFIG), __file__
    for words in (
        f"train --config-file {CONFIG} --resume --num-gpus 0 --register {mine} SOLVER.MAX_ITER 5 SEED 1",
        f"evaluate --config {CONFIG} --weights w.pth --device cpu --out o --trust-pickle TEST.SCORES []",
        # A misspelt key is the config's to name.
        f"train --config-file {CONFIG} SEEDS 1",
        f"train --eval-only --config-file {CONFIG} --opts SEED 1",
    ):
        with pytest.raises(SystemExit):
            cli.main(words.split())
    assert [" ".join(line).replace(config, "C").replace(mine, "M.py") for line in started] == [
        "--config-file C --num-gpus 0 --resume --register M.py SOLVER.MAX_ITER 5 SEED 1",
        "--config-file C --eval-only --trust-pickle MODEL.WEIGHTS w.pth MODEL.DEVICE cpu OUTPUT_DIR o "
        "TEST.SCORES []",
        "--config-file C SEEDS 1",
        "--config-file C --eval-only SEED 1",
    ]


def test_a_verb_gets_its_arguments(given):
    line = (
        f"predict IMG_1.JPG b.png --config {CONFIG} --calibrate-on d --out o --range -1 2.5 MODEL.DEVICE cpu"
    )
    assert cli.main(line.split()) == 0
    (args,) = given.args
    assert (args.inputs, args.threshold_on, args.out) == (["IMG_1.JPG", "b.png"], "d", Path("o"))
    assert args.range == [-1.0, 2.5] and args.opts == ["MODEL.DEVICE", "cpu"]
    assert args.config_file == str(ROOT / "configs" / CONFIG)
    assert given.trusted == [False]
    # As in version 0.1.
    assert cli.main("evaluate --scores maps --dataset d".split()) == cli.main(["check-datasets"]) == 0
    assert [found.verb for found in given.args[1:]] == ["score", "datasets"]
    more = "--trust-pickle --method m --device cpu --opts SEED 2"
    assert cli.main(f"submit --config-file {CONFIG} {more}".split()) == 0
    assert given.trusted == [False, True] and given.args[-1].opts == ["MODEL.DEVICE", "cpu", "SEED", "2"]


class ConfigError(ValueError):
    """Its name is what counts."""


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ValueError("no good"), 1, "error: no good"),
        (FileNotFoundError("no file"), 1, "error: no file"),
        (ConfigError("no key"), 2, "error: no key"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_told_in_one_line(given, capsys, error, status, told):
    given.error = error
    assert cli.main(["report", "run"]) == status
    printed = capsys.readouterr().err
    assert printed.startswith(told) and printed.count("\n") == 1
