"""From a trial to its run, phase by phase. A phase that has a teacher contains the teacher's run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from pydantic import TypeAdapter

from raysweep.space import domains
from raysweep.space.domains import WrongDomain
from raysweep.space.space import Space
from trainables.config import Method, NoTerm, Phase, Recipe, Run, TeacherRef, Term, Trial
from trainables.datasets import catalog, checks

_TERM: TypeAdapter[Term] = TypeAdapter(Term)  # built once, because building takes ten times as long as using it
Scale = Callable[[int], int]  # steps in the file -> optimizer steps


def student(space: Space, trial: Trial) -> Run:
    """The run that `trial` trains, with steps in optimizer steps."""
    return _run(trial, trial.method, trial.iterations, space.steps)


def unavailable(trial: Trial) -> str | None:
    """Why this machine cannot train `trial`, or None where it can."""
    method = trial.method
    while method.teacher_spec:
        method = method.teacher_spec.method
    if not method.needs_encoder:
        return None
    if fault := checks.encoder_fault(trial.encoder):
        return fault
    try:
        catalog.require(trial.data, images=True)
    except LookupError as error:
        return str(error.args[0])
    return None


def teachers(run: Run) -> list[TeacherRef]:
    """All teachers of `run`, including the teachers of teachers."""
    references = []
    for phase in run.phases:
        if phase.teacher:
            references += [phase.teacher, *teachers(phase.teacher.run)]
    return references


def teacher_steps(run: Run) -> int:
    """Optimizer steps of all its teachers, each counted from step 0."""
    return sum(teacher.step for teacher in teachers(run))


def ends(run: Run, until: int | None = None) -> set[int]:
    """The steps at which the phases of `run` and of its teachers end, as far as the run is trained to step `until`
    (default: its end), and at which its teachers teach."""
    until, begin, steps = run.steps if until is None else until, 0, set[int]()
    for phase in run.phases:
        if begin < until:
            steps.add(min(phase.until, until))
            if phase.teacher:
                steps |= ends(phase.teacher.run, phase.teacher.step)
        begin = phase.until
    return steps


def milestones(space: Space) -> list[int]:
    """Optimizer steps at which every run of the space commits a checkpoint, as far as the space names them: rungs,
    ends, early stops and teachers' steps of its options, of the ends of its ranges, and of its rows.

    All runs use the same list. Two runs that share their first steps are then cut into the same segments there. Values
    from within a range are known only when a trial with them is proposed: `raysweep.space.milestones`.
    """
    steps: set[int] = set()
    for dotted, domain in domains.all_domains(space.tree).items():
        if dotted.rpartition(".")[2] in ("iterations", "stop"):
            steps.update(space.steps(option) for option in domain.options if isinstance(option, int))
    for point in (*space.points(most=200), *(row.set for row in space.rows)):
        with contextlib.suppress(WrongDomain):  # a row outside the space is reported when it is proposed
            trial, _ = space.trial(point)
            steps.update(space.rungs(trial), ends(student(space, trial)))
    return sorted(steps)


def _run(trial: Trial, method: Method, iterations: int, scale: Scale) -> Run:
    end = scale(iterations)
    guided_until = end if method.stop == "never" else min(end, scale(method.stop))
    phases = [_phase(trial, method, guided_until, scale)]
    if guided_until < end:
        phases.append(Phase(until=end, term=NoTerm()))
    recipe = {name: getattr(trial, name) for name in Recipe.model_fields}
    return Run(**recipe, phases=tuple(phases))


def _phase(trial: Trial, method: Method, until: int, scale: Scale) -> Phase:
    term = _term(method).resolved(trial.size).scaled(scale)
    teacher = None
    if spec := method.teacher_spec:
        age = spec.iterations
        # At least as long as the student's run, so that a baseline with the teacher's method is the same run.
        run = _run(trial, spec.method, max(age, trial.iterations), scale)
        teacher = TeacherRef(run=run, step=scale(age), weights=spec.weights, precision=spec.precision)
    return Phase(
        until=until,
        term=term,
        projector_width=trial.projector_width if term.has_projector else None,
        encoder=trial.encoder if term.needs_encoder else None,
        teacher=teacher,
    )


def _term(method: Method) -> Term:
    """The term of a method: all its fields but its end and its teacher."""
    term: Term = _TERM.validate_python(method.model_dump(exclude={"stop", "teacher"}))
    return term
