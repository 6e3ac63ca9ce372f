"""HTML as a tree that the library writes, so that no text can become markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from xml.etree.ElementTree import Element, indent, tostring

Cell = str | int | Element

# What a page may load: its own style and pictures, and nothing from anywhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
NUMBER = {"class": "number"}  # for the page's style to place


def whole_page(title: str, style: str, content: Iterable[Element]) -> str:
    """Return a page that needs no other file, with `title` as its name."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", style),
    )
    page = element("html", head, element("body", *content), lang="en")
    indent(page, space="")
    return f"<!DOCTYPE html>\n{tostring(page, encoding='unicode', method='html')}\n"


def element(tag: str, *content: str | Element | Mapping[str, str], **attributes: str) -> Element:
    """Return an element with texts and elements in order.

    A mapping among `content` holds attributes whose names Python does not take, such as class.
    """
    made = Element(tag, attributes)
    last: Element | None = None
    for piece in content:
        if isinstance(piece, Element):
            made.append(piece)
            last = piece
        elif isinstance(piece, Mapping):
            made.attrib.update(piece)
        elif last is None:
            made.text = (made.text or "") + piece
        else:
            last.tail = (last.tail or "") + piece
    return made


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = "") -> Element:
    """Return a table; whole numbers, and the names above them, stand to the right."""
    head = element("tr")
    for column, name in enumerate(header):
        is_number = bool(rows) and isinstance(rows[0][column], int)
        head.append(element("th", name, NUMBER if is_number else {}, scope="col"))
    body = element("tbody", *(element("tr", *map(_cell, row)) for row in rows))
    captions = [element("caption", caption)] if caption else []
    return element("table", *captions, element("thead", head), body)


def _cell(value: Cell) -> Element:
    if isinstance(value, int):
        return element("td", f"{value:,}", NUMBER)
    return element("td", value)
