#!/usr/bin/env python
"""Make the images of Fishyscapes Static from Cityscapes and the benchmark's overlays (``--help``)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gmm_anomaly.data.prepare_fishyscapes import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
