#!/usr/bin/env python
"""What models cost at inference: parameters, multiply-adds by part, memory and time per image, as a table.

python tools/analyze_model.py --config-file configs/cityscapes/*.yaml --size 1024 2048
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FORMATS = ("", ".1f", *[".1f"] * 4, "", ".2f", ".3g")
PARTS = ("backbone", "decoder", "classifier", "total")


def measured(*arguments: Any) -> dict[str, Any]:
    # Imported in the process that measures: this one stays small.
    from gmm_anomaly.benchmark.model_cost import measure

    return measure(*arguments)


def in_own_process(*arguments: Any) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, *arguments).result()


def row(found: dict[str, Any]) -> list[Any]:
    return [
        found["config"],
        found["parameters"]["total"] / 1e6,
        *(found["multiply_adds"][part] / 1e9 if found["multiply_adds"] else None for part in PARTS),
        found["passes"],
        found["peak_memory"] / 1e9,
        found["seconds"],
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", nargs="+", required=True, metavar="FILE", help="one or more configs: a row each"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"), help="of the image (1024 2048)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="images that count after one to warm up (3); 0: that one counts",
    )
    parser.add_argument("--threads", type=int, default=1, help="processor threads (1)")
    parser.add_argument(
        "--memory-and-time", action="store_true",
        help="leave the multiply-adds out: counting them takes several times the memory of an inference",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for all configs"
    )
    args = parser.parse_args(arguments)
    if args.repeats < 0 or args.threads < 1 or min(args.size) < 1:
        parser.error("--threads and --size must be at least 1, --repeats at least 0")
    for config in args.config_file:
        if not Path(config).is_file():
            parser.error(f"--config-file: no file {config}")

    results = []
    for config in args.config_file:
        try:
            found = in_own_process(
                config, args.opts, tuple(args.size), args.repeats, args.threads, not args.memory_and_time
            )
        except (ValueError, OSError) as error:
            parser.exit(1, f"{config}: {error}\n")
        results.append(found)
        spent = f"{found['peak_memory'] / 1e9:.2f} GB, {found['seconds']:.1f} s"
        print(f"measured {config}: {spent}", file=sys.stderr, flush=True)

    from tabulate import tabulate

    height, width = args.size
    on_gpu = results[0]["device"].startswith("cuda")
    memory = "GPU memory" if on_gpu else "process memory"
    seconds = "time" if on_gpu else f"processor time with {args.threads} thread(s)"
    counted = "" if args.memory_and_time else " multiply-adds (G) of one look,"
    print(f"one image of {height} x {width}:{counted} peak of {memory}, {seconds}")
    headers = ["config", "params M", *(f"{part} G" for part in PARTS), "passes", "memory GB", "seconds"]
    print(tabulate([row(found) for found in results], headers, floatfmt=FORMATS, tablefmt="github"))
    if args.json:
        from gmm_anomaly.benchmark.timing import write_json

        write_json(args.json, {"models": results, "repeats": args.repeats, "threads": args.threads})
        print(f"written to {args.json}")


if __name__ == "__main__":
    main()
