"""Weight files read as data: nothing in them is run, unless the user says that they are trusted."""

from __future__ import annotations

import argparse
import collections
import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

logger = logging.getLogger(__name__)

TRUST_FLAG = "--trust-pickle"

# Not a config key: a config file is data from others, and must not be able to grant this.
_trusted = False


def trust_pickles(trusted: bool) -> None:
    """Say whether this process may run what weight files hold. It may not until it is told so."""
    global _trusted
    _trusted = trusted


def add_trust_argument(arguments: argparse.ArgumentParser) -> None:
    """Add the flag; its value goes to ``trust_pickles``."""
    arguments.add_argument(
        TRUST_FLAG,
        action="store_true",
        help="read weight files that are arbitrary pickles as well. They can run any code as they are read: "
        "only for files from people you trust",
    )


def read_weights(path: str | Path, key: str = "MODEL.WEIGHTS") -> Any:
    """What a weight file holds, on the CPU.

    ``.pkl`` files are read as pickles of NumPy arrays, dicts, strings and numbers, as Detectron2's model zoo
    has them, ``.safetensors`` as such, and all others by ``torch.load`` with ``weights_only``.

    Args:
        key: config key or argument that errors name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is corrupt, or it names a function or class to be called, and pickles are not
            trusted.
    """
    # Only here: the flag above belongs to commands whose --help must not wait for torch.
    import torch

    path = Path(path)
    if not path.is_file():
        if path.exists():
            raise ValueError(f"{key}: {path} is not a regular file")
        raise FileNotFoundError(f"{key}: no file {path}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return _read(path, key, lambda: load_file(path))
    if _trusted:
        logger.warning("%s: %s is read with %s: what it holds is run", key, path, TRUST_FLAG)
    if path.suffix == ".pkl":
        return _read(path, key, lambda: _read_pickle(path))
    return _read(path, key, lambda: torch.load(path, map_location="cpu", weights_only=not _trusted))


def _read(path: Path, key: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # unpicklers raise whatever a corrupt file leads them to
        named = _GLOBAL.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named is None:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{key}: {path} cannot be read as a file of tensors ({reason}); save its state dict alone"
            ) from error
    raise ValueError(
        f"{key}: {path} cannot be read as a file of tensors: it is a pickle that names {named.group(1)}, "
        "which loading it would call or make. Only tensors, NumPy arrays in .pkl files, and plain values are "
        f"read, because a pickle can run any code. If you trust where it comes from, add {TRUST_FLAG}; else "
        "have its state dict alone saved"
    )


# How torch's unpickler, in its versions, and the one below name what they refuse.
_GLOBAL = re.compile(r"(?:GLOBAL|[Uu]nsupported class|refused global) ([\w.]+\w)")


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        # Files from Python 2 keep the bytes of arrays in strings.
        unpickler = pickle.Unpickler if _trusted else _ArrayUnpickler
        loaded = unpickler(file, encoding="latin1").load()
    return loaded if _trusted else _finished(loaded)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain values.

    NumPy's own constructors are not called: given a crafted state they can be made to hold pointers.
    """

    def __init__(self, file: IO[bytes], **options: Any) -> None:
        super().__init__(file, **options)

    def find_class(self, module: str, name: str) -> Any:
        # NumPy 2 renamed numpy.core.
        known = _STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise pickle.UnpicklingError(f"refused global {module}.{name}")
        return known


class _DType:
    """Stands for ``numpy.dtype`` while a pickle is read; booleans and numbers only."""

    def __init__(self, code: str, *_flags: Any) -> None:
        if not (isinstance(code, str) and re.fullmatch(r"b1|[iu][1248]|f[248]", code)):
            raise pickle.UnpicklingError(f"arrays of type {code!r}; expected numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1] if state[1] in ("<", ">") else "=")


class _Array:
    """Stands for an array while a pickle is read."""

    def __init__(self, *_arguments: Any) -> None:
        self.array: np.ndarray | None = None
        self.is_scalar = False

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, by_columns, content = state
        self.array = _from_bytes(content, dtype, shape, "F" if by_columns else "C").array

    @classmethod
    def holding(cls, array: np.ndarray) -> _Array:
        made = cls()
        made.array = array
        return made


def _from_bytes(content: Any, dtype: _DType, shape: Any, order: Any) -> _Array:
    if isinstance(content, str):
        content = content.encode("latin1")
    flat = np.frombuffer(content, dtype.dtype)
    return _Array.holding(flat.reshape(tuple(shape), order="F" if order == "F" else "C").copy())


def _scalar(dtype: _DType, content: Any) -> _Array:
    made = _from_bytes(content, dtype, (), "C")
    made.is_scalar = True
    return made


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes for protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}; expected latin1")
    return text.encode("latin1")


def _bytes(content: bytes = b"") -> bytes:
    """How protocols write empty bytes, and byte arrays."""
    if not isinstance(content, bytes):
        raise pickle.UnpicklingError("bytes made from something else")
    return content


class _NDArray:
    """Named by pickles as the type to reconstruct; never made."""


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_bytes,
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encoded,
    **{(module, "bytes"): _bytes for module in ("builtins", "__builtin__")},
    **{(module, "bytearray"): _bytes for module in ("builtins", "__builtin__")},
    ("collections", "OrderedDict"): collections.OrderedDict,
}


def _finished(value: Any) -> Any:
    """The value with arrays for their stand-ins; raises pickle.UnpicklingError where one was left empty."""
    if isinstance(value, _Array):
        if value.array is None:
            raise pickle.UnpicklingError("an array without content")
        # Arrays without dimensions, counters for example, stay arrays: checkpointers take nothing else.
        return value.array[()] if value.is_scalar else value.array
    if isinstance(value, dict):
        return {_finished(name): _finished(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_finished, value))
    return value
