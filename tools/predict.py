#!/usr/bin/env python
"""Predict anomalies in images and videos: as `gmm-anomaly predict` (``--help``)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gmm_anomaly.predict.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
