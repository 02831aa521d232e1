"""The tensors of a checkpoint of MMSegmentation, or of a backbone's authors."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from gmm_anomaly.weight_files import read_weights

# Entries under which training scripts put the state dict.
WRAPPERS = ("state_dict", "model")
# What the tensors of a whole segmentor begin with.
PARTS = ("backbone.", "decode_head.", "auxiliary_head.")
# Heads in sequence (OCRNet): the first one is the auxiliary head of other decoders.
CASCADE = {"decode_head.0.": "auxiliary_head.", "decode_head.1.": "decode_head."}


def read_source(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name; read without unpickling anything but tensors and plain values.

    A state dict under "state_dict" or "model" is taken out, "module." in front of names is dropped. A file
    without the parts of a segmentor is a backbone's: its names get "backbone." in front.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no file of tensors.
    """
    loaded = read_weights(path, "INPUT")
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    named = loaded.items() if isinstance(loaded, dict) else ()
    state = {str(name).removeprefix("module."): value for name, value in named if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"INPUT: {path} holds no state dict (names with tensors)")
    if not any(name.startswith(PARTS) for name in state):
        state = {f"backbone.{name}": value for name, value in state.items()}
    return state


def plain_name(name: str, *, cascade: bool) -> str:
    """A name without MMCV's ConvModule (``x.conv.weight`` is ``x.weight``, ``x.bn`` is ``x.norm``) and, in a
    ``cascade``, with the parts' names of a single head. Backbones keep their names."""
    if name.startswith("backbone."):
        return name
    if cascade:
        for numbered, single in CASCADE.items():
            if name.startswith(numbered):
                name = single + name.removeprefix(numbered)
    name = name.replace(".bn.", ".norm.")
    for kind in (".weight", ".bias"):
        name = name.removesuffix(f".conv{kind}") + kind if name.endswith(f".conv{kind}") else name
    return name


def is_cascade(names: list[str]) -> bool:
    """Whether a checkpoint has two heads in sequence."""
    return any(name.startswith("decode_head.0.") for name in names)
