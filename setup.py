"""What pyproject.toml cannot say: the parts of the repository beside the package that belong into a wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# Configs, and the script behind `gmm-anomaly train` and `gmm-anomaly evaluate`.
BESIDE = [*sorted(ROOT.glob("configs/**/*.yaml")), ROOT / "train_net.py"]


class BuildWithRepository(build_py):
    """Copies them to gmm_anomaly/repository, where gmm_anomaly.compat looks for them."""

    def run(self) -> None:
        super().run()
        # Of an editable install the checkout itself is used.
        if not self.editable_mode:
            for source in BESIDE:
                target = Path(self.build_lib, "gmm_anomaly", "repository", source.relative_to(ROOT))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


setup(cmdclass={"build_py": BuildWithRepository})
