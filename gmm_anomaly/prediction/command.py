"""The command `gmm-anomaly predict`, also tools/predict.py."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from gmm_anomaly.compat import silence_import_warnings

from .arguments import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 after an error or with inputs that could not be read, 2 for a config that cannot be
    one, 130 if interrupted; argparse leaves with 2."""
    args = parse(argv)
    # Not needed to say what the arguments are.
    silence_import_warnings()
    import torch

    from gmm_anomaly.engine.config_merge import ConfigError
    from gmm_anomaly.evaluation.files import json_text
    from gmm_anomaly.freed_memory import keep_freed_memory

    from .run import report, run

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    keep_freed_memory()
    try:
        summary = run(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        print(
            f"error: the GPU's memory is not enough ({str(error).splitlines()[0]}); try a smaller "
            "--batch-size, --half, --device cpu, or --opts TEST.SLIDING_WINDOW.ENABLED True",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is in the folder is whole", file=sys.stderr)
        return 130
    print(json_text(summary) if args.json else report(summary, args))
    return 1 if summary["skipped"] else 0
