"""Rows of parameters that name a way to train: a method, a rule for its weights, and the arguments of both."""

from dataclasses import MISSING, fields, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from preflab.errors import BadInput, shown
from preflab.experiments.explain import explain
from preflab.methods import METHODS
from preflab.methods.method import PairMethod, SampleMethod
from preflab.rules import RULES, Plain, Rule, SameTotal, Share, Until, try_out
from preflab.settings import Count
from preflab.stages.reward import RewardKind

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class Variant(BaseModel):
    """One way to train: a method, and a rule of `preflab.rules` for its weights, for a first share of training."""

    model_config = STRICT

    method: Literal[*METHODS]
    rule: str = "plain"
    arguments: dict[str, Any] = {}  # of the rule and of the method
    until: Share = 1.0
    reward: RewardKind | None = None  # None: the notebook's
    live_every: Count | None = None  # updates (from pairs) or iterations (from samples) between two looks at live G
    budget: Share = 1.0  # share of the updates, for what costs more than them
    same_total: bool = False  # scale what the rule leaves, so that the sum of |c| is the plain method's
    repeats: Count = 1  # learn from so small a share of the pairs (1/repeats), so many times as often

    @field_validator("rule")
    @classmethod
    def _known(cls, rule: str) -> str:
        if rule not in RULES:
            raise ValueError(f"rule={rule!r}: no such rule, expected one of: {', '.join(RULES)}")
        return rule

    @model_validator(mode="after")
    def _live_where_used(self) -> "Variant":
        if (looks := RULES[self.rule].looks) != (self.live_every is not None):
            expected = "an interval, the rule looks at live G" if looks else "none, the rule never looks at live G"
            raise ValueError(f"rule={self.rule!r} with live_every={self.live_every}: expected {expected}")
        return self

    @property
    def from_pairs(self) -> bool:
        return issubclass(METHODS[self.method], PairMethod)

    @property
    def family(self) -> str:
        """dpo, what learns from pairs, or ppo, what learns from its own samples."""
        return "dpo" if self.from_pairs else "ppo"

    def of_rule(self) -> dict[str, Any]:
        """The arguments that are the rule's."""
        names = {f.name for f in fields(RULES[self.rule])}
        return {name: value for name, value in self.arguments.items() if name in names}

    def resolved_rule(self) -> Rule:
        """The rule, tried out on an example. Raises BadInput if it does not run or its arguments are wrong."""
        self._check_known()
        rule = made(RULES[self.rule], self.of_rule(), f"rule {self.rule}")
        try_out(rule)
        if isinstance(rule, Plain):
            return rule
        rule = SameTotal(rule) if self.same_total else rule
        return rule if self.until == 1 else Until(self.until, rule)

    def resolved_method(self, defaults: dict[type, Any]) -> PairMethod | SampleMethod:
        """The method. `defaults` holds instances by class, whose arguments the row's own go before. Raises BadInput."""
        kind = METHODS[self.method]
        own = {name: value for name, value in self.arguments.items() if name not in self.of_rule()}
        self._check_known()
        base = defaults.get(kind)
        return made(kind, own, f"method {self.method}") if base is None else _replaced(base, own, self.method)

    def _check_known(self) -> None:
        """Raises BadInput for an argument that neither the rule nor the method has."""
        known = [f.name for kind in (RULES[self.rule], METHODS[self.method]) for f in fields(kind)]
        if unknown := sorted(set(self.arguments) - set(known)):
            value = shown(self.arguments[unknown[0]])
            raise BadInput(f"{unknown[0]}={value}: no such argument, expected one of: {known}")


def made(kind: type, arguments: dict[str, Any], what: str) -> Any:
    """A rule or method of its arguments. Raises BadInput for one that is missing, and for a value that cannot be."""
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in arguments]:
        raise BadInput(f"{missing[0]}: missing, {what} needs it")
    try:
        return kind(**arguments)
    except ValidationError as error:
        raise BadInput(explain(error.errors()[0])) from None


def _replaced(base: Any, arguments: dict[str, Any], method: str) -> Any:
    try:
        return replace(base, **arguments)
    except ValidationError as error:
        raise BadInput(f"method {method}: {explain(error.errors()[0])}") from None


class Contender(Variant):
    """A variant with the values of its own parameter that it may choose from."""

    sweep: Annotated[list[dict[str, Any]], Field(min_length=1)] = [{}]  # arguments of each candidate
    against: str | None = None  # the row it is compared with; None for those that others are compared with

    def candidates(self, given: dict[str, Any]) -> list[Variant]:
        """In the order of the sweep, whose arguments go before the row's, and those before what is `given`."""
        common = {name: getattr(self, name) for name in Variant.model_fields if name != "arguments"}
        taken = self._taken(given)
        return [Variant(arguments=taken | self.arguments | own, **common) for own in self.sweep]

    def _taken(self, given: dict[str, Any]) -> dict[str, Any]:
        """Of the arguments that a rival has chosen, those that this method or rule has too (ORPO has no beta)."""
        names = {f.name for f in (*fields(METHODS[self.method]), *fields(RULES[self.rule]))}
        return {name: value for name, value in given.items() if name in names}
