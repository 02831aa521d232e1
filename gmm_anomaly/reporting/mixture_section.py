"""Health of the mixtures: the state in the checkpoint, and what the training logged about it."""

from __future__ import annotations

from .markup import Html, join, number, tag
from .missing import missing
from .run_data import Run
from .tables import bar, table
from .training_section import mixture_charts


def mixture_section(run: Run) -> Html | None:
    """None for a run whose classifier has no mixtures."""
    charts = mixture_charts(run)
    parts: list[object] = []
    if run.mixtures is not None:
        parts.append(_classes(run))
    elif charts or run.setting("MODEL.CLASSIFIER.NAME") == "gmm":
        if run.weights is None:
            parts.append(
                missing("There is no checkpoint whose mixtures could be shown.", run.training_command())
            )
        else:
            parts.append(missing(f"{run.weights.name} holds no mixtures that could be read."))
    if charts:
        parts += [tag("h4", "Over the training"), tag("div", charts, class_="charts")]
    return join(parts) if parts else None


def _classes(run: Run) -> Html:
    state = run.mixtures
    assert state is not None and run.weights is not None
    names = _class_names(run, len(state.fitted))
    components = state.fitted.shape[1]
    rows = [
        [
            names[index],
            f"{int(state.fitted[index].sum())} of {components}",
            bar(float(state.effective[index]) / components, number(float(state.effective[index]), 2)),
            *(number(float(value), 3) for value in state.sigma[index]),
            f"{int(state.stored[index]):,}",
        ]
        for index in range(len(state.fitted))
    ]
    headers = [
        "class",
        "fitted",
        "effective components",
        "σ least",
        "σ mean",
        "σ largest",
        "features in memory",
    ]
    caption = (
        f"From {run.weights.name}: {len(rows)} classes, {components} components of {state.dim} dimensions. "
        "Effective components: exp of the entropy of the components' shares of the features in memory, "
        f"{components} where all are used alike. σ: standard deviations of the fitted components."
    )
    return table(headers, rows, caption=caption)


def _class_names(run: Run, count: int) -> list[str]:
    for found in run.datasets.values():
        names = found.get("sem_seg", {}).get("class_names") or []
        if len(names) == count:
            return [str(name) for name in names]
    return [f"class {index}" for index in range(count)]
