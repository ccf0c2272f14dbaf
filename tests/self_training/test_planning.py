from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Capture

from noisystudent import memory, recipes
from noisystudent.config import Config
from noisystudent.console import Progress
from noisystudent.data.loader import SelectedPool
from noisystudent.data.sample import take_sample
from noisystudent.data.sources import open_sources
from noisystudent.errors import InputError
from noisystudent.run.build import build_graph
from noisystudent.run.estimate import RunPlan, StageEstimate, whole
from noisystudent.run.rundir import RunDir
from noisystudent.self_training import budget as of_budget
from noisystudent.self_training import estimate, planning, schedule
from noisystudent.self_training.budget import ladder, within
from noisystudent.self_training.measure import MeasuredTraining
from noisystudent.self_training.rates import Rates
from noisystudent.self_training.training import Training


def test_a_plan_has_every_stage_and_changes_nothing(
    images: Path, finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A run after it, in the same process, has the same bits."""
    config, out = tiny.config(images), tmp_path / "run"
    recipe = tiny.write_recipe(tmp_path / "tiny.yaml")
    words = (recipe, *tiny.flags(images), "--out", out, "--budget", "1h", "--json")
    content = json.loads(tiny.output(capsys, "plan", *words))
    assert list(tmp_path.iterdir()) == [recipe], "nothing is written"
    assert content["config"]["students"][0]["train"]["steps"] == 12, "the budget is large"
    stages = [StageEstimate(**one) for one in content["stages"]]
    assert StageEstimate(**content["whole"]) == whole(stages)
    names = ["data", "teacher", "labels-1", "selection-1", "student-1", "control-1", "judgement"]
    assert [one.stage for one in stages] == names
    of = {one.stage: one for one in stages}
    assert [of[name].steps for name in ("teacher", "student-1", "control-1")] == [12, 12, 12]
    assert all(of[name].seconds > 0 and of[name].images_per_second > 0 for name in ("teacher", "labels-1"))
    tiny.run(config, out)
    for model in ("iteration-0/teacher", "iteration-1/student", "iteration-1/control"):
        assert tiny.weights(out, model) == tiny.weights(finished, model)
        written = (out / model / "model.safetensors").stat().st_size
        name = {"teacher": "teacher", "student": "student-1", "control": "control-1"}[Path(model).name]
        assert written <= of[name].disk_bytes < 1.1 * written


def test_a_run_that_was_begun_keeps_its_settings(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another budget, or the same one on a slower machine, would make its stages again."""
    config, progress = tiny.config(images), tiny.Remembered()
    sources = open_sources(config.data)
    chosen, plan = planning.plan(config, sources, finished, budget=0.001, progress=progress)
    assert (chosen, plan.stages) == (config, ()), "all is done"
    assert progress.lines == [f"--budget: {finished} keeps the settings with which it was begun"]
    shorter = list(ladder(config))[2]
    assert shorter.teacher.train.steps == 6
    out = tmp_path / "shorter"
    out.mkdir()
    (out / ".noisystudent").touch()
    (out / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(shorter)))))
    assert planning._begun(config, out) == shorter
    figures = RunPlan(stages=(StageEstimate(stage="teacher", seconds=7200.0),))
    monkeypatch.setattr(estimate.Stages, "plan", lambda _self: figures)
    for budget in (7200.0, 3600.0):
        assert planning.plan(config, sources, out, budget=budget, progress=progress) == (shorter, figures)
    kept = f"--budget: {out} keeps the settings with which it was begun; the rest takes about 2.0 h"
    over = f"{kept}, more than 60.0 min; give another --out for a smaller run"
    assert progress.lines[1:] == [kept, over]
    assert planning._begun(tiny.config(images, ("student.unlabeled_ratio", 1)), out) is None


