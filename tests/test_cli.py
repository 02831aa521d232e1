"""The command `gmm-anomaly`: its verbs, exit statuses, and what it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from gmm_anomaly import __version__, cli

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "gmm_anomaly.cli", *arguments],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip


def test_help_lists_every_verb_and_says_what_it_does(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line for line in printed.splitlines() if line.startswith("  ")}
    assert set(lines) == set(cli.VERBS)
    assert {"train", "evaluate", "predict", "check-datasets", "doctor"} <= set(lines)
    for verb, (target, what) in cli.VERBS.items():
        assert lines[verb].endswith(what)
        path = target if target.endswith(".py") else target.replace(".", "/") + ".py"
        assert (ROOT / path).is_file()
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"gmm-anomaly {__version__}\n")


def test_an_unknown_verb(capsys):
    assert cli.main(["predit", "x.png"]) == 2
    assert "unknown verb 'predit'" in capsys.readouterr().err


def test_a_verb_of_the_package_gets_its_arguments_and_returns_its_status(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict"])
    assert stop.value.code == 2
    assert "gmm-anomaly predict: error: the following arguments are required: --config" in (
        capsys.readouterr().err
    )
    # Rendered data sets are always there.
    assert cli.main(["check-datasets", "synthetic_street_val"]) == 0
    with pytest.raises(SystemExit) as stop:
        cli.main(["check-datasets", "no_such_set"])
    assert stop.value.code == 2


def test_a_script_is_run_in_its_own_name():
    # Without the heavy libraries: the stand-in says what it was called with.
    code = (
        "import pathlib, sys, tempfile\n"
        "from gmm_anomaly import cli\n"
        "cli.ROOT = pathlib.Path(tempfile.mkdtemp())\n"
        "(cli.ROOT / 'train_net.py').write_text('import sys; print(sys.argv[1:]); sys.exit(7)')\n"
        "cli.main(['train', '--num-gpus', '0'])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (7, "['--num-gpus', '0']\n")


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from gmm_anomaly import cli\n"
        "cli.main(['--help'])\n"
        "assert not {'torch', 'detectron2', 'cv2', 'numpy'} & set(sys.modules)\n"
        "try:\n    cli.main(['predict', '--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'detectron2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_installed_command_and_the_tool_are_the_same():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'gmm-anomaly = "gmm_anomaly.cli:main"' in text
    assert EntryPoint("gmm-anomaly", "gmm_anomaly.cli:main", "console_scripts").load() is cli.main
    tool = subprocess.run(
        [sys.executable, "tools/predict.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    verb = run("predict", "--help")
    assert tool.returncode == verb.returncode == 0
    assert tool.stdout.split("Predict anomalies")[1] == verb.stdout.split("Predict anomalies")[1]
