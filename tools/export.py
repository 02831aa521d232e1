#!/usr/bin/env python
"""Export a trained model to ONNX, TorchScript or torch.export, and check the file (``--help``)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gmm_anomaly.export.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
