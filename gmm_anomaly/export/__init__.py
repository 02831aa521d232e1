"""Export of trained models to ONNX, TorchScript and torch.export. ``tools/export.py`` is its command."""

from __future__ import annotations
