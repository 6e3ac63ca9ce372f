"""What a search may try: ranges by name, and ranges that are asked for after certain choices only.

Ranges are written in Hydra's words: `interval(0.1, 0.9)`, `tag(log, interval(1e-5, 1e-2))`,
`int(interval(1, 8))`, `choice(a, b)` or `a,b`, `range(1, 9, 2)`. Only an interval has an order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    IntLogUniformDistribution,
    IntUniformDistribution,
)

from dermalyze.errors import ConfigError, nearest
from dermalyze.search.options import Condition

Suggest = Callable[[str, BaseDistribution], Any]


@dataclass(frozen=True)
class _Asked:
    """Ranges that are asked for where every name in `when` has one of its texts."""

    when: dict[str, frozenset[str]]
    ranges: dict[str, BaseDistribution]


class Space:
    """What a search may try.

    Args:
        params: ranges by name; a plain value is one that all trials have.
        conditions: ranges that depend on choices. `when` may name what stands in `params`, in
            `arguments`, or in a condition before it.
        arguments: what was typed, in Hydra's words. A value there takes the place of a range, and a
            range the place of another.

    Raises:
        ConfigError: not a range, a condition on what is nowhere chosen or on a value that is no
            choice of it, or one name with two ranges.
    """

    def __init__(
        self,
        *,
        params: Mapping[str, Any],
        conditions: Sequence[Condition],
        arguments: Sequence[str],
    ) -> None:
        typed = _last(_parsed(arguments))
        names = {override.get_key_element() for override in typed}
        self._replaced: dict[str, list[str]] = {}
        written = self._not_replaced(params, names)
        chosen = [*_parsed(written), *typed]
        self.fixed = [str(one.input_line) for one in chosen if not one.is_sweep_override()]
        self._asked = [_Asked({}, {name: _distribution(one) for name, one in _sweeps(chosen)})]
        self._values = {
            one.get_key_element(): one.get_value_element_as_str()
            for one in chosen
            if not one.is_sweep_override() and not one.is_delete()
        }
        known = self._values.keys() | self._asked[0].ranges.keys()
        for condition in conditions:
            known |= self._add(condition, known, names)
        if not any(asked.ranges for asked in self._asked):
            raise ConfigError(
                "hydra.sweeper.params: no range is left to search. Give one, such as "
                "'optimizer.lr=tag(log, interval(1e-4, 1e-2))'."
            )

    def _add(self, condition: Condition, known: Set[str], typed: Set[str]) -> Set[str]:
        """Take in a condition, if it can ever hold; return the names that it would ask for."""
        unknown = sorted(condition.when.keys() - known)
        if unknown:
            raise ConfigError(
                f"hydra.sweeper.conditions: {unknown[0]} decides what is searched, but no range "
                f"and no value of it is given. Give one of them: {', '.join(sorted(known))}, or "
                f"{unknown[0]}=VALUE on the line."
            )
        words = self._not_replaced(condition.params, typed)
        ranges = {}
        for name, override in _sweeps(_parsed(words, every=True)):
            ranges[name] = _distribution(override)
            for other in self._asked:
                if other.ranges.get(name, ranges[name]) != ranges[name]:
                    raise ConfigError(
                        f"hydra.sweeper.conditions: {name} has two ranges, {other.ranges[name]} "
                        f"and {ranges[name]}. A name has one range in a study."
                    )
        when = {
            name: frozenset(map(_text, value if isinstance(value, list) else [value]))
            for name, value in condition.when.items()
        }
        possible = [self._possible(name, texts) for name, texts in when.items()]  # all are checked
        if all(possible):
            self._asked.append(_Asked(when, ranges))
        return ranges.keys()

    def _not_replaced(self, params: Mapping[str, Any], typed: Set[str]) -> list[str]:
        """Return the words in whose place none was typed, and keep the others apart."""
        words = _words(params)
        for word in words:
            name = word.partition("=")[0]
            if name in typed:
                self._replaced.setdefault(name, []).append(word)
        return [word for word in words if word.partition("=")[0] not in typed]

    def _possible(self, name: str, texts: frozenset[str]) -> bool:
        """Return whether a name may have one of these texts, by what is given or searched.

        Raises:
            ConfigError: one of them is among no choices of the name, neither of those that are
                searched nor of those in whose place they were typed.
        """
        if name in self._values:
            return self._values[name] in texts
        searched = [asked.ranges[name] for asked in self._asked if name in asked.ranges]
        if not searched:
            return False
        possible = {text for text in texts if _can_be(searched[0], text)}  # a name has one range
        replaced = [_distribution(one) for _, one in _sweeps(_parsed(self._replaced.get(name, [])))]
        for text in sorted(texts - possible):
            if not any(_can_be(one, text) for one in replaced):
                raise ConfigError(
                    f"hydra.sweeper.conditions: {name} is never {text}, since it is searched in "
                    f"{searched[0]}.{nearest(text, getattr(searched[0], 'choices', ()))}"
                )
        return bool(possible)

    def overrides(self, suggest: Suggest) -> list[str]:
        """Return the words of one trial: those that all share, and what `suggest` chooses."""
        values, chosen = dict(self._values), {}
        for asked in self._asked:
            if all(values.get(name) in texts for name, texts in asked.when.items()):
                for name, distribution in asked.ranges.items():
                    if name not in chosen:
                        chosen[name] = values[name] = _text(suggest(name, distribution))
        return [*self.fixed, *(f"{name}={text}" for name, text in chosen.items())]

    def examples(self) -> list[list[str]]:
        """Return trials in which, taken together, every range is asked for."""
        found = []
        for asked in self._asked:
            wanted = self._wanted(asked)

            def first(
                name: str,
                distribution: BaseDistribution,
                wanted: dict[str, frozenset[str]] = wanted,
            ) -> Any:
                asked_for = wanted.get(name, frozenset())
                if isinstance(distribution, CategoricalDistribution):
                    fitting = [choice for choice in distribution.choices if choice in asked_for]
                    return (fitting or distribution.choices)[0]
                whole = sorted(int(text) for text in asked_for if _can_be(distribution, text))
                return whole[0] if whole else distribution.low  # type: ignore[attr-defined]

            found.append(self.overrides(first))
        return found

    def _wanted(self, asked: _Asked) -> dict[str, frozenset[str]]:
        """Return what has to be chosen for ranges to be asked for, and for that in turn."""
        wanted = dict(asked.when)
        for other in self._asked:
            if asked.when.keys() & other.ranges.keys():
                wanted = {**self._wanted(other), **wanted}
        return wanted

    def described(self) -> dict[str, str]:
        """Return the ranges as text, by name, each with what it depends on."""
        found: dict[str, str] = {}
        for asked in self._asked:
            condition = "".join(
                f" where {name} is {' or '.join(sorted(texts))}"
                for name, texts in asked.when.items()
            )
            for name, distribution in asked.ranges.items():
                found[name] = f"{found.get(name, distribution)}{condition}"
        return found


def _words(params: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_text(value)}" for name, value in params.items()]


def _parsed(words: Sequence[str], *, every: bool = False) -> list[Override]:
    """Parse overrides; `every`: refuse those that are no ranges."""
    parser = OverridesParser.create()
    parsed: list[Override] = []
    for word in words:
        try:
            parsed.append(parser.parse_override(word))
        except HydraException as error:
            raise ConfigError(f"hydra.sweeper: {word}: {error}") from error
    for override in parsed:
        if every and not override.is_sweep_override():
            raise ConfigError(
                f"hydra.sweeper.conditions: {override.input_line} is no range. Write "
                "interval(LOW, HIGH) or choice(A, B)."
            )
    return parsed


def _last(overrides: Sequence[Override]) -> list[Override]:
    """Return the last override of each name, as Hydra would take it."""
    return list({(one.get_key_element(), one.is_delete()): one for one in overrides}.values())


def _sweeps(overrides: Sequence[Override]) -> list[tuple[str, Override]]:
    return [(one.get_key_element(), one) for one in overrides if one.is_sweep_override()]


def _distribution(override: Override) -> BaseDistribution:
    try:
        if override.is_interval_sweep():
            interval: BaseDistribution = create_optuna_distribution_from_override(override)
            return interval
        return CategoricalDistribution(tuple(override.sweep_string_iterator()))
    except (HydraException, ValueError, AssertionError, TypeError) as error:
        raise ConfigError(f"hydra.sweeper: {override.input_line}: {error}") from error


def _can_be(distribution: BaseDistribution, text: str) -> bool:
    """Return whether a range has a value; none is told apart in an interval of real numbers."""
    if isinstance(distribution, CategoricalDistribution):
        return text in distribution.choices
    if not isinstance(distribution, (IntUniformDistribution, IntLogUniformDistribution)):
        return False
    try:
        return str(int(text)) == text and distribution.low <= int(text) <= distribution.high
    except ValueError:
        return False


def _text(value: object) -> str:
    """Return a value as it is typed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
