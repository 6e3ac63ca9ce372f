"""HTML as a tree that the library writes, so that no text can become markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from xml.etree.ElementTree import Element, indent, tostring

Cell = str | int | Element

# What a page may load: its own style and pictures, and nothing from anywhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
NUMBER = {"class": "number"}  # for the page's style to place

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.disclaimer { border-left: 4px solid #0072b2; padding: .3rem .8rem; background: #eef5fa; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
caption { text-align: left; color: #444; padding-bottom: .3rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left;
         overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


def whole_page(title: str, style: str, content: Iterable[Element]) -> str:
    """Return a page that needs no other file, with `title` as its name.

    It looks as all pages do; `style` says what is its own.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", STYLE + style),
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
