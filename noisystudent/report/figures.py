"""Build the Plotly figures of the report as plain dictionaries.

Colours are names of CSS variables, such as `--student`. The script of the page replaces them by the values of
the light or dark colour scheme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.metrics.classification import Reliability
from noisystudent.metrics.precision import wilson
from noisystudent.report.read import Curve, Model
from noisystudent.run.rundir import CONTROLS

Figure = dict[str, Any]

COLORS = {"teacher": "--teacher", "student": "--student"} | dict.fromkeys(CONTROLS.values(), "--control")
NAMED_CLASSES = 50  # with more classes, single names do not fit into a figure
CROWD = 20  # from this many classes on, bars and cells become narrower, and axes lose their names
CURVE_POINTS = 800  # points drawn for a curve; more would only make the file larger
LABEL_LENGTH = 22  # characters of a class name
BESIDE = 0.04  # iterations between marks that stand side by side


def finite(value: Any) -> float | None:
    """Convert a number to float; None, NaN and the infinities become None, which JSON can represent."""
    return float(value) if value is not None and math.isfinite(value) else None


def label(name: object) -> str:
    """Shorten and escape a class name. Plotly would read `<` and `&` as HTML."""
    text = str(name)
    return escape(text if len(text) <= LABEL_LENGTH else text[: LABEL_LENGTH - 1] + "…", quote=False)


def accuracy(models: Sequence[Model], sets: Sequence[str], images: Mapping[str, int], level: float) -> Figure:
    """Top-1 by iteration: for each set, one line of the teacher and the students, and marks of the controls.

    The last set has a solid line and filled marks, the other a dotted line and open marks. Marks of one
    iteration stand side by side, so that their intervals do not cover each other.

    Args:
        models: models with scores.
        sets: one or two names of sets.
        images: number of images of each set. A set with a number has Wilson's intervals.
        level: confidence level of these.
    """
    traces: list[Figure] = []
    for name in sets:
        solid = name == sets[-1]
        chain = [m for m in models if not m.is_control and _top1(m, name) is not None]
        controls = [m for m in models if m.is_control and _top1(m, name) is not None]
        line = {"color": "--student", "width": 2, "dash": "solid" if solid else "dot"}
        marker = {"size": 9, "color": "--student"}
        traces.append(
            {**_points(chain, name, images, level), "mode": "lines+markers", "line": line, "marker": marker}
        )
        control_marker = {"size": 11, "color": "--control", "symbol": "diamond" if solid else "diamond-open"}
        traces.append(
            {
                **_points(controls, name, images, level, "control, "),
                "mode": "markers",
                "marker": control_marker,
            }
        )
    for place, trace in enumerate(traces):
        trace["x"] = [x + BESIDE * (place - len(sets) + 0.5) for x in trace["x"]]
    ticks = sorted({m.iteration for m in models})
    names = ["teacher" if i == 0 else f"student {i}" for i in ticks]
    xaxis = {"tickvals": ticks, "ticktext": names, "range": [min(ticks) - 0.25, max(ticks) + 0.25]}
    layout = {"height": 320, "xaxis": {**xaxis, "showgrid": False, "zeroline": False}}
    yaxis = {"tickformat": ".1~%", "title": {"text": "top-1 accuracy"}}
    return {"data": [t for t in traces if t["x"]], "layout": {**layout, "yaxis": yaxis}}


def _top1(model: Model, name: str) -> float | None:
    return finite(model.scores.get(name, {}).get("top1"))


def _points(
    models: Sequence[Model], name: str, images: Mapping[str, int], level: float, prefix: str = ""
) -> Figure:
    shares, count = [_top1(m, name) or 0.0 for m in models], images.get(name, 0)
    return {
        "type": "scatter",
        **({"error_y": _intervals(shares, count, level)} if count else {}),
        "name": f"{prefix}{name}",
        "x": [m.iteration for m in models],
        "y": [_top1(m, name) for m in models],
        "text": [m.name for m in models],
        "hovertemplate": f"%{{text}}, {name}: %{{y:.2%}}<extra></extra>",
    }


def _intervals(shares: Sequence[float], images: int, level: float) -> Figure:
    """Error bars of shares of the same images: Wilson's intervals."""
    ends = [(share, *wilson(round(share * images), images, level)) for share in shares]
    return {
        "symmetric": False,
        "array": [round(high - share, 5) for share, _, high in ends],
        "arrayminus": [round(share - low, 5) for share, low, _ in ends],
        "thickness": 1,
        "width": 4,
    }


