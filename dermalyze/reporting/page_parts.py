"""What pages for people share: how they look, how they begin, and pictures inside them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

from dermalyze.data.page_tree import element
from dermalyze.taxonomy import DISCLAIMER

STYLE = """
.warning { border-left: 4px solid #d55e00; padding: .3rem .8rem; background: #fdf1e8; }
img { max-width: 100%; } figure { margin: 1rem 0; }
"""

ECE_LIES_HIGH = (
    "The calibration error (ECE) of a draw comes out too large, so its interval lies high."
)


def opening(title: str, about: str) -> list[Element]:
    """Return a page's heading, the disclaimer, and what the page is about."""
    return [
        element("h1", title),
        element("p", DISCLAIMER, {"class": "disclaimer"}),
        element("p", about),
    ]


def warning(words: str) -> Element:
    """Return what a reader must not miss."""
    return element("p", words, {"class": "warning"})


def picture(png: bytes, caption: str) -> Element:
    """Return a picture that the page carries inside, with its caption."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    image = element("img", src=source, alt=caption)
    return element("figure", image, element("figcaption", caption))


def told(estimate: Mapping[str, Any], digits: int = 3) -> str:
    """Return a value with its interval in brackets, as far as it has them."""
    if estimate["value"] is None:
        return f"none: {estimate['reason']}" if "reason" in estimate else "none"
    if estimate["low"] is None:
        return f"{estimate['value']:.{digits}f}"
    value, low, high = (f"{estimate[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def share_told(estimate: Mapping[str, Any]) -> str:
    """Return a share in percent with its interval in brackets, as far as it has one."""
    if estimate["low"] is None:
        return f"{estimate['value']:.1%}"
    return f"{estimate['value']:.1%} ({estimate['low']:.1%} to {estimate['high']:.1%})"
