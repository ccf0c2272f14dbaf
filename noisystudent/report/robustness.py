"""Arrange the section on robustness: a table of all models, and the errors of the last student in detail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from noisystudent.report.figures import COLORS, Figure, finite, label
from noisystudent.report.read import Model, Run, last_student
from noisystudent.run.rundir import CONTROLS

Section = dict[str, Any]
Table = Mapping[str, Mapping[str, float | None]]


class Column(NamedTuple):
    """A column of the table of models.

    Attributes:
        heading: text above the column.
        path: keys that lead to the number in a model's results.
        unit: percent or decimals, the template filter that formats the number.
        more: True if a larger number is better.
        interval: True if the table also has the `low` and `high` that stand beside the number.
    """

    heading: str
    path: tuple[str, ...]
    unit: str
    more: bool
    interval: bool = False


GROUPS = {
    "Clean": (Column("Top-1", ("clean", "value"), "percent", True),),
    "Corruptions": (
        Column("Error", ("c", "value"), "percent", False, interval=True),
        Column("÷ teacher", ("to_teacher", "mce"), "decimals", False),
    ),
    "Perturbations": (
        Column("Flips", ("p", "value"), "percent", False, interval=True),
        Column("÷ teacher", ("to_teacher", "mfr"), "decimals", False),
    ),
    "FGSM, ε": tuple(Column(eps, ("fgsm", eps, "value"), "percent", True) for eps in ("2", "4", "8", "16")),
    "PGD, ε": (
        Column("16", ("pgd", "16", "value"), "percent", True),
        Column("16 random", ("pgd", "16-random", "value"), "percent", True),
    ),
    "Calibration": (
        Column("ECE", ("calibration", "ece"), "decimals", False),
        Column("RMS", ("calibration", "rms"), "decimals", False),
        Column("AURRA", ("calibration", "aurra"), "decimals", True),
    ),
}

# (key, name of the test in the text, True if a larger value is better), in the order of the text
DIFFERENCES = (
    ("clean", "clean top-1", True),
    ("c", "corruption error", False),
    ("p", "flip probability", False),
    ("fgsm/2", "top-1 under FGSM of 2", True),
    ("fgsm/8", "top-1 under FGSM of 8", True),
)
ALL_SEVERITIES = 5  # of ImageNet-C


def robustness(run: Run, plots: dict[str, Figure]) -> Section | None:
    """Return the content of the section and add its figures to `plots`; None if nothing was measured."""
    # Only the last control of each kind: it is the one that the last student is compared with.
    controls = {model.role: model for model in run.models if model.is_control and model.robustness}
    models = [m for m in run.models if m.robustness and not m.is_control] + list(controls.values())
    tests = {test for model in models for test in model.robustness}
    table = _table(models)
    if not table["groups"]:
        return None
    return {
        **table,
        "set": "test" if any("test" in model.scores for model in run.models) else "val",
        "images": _at(models[-1].robustness, ("images",)),
        "sides": sorted({int(side) for m in models if (side := _at(m.robustness, ("constants",)))}),
        "tests": tests,
        "student": last_student(models),
        "differences": _differences(last_student(models)),
        "level": (run.verdict or {}).get("level"),
        "corruptions": _corruptions(models, plots),
        "perturbations": _perturbations(models, plots),
        "frost": all(model.robustness.get("frost", True) for model in models),
    }


def _table(models: Sequence[Model]) -> Section:
    """The groups of columns for which at least one model has a value, and a row of cells for each model."""
    groups = {
        title: [c for c in columns if any(_at(model.robustness, c.path) is not None for model in models)]
        for title, columns in GROUPS.items()
    }
    groups = {title: columns for title, columns in groups.items() if columns}
    best = {c.path: _best(models, c) for columns in groups.values() for c in columns}
    rows = [
        (
            model,
            [[_cell(model, column, best[column.path]) for column in columns] for columns in groups.values()],
        )
        for model in models
    ]
    return {"groups": groups, "rows": rows}


def _cell(model: Model, column: Column, best: float | None) -> Section:
    value = _at(model.robustness, column.path)
    ends = [_at(model.robustness, (*column.path[:-1], end)) for end in ("low", "high")]
    return {
        "value": value,
        "unit": column.unit,
        "interval": ends if column.interval and None not in ends else None,
        "best": value is not None and value == best,
    }


def _best(models: Sequence[Model], column: Column) -> float | None:
    """The best value in a column. None for a single model, which has nothing to be better than."""
    if len(models) < 2:
        return None
    known = [value for model in models if (value := _at(model.robustness, column.path)) is not None]
    return (max if column.more else min)(known, default=None)


def _differences(student: Model | None) -> list[tuple[str, list[Section]]]:
    """Differences of the last student to controls and teacher, for each test in `DIFFERENCES`."""
    rivals = (student.robustness.get("minus") or {}) if student else {}
    differences = []
    for rival in (*CONTROLS.values(), "teacher"):
        rows = rivals.get(rival) or {}
        parts = [
            {"name": name, **{key: _at(rows[test], (key,)) for key in ("value", "low", "high")}}
            | {"tone": _tone(rows[test], more)}
            for test, name, more in DIFFERENCES
            if rows.get(test)
        ]
        if parts:
            differences.append((rival, parts))
    return differences


def _tone(row: Mapping[str, Any], more: bool) -> str:
    """Return 'good' or 'bad' if the interval excludes 0, otherwise 'open'."""
    low, high = finite(row.get("low")), finite(row.get("high"))
    if low is None or high is None or low <= 0 <= high:
        return "open"
    return "good" if (low > 0) == more else "bad"


def _corruptions(models: Sequence[Model], plots: dict[str, Figure]) -> Section | None:
    """Errors of the last student and its rival for each corruption: a figure of means, a table of severities.

    The table has a row for each corruption and one of their means.
    """
    pair = _pair(models, "c")
    tables: list[Table] = [model.robustness["c"].get("errors") or {} for model in pair]
    names = _keys(tables)
    if not names:
        return None
    severities = _keys(row for table in tables for row in table.values())
    means = [{name: _mean(table.get(name, {}).values()) for name in names} for table in tables]
    plots["robustness-c"] = dumbbells(names, list(zip(pair, means, strict=True)), "error, mean of severities")
    largest = max(
        (v for t in tables for row in t.values() for v in map(finite, row.values()) if v), default=1.0
    )
    rows = [
        (_plain(name), [_shaded(table.get(name, {}), severities, largest) for table in tables])
        for name in names
    ]
    every = [{s: _mean(row.get(s) for row in table.values()) for s in severities} for table in tables]
    rows.append(("all", [_shaded(row, severities, largest) for row in every]))
    few = severities if len(severities) < ALL_SEVERITIES else []  # the page then lists the severities
    return {"models": pair, "severities": severities, "few": few, "rows": rows, "count": len(names)}


def _shaded(row: Mapping[str, float | None], severities: Sequence[str], largest: float) -> list[Section]:
    """A cell for each severity, and one for their mean; `shade` is the value in per cent of `largest`."""
    values = [finite(row.get(severity)) for severity in severities]
    return [
        {"value": value, "shade": 0 if value is None else round(100 * value / largest)}
        for value in (*values, _mean(values))
    ]


def _perturbations(models: Sequence[Model], plots: dict[str, Figure]) -> Section | None:
    """Flip probability and top-5 distance of the last student and its rival for each perturbation."""
    pair = _pair(models, "p")
    flips: list[Mapping[str, float | None]] = [model.robustness["p"].get("flips") or {} for model in pair]
    names = _keys(flips)
    if not names:
        return None
    plots["robustness-p"] = dumbbells(names, list(zip(pair, flips, strict=True)), "flip probability")
    distances = [model.robustness["p"].get("t5d") or {} for model in pair]
    rows = [
        (_plain(name), [own.get(name) for own in flips], [own.get(name) for own in distances])
        for name in names
    ]
    return {"models": pair, "rows": rows}


def dumbbells(
    names: Sequence[str],
    series: Sequence[tuple[Model, Mapping[str, float | None]]],
    title: str,
    *,
    texts: Sequence[str] | None = None,
    from_zero: bool = True,
) -> Figure:
    """Figure with a row for each name: a mark for each model's share, and a line between the marks.

    Args:
        names: corruptions or perturbations, from top to bottom.
        series: each model with its shares by name.
        title: title of the horizontal axis.
        texts: what is written for each name, where names are not for people.
        from_zero: whether the axis begins at 0.
    """
    positions = list(range(len(names)))
    shown = [label(text) for text in texts or map(_plain, names)]
    values = [[finite(own.get(name)) for name in names] for _, own in series]  # (models, names)
    traces: list[Figure] = [_lines(values)]
    for (model, _), own in zip(series, values, strict=True):
        symbol = "diamond" if model.is_control else "circle"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": model.name,
                "x": own,
                "y": positions,
                "text": shown,
                "marker": {"color": COLORS[model.role], "size": 9, "symbol": symbol},
                "hovertemplate": "%{text}: %{x:.1%}<extra>%{fullData.name}</extra>",
            }
        )
    ticks = {"tickvals": positions, "ticktext": shown}
    span = {"rangemode": "tozero"} if from_zero else {}
    layout = {
        "height": 110 + 24 * len(names),
        "xaxis": {"title": {"text": title}, "tickformat": ".0%", **span, "nticks": 6},
        "yaxis": {**ticks, "range": [len(names) - 0.5, -0.5], "zeroline": False, "showgrid": False},
    }
    return {"data": traces, "layout": layout}


def _lines(values: Sequence[Sequence[float | None]]) -> Figure:
    """Trace of a line for each name, from its smallest to its largest value; a None ends a line.

    Args:
        values: (models, names).
    """
    spans = [[v for v in at if v is not None] for at in zip(*values, strict=True)]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for span in spans for x in (min(span, default=None), max(span, default=None), None)],
        "y": [y for y in range(len(spans)) for _ in range(3)],
        "line": {"color": "--quiet", "width": 3},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _pair(models: Iterable[Model], test: str) -> list[Model]:
    """The last student and its rival, among the models that have results of the test.

    The rival is the last control, that of the same steps if there are two, or the teacher without one.
    """
    ready = {model.role: model for model in models if model.robustness.get(test)}
    return [ready[role] for role in ("student", *CONTROLS.values(), "teacher") if role in ready][:2]


def _at(record: Any, path: Iterable[str]) -> float | None:
    """The number under a path of keys; None if there is none or it is not finite."""
    for key in path:
        record = record.get(key) if isinstance(record, Mapping) else None
    return finite(record)


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the finite values; None if there is none."""
    known = [value for value in map(finite, values) if value is not None]
    return sum(known) / len(known) if known else None


def _keys(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """All keys of the tables, in the order of first appearance."""
    return list(dict.fromkeys(key for table in tables for key in table))


def _plain(name: str) -> str:
    return name.replace("_", " ")
