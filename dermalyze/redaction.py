"""What may be shown of a config, a command or an address: all but its secrets."""

from __future__ import annotations

import re
from typing import Any

_NAMES = r"pass(?:word|wd)?|secret|token|api_?key|credential"
_SECRET = re.compile(_NAMES, re.IGNORECASE)
_URI_USER = re.compile(r"(?<=://)[^/\s]+@")
# `?password=...` of an address, `password: ...` of a dict that was typed.
_NAMED_VALUE = re.compile(rf"((?:{_NAMES})\w*\s*[=:]\s*)[^&\s,}}\]]+", re.IGNORECASE)


def redacted(node: Any, key: str = "") -> Any:
    """Return containers with secrets replaced: by the name of their key, or inside a text."""
    if _SECRET.search(key) and node not in (None, ""):
        return "(redacted)"
    if isinstance(node, dict):
        return {name: redacted(value, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [redacted(value) for value in node]
    if isinstance(node, str):
        return _NAMED_VALUE.sub(r"\1(redacted)", _URI_USER.sub("(redacted)@", node))
    return node


def shown(argument: str) -> str:
    """Return a command's argument, such as `tracking.uri=ADDRESS`, without secrets."""
    name, equals, value = argument.partition("=")
    return f"{name}{equals}{redacted(value, name)}" if equals else str(redacted(argument))
