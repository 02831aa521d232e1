#!/usr/bin/env python
"""Write docs/configuration.md anew from the comments of the config modules."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gmm_anomaly.config_reference import write  # noqa: E402

if __name__ == "__main__":
    write(ROOT / "docs" / "configuration.md")
