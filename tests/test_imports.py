"""The direction of imports: pure packages first, then models and data, evaluation, engine, tools."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gmm_anomaly"
PURE = ("gmm", "scores", "postprocess", "metrics")

# What a part may import of the package, beside itself.
MODELS = {*PURE, "compat"}
ALLOWED: dict[str, set[str]] = {
    "gmm": set(),
    "scores": {"gmm"},
    "postprocess": {"gmm", "scores"},
    "metrics": {"gmm", "scores", "postprocess"},
    "modeling": MODELS | {"config", "values"},
    "data": {"metrics", "compat", "config", "values"},
    "evaluation": MODELS | {"modeling", "data", "visualization"},
    "engine": MODELS | {"modeling", "data", "evaluation", "config", "values", "visualization"},
    "export": {*PURE, "modeling", "data", "evaluation", "engine", "predict", "compat"} - {"metrics"},
    "report": {"gmm", "metrics", "visualization"},
    "predict": {"metrics", "data", "evaluation", "engine", "compat", "visualization"},
}

# Verbs of the evaluation run a model: one file reaches back to the engine, when it is called.
REACHES_BACK = {"evaluation/command.py": {"engine"}}


def imported_parts(path: Path) -> set[str]:
    """Parts of gmm_anomaly that a file imports, absolute and relative imports alike."""
    parts = set()
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        parts |= {
            name.split(".")[1] for name in names if name.startswith("gmm_anomaly.") and name.count(".") >= 1
        }
    return parts


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_follow_the_table(part):
    known = {path.stem for path in PACKAGE.iterdir()} - {"__init__"}
    files = sorted((PACKAGE / part).rglob("*.py"))
    assert files
    for path in files:
        back = REACHES_BACK.get(path.relative_to(PACKAGE).as_posix(), set())
        outside = imported_parts(path) & known - {part} - ALLOWED[part] - back
        assert not outside, f"{path.relative_to(PACKAGE)} imports {sorted(outside)}"


def test_pure_packages_import_without_detectron2():
    code = "import sys\nfor name in ('detectron2', 'torchvision'):\n    sys.modules[name] = None\n" + "".join(
        f"import gmm_anomaly.{part}\n" for part in PURE
    )
    # The compiler takes seconds to import.
    code += "assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=PACKAGE.parent)


def test_importing_the_package_is_light():
    code = (
        "import sys, gmm_anomaly\n"
        "assert gmm_anomaly.__version__\n"
        "heavy = {'torch', 'torchvision', 'detectron2', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'AnomalyPredictor' in dir(gmm_anomaly)\n"
        "assert gmm_anomaly.AnomalyPredictor.__module__ == 'gmm_anomaly.predict.predictor'\n"
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=PACKAGE.parent)


def test_names_of_the_package_are_what_they_say():
    import gmm_anomaly

    for name in gmm_anomaly._LAZY:
        assert getattr(gmm_anomaly, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Predictor'"):
        _ = gmm_anomaly.Predictor


def test_only_compat_asks_which_detectron2_is_installed():
    for path in PACKAGE.rglob("*.py"):
        if path.name in ("compat.py", "doctor.py"):
            continue
        text = path.read_text()
        assert "detectron2.__version__" not in text and "sal-detectron2" not in text, path
