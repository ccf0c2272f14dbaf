"""Build the Plotly figures of the pool: confidence of the pseudo-labels, and balance of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from noisystudent.report.figures import CROWD, NAMED_CLASSES, Figure, finite, label
from noisystudent.report.read import Record


def confidence_histogram(histogram: Record) -> Figure:
    """Number of pool images by confidence: all images, and in front of them those that were kept."""
    edges = np.asarray(histogram["edges"], dtype=np.float64)
    centers, widths = ((edges[:-1] + edges[1:]) / 2).tolist(), np.diff(edges).tolist()
    series = (("all", "counts", "--quiet"), ("kept", "kept", "--student"))
    traces = [
        {
            "type": "bar",
            "name": name,
            "x": centers,
            "y": [finite(count) for count in histogram[key]],
            "width": widths,
            "marker": {"color": color, "line": {"width": 0}},
            "hovertemplate": "confidence %{x:.2f}: %{y:,} " + name + "<extra></extra>",
        }
        for name, key, color in series
        if histogram.get(key)
    ]
    layout = {
        "height": 260,
        "barmode": "overlay",
        "xaxis": {
            "title": {"text": "confidence of the teacher"},
            "range": [edges[0], edges[-1]],
            "showgrid": False,
        },
        "yaxis": {"title": {"text": "images"}, "tickformat": ",~s"},
    }
    return {"data": traces, "layout": layout}


def class_balance(rows: Sequence[Record]) -> Figure:
    """Number of images of each class before and after selection.

    Repeats are a separate part of a bar. More than 50 classes are drawn as curves over the rank of the class.
    """
    if len(rows) > NAMED_CLASSES:
        return _balance_by_rank(rows)
    positions = list(range(len(rows)))
    names = [label(row["class"]) for row in rows]
    shared = {"type": "bar", "orientation": "h", "y": positions, "customdata": names}
    kept = [row["kept"] for row in rows]
    repeats = [max(0, row["total"] - row["kept"]) for row in rows]
    traces = [
        _bar(shared, "predicted", [row["predicted"] for row in rows], "--quiet", offsetgroup="before"),
        _bar(shared, "kept", kept, "--student", offsetgroup="after"),
        _bar(shared, "repeats", repeats, "--student-soft", offsetgroup="after", base=kept),
    ]
    yaxis = {
        "tickvals": positions,
        "ticktext": names,
        "autorange": "reversed",
        "showgrid": False,
    }
    layout = {
        "height": 110 + (30 if len(rows) <= CROWD else 18) * len(rows),
        "barmode": "group",
        "bargap": 0.3,
        "xaxis": {"title": {"text": "images"}, "tickformat": ",~s", "nticks": 5},
        "yaxis": {**yaxis, "zeroline": False},
    }
    return {"data": traces, "layout": layout}


def _bar(shared: Figure, name: str, values: Sequence[int], color: str, **more: Any) -> Figure:
    # With a base, Plotly's %{x} is the end of the bar. The count itself is passed as text.
    hover = f"%{{customdata}}: %{{text}} {name}<extra></extra>"
    texts = [f"{value:,}" for value in values]
    marker = {"color": color, "line": {"width": 0}}
    return {
        **shared,
        **more,
        "name": name,
        "x": list(values),
        "text": texts,
        "textposition": "none",
        "marker": marker,
        "hovertemplate": hover,
    }


def _balance_by_rank(rows: Sequence[Record]) -> Figure:
    """The same as two curves over the classes, which are sorted by predicted images."""
    ranked = sorted(rows, key=lambda row: -row["predicted"])
    series = (("predicted", "predicted", "--teacher"), ("with repeats", "total", "--student"))
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": list(range(1, len(ranked) + 1)),
            "y": [row[key] for row in ranked],
            "text": [label(row["class"]) for row in ranked],
            "line": {"color": color, "width": 2, "shape": "hvh"},
            "hovertemplate": "%{text}: %{y:,} " + name + "<extra></extra>",
        }
        for name, key, color in series
    ]
    layout = {
        "height": 300,
        "xaxis": {"title": {"text": "classes, from the most to the least predicted"}, "showgrid": False},
        "yaxis": {"title": {"text": "images"}, "rangemode": "tozero"},
    }
    return {"data": traces, "layout": layout}
