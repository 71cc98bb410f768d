"""Domains at the leaves of a tree: the values that a search may choose there, and the tree once they are chosen.

A leaf is searched where the YAML has one of

    {choice: [a, b, c]}          an option may be a mapping with domains of its own: a conditional space
    {uniform: [low, high]}       {log_uniform: [low, high]}       {integers: [low, high]}

each with an optional `default`. Without one, the default is the first option or the middle of the range. A domain
inside an option is open if that option is chosen. A *point* is a mapping `{dotted path: value}` with one
value for every open domain.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, Literal

Point = dict[str, Any]
PointKey = frozenset[tuple[str, Any]]
KINDS = ("choice", "uniform", "log_uniform", "integers")


class WrongDomain(ValueError):
    """A malformed domain, or a value outside its domain. `path` is its dotted path in the tree."""

    def __init__(self, path: str, message: str):
        super().__init__(message)
        self.path = path


def label(value: Any) -> Any:
    """A value in the form that Optuna and MLflow accept: scalars unchanged, lists and mappings as JSON."""
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)


def point_key(point: Mapping[str, Any]) -> PointKey:
    """A hashable value that is equal for two points exactly when they are the same configuration."""
    return frozenset((path, label(value)) for path, value in point.items())


@dataclass(frozen=True)
class Domain:
    """The values that one leaf may take."""

    kind: Literal["choice", "uniform", "log_uniform", "integers"]
    options: tuple[Any, ...]  # of a choice: all of them; of a range: (low, high)
    default: Any
    branches: tuple[Any, ...] = ()  # of a choice: the options again, with their own domains parsed

    @property
    def ordered(self) -> bool:
        """Whether all its values are numbers."""
        return all(isinstance(option, int | float) and not isinstance(option, bool) for option in self.options)

    def branch(self, value: Any) -> Any:
        """The subtree that replaces the domain once `value` is chosen."""
        return self.branches[self.options.index(value)] if self.kind == "choice" else value

    def match(self, value: Any, path: str) -> Any:
        """The value of this domain that `value` names: for a choice an option, its label, or the `kind` of one option.

        Raises:
            WrongDomain: the value is outside this domain.
        """
        if self.kind == "choice":
            for option in self.options:
                if label(option) == label(value) and isinstance(option, bool) == isinstance(value, bool):
                    return option
            named = [option for option in self.options if isinstance(option, Mapping) and option.get("kind") == value]
            if len(named) == 1:
                return named[0]
            raise WrongDomain(path, f"{label(value)} is none of {', '.join(str(label(o)) for o in self.options)}")
        low, high = self.options
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise WrongDomain(path, f"{value} is outside {self.kind} [{low}, {high}]")


def parse(node: Any, path: str = "") -> Any:
    """Replace the mappings that describe domains by `Domain`s. All functions below take the tree that this returns.

    Raises:
        WrongDomain: a domain is empty, reversed or not finite; its default lies outside; or two options of a choice
            give the same key different domains.
    """
    if not isinstance(node, Mapping):
        return node
    kinds = [key for key in KINDS if key in node]
    if not kinds:
        return {key: parse(value, _below(path, key)) for key, value in node.items()}
    kind = kinds[0]
    if extra := sorted(set(map(str, node)) - {kind, "default"}):
        raise WrongDomain(path, f"a domain has one kind and at most a default; remove '{extra[0]}'")
    values = node[kind]
    if not isinstance(values, list):
        raise WrongDomain(path, f"{kind} takes a list, e.g. {{{kind}: [1, 2]}}")
    domain = _choice(values, path) if kind == "choice" else _range(kind, values, path)
    all_domains(domain, path)
    return replace(domain, default=domain.match(node["default"], path)) if "default" in node else domain


def _below(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _choice(values: list[Any], path: str) -> Domain:
    if not values:
        raise WrongDomain(path, "an empty choice; give at least one option")
    if len({json.dumps(value) for value in values}) < len(values):
        raise WrongDomain(path, "an option is given twice; keep one")
    return Domain("choice", tuple(values), values[0], tuple(parse(value, path) for value in values))


def _range(kind: Any, values: list[Any], path: str) -> Domain:
    numbers = (int,) if kind == "integers" else (int, float)
    if len(values) != 2 or not all(isinstance(v, numbers) and not isinstance(v, bool) for v in values):
        raise WrongDomain(path, f"{kind} takes two {'whole ' if kind == 'integers' else ''}numbers, [low, high]")
    low, high = values
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise WrongDomain(path, f"{kind} needs finite bounds with low < high, not [{low}, {high}]")
    if kind == "log_uniform" and low <= 0:
        raise WrongDomain(path, f"log_uniform needs low > 0, not {low}")
    middle = {"uniform": (low + high) / 2, "log_uniform": math.sqrt(low * high), "integers": (low + high) // 2}
    return Domain(kind, (low, high), middle[kind])


Choose = Callable[[str, Domain], Any]


def substitute(node: Any, choose: Choose, path: str = "") -> Any:
    """`node` with every domain replaced by what `choose(path, domain)` returns; outer choices
    come first."""
    if isinstance(node, Domain):
        return substitute(node.branch(choose(path, node)), choose, path)
    if isinstance(node, Mapping):
        return {key: substitute(value, choose, _below(path, key)) for key, value in node.items()}
    return node


def all_domains(node: Any, path: str = "") -> dict[str, Domain]:
    """All domains of a tree by path, including those inside options."""
    by_path: dict[str, Domain] = {}
    if isinstance(node, Domain):
        by_path[path] = node
        for branch in node.branches:
            for below, inner in all_domains(branch, path).items():
                if by_path.setdefault(below, inner) != inner:
                    raise WrongDomain(below, "two options give this key different domains; use one for both")
    elif isinstance(node, Mapping):
        for key, value in node.items():
            by_path |= all_domains(value, _below(path, key))
    return by_path


def unconditional_domains(node: Any, path: str = "") -> dict[str, Domain]:
    """The domains, by path, that are open whatever is chosen elsewhere: those that are not inside an option."""
    if isinstance(node, Domain):
        return {path: node}
    if isinstance(node, Mapping):
        below = [unconditional_domains(value, _below(path, key)) for key, value in node.items()]
        return {path: domain for domains in below for path, domain in domains.items()}
    return {}


def resolve(tree: Any, point: Mapping[str, Any]) -> tuple[Any, Point]:
    """The tree with the values of `point`, or defaults where it has none; and the complete point.

    Raises:
        WrongDomain: a value lies outside its domain, or there is no open domain at its path.
    """
    full: Point = {}

    def choose(path: str, domain: Domain) -> Any:
        full[path] = domain.match(point[path], path) if path in point else domain.default
        return full[path]

    concrete = substitute(tree, choose)
    for path in point:
        if path not in full:
            raise WrongDomain(path, "no domain is open here; give one in `trial`, or leave this key out")
    return concrete, full


def random_point(tree: Any, chance: random.Random) -> Point:
    """A random point: options with equal probability, ranges uniformly or uniformly in the logarithm."""
    point: Point = {}

    def choose(path: str, domain: Domain) -> Any:
        low, high = domain.options[0], domain.options[-1]
        if domain.kind == "choice":
            point[path] = chance.choice(domain.options)
        elif domain.kind == "integers":
            point[path] = chance.randint(low, high)
        elif domain.kind == "log_uniform":
            point[path] = min(high, max(low, low * (high / low) ** chance.random()))
        else:
            point[path] = chance.uniform(low, high)
        return point[path]

    substitute(tree, choose)
    return point


def size(node: Any) -> float:
    """How many points a tree has; infinite where a range is continuous."""
    if isinstance(node, Domain):
        if node.kind == "choice":
            return sum(map(size, node.branches))
        return node.options[1] - node.options[0] + 1 if node.kind == "integers" else math.inf
    return math.prod(map(size, node.values())) if isinstance(node, Mapping) else 1


def corners(tree: Any, most: int = 20_000) -> Iterator[Point]:
    """Points that together show whether every point of the space is legal.

    These are all combinations of options and ends of ranges, where there are at most `most` of them; otherwise all
    pairs of them, with defaults elsewhere.
    """
    by_path = all_domains(tree)
    if math.prod(len(domain.options) for domain in by_path.values()) <= most:
        yield from _combinations(tree, {}, lambda domain: domain.options)
        return
    for (first, a), (second, b) in combinations(by_path.items(), 2):
        for one, two in product(a.options, b.options):
            try:
                yield resolve(tree, {first: one, second: two})[1]
            except WrongDomain:  # the first value closes the branch of the second
                continue


def grid(tree: Any) -> Iterator[Point]:
    """Every point of a tree without continuous ranges, in the order of the file. The last domain varies fastest."""

    def values(domain: Domain) -> Sequence[Any]:
        return range(domain.options[0], domain.options[1] + 1) if domain.kind == "integers" else domain.options

    return _combinations(tree, {}, values)


def _combinations(tree: Any, fixed: Point, values: Callable[[Domain], Sequence[Any]]) -> Iterator[Point]:
    nodes: list[tuple[str, Domain]] = []

    def choose(path: str, domain: Domain) -> Any:
        if path not in fixed:
            nodes.append((path, domain))
        return fixed.get(path, domain.default)

    substitute(tree, choose)
    if not nodes:
        yield fixed
        return
    # Domains that are not inside another one are combined now; those inside branches in the recursive call.
    free = [(path, domain) for path, domain in nodes if not any(p != path and path.startswith(p) for p, _ in nodes)]
    for chosen in product(*(values(domain) for _, domain in free)):
        yield from _combinations(
            tree, {**fixed, **{path: v for (path, _), v in zip(free, chosen, strict=True)}}, values
        )