def test_a_run_that_does_not_fit_is_refused_before_it_begins(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(memory, "limit", lambda _device: 2**20)
    monkeypatch.setattr(estimate, "_FEW_PIXELS", 0)
    monkeypatch.setattr(planning, "_LONG", 0.0)
    recipe = tiny.write_recipe(tmp_path / "tiny.yaml")
    line = tiny.refused(capsys, 2, "run", recipe, *tiny.flags(images), "--out", tmp_path / "run")
    assert ".train.accumulate by" in line or ".pseudo_label.batch_size by" in line
    assert "of memory, and 1.0 MiB can be used" in line
    assert not (tmp_path / "run").exists()


def test_a_long_run_prints_its_plan_first(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    figures = RunPlan(stages=(StageEstimate(stage="teacher", seconds=7200.0, disk_bytes=2048),))
    monkeypatch.setattr(estimate.Stages, "plan", lambda _self: figures)
    sources, progress = open_sources(tiny.config(images).data), tiny.Remembered()
    for seconds, expected in (
        (59.0, []),
        (61.0, ["plan: about 2.0 h, 2.0 KiB on disk", "plan: teacher: 2.0 h"]),
    ):
        monkeypatch.setattr(estimate.Stages, "rough", lambda _self, seconds=seconds: seconds)
        config = tiny.config(images)
        out = tmp_path / "run"
        assert planning.plan_long(config, sources, out, budget=None, progress=progress) == config
        assert progress.lines == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"ensemble": 3, "students": 2},
        {"student.finetune": {"steps": 30}, "filter": {"train": {"steps": 9, "batch_size": 6}}},
    ],
)
def test_the_rough_time_is_that_of_all_trainings(
    changes: dict[str, object], images: Path, tmp_path: Path
) -> None:
    """With one of 20 teachers counted, the plan of a long run was not printed, nor its memory checked."""
    config = tiny.config(images, *changes.items())
    states = planning._states(sources := open_sources(config.data), out := tmp_path / "run")
    with planning._planner(sources, out, Progress(), states) as stages:
        known = stages(config)
        lengths = [length.images for _, length in schedule._lengths(known.context)]
        assert sorted(one.images for one in known._trainings()) == sorted(length or 0 for length in lengths)


def test_a_teacher_that_exists_is_measured_by_no_training(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, measure = set(), Rates.training

    def spy(self: Rates, training: Training, pool: SelectedPool | None = None) -> MeasuredTraining:
        measured.add(training.folder.path.name)
        return measure(self, training, pool)

    monkeypatch.setattr(Rates, "training", spy)
    config = tiny.config(images, ("teachers", [{"model_from": str(finished)}]), ("control", ["none"]))
    states = planning._states(sources := open_sources(config.data), out := tmp_path / "run")
    with planning._planner(sources, out, Progress(), states) as stages:
        known = stages(config)
        known.plan()
        known.rough()
    assert measured == {"student"}


def test_robustness_is_measured_for_every_rung(images: Path, tmp_path: Path) -> None:
    """Rungs that differ in lengths share a measurement, and others have folders of their own."""
    config = tiny.config(images, ("evaluate.tests", ["fgsm"]), ("control", ["none"]))
    shorter, other = (
        tiny.config(images, ("evaluate.tests", ["fgsm"]), ("control", ["none"]), change)
        for change in (("student.train.steps", 6), ("student.model.name", "resnet8_32"))
    )
    states = planning._states(sources := open_sources(config.data), out := tmp_path / "run")
    with planning._planner(sources, out, Progress(), states) as stages:
        first, same, _ = (stages(one)._judgement() for one in (config, shorter, other))
    assert first.seconds == same.seconds > 0


def test_a_sample_has_the_numbers_of_the_run(images: Path, tmp_path: Path) -> None:
    config = tiny.config(images)
    _, whole_set = tiny.opened(images, finished_data(config, tmp_path / "run"))
    (tmp_path / "sample").mkdir()
    sample = take_sample(
        config.data,
        open_sources(config.data),
        tmp_path / "sample",
        tmp_path / "run",
        size=5,
        progress=Progress(),
    )
    assert sample.images == 84
    for name in ("labeled", "val", "test", "pool"):
        assert len(getattr(sample.whole, name)) == len(getattr(whole_set, name))
        assert len(getattr(sample.few, name)) == 5


def finished_data(config: Config, out: Path) -> Path:
    """The folder of a run whose images are scanned."""
    from noisystudent.data.prepare import prepare
    from noisystudent.run.rundir import RunDir

    prepare(config.data, open_sources(config.data), RunDir(out).data, 0, Progress())
    return out


_SHORT = {"model": {"name": "resnet8_16"}, "train": {"steps": 5, "batch_size": 6}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"teacher.train.features": True, "folds": 2},
        {
            "evaluate.tests": ["fgsm"],
            "student.finetune": {"steps": 3},
            "student.pseudo_label.on_the_fly": True,
            "control": ["same_steps", "same_compute"],
            "ensemble": 2,
        },
        {
            "student.pseudo_label.teacher": "ema",
            "student.train.steps": None,
            "student.train.pool_epochs": 2,
            "student.unlabeled_ratio": [1, 2],
        },
        {"data.pool_tags": True, "pretrain": _SHORT, "filter": _SHORT},
    ],
)
def test_every_kind_of_stage_is_estimated(changes: dict[str, object], images: Path, tmp_path: Path) -> None:
    config = tiny.config(images, *changes.items())
    _, plan = planning.plan(config, open_sources(config.data), tmp_path / "run", progress=Progress())
    graph = build_graph(config, tiny.LISTING, RunDir(tmp_path / "run"))
    assert [one.stage for one in plan.stages] == [stage.name for stage in graph.stages()]
    trained = [one for one in plan.stages if one.steps]
    assert len(trained) >= 3
    assert all(one.seconds > 0 and one.disk_bytes > 0 for one in trained)


