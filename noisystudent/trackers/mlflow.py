"""MLflow: one run for each stage, in the store that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
import time

from noisystudent.recipes.overrides import flat
from noisystudent.trackers.measured import PROJECT, StageMetrics

_TAG = "noisystudent.stage"
_METRICS, _PARAMS = 1000, 100  # that MLflow takes in one call


def log(stage: StageMetrics) -> None:
    """Log the numbers of a stage and the configuration of its run, unless MLflow has them.

    The experiment is MLFLOW_EXPERIMENT_NAME, or `noisystudent`.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client, name = MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(name)
    experiment = client.create_experiment(name) if known is None else known.experiment_id
    for run in client.search_runs([experiment], f"tags.`{_TAG}` = '{stage.key}'"):
        if run.info.status == "FINISHED":
            return
        client.delete_run(run.info.run_id)  # a process was killed while it logged this stage
    run_id = client.create_run(experiment, run_name=stage.title, tags={_TAG: stage.key}).info.run_id
    now = int(time.time() * 1000)
    metrics = [
        Metric(key, value, now, step) for step, values in stage.points() for key, value in values.items()
    ]
    params = [Param(key, str(value)) for key, value in flat(stage.run.read_config())]
    for start in range(0, len(metrics), _METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS])
    for start in range(0, len(params), _PARAMS):
        client.log_batch(run_id, params=params[start : start + _PARAMS])
    client.set_terminated(run_id)
