#!/usr/bin/env python
"""Make label maps of LostAndFound with 0 known, 1 anomaly, 255 void (``--help``)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gmm_anomaly.data.prepare_lost_and_found import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
