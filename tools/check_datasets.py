#!/usr/bin/env python
"""Which data sets are there, complete and sound; what to download and where to put it (``--help``)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gmm_anomaly.data.checking import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