# --- the ladder, and a budget ---


def recipe(**changes: object) -> Config:
    return recipes.load("cifar10-cpu", [("data.labeled", ["images"]), *changes.items()])


RECIPES = [
    recipes.resolve(tiny.RECIPE),
    recipe(),
    recipes.load("folder", [("data.labeled", ["images"]), ("control", ["same_steps"])]),
]


@pytest.mark.parametrize("config", RECIPES, ids=lambda config: config.name)
def test_the_ladder_begins_with_the_recipe_and_never_grows(config: Config) -> None:
    rungs = list(ladder(config))
    assert rungs[0] == config
    assert all(rung not in rungs[:place] for place, rung in enumerate(rungs))

    def sizes(rung: Config) -> list[int]:
        ratios = [student.unlabeled_ratio[-1] for student in rung.students]
        return [rung.data.resolution, *ratios]

    shapes = [sizes(rung) for rung in rungs]
    for before, after in pairwise(shapes):
        assert all(new <= old for old, new in zip(before, after, strict=True))
    for rung in rungs:
        changed = [rung.seed, rung.evaluate, rung.control, [one.selection for one in rung.students]]
        assert changed == [
            config.seed,
            config.evaluate,
            config.control,
            [one.selection for one in config.students],
        ]


RUNGS = list(ladder(RECIPES[0]))


@settings(deadline=None)
@given(
    seconds=st.lists(st.floats(0.1, 100), min_size=7, max_size=7),
    memory_of=st.lists(st.integers(1, 20), min_size=7, max_size=7),
    budgets=st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)),
)
def test_a_smaller_budget_never_takes_longer(
    seconds: list[float], memory_of: list[int], budgets: tuple[float, float]
) -> None:
    rungs, (config, *_) = RUNGS, RUNGS

    def plan(rung: Config) -> RunPlan:
        place = rungs.index(rung) % 7
        one = StageEstimate(stage="teacher", seconds=seconds[place], peak_bytes=memory_of[place])
        return RunPlan(stages=(one,), memory=10, fields={"teacher": "teacher.train.accumulate"})

    taken = []
    for budget in sorted(budgets):
        try:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(of_budget, "ladder", lambda _config: iter(RUNGS))
                rung, chosen = within(config, budget, plan)
        except InputError as error:
            taken.append(0.0)
            possible = [s for s, m in zip(seconds, memory_of, strict=True) if m <= 10]
            assert not possible or min(possible[: len(rungs)]) > budget, error
            continue
        assert plan(rung) == chosen
        assert whole(chosen.stages).peak_bytes <= 10
        taken.append(whole(chosen.stages).seconds)
        assert taken[-1] <= budget
        if seconds[0] <= budget and memory_of[0] <= 10:
            assert rung == config, "a large budget changes nothing"
    assert taken[0] <= taken[1]
