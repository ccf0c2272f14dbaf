"""One table of runs over seeds: accuracies, means, and the paired differences that matter."""

from __future__ import annotations

from typing import Any

from noisystudent.metrics.paired import paired_over_seeds


def show(rows: list[dict[str, Any]]) -> None:
    """A line a quantity, a column a seed, in percent; then last student minus teacher and control."""
    keys = [key for key in rows[0] if key not in ("seed", "seconds", "verdict")]
    print(f"\n{'':18}" + "".join(f"  seed {row['seed']}" for row in rows) + "    mean")
    for key in ["seconds", *keys]:
        values = [float(row[key]) for row in rows if isinstance(row.get(key), int | float)]
        if values:
            scale = 1 if key == "seconds" else 100
            cells = "".join(f"{scale * v:8.2f}" for v in values)
            print(f"{key:18}{cells}{scale * sum(values) / len(values):8.2f}")
    last = max((key for key in keys if key.startswith("student-")), default=None)
    if last is None:
        return
    number = last.removeprefix("student-")
    for rival in ("teacher-0", f"control-{number}"):
        differences = [float(row[last]) - float(row[rival]) for row in rows]
        line = f"{last} - {rival}: {100 * sum(differences) / len(differences):+.2f} points"
        if len(differences) > 1:
            _, low, high = paired_over_seeds(differences, 0.95)
            line += f", 95% interval over seeds {100 * low:+.2f} to {100 * high:+.2f}"
        print(line)
    for row in rows:
        print(f"seed {row['seed']}: {row['verdict']}")
