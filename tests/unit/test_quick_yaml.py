from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml
from omegaconf import OmegaConf, _utils

from dermalyze.config import CONF_DIR
from dermalyze.quick_yaml import _in_python, read_yaml_quickly

pytest.importorskip("yaml.cyaml", reason="PyYAML was built without libyaml")


@pytest.fixture(autouse=True)
def quickly() -> Iterator[None]:
    before = _utils.get_yaml_loader
    read_yaml_quickly()
    yield
    _utils.get_yaml_loader = before


def in_python(text: str) -> object:
    return yaml.load(text, Loader=_in_python())


def as_written(read: object) -> object:
    return OmegaConf.to_container(read, resolve=False)  # resolved, times would differ


def test_libyaml_reads_what_python_reads_of_every_config() -> None:
    paths = sorted(CONF_DIR.rglob("*.yaml"))
    assert len(paths) > 100
    for path in paths:
        read = as_written(OmegaConf.load(path))
        assert read == in_python(path.read_text(encoding="utf-8")), path
        assert isinstance(_utils.get_yaml_loader()(""), yaml.cyaml.CParser)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),  # YAML 1.1 takes it for text
        ("2026-11-25", "2026-11-25"),  # and this for a date
        ("off", False),
        ("0o17", "0o17"),
        ("1_000", 1000),
        (".inf", float("inf")),
        ("${a}", "${a}"),
        ("[1, 'é', null]", [1, "é", None]),
    ],
)
def test_values_are_what_omegaconf_makes_of_them(text: str, value: object) -> None:
    read = as_written(OmegaConf.create(f"key: {text}"))
    assert read == {"key": value}
    assert read == in_python(f"key: {text}")


def test_a_key_twice_is_refused_with_its_line() -> None:
    with pytest.raises(yaml.constructor.ConstructorError, match="duplicate key a") as refused:
        OmegaConf.create("b: 1\na: 2\na: 3")
    assert refused.value.problem_mark.line == 2


def test_broken_yaml_says_where() -> None:
    with pytest.raises(yaml.YAMLError) as broken:
        OmegaConf.create("a: 1\nb: [2\nc: 3")
    assert broken.value.problem_mark.line == 2
