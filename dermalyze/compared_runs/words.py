"""What sets a run's config apart from others, in the words one would type: `loss=focal`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache

from omegaconf import DictConfig, OmegaConf

from dermalyze.config import CONF_DIR
from dermalyze.run_folder import flat_parameters, is_free_on_resume

SEED = "training.seed"
COMMON = "common settings"  # the name of what differs in no word from most others
_NOT_THERE = "(absent)"
_FREE_VALUE = "???"  # of an option that wants a word of its own there

Flat = dict[str, str]


def decisive(config: DictConfig) -> Flat:
    """Return what makes a run what it is, as {dotted.path: text}: all but seed, folders, device."""
    return _decisive(flat_parameters(OmegaConf.to_container(config, resolve=False)))


def in_words(flat: Flat) -> Flat:
    """Return a config as options of `conf/` and the values beside them, {word: value}.

    A group's option is the one from which the fewest values differ; those that do are words of
    their own, so that two configs have the same words only if they are equal.

    Args:
        flat: of `decisive`.
    """
    left, words = dict(flat), Flat()
    for group, options in _options().items():
        start = group.replace("/", ".") + "."
        own = {key: left.pop(key) for key in list(left) if key.startswith(start)}
        if own:
            name = min(options, key=lambda name: _cost(own, options[name]))
            words |= {group: name, **_beside(own, options[name])}
    return words | left


def labels(flats: Sequence[Flat], *, baseline: int | None) -> list[str]:
    """Return for each config the words in which it differs, such as "loss=focal, sampler=weighted".

    It differs from the config at `baseline`, whose label is "baseline"; or, without one, from what
    more than half of the configs have in common: where no value is so common, each names its own.
    What a config lacks is named where it would be called nothing or as another otherwise.

    Args:
        flats: of `decisive`, all different.
        baseline: a position among them.
    """
    words = [in_words(flat) for flat in flats]
    values = [flat | word for flat, word in zip(flats, words, strict=True)]
    reference = {}
    for key in sorted({key for word in words for key in word}):
        found = [value.get(key, _NOT_THERE) for value in values]
        common, count = Counter(found).most_common(1)[0]
        if baseline is not None:
            reference[key] = found[baseline]
        elif count > len(flats) / 2:
            reference[key] = common
        else:
            reference[key] = ""
    told = [_differing(value, reference) for value in values]
    times = Counter(told)
    for at, value in enumerate(values):
        if times[told[at]] > 1 or not told[at]:
            told[at] = _differing(dict.fromkeys(reference, _NOT_THERE) | value, reference)
    return ["baseline" if at == baseline else own or COMMON for at, own in enumerate(told)]


def _differing(value: Flat, reference: Flat) -> str:
    differing = (
        f"{key}={value[key]}"
        for key, other in reference.items()
        if key in value and value[key] != other
    )
    return ", ".join(differing)


@cache
def _options() -> dict[str, dict[str, Flat]]:
    """Return {group: {option: its values}} of `conf/`, groups within groups first."""
    found: dict[str, dict[str, Flat]] = {}
    for path in sorted(CONF_DIR.rglob("*/*.yaml"), key=lambda path: (-len(path.parts), path)):
        group = path.parent.relative_to(CONF_DIR).as_posix()
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        flat = flat_parameters(node, group.replace("/", "."))
        found.setdefault(group, {})[path.stem] = _decisive(flat)
    return found


def _decisive(flat: Flat) -> Flat:
    return {key: flat[key] for key in flat if key != SEED and not is_free_on_resume(key)}


def _beside(own: Flat, option: Flat) -> Flat:
    """Return the values in which a node differs from an option."""
    return {
        key: own.get(key, _NOT_THERE)
        for key in own | option
        if own.get(key, _NOT_THERE) != option.get(key)
    }


def _cost(own: Flat, option: Flat) -> int:
    return sum(option.get(key) != _FREE_VALUE for key in _beside(own, option))
