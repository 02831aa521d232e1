"""Making the images of Fishyscapes Static: a Cityscapes validation frame plus the benchmark's signed
overlay."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from . import cityscapes
from .archives import unpack_flat
from .array_files import RefusedArrayError, read_npz
from .atomic import replacing
from .errors import LayoutError
from .fishyscapes import NUMBERED, base_id, list_labels
from .fishyscapes_static import IMAGES, ROOTS
from .image_files import MAX_PIXELS
from .preparing import require_folder, run_preparation
from .reading import image_size, read_image


def static_image(base: np.ndarray, overlay: np.ndarray) -> np.ndarray:
    """Frame of Fishyscapes Static.

    Args:
        base: (H, W, 3) uint8 RGB, the Cityscapes frame.
        overlay: (H, W, 3) int32, what is added to it.

    Returns:
        (H, W, 3) uint8: the sum, clipped to 0 .. 255.
    """
    return np.clip(base.astype(np.int32) + overlay, 0, 255).astype(np.uint8)


def read_overlay(path: Path) -> np.ndarray:
    """(H, W, 3) int32 of a ``*_rgb.npz``. Raises ValueError for anything else, by name."""

    def accept(shape: tuple[int, ...], dtype: np.dtype) -> None:
        if len(shape) != 3 or shape[2] != 3 or dtype.kind not in "iuf":
            raise RefusedArrayError(
                f"{path}: expected numbers of shape (height, width, 3), found {dtype} {shape}"
            )
        if shape[0] * shape[1] > MAX_PIXELS:
            raise RefusedArrayError(
                f"{path}: an overlay has at most {MAX_PIXELS // 10**6} megapixels, found the shape {shape}"
            )

    try:
        overlay = read_npz(path, lambda names: "rgb", accept)
    except RefusedArrayError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and the missing key each raise their own
        raise ValueError(
            f"{path} is no overlay with the key 'rgb' ({type(error).__name__}: {error})"
        ) from error
    if not np.isfinite(overlay).all():
        raise ValueError(f"{path}: its overlay holds NaN or infinities")
    return overlay.astype(np.int32)  # towards zero, as the benchmark's code does


def prepare_static(root: Path, cityscapes_root: Path, *, check: bool = False) -> int:
    """Make ``root/images/NUMBER_FRAME.png`` for every label in ``root``; finished ones are kept.

    Args:
        root: folder of the unpacked download.
        cityscapes_root: folder that holds ``leftImg8bit/val``.
        check: compare the finished ones with what they should be instead of keeping them unseen.

    Returns:
        How many images were made.

    Raises:
        LayoutError: no labels, no or several overlays for one, or no Cityscapes frame.
        ValueError: a damaged file, another size, or (``check``) an image that differs.
    """
    labels = list_labels(root)
    if not labels:
        raise LayoutError(f"no *_labels.png in {root}; unpack the download there, or give it with --archive")
    overlays: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*rgb.npz")):
        match = NUMBERED.match(path.name)
        if match:
            overlays.setdefault(match.group(1), []).append(path)
    made = 0
    for key, label in tqdm(labels.items(), desc=f"images of {root.name}", unit="image"):
        target = root / IMAGES / f"{key}.png"
        if target.is_file() and not check:
            continue
        found = overlays.get(key.split("_")[0], [])
        if len(found) != 1:
            raise LayoutError(f"{label} needs one overlay of the same number (*_rgb.npz), found {len(found)}")
        image = _make(label, found[0], _cityscapes_frame(cityscapes_root, base_id(key)))
        if target.is_file():
            if not np.array_equal(read_image({"file_name": str(target)}, "RGB"), image):
                raise ValueError(f"{target} is not the sum of its frame and overlay; remove it and run again")
            continue
        with replacing(target) as temporary:
            Image.fromarray(image).save(temporary, format="PNG", compress_level=3)
            if not np.array_equal(read_image({"file_name": str(temporary)}, "RGB"), image):
                raise ValueError(f"{target} does not read as it was written; is the disk full?")
        made += 1
    return made


def _cityscapes_frame(root: Path, frame: str) -> Path:
    path = root / "leftImg8bit" / "val" / frame.split("_")[0] / f"{frame}_leftImg8bit.png"
    if not path.is_file():
        raise LayoutError(f"no Cityscapes frame {path}; {cityscapes.ROOT.advice()}")
    return path


def _make(label: Path, overlay_path: Path, base_path: Path) -> np.ndarray:
    overlay = read_overlay(overlay_path)
    base = read_image({"file_name": str(base_path)}, "RGB")
    sizes = {"overlay": overlay.shape[:2], "frame": base.shape[:2], "label": image_size(str(label))}
    if len(set(sizes.values())) != 1:
        found = ", ".join(f"{name} {width} x {height}" for name, (height, width) in sizes.items())
        raise ValueError(f"{overlay_path}, {base_path} and {label} are of different sizes: {found}")
    return static_image(base, overlay)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--version", type=int, choices=sorted(ROOTS), required=True, help="of the overlays")
    parser.add_argument(
        "--root", type=Path, help="folder of the unpacked download (default: where it is looked for)"
    )
    parser.add_argument(
        "--cityscapes", type=Path, help="folder of Cityscapes (default: where it is looked for)"
    )
    parser.add_argument(
        "--archive", type=Path, metavar="ZIP", help="fs_val_v*.zip, to be unpacked into ROOT first"
    )
    parser.add_argument(
        "--check", action="store_true", help="compare finished images with what they should be"
    )
    options = parser.parse_args(arguments)
    root = options.root or ROOTS[options.version].path()
    base = options.cityscapes or cityscapes.ROOT.path()

    def prepare() -> str:
        if options.archive:
            unpack_flat(options.archive, root, lambda name: name.endswith(("_labels.png", "rgb.npz")))
        require_folder(root, ROOTS[options.version])
        made = prepare_static(root, base, check=options.check)
        return f"{made} images made in {root / IMAGES}"

    return run_preparation(prepare)
