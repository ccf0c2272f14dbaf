"""From a configuration to the graph of its stages: outputs, paths and inputs, before any stage runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from noisystudent.config import Config, LearnerConfig, TeacherConfig
from noisystudent.config.controls import followed_by_probe, linear_probe, probe_is_teacher, trained_controls
from noisystudent.config.run import chooses_decay, control_from_teacher, require_lengths
from noisystudent.run.backbones import backbone_key, backbones, embedding_stages
from noisystudent.run.fingerprint import ListingFingerprint, fingerprint
from noisystudent.run.first_teachers import labels_of, named_teachers
from noisystudent.run.graph import Graph, Iteration, Model
from noisystudent.run.inputs import compute_of, inputs_of, labeled_inputs, labels_stage, make_stage
from noisystudent.run.rundir import CONTROLS, ModelDir, RunDir
from noisystudent.run.stages import Stage


def build_graph(
    config: Config, listing: ListingFingerprint, run: RunDir, existing: Sequence[str] = ()
) -> Graph:
    """Build the graph of stages from a configuration, without reading or writing the run directory.

    Args:
        config: configuration of the run.
        listing: fingerprints of the images, from `listing_fingerprint`.
        run: run directory of the stages.
        existing: fingerprint of each first teacher that is not trained, from `existing.fingerprints`.

    Raises:
        InputError: a training has no length.
    """
    require_lengths(config)
    data = make_stage(
        "data", run.data.path, config=inputs_of(config.data), seed=config.seed, **listing._asdict()
    )
    labeled = fingerprint(labeled_inputs(config), listing.labeled)
    return _Builder(config, run, data, labeled, embedding_stages(config, run, data), existing).graph()


@dataclass(frozen=True, slots=True)
class _Builder:
    """Builds the stages of a run from the configuration, the run directory, the scan and the features.

    `labeled` is the fingerprint of the images that are not of the pool.
    """

    config: Config
    run: RunDir
    data: Stage
    labeled: str
    embeddings: Mapping[str, Stage]
    existing: Sequence[str]

    def graph(self) -> Graph:
        config, first = self.config, self.run.iteration(0)
        pretraining = None
        if config.pretrain is not None:
            pretraining = self._training(
                "pretraining", first.model("pretraining"), config.pretrain, pool=self.data.fingerprint
            )
        folds, out_of_fold = self._folds(pretraining)
        teachers = tuple(self._teachers(pretraining, out_of_fold))
        filter_model, filter_labels = self._filter()
        iterations: list[Iteration] = []
        for index in range(1, len(config.students) + 1):
            before = iterations[-1] if iterations else None
            iterations.append(self._iteration(index, teachers, filter_labels, before, out_of_fold))
        # With students, equal teachers are inputs of the first.
        judged = list(teachers[:1] if config.students and not config.teachers else teachers)
        judged += [model for iteration in iterations for model in iteration.models]
        return Graph(
            data=self.data,
            labeled=self.labeled,
            embeddings=self.embeddings,
            pretraining=pretraining,
            folds=folds,
            out_of_fold=out_of_fold,
            teachers=teachers,
            filter=filter_model,
            filter_labels=filter_labels,
            iterations=tuple(iterations),
            judgement=self._judgement(judged),
        )

    def _teachers(self, pretraining: Stage | None, out_of_fold: Stage | None) -> Iterator[Model]:
        """Yield the first teachers."""
        inputs: dict[str, object] = {"initial": pretraining.fingerprint} if pretraining else {}
        for each in named_teachers(self.config, self.existing):
            folder = self.run.iteration(0).model(each.name)
            if each.role == "teacher":
                # The weight decay of heads is chosen out of fold.
                head = self.config.choose and each.config.train.features
                chosen = {"out_of_fold": out_of_fold.fingerprint} if out_of_fold and head else {}
                yield self._model(0, "teacher", folder, each.config, inputs | each.inputs | chosen)
            else:
                stage = make_stage(each.name, folder.path, data=self.data.fingerprint, **each.inputs)
                yield Model(0, each.role, each.config, stage)

    def _folds(self, pretraining: Stage | None) -> tuple[tuple[Model, ...], Stage | None]:
        """Return the teachers of the folds and the stage of their predictions; none without folds."""
        config, first = self.config, self.run.iteration(0)
        if config.folds is None or not config.students:
            return (), None
        inputs: dict[str, object] = {"initial": pretraining.fingerprint} if pretraining else {}
        # Then heads of several weight decays are trained, and the best one predicts.
        several: dict[str, object] = {"several": True} if chooses_decay(config) else {}
        inputs |= several
        folds = tuple(
            self._model(0, "fold", first.fold(fold), config.teacher, inputs | {"fold": [fold, config.folds]})
            for fold in range(1, config.folds + 1)
        )
        models, labels = [fold.last.fingerprint for fold in folds], config.students[0].pseudo_label
        # The images are predicted in the way in which the first teacher labels the pool.
        views = [labels.flip, labels.scales]
        return folds, make_stage("out-of-fold", first.out_of_fold, models=models, views=views, **several)

    def _filter(self) -> tuple[Stage | None, Stage | None]:
        """Return the stages of the training of the filter and of its labelling; None without a filter."""
        config = self.config
        if config.filter is None or not config.students:
            return None, None
        training = self._training("filter", self.run.iteration(0).model("filter"), config.filter)
        # The filter labels the pool only once, before the first student (§3.1).
        path, options = self.run.iteration(1).filter_labels, config.students[0].pseudo_label
        labels = labels_stage("filter-labels", path, self.data, options, model=training.fingerprint)
        return training, labels

    def _iteration(
        self,
        index: int,
        teachers: tuple[Model, ...],
        filter_labels: Stage | None,
        before: Iteration | None,
        out_of_fold: Stage | None,
    ) -> Iteration:
        config, folder = self.config.students[index - 1], self.run.iteration(index)
        # The student of one iteration is the only teacher of the next (Alg. 1, step 4).
        labeling = (before.student,) if before else teachers
        made_by = labels_of(self.config, [teacher.last.fingerprint for teacher in labeling])
        expected = {"out_of_fold": out_of_fold.fingerprint} if out_of_fold else {}
        chosen = expected if self.config.choose else {}  # the temperature; the weight decay of heads
        labels = labels_stage(
            f"labels-{index}", folder.labels, self.data, config.pseudo_label, **made_by, **chosen
        )
        selection = make_stage(
            f"selection-{index}",
            folder.selection,
            config=inputs_of(config.selection),
            labels=labels.fingerprint,
            filter=filter_labels.fingerprint if filter_labels else None,
            # Only `reassign` keeps the images of the iteration before.
            before=before.selection.fingerprint if before and config.selection.reassign else None,
            seed=self.config.seed,
            **expected,
        )
        if filter_labels:
            selection = dataclasses.replace(selection, also=(folder.filter_selection,))
        # A student and its controls share these inputs, so that they differ only in the pool and the steps.
        shared: dict[str, object] = {
            "ratio": config.unlabeled_ratio,
            "initial": _weights(labeling) if config.init == "teacher" else None,
            "iteration": index,
            # The steps of passes over the pool.
            "length": [selection.fingerprint, config.joint] if config.train.pool_epochs else None,
            **(chosen if config.train.features else {}),
        }
        # These do not change the control, so it does not train again when one of them is edited.
        own: dict[str, object] = {
            "selection": selection.fingerprint,
            "joint": config.joint,
            "window": config.pool_window and [config.pool_window, "by pool row"],  # once by content hash
            **inputs_of(config.pseudo_label, of_student=True),
        }
        student = self._model(index, "student", folder.model("student"), config, shared | own)
        last = index == len(self.config.students)  # only it is compared with controls
        inputs = self._control_inputs(shared, teachers, selection, chosen) if last else {}
        return Iteration(index, config, labels, selection, student, tuple(self._controls(inputs)))

    def _controls(self, inputs: Mapping[str, Mapping[str, object]]) -> Iterator[Model]:
        """Yield the controls of the last student, from the inputs of each kind."""
        index, probe = len(self.config.students), linear_probe(self.config)
        trained = trained_controls(self.config)
        for kind in (kind for kind in inputs if kind in trained):
            config = probe if probe and kind == "linear_probe" else self.config.students[-1]
            folder = self.run.iteration(index).model(CONTROLS[kind])
            yield self._model(index, CONTROLS[kind], folder, config, inputs[kind])

    def _control_inputs(
        self,
        shared: Mapping[str, object],
        teachers: Sequence[Model],
        selection: Stage,
        chosen: Mapping[str, object],
    ) -> dict[str, Mapping[str, object]]:
        """Return the inputs of each kind of control; all but the probe share some with the student."""
        same = {"initial": _weights(teachers) if control_from_teacher(self.config) else None}
        passes = [compute_of(self.config), len(backbones(self.config))]
        # The passes of the labelling depend on the size of the pool.
        compute: dict[str, object] = {"initial": None, "compute": passes, "pool": self.data.fingerprint}
        if any(student.train.pool_epochs for student in self.config.students):
            compute["length"] = selection.fingerprint  # it depends on the selections before it
        # The probe has the weight decay that is chosen for the teacher, if it has its settings.
        probe = chosen if followed_by_probe(self.config) else {}
        return {
            "same_steps": {**shared, **same},
            "same_compute": {**shared, **compute},
            "linear_probe": probe,
        }

    def _judgement(self, models: list[Model]) -> Stage:
        stages = [stage for model in models for stage in (model.training, model.finetuning) if stage]
        # The verdict names a first teacher that is the linear probe.
        more: dict[str, object] = {"probe": "teacher"} if probe_is_teacher(self.config) else {}
        if not self.config.students:  # otherwise an input of the first labels
            more |= labels_of(self.config, [model.last.fingerprint for model in models])
        judgement = make_stage(
            "judgement",
            self.run.verdict,
            config=inputs_of(self.config.evaluate),
            truth=self.config.data.pool_truth,
            **{stage.name: stage.fingerprint for stage in stages},
            **more,
        )
        folders = [self.run.iteration(index) for index in range(len(self.config.students) + 1)]
        written = [folder.evaluation for folder in folders] + [folder.gallery for folder in folders[1:]]
        return dataclasses.replace(judgement, also=(self.run.metrics, *written))

    def _model(
        self, index: int, role: str, folder: ModelDir, config: TeacherConfig, inputs: Mapping[str, object]
    ) -> Model:
        # In iteration 0 the folder name distinguishes several teachers: teacher, teacher-2, …
        name = folder.path.name if index == 0 else f"{role}-{index}"
        training = self._training(name, folder, config, **inputs)
        finetuning = None
        if config.finetune is not None:
            finetuning = make_stage(
                f"{name}-finetune",
                folder.finetune.path,
                config=inputs_of(config.finetune),
                model=training.fingerprint,
            )
        return Model(index, role, config, training, finetuning)

    def _training(self, name: str, folder: ModelDir, config: LearnerConfig, **inputs: object) -> Stage:
        parts: dict[str, object] = {
            part: inputs_of(getattr(config, part)) for part in ("model", "augment", "train")
        }
        if key := backbone_key(self.config, config):
            parts["embeddings"] = key
        return make_stage(name, folder.path, labeled=self.labeled, seed=self.config.seed, **parts, **inputs)


def _weights(teachers: Sequence[Model]) -> str | None:
    """Fingerprint of the first of the teachers that this run trains; None if it trains none."""
    return next((teacher.last.fingerprint for teacher in teachers if teacher.role != "existing"), None)
