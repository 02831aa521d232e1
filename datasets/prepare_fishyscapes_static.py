#!/usr/bin/env python
"""Prepare a download: see ``--help`` and datasets/README.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gmm_anomaly.data.prepare import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main("fishyscapes_static"))
