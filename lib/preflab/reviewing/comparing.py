"""Two results side by side: what a reviewer judges a rerun by.

What counts are numbers, rules and verdicts. Parameters, data, versions, machine and commit are told beside them: they
may explain a difference, and they are none.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preflab.claims import measured
from preflab.reviewing.results import Judged, Result, by_dotted_name, read_result

Leaves = dict[str, Any]


@dataclass(frozen=True)
class Tolerance:
    """Two numbers are alike if they differ by no more than `absolute`, or than `relative` of the larger one."""

    absolute: float
    relative: float

    def alike(self, one: Any, other: Any) -> bool:
        if not (_is_number(one) and _is_number(other)):
            return type(one) is type(other) and one == other
        return math.isclose(one, other, rel_tol=self.relative, abs_tol=self.absolute)


@dataclass(frozen=True)
class Comparison:
    """Lines for each part, in order. `counting` decides whether two results are alike, `beside` may explain why not."""

    counting: dict[str, list[str]]
    beside: dict[str, list[str]]
    compared: int  # numbers and words that both have

    @property
    def alike(self) -> bool:
        return not any(self.counting.values())

    def lines(self, most: int) -> Iterator[str]:
        """At most so many lines of each part."""
        for title, lines in {**self.counting, **self.beside}.items():
            if lines:
                yield f"{title}: {len(lines)}"
                yield from (f"  {line}" for line in lines[:most])
            if len(lines) > most:
                yield f"  and {len(lines) - most} more"
        yield f"{'alike' if self.alike else 'not alike'}; {self.compared} values are in both"


def compare(one: Path, other: Path, tolerance: Tolerance) -> Comparison:
    """Two folders of results or figures. Raises BadInput for a folder that no run has written."""
    a, b = read_result(one), read_result(other)
    numbers = _numbers(a), _numbers(b)
    counting = {
        "verdicts that differ": _pairs(a.claims, b.claims, "verdict"),
        "rules that differ": _pairs(a.claims, b.claims, "statistic"),
        "values that differ, the largest difference first": _differing(*numbers, tolerance),
        **_in_one_only("claims", a.claims, b.claims),
        **_in_one_only("values", *numbers),
    }
    return Comparison(counting, _beside(a, b), len(numbers[0].keys() & numbers[1].keys()))


def _numbers(result: Result) -> Leaves:
    """Everything that was measured: metrics, series, and the value and interval of each claim."""
    found = result.found
    judged = {claim.id: {"value": claim.value, "interval": claim.interval} for claim in found.claims}
    return leaves({"metrics": found.metrics, "series": found.series, "claims": judged})


def leaves(content: Any, before: str = "") -> Leaves:
    """Each number or word in nested mappings and lists, by its path."""
    if not isinstance(content, (Mapping, list, tuple)):
        return {before: content}
    inner = content.items() if isinstance(content, Mapping) else enumerate(content)
    return {path: leaf for name, value in inner for path, leaf in leaves(value, f"{before}/{name}".strip("/")).items()}


def _differing(a: Leaves, b: Leaves, tolerance: Tolerance) -> list[str]:
    wrong = {name: (a[name], b[name]) for name in a if name in b and not tolerance.alike(a[name], b[name])}
    names = sorted(wrong, key=lambda name: _apart(*wrong[name]), reverse=True)
    return [f"{name}: {' | '.join(map(_shown, wrong[name]))}" for name in names]


def _in_one_only(what: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[str]]:
    return {
        f"{what} in the first only": [name for name in a if name not in b],
        f"{what} in the second only": [name for name in b if name not in a],
    }


def _pairs(a: Mapping[str, Judged], b: Mapping[str, Judged], of: str) -> list[str]:
    both = {name: (getattr(a[name], of), getattr(b[name], of)) for name in a if name in b}
    return [f"{name}: {one} | {other}" for name, (one, other) in both.items() if one != other]


def _claims(a: Result, b: Result) -> Iterator[str]:
    """Claims that were measured otherwise. Of two good runs each value should lie in the other's interval."""
    for name in a.claims.keys() & b.claims.keys():
        one, other = a.claims[name], b.claims[name]
        if (one.value, one.interval) != (other.value, other.interval):
            inside = _lies_in(one, other) and _lies_in(other, one)
            told = " | ".join(measured(claim.value, claim.interval) for claim in (one, other))
            yield f"{name}: {told}{': each value lies in the other interval' if inside else ''}"


def _lies_in(one: Judged, other: Judged) -> bool:
    ends = [end for end in other.interval or () if end is not None]
    return one.value is not None and len(ends) == 2 and ends[0] <= one.value <= ends[1]


def _beside(a: Result, b: Result) -> dict[str, list[str]]:
    one, other = a.provenance, b.provenance
    machines = [{"platform": p.platform, "device": p.device} for p in (one, other)]
    versions = [{**p.versions, "preflab": p.preflab} for p in (one, other)]
    commits = [{"commit": p.git.commit, "changed since": p.git.dirty} for p in (one, other)]
    return {
        "claims, side by side": sorted(_claims(a, b)),
        "parameters that differ": _told(*(by_dotted_name(p.parameters) for p in (one, other))),
        "data that differ": _told(one.fingerprints, other.fingerprints),
        "versions that differ": _told(*versions),
        "machines that differ": _told(*machines),
        "commits that differ": _told(*commits),
    }


def _told(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    names = [*a, *(name for name in b if name not in a)]
    both = {name: [_shown(of[name]) if name in of else "none" for of in (a, b)] for name in names}
    return [f"{name}: {one} | {other}" for name, (one, other) in both.items() if one != other]


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _apart(one: Any, other: Any) -> float:
    """How far two values are apart, of numbers above 1 as a share; words are further apart than any numbers."""
    if not (_is_number(one) and _is_number(other)):
        return math.inf
    return abs(one - other) / max(1, abs(one), abs(other))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
