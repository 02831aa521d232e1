"""What an exported file says about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class ExportMetadata:
    """Everything a program needs that runs the file without this project.

    Attributes:
        class_names: by class id.
        palette: an (r, g, b) by class id, 0 to 255.
        score: name of the anomaly score.
        threshold: above it a pixel is anomalous; None: not known.
        input_rule: what an image must be, see :func:`gmm_anomaly.export.job.input_rule`.
        version: of gmm_anomaly.
        weights_sha256: of the checkpoint.
    """

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    score: str
    threshold: float | None
    input_rule: dict[str, Any]
    version: str
    weights_sha256: str | None

    def entries(self) -> dict[str, str]:
        """One JSON text for each attribute: what all three formats can hold."""
        return {entry.name: json.dumps(getattr(self, entry.name)) for entry in fields(self)}

    @classmethod
    def parse(cls, entries: Mapping[str, str | bytes]) -> ExportMetadata:
        """What :meth:`entries` gave; further entries are ignored.

        Raises:
            ValueError: an entry is missing or no JSON.
        """
        found: dict[str, Any] = {}
        for entry in fields(cls):
            if not entries.get(entry.name):
                raise ValueError(
                    f"metadata: expected an entry {entry.name!r}, found {', '.join(entries) or 'none'}; the "
                    "file was not written by gmm_anomaly.export"
                )
            try:
                found[entry.name] = json.loads(entries[entry.name])
            except ValueError as error:
                raise ValueError(f"metadata: the entry {entry.name!r} is not JSON ({error})") from error
        found["class_names"] = tuple(found["class_names"])
        found["palette"] = tuple(tuple(color) for color in found["palette"])
        return cls(**found)