def learning_curves(models: Sequence[Model]) -> Figure:
    """Val top-1 and training loss by step, in two plots. A legend entry stands for both curves of a model."""
    traces: list[Figure] = []
    last = max((m.iteration for m in models), default=0)
    for model in models:
        # The verdict is about the last student, so earlier students are drawn fainter.
        earlier = model.role == "student" and model.iteration != last
        opacity = 0.3 + 0.4 * model.iteration / last if earlier else 1.0
        dash = "dash" if model.is_control else "solid"
        shared = {
            "type": "scatter",
            "name": model.name,
            "legendgroup": model.name,
            "opacity": opacity,
            "line": {"color": COLORS[model.role], "width": 2, "dash": dash},
        }
        val = {**shared, **_xy(model.val_top1), "mode": "lines+markers", "marker": {"size": 5}, "yaxis": "y2"}
        loss = {**shared, **_xy(model.loss), "mode": "lines", "showlegend": not model.val_top1}
        traces += [
            {**val, "hovertemplate": "%{y:.2%}<extra>%{fullData.name}</extra>"},
            {**loss, "hovertemplate": "%{y:.4f}<extra>%{fullData.name}</extra>"},
        ]
    layout = {
        "height": 520,
        "hovermode": "x",
        "xaxis": {"title": {"text": "training step"}, "anchor": "y", "zeroline": False},
        "yaxis": {"title": {"text": "training loss"}, "domain": [0, 0.46]},
        "yaxis2": {"title": {"text": "val top-1"}, "domain": [0.54, 1], "tickformat": ".0%"},
    }
    return {"data": [t for t in traces if t["x"]], "layout": layout}


def _xy(curve: Curve) -> Figure:
    stride = max(1, math.ceil(len(curve) / CURVE_POINTS))
    # Counting from the end keeps the last point, which is the value of the finished training.
    points = curve[::-1][::stride][::-1]
    return {"x": [step for step, _ in points], "y": [finite(value) for _, value in points]}


def reliability_diagram(
    curves: Sequence[tuple[Model, Reliability]], after: tuple[Model, Reliability] | None = None
) -> Figure:
    """Accuracy by confidence; a perfectly calibrated model lies on the diagonal. Mark size: images.

    Args:
        curves: each model at temperature 1.
        after: one of them at its fitted temperature, as a dotted line.
    """
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "x": [0, 1],
        "y": [0, 1],
        "hoverinfo": "skip",
        "showlegend": False,
    }
    traces: list[Figure] = [{**diagonal, "line": {"color": "--quiet", "dash": "dash", "width": 1.5}}]
    for model, bins in [*curves, *([after] if after else [])]:
        fitted = after is not None and bins is after[1]
        filled = np.flatnonzero(bins.count)
        share = bins.count[filled] / bins.count.sum()
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"{model.name}, calibrated" if fitted else model.name,
                "x": bins.confidence[filled].round(4).tolist(),
                "y": bins.accuracy[filled].round(4).tolist(),
                "customdata": bins.count[filled].tolist(),
                "line": {"color": COLORS[model.role], "width": 2, "dash": "dot" if fitted else "solid"},
                "marker": {"color": COLORS[model.role], "size": (5 + 15 * np.sqrt(share)).round(1).tolist()},
                "hovertemplate": "confidence %{x:.1%}, accuracy %{y:.1%}: %{customdata:,} images"
                "<extra>%{fullData.name}</extra>",
            }
        )
    layout = {
        "height": 420,
        "xaxis": {"title": {"text": "confidence"}, "range": [0, 1.03], "tickformat": ".0%"},
        "yaxis": {"title": {"text": "accuracy"}, "range": [0, 1.03], "tickformat": ".0%"},
    }
    return {"data": traces, "layout": layout}


def confusion_matrix(matrix: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Heat map of the share of each true class (row) that is predicted as each class (column).

    Up to 20 classes have the number of images in each cell.

    Args:
        matrix: (K, K) images of each true class (row) by predicted class (column).
        classes: K class names.
    """
    names, positions = [label(name) for name in classes], list(range(len(classes)))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    few = len(names) <= CROWD
    trace = {
        "type": "heatmap",
        "z": shares.round(4).tolist(),
        "zmin": 0,
        "zmax": 1,
        "text": [[f"{n:,}" if n else "" for n in row] for row in matrix.tolist()],
        "customdata": [
            [f"{names[t]} predicted as {names[p]}: {matrix[t, p]:,}" for p in positions] for t in positions
        ],
        "hovertemplate": "%{customdata} (%{z:.1%})<extra></extra>",
        # The colour changes fast near 0: most confusions are a few per cent, the diagonal is near 1.
        "colorscale": [
            [0, "--paper"],
            [0.02, "--heat-1"],
            [0.1, "--heat-2"],
            [0.4, "--heat-3"],
            [1, "--heat-4"],
        ],
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
    }
    if few:
        trace |= {"texttemplate": "%{text}", "textfont": {"size": 11 if len(names) <= CROWD // 2 else 8}}
    axis = {"tickvals": positions, "ticktext": names, "showgrid": False, "zeroline": False}
    layout = {
        "height": 130 + (max(230, 22 * len(names)) if few else 12 * len(names)),
        "xaxis": {**axis, "title": {"text": "predicted"}, "tickangle": -45, "showticklabels": few},
        "yaxis": {**axis, "title": {"text": "true"}, "autorange": "reversed", "showticklabels": few},
    }
    return {"data": [trace], "layout": layout}
