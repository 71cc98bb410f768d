"""Search spaces: read from YAML, checked, and turned into trials. All corners of a space must be legal trials."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from raysweep.errors import UserError
from raysweep.space import domains, sampler_rules, yaml_file
from raysweep.space.domains import Point, WrongDomain
from raysweep.space.explain import WrongValue, explain
from raysweep.space.launch import Count, Launch
from raysweep.space.profile import PROFILES, merge
from raysweep.space.sampler_rules import Sampler
from raysweep.space.schedulers import Asha, Scheduler
from raysweep.space.yaml_file import Document
from trainables.config import Family, ProbeSpec, Spec, Steps, Trial, WrongKey, count_name
from trainables.datasets import checks, prepared
from trainables.redaction import public_data

# Paths of a probe's files. They do not identify a probe: the SHA-256 of the files does.
PROBE_PATHS = ("detector_weights", "reference")
MakeError = Callable[[tuple[str, ...], str], UserError]


class Search(Spec):
    """How the space is searched. Steps are counted as in the file, before `steps_divisor`."""

    mode: Literal["explore", "reproduce"] = "explore"
    """`explore` lets the sampler propose trials. `reproduce` trains every enqueued row to its end and nothing else."""
    trials: Count = 24
    """Number of distinct configurations in all, enqueued rows included."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the proposals, not of training."""
    rungs: tuple[Steps, ...] | None = None
    """Steps at which the scheduler decides. Default: 1/8, 1/4 and 1/2 of the iterations."""
    scheduler: Scheduler = Asha()
    """Decides which trials continue from a rung."""
    sampler: Sampler = "tpe"
    """Proposes the configurations that are not enqueued."""
    second_objective: Literal["steps", "is"] | None = None
    """A second objective that the sampler weighs beside the deciding metric."""
    startup_trials: Annotated[int, Field(ge=0)] = 10
    """Number of random proposals before the sampler takes over."""


class Row(Spec):
    """A configuration to propose first: how it differs from the defaults, and a paper's values for it."""

    set: dict[str, Any] = {}
    """How the row differs from the defaults: `{dotted path: value}`. An option that is a mapping is named by its
    kind.
    """
    fid: float | None = None
    """FID of the reference."""
    is_: Annotated[float | None, Field(alias="is")] = None
    """Inception Score of the reference."""
    sfid: float | None = None
    """sFID of the reference."""
    precision: float | None = None
    """Precision of the reference."""
    recall: float | None = None
    """Recall of the reference."""

    def reference_values(self, samples: int) -> dict[str, float]:
        """The reference values by metric; `samples` is how many samples they were computed from."""
        count = count_name(samples)
        values = {f"fid_{count}": self.fid, f"is_{count}": self.is_, f"sfid_{count}": self.sfid}
        values |= {f"precision_{count}": self.precision, f"recall_{count}": self.recall}
        return {name: value for name, value in values.items() if value is not None}


class Sampling(Spec):
    """How probes of one family of backbones sample. Detector and number of samples are the same for all families."""

    sampler: Literal["euler", "heun", "euler_maruyama"] | None = None
    """ODE samplers are `euler` and `heun`; `euler_maruyama` integrates the SDE."""
    steps: Count | None = None
    """Number of sampler steps."""
    timestep_shift: float | None = None
    """Shift of the ODE samplers' times."""
    guidance_scale: float | None = None
    """Classifier-free guidance; 1 is none."""
    guidance_interval: tuple[float, float] | None = None
    """Times between which guidance acts; t=0 is data."""


class Probe(ProbeSpec):
    """A probe whose sampling may differ between families of backbones, so that each is sampled as its authors do."""

    families: dict[Family, Sampling] = {"LightningDiT": Sampling(sampler="euler", timestep_shift=0.3)}
    """What differs for a family of backbones."""

    @model_validator(mode="after")
    def _families_fit(self) -> Probe:
        for family in self.families:
            try:
                self.for_family(family)
            except ValidationError as error:
                first = error.errors()[0]
                cause = first.get("ctx", {}).get("error")
                key = cause.key if isinstance(cause, WrongKey) else ".".join(map(str, first["loc"]))
                raise WrongKey(f"families.{family}.{key}", str(cause or first["msg"])) from None
        return self

    def for_family(self, family: Family) -> ProbeSpec:
        """The probe of a snapshot of that family."""
        own = self.families.get(family, Sampling()).model_dump(exclude_none=True)
        return ProbeSpec.model_validate(self.model_dump(exclude={"families"}) | own)


class SpaceFile(Spec):
    """A search space as it is written in a file, with a profile applied."""

    study: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)]
    """A short name."""
    trial: dict[str, Any] = {}
    """What is trained, with domains at its leaves."""
    search: Search = Search()
    """How the space is searched."""
    probe: Probe = Probe()
    """How snapshots are evaluated."""
    launch: Launch = Launch()
    """Where trials run."""
    enqueue: tuple[Row, ...] = ()
    """Configurations to propose first, e.g. the rows of a table."""
    steps_divisor: Count = 1
    published_samples: Count = 10_000


