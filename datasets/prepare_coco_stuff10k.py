#!/usr/bin/env python
"""Convert COCO-Stuff 10k to the layout of MMSegmentation (``--help``)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gmm_anomaly.data.prepare_coco_stuff import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
