"""Both twins with and without mixed precision, channels-last order and compiling, all in one run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode

from gmm_anomaly.modeling.compiled_network import check_compiler

from .device import clock
from .timing import ratio, side_by_side, summary
from .twins import twin_config

KEYS = ("SOLVER.AMP.ENABLED", "MODEL.CHANNELS_LAST", "MODEL.COMPILE")
PLAIN = "plain"
# Values of the keys, by name.
VARIANTS = {
    PLAIN: (False, False, False),
    "mixed precision": (True, False, False),
    "channels_last": (False, True, False),
    "compiled": (False, False, True),
    "all three": (True, True, True),
}
TWINS = ("softmax", "gmm")


def add_variants_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--variants", action="store_true",
        help=f"also both twins with and without {', '.join(KEYS)} (ten networks in memory)",
    )  # fmt: skip


def compare_variants(args: argparse.Namespace, make: Callable[[CfgNode], Callable[[], object]]) -> list[Any]:
    """Time the twins in every variant, in turns, and print a line for each.

    Args:
        make: from a twin's config to a function that does one step with ``args.batch`` images, warmed up.
            All three keys count, ``SOLVER.AMP.ENABLED`` for inference too.

    Returns:
        For each variant its name, keys, and by twin seconds, images per second and how many times faster
        than the plain one; and the ratio of gmm to softmax.
    """
    device = twin_config(args, "gmm").MODEL.DEVICE
    chosen = dict(VARIANTS)
    try:
        check_compiler(device)
    except ValueError as error:
        print(f"left out, compiled: {error}")
        chosen = {name: values for name, values in VARIANTS.items() if not values[-1]}
    calls = {}
    for name, values in chosen.items():
        pairs = [part for pair in zip(KEYS, values, strict=True) for part in pair]
        for twin in TWINS:
            calls[f"{name}, {twin}"] = make(twin_config(args, twin, pairs))
    seconds = side_by_side(calls, args.repeats, clock(device))
    found = []
    print(f"  {'variant':18s} {'softmax':>10s} {'gmm':>10s} images/s, times as fast as plain, gmm / softmax")
    for name, values in chosen.items():
        of_twin = {twin: seconds[f"{name}, {twin}"] for twin in TWINS}
        row = {
            "variant": name,
            "keys": dict(zip(KEYS, values, strict=True)),
            "seconds": {twin: summary(times)._asdict() for twin, times in of_twin.items()},
            "images_per_second": {
                twin: args.batch / summary(times).median for twin, times in of_twin.items()
            },
            "times_as_fast": {
                twin: ratio(seconds[f"{PLAIN}, {twin}"], times)._asdict() for twin, times in of_twin.items()
            },
            "ratio": ratio(of_twin["gmm"], of_twin["softmax"])._asdict(),
        }
        found.append(row)
        speeds, faster = row["images_per_second"], row["times_as_fast"]
        print(
            f"  {name:18s} {speeds['softmax']:10.2f} {speeds['gmm']:10.2f}          "
            f"{faster['softmax']['median']:.2f}, {faster['gmm']['median']:.2f}          "
            f"{row['ratio']['median']:10.3f}"
        )
    return found
