#!/usr/bin/env python
"""One self-contained HTML page of one or several runs: python tools/report.py RUN_DIR [RUN_DIR ...]."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gmm_anomaly.reporting.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
