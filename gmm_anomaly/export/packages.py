"""The packages that exporting needs beside those of the project."""

from __future__ import annotations

from importlib.util import find_spec

# Import names; onnxscript is what torch.onnx writes with.
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Raise ImportError, with the extra to install, unless all packages for ONNX are there."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"exporting to ONNX needs {', '.join(missing)}: install the extra `export` "
            "(pip install 'gmm-anomaly[export]'; in a checkout python -m pip install -e '.[export]'). "
            "--format torchscript and torch-export work without"
        )
