"""Trains and probes on a worker, and keeps what was loaded for later tasks.

A task trains a segment of runs or probes a snapshot, both given as folders of files. Whatever one task loads (data set,
autoencoder, detector, teachers) is reused by the next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainables.backbones import Backbone
from trainables.config import ProbeSpec, Recipe, Run, TeacherRef
from trainables.datasets import autoencoders, cached, catalog
from trainables.datasets.latent_set import LatentSet, folder, load_images, load_latents
from trainables.evaluation import detectors
from trainables.evaluation.probing import ProbeResult, Shards, probe
from trainables.evaluation.reference import Reference
from trainables.process_group import ProcessGroup
from trainables.training.checkpoint import Checkpoint, load_weights
from trainables.training.loop import Context, NonFiniteLoss, Outcome, load_backbone, train_together

TEACHERS_KEPT = 2  # the most recently used ones
Folder = Callable[[TeacherRef], Path]


class WorkerCache:
    """Trains runs and probes snapshots. Keeps data sets, autoencoders, detectors and teachers between tasks.

    Args:
        cache: a folder of this machine for files that can be computed again.
    """

    def __init__(self, context: Context, cache: Path):
        self.context, self.cache = context, cache
        self._group = ProcessGroup(context.rank, context.world_size)
        self._data: dict[tuple[str, bool, bool], LatentSet] = {}
        self._autoencoders: dict[str, Any] = {}
        self._references: dict[tuple[str, str], Reference] = {}  # by data and detector
        self._detectors: dict[str, detectors.Detector] = {}
        self._teachers: OrderedDict[tuple[Path, str], Backbone] = OrderedDict()

    def train(
        self, runs: Sequence[Run], until: int, starts: Sequence[tuple[Path, int] | None], teacher_folder: Folder
    ) -> list[Outcome | NonFiniteLoss]:
        """Train runs in lockstep to step `until`.

        Args:
            starts: the folder and step of the checkpoint that each run starts from; None: from fresh weights.
            teacher_folder: the folder of a teacher's checkpoint.

        Raises:
            ValueError, LookupError: as `train_together` and `load_latents`.
        """

        def teacher(reference: TeacherRef) -> Backbone:
            return self._teacher(teacher_folder(reference), reference)

        return train_together(
            runs,
            until,
            data=self._training_data(runs),
            context=self.context,
            starts=[Checkpoint.load(*start) if start else None for start in starts],
            teacher=teacher,
        )

    def probe(self, recipe: Recipe, spec: ProbeSpec, folder: Path, shards: Shards | None = None) -> ProbeResult:
        """Probe the snapshot in `folder`. `shards` are the finished chunks of an earlier attempt."""
        data, context = self.data(recipe.data), self.context
        return probe(
            load_backbone(recipe, data, load_weights(folder), context.device, context.compile),
            spec,
            autoencoder=self.autoencoder(recipe.data),
            detector=self.detector(spec),
            reference=self.reference(recipe.data, spec),
            latent_shape=data.latent_shape,
            num_classes=data.num_classes,
            device=context.device,
            path=recipe.path,
            rank=context.rank,
            world_size=context.world_size,
            progress=context.progress,
            shards=shards,
        )

    def data(self, name: str, *, mirrored: bool = False, images: bool = False) -> LatentSet:
        """The training latents of a data set. The embedded set is encoded when this machine first needs it."""
        wanted = (name, mirrored, images)
        if wanted not in self._data:
            device = self.context.device if self.context.hold_data else None
            self._data[wanted] = load_latents(
                name, self.cache, mirrored=mirrored, images=images, device=device, group=self._group
            )
        return self._data[wanted]

    def _training_data(self, runs: Sequence[Run]) -> LatentSet:
        images = any(phase.term.needs_encoder for run in runs for phase in run.phases)
        return self.data(runs[0].data, mirrored=runs[0].horizontal_flip, images=images)

    def autoencoder(self, data: str) -> Any:
        """The autoencoder that made a data set's latents."""
        if data not in self._autoencoders:
            embedded = catalog.find(data).embedded
            place = catalog.files(data)[1] if embedded else folder(data, self.cache) / "autoencoder"
            self._autoencoders[data] = autoencoders.load_autoencoder(place).to(self.context.device)
        return self._autoencoders[data]

    def detector(self, spec: ProbeSpec) -> detectors.Detector:
        """A probe's detector, loaded once."""
        name = f"{spec.detector} {spec.resize} {spec.detector_sha256}"
        if name not in self._detectors:
            self._detectors[name] = detectors.create(spec).to(self.context.device)
        return self._detectors[name]

    def reference(self, data: str, spec: ProbeSpec) -> Reference:
        """The reference statistics of a probe: those of the file that `spec` names, or of the data set's training
        images. The latter are computed when this machine first needs them."""
        detector = self.detector(spec)
        source = catalog.file_identity(Path(spec.reference)) if spec.reference else catalog.identity(data)
        name = (source, detector.identity)
        if name not in self._references:
            file = self.cache / f"judged-{source[:16]}-{detector.identity[:16]}.safetensors"
            tensors = cached.read(file)
            if not all(self._group.gather(tensors is not None)) or tensors is None:
                tensors = self._reference(data, spec).state
                cached.write(tensors, file)
            self._references[name] = Reference(tensors)
        return self._references[name]

    def _reference(self, data: str, spec: ProbeSpec) -> Reference:
        detector = self.detector(spec)
        if spec.reference:
            return Reference.read(Path(spec.reference), detector)
        if catalog.find(data).embedded:
            return Reference.of(load_images(data, "train")[0], detector, group=self._group)
        tensors = cached.read(folder(data, self.cache) / catalog.reference_file(data, spec.detector_name))
        if tensors is None:
            raise LookupError(
                f"the statistics of '{data}' for {spec.detector_name} are truncated or altered; prepare the set again"
            )
        return Reference(tensors)

    def _teacher(self, folder: Path, reference: TeacherRef) -> Backbone:
        name = (folder, reference.weights)
        if name not in self._teachers:
            weights = load_weights(folder, reference.weights)
            run = Run.model_validate(reference.run)
            context = self.context
            self._teachers[name] = load_backbone(run, self.data(run.data), weights, context.device, context.compile)
            while len(self._teachers) > TEACHERS_KEPT:
                self._teachers.popitem(last=False)
        self._teachers.move_to_end(name)
        return self._teachers[name]