class Space:
    """A checked search space at one profile.

    Attributes:
        study: the name of its study.
        profile: the profile that was applied.
        tree: the trial, with a `Domain` at each leaf that is searched.
        search: how it is searched.
        probe: how snapshots are evaluated.
        launch: where trials run.
        rows: the configurations to propose first.
        steps_divisor: steps in the file are divided by this.
        published_samples: the number of samples behind the reference values of `rows`.
        error: makes a UserError from the path of a key and a message. It names file and line where they are known.
    """

    def __init__(self, file: SpaceFile, profile: str):
        self.profile, self._written = profile, file.trial
        self.tree = domains.parse(file.trial)
        self.study, self.search, self.probe = file.study, file.search, file.probe
        self.launch, self.rows, self.steps_divisor = file.launch, file.enqueue, file.steps_divisor
        self.published_samples = file.published_samples
        self.error: MakeError = lambda path, message: UserError(f"{'.'.join(path)}: {message}")

    @classmethod
    def reopen(cls, resolved: Mapping[str, Any]) -> Space:
        """The space that a stored `resolved` describes. Its `id` stays the same, even if an earlier version stored it
        with fewer keys."""
        space = cls(
            SpaceFile.model_validate({k: v for k, v in resolved.items() if k != "profile"}), resolved["profile"]
        )
        space.resolved = dict(resolved)
        return space

    def trial(self, point: Mapping[str, Any]) -> tuple[Trial, Point]:
        """The trial at `point`, with the path of its data set made absolute, and the complete point.

        Raises:
            WrongDomain: a value lies outside its domain.
            pydantic.ValidationError: the trial is not legal.
        """
        concrete, full = domains.resolve(self.tree, point)
        trial = Trial.model_validate(concrete)
        return trial.model_copy(update={"data": prepared.absolute(trial.data)}), full

    def points(self, most: int = 20_000) -> Iterator[Point]:
        """Points that together show whether the space is legal: the rows to reproduce, or the corners to explore."""
        if self.search.mode == "explore":
            yield from domains.corners(self.tree, most)
            return
        for row in self.rows:
            # If --set has changed the space, a row may lie outside it. This is reported when the row is proposed.
            with contextlib.suppress(WrongDomain):
                yield domains.resolve(self.tree, row.set)[1]

    def probe_of(self, trial: Trial) -> ProbeSpec:
        """The probe of a trial's snapshots."""
        return self.probe.for_family(trial.size.family)

    def steps(self, written: int) -> int:
        """Optimizer steps for a number of steps in the file; at least one."""
        return max(1, round(written / self.steps_divisor))

    def rungs(self, trial: Trial) -> list[int]:
        """Optimizer steps at which a trial is probed: its rungs and its end."""
        end = self.steps(trial.iterations)
        whole = trial.iterations
        written = (whole // 8, whole // 4, whole // 2) if self.search.rungs is None else self.search.rungs
        return sorted({step for step in map(self.steps, written) if step < end}) + [end]

    @cached_property
    def defaults(self) -> Point:
        """The point with every domain at its default."""
        return domains.resolve(self.tree, {})[1]

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """The space with profile and overrides applied, as plain data. This is what a study's journal stores."""
        return {
            "study": self.study,
            "profile": self.profile,
            "steps_divisor": self.steps_divisor,
            "published_samples": self.published_samples,
            "trial": self._written,
            "search": self.search.model_dump(mode="json"),
            "probe": self.probe.model_dump(mode="json"),
            "launch": self.launch.model_dump(mode="json"),
            "enqueue": [row.model_dump(mode="json", by_alias=True) for row in self.rows],
        }

    @property
    def id(self) -> str:
        """The name of the study in the store: name, profile, and a digest of everything but the number of trials,
        `launch`, and the paths of files. A space that differs in anything else is another study."""
        probe = {name: value for name, value in self.resolved["probe"].items() if name not in PROBE_PATHS}
        search = {**self.resolved["search"], "trials": None}
        same = {**self.resolved, "launch": None, "search": search, "probe": probe}
        digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
        return f"{self.study}-{self.profile}-{digest[:8]}"


def load(
    path: str | PathLike[str], profile: str = "cluster", overrides: Mapping[str, Any] | Sequence[str] = ()
) -> Space:
    """Read and check a search space.

    Args:
        path: the YAML file.
        profile: the size: `cluster`, `laptop` or `smoke`.
        overrides: values by dotted key, or texts `key=value` as given to `--set`. They win over the profile, which wins
            over the file's plain values in `trial` and `probe`. The file's domains and its `launch` win over the
            profile.

    Raises:
        UserError: the file or an override is wrong. The message names file, line and key, and says what would be right.
    """
    document = yaml_file.read(Path(path))
    if profile not in PROFILES:
        written = "profile=" if isinstance(overrides, Mapping) else "--profile "
        raise UserError(f"{written}{profile}: no such profile; known: {', '.join(PROFILES)}")
    raw = merge(document.tree, profile)
    if isinstance(overrides, Mapping):
        given = [(f"overrides[{key!r}]", key, value) for key, value in overrides.items()]
    else:
        given = [_parse_override(text) for text in overrides]
    overridden = {_override(raw, written, key, value): written for written, key, value in given}
    return _checked(raw, profile, document, overridden)


def load_all(paths: Sequence[str], profile: str, overrides: Sequence[str]) -> list[Space]:
    """Read several search spaces for one sweep, whose trials share workers.

    Raises:
        UserError: one is wrong, two are the same, or their `launch` differs.
    """
    spaces = [load(path, profile, overrides) for path in paths]
    for number, space in enumerate(spaces):
        for other in range(number):
            if space.id == spaces[other].id:
                raise UserError(f"{paths[number]}: the same space as {paths[other]}; leave one out")
            mine, theirs = space.launch.model_dump(), spaces[other].launch.model_dump()
            for key in sorted(set(mine) - {"concurrent_trials"}):
                if mine[key] != theirs[key]:
                    raise UserError(
                        f"{paths[number]}: launch.{key} is {mine[key]} and {theirs[key]} in {paths[other]}; "
                        f"they share workers, so set it for both: --set launch.{key}=VALUE"
                    )
    return spaces


def _parse_override(text: str) -> tuple[str, str, Any]:
    """An argument of `--set` as (the text for error messages, key, value)."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: write it as key=value, e.g. --set search.trials=30")
    try:
        return f"--set {key.strip()}", key.strip(), yaml_file.parse(value)
    except UserError as error:
        raise UserError(f"--set {key}: {error}") from None


def _override(raw: dict[str, Any], written: str, key: str, value: Any) -> tuple[str, ...]:
    """Set a value at a dotted key; returns the key's parts. An error names the override as it was `written`."""
    path = tuple(key.split("."))
    if not all(path):
        raise UserError(f"{written}: '{key}' is not a dotted key; write it like search.trials")
    node = raw
    for part in path[:-1]:
        below = node.get(part)
        node[part] = dict(below) if isinstance(below, dict) else {}
        node = node[part]
    node[path[-1]] = value
    return path


def _checked(raw: dict[str, Any], profile: str, document: Document, overridden: Mapping[tuple[str, ...], str]) -> Space:
    def error_at(path: tuple[str, ...], message: str) -> UserError:
        for key, written in overridden.items():
            if path[: len(key)] == key or key[: len(path)] == path:
                return UserError(f"{written}: {message}")
        return document.error(path, message)

    try:
        for key in ("steps_divisor", "published_samples"):
            if key in document.tree:
                raise WrongValue((key,), f"the profile sets this; leave it out, or use --set {key}=N")
        try:
            file = SpaceFile.model_validate(raw)
            file = file.model_copy(update={"probe": checks.pinned(file.probe)})
        except ValidationError as error:
            raise explain(error, raw, SpaceFile) from None
        try:
            space = Space(file, profile)
            _check_trials(space)
            if space.search.mode == "explore":
                sampler_rules.check_sampler(space.search.sampler, space.tree)
                sampler_rules.check_second_objective(space.search.second_objective, space.search.sampler, space.probe)
        except WrongDomain as error:
            raise WrongValue(("trial", *error.path.split(".")), str(error)) from None
    except WrongValue as error:
        raise error_at(error.path, str(error)) from None
    if space.search.mode == "reproduce" and not space.rows:
        raise error_at(("search", "mode"), "reproduce trains the rows of `enqueue`, and there are none; use explore")
    for position, row in enumerate(space.rows):
        try:
            space.trial(row.set)
        except WrongDomain as error:
            if not any(key[:1] == ("trial",) for key in overridden):
                raise error_at(("enqueue", str(position), "set", error.path), str(error)) from None
    space.error = error_at
    return space


def _check_trials(space: Space) -> None:
    for point in space.points():
        concrete, _ = domains.resolve(space.tree, point)
        try:
            trial = Trial.model_validate(concrete)
        except ValidationError as error:
            mistake = explain(error, concrete, Trial)
            raise WrongValue(("trial", *mistake.path), str(mistake)) from None
        _check_workers(trial, space.launch)
        if space.launch.micro_batch and trial.method.needs_whole_batch:
            raise WrongValue(
                ("launch", "micro_batch"),
                f"{trial.method.kind} compares the images of a whole batch and cannot run in micro-batches; "
                "leave this out",
            )


def _check_workers(trial: Trial, launch: Launch) -> None:
    if launch.most > trial.batch_size:
        raise WrongValue(
            ("trial", "batch_size"),
            f"a batch of {trial.batch_size} is too small for the {launch.most} workers of a lane",
        )
    uneven = next((n for n in range(launch.fewest, launch.most + 1) if trial.batch_size % n), None)
    if uneven and trial.method.needs_whole_batch:
        raise WrongValue(
            ("trial", "batch_size"),
            f"{trial.method.kind} compares the images of a whole batch, and {trial.batch_size} cannot be split evenly "
            f"between {uneven} workers; make launch.workers a divisor",
        )


def dump(space: Space) -> str:
    """The resolved space as YAML for people, without secrets."""
    return yaml.safe_dump(public_data(space.resolved), sort_keys=False, allow_unicode=True)
