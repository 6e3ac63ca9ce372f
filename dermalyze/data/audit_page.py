"""An audit told to people: one page that needs no other file, and lines for the screen.

The page is built as a tree and written by the library, so every name that comes from a table or a
folder is escaped: none can become markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from dermalyze.data.audit import Audit, Pair
from dermalyze.data.image_check import THUMBNAIL_SIZE, ImageFault
from dermalyze.data.near_duplicates import GREY_SIZE, HASH_BITS
from dermalyze.data.page_tree import Cell, element, table, whole_page
from dermalyze.data.table_facts import Confound, TableFacts
from dermalyze.errors import DataError
from dermalyze.files import write_json, write_whole
from dermalyze.taxonomy import DISCLAIMER, in_words

SHOWN = 100  # rows of a list of images; audit.json holds all

# Okabe and Ito's blue and vermilion are told apart with every kind of colour vision; what they say
# stands beside them in words.
STYLE = """
.bar { height: .8rem; background: #0072b2; }
.pair { border: 1px solid #ccc; border-radius: 6px; padding: .7rem; margin: 1rem 0;
        break-inside: avoid; }
.pair p { margin: 0 0 .5rem; } .sides { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: 200px; } figure img { display: block; border: 1px solid #ccc; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
.danger { background: #d55e00; color: #000; font-weight: 600; padding: .05rem .45rem;
          border-radius: 4px; }
.clean { color: #005b8e; font-weight: 600; }
"""


def write_audit(audit: Audit, folder: str | Path) -> None:
    """Write audit.json and audit.html into a folder, which is made if absent.

    Raises:
        DataError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "audit.json", audit.as_dict())
        write_whole(folder / "audit.html", page(audit))
    except OSError as error:
        raise DataError(
            f"{folder}: the audit cannot be saved ({error}). Make room, or choose a folder that "
            "can be written."
        ) from error


def summary_lines(audit: Audit) -> list[str]:
    """Return what the screen should say: a line a question."""
    facts = audit.facts
    unknown = ", ".join(f"{column} {c.unknown:,}" for column, c in facts.coverage.items())
    lines = [
        f"lesions with several images: {facts.lesions_of_several_images:,} of {facts.lesions:,}",
        f"images whose values are unknown: {unknown}",
        f"broken images: {len(audit.broken):,}; odd ones: {len(audit.odd):,}",
        _duplicates(audit),
        f"of these under different lesions: {len(audit.across_lesions):,}, "
        f"with different dx: {len(audit.of_several_dx):,}",
    ]
    return lines + [_said_of(confound) for confound in facts.confounds]


def page(audit: Audit) -> str:
    """Return the audit as one HTML page with its style and pictures inside."""
    title = f"Audit of {audit.name}"
    content = [
        element("h1", title),
        element("p", DISCLAIMER, {"class": "disclaimer"}),
        *_at_a_glance(audit),
        *_duplicate_sections(audit),
        *_table_sections(audit.facts),
        *_image_sections(audit),
        *_findings(audit),
        element("p", f"Fingerprint of the table (sha256): {audit.fingerprint}"),
    ]
    return whole_page(title, STYLE, content)


def _at_a_glance(audit: Audit) -> list[Element]:
    missing = f"rows of the table without an image, left out: {audit.missing_images:,}"
    facts = f"{audit.facts.images:,} images of {audit.facts.lesions:,} lesions"
    return [
        element("h2", "At a glance"),
        element("ul", *(element("li", line) for line in (facts, missing, *summary_lines(audit)))),
    ]


def _duplicate_sections(audit: Audit) -> list[Element]:
    how = (
        f"Equal files are found by their sha256. Near-duplicates have perceptual hashes that "
        f"differ in at most {audit.max_distance} of {HASH_BITS} bits, and a phase correlation "
        f"({GREY_SIZE} x {GREY_SIZE} pixels) with a peak of at least {audit.min_similarity:g}, "
        "where 1 is the same picture and 0.1 usual for different ones. A further "
        f"{audit.look_alikes:,} pairs have near hashes and a lower peak: different pictures of a "
        "like layout, not listed. Mirrored copies, and those turned or shifted far, are not found."
    )
    parts = [element("h2", "Duplicates"), element("p", how)]
    if not audit.pairs_complete:
        words = "There were too many pairs to look at all: this list has gaps."
        parts.append(element("p", element("span", words, {"class": "danger"})))
    for title, why, pairs in (
        (
            "Under different lesion ids",
            "Dangerous: a split by lesion can train on one and test on the other.",
            audit.across_lesions,
        ),
        ("Under one lesion id", "Harmless to a split by lesion.", audit.within_lesions),
    ):
        parts.append(element("h3", f"{title}: {len(pairs):,}"))
        if not pairs:
            parts.append(element("p", "None found.", {"class": "clean"}))
            continue
        pictured = [pair for pair in pairs if audit.thumbnails.keys() >= set(pair.image_ids)]
        parts.append(element("p", why))
        parts += [_pair(pair, audit.thumbnails) for pair in pictured]
        parts += _more(len(pairs) - len(pictured), "pairs")
    return parts


def _pair(pair: Pair, thumbnails: Mapping[str, str]) -> Element:
    marks = []
    if not pair.same_lesion:
        marks.append("different lesions")
    if not pair.same_dx:
        marks.append("different dx")
    how = (
        "the same bytes"
        if pair.exact
        else f"distance {pair.distance} of {HASH_BITS}, similarity {pair.similarity:.2f}"
    )
    line: list[str | Element] = []
    for mark in marks:
        line += [element("span", mark, {"class": "danger"}), " "]
    sides = [
        element(
            "figure",
            element(
                "img",
                src=f"data:image/jpeg;base64,{thumbnails[image_id]}",
                alt=f"{image_id}, {dx}",
                width=str(THUMBNAIL_SIZE),
                height=str(THUMBNAIL_SIZE),
            ),
            element("figcaption", f"image {image_id}, lesion {lesion_id}, dx {dx}"),
        )
        for image_id, lesion_id, dx in zip(pair.image_ids, pair.lesion_ids, pair.dx, strict=True)
    ]
    return element(
        "div",
        element("p", *line, how),
        element("div", *sides, {"class": "sides"}),
        {"class": "pair"},
    )


def _table_sections(facts: TableFacts) -> list[Element]:
    largest = max(1, *(count.images for count in facts.classes.values()))
    classes = [
        (
            dx,
            in_words(dx),
            count.images,
            count.lesions,
            f"{count.share_of_images:.1%}",
            _bar(count.images / largest),
        )
        for dx, count in facts.classes.items()
    ]
    coverage = [
        (column, c.known, c.unknown, f"{c.known_share:.1%}") for column, c in facts.coverage.items()
    ]
    torn = facts.lesions_of_several_dx
    parts = [
        element("h2", "Classes"),
        table(("dx", "name", "images", "lesions", "of images", ""), classes),
        element("h2", "Images of a lesion"),
        table(("images", "lesions"), list(facts.lesions_by_images.items())),
        element("p", f"Lesions with more than one dx: {len(torn):,}{_names(torn)}."),
        element("h2", "What is known of the images"),
        table(("column", "known", "unknown", "known share"), coverage),
        element("h2", "What goes along with the diagnosis without being seen"),
    ]
    if not facts.confounds:
        parts.append(element("p", "The table has no column that could."))
    for confound in facts.confounds:
        values = list(dict.fromkeys(v for row in confound.images.values() for v in row))
        rows: list[list[Cell]] = [
            [dx, *(row[v] for v in values)] for dx, row in confound.images.items()
        ]
        parts.append(element("p", f"{_said_of(confound)}."))
        parts.append(table(("dx", *values), rows, f"Images by dx and {confound.column}"))
    return parts


def _bar(share: float) -> Element:
    return element("div", {"class": "bar"}, style=f"width: {9 * share:.2f}rem")


def _image_sections(audit: Audit) -> list[Element]:
    return [
        element("h2", "Image files"),
        table(("size (pixels)", "images"), list(audit.sizes.items())[:SHOWN]),
        *_more(len(audit.sizes) - SHOWN, "sizes"),
        table(("mode", "images"), list(audit.modes.items())),
        *_faults("Broken", audit.broken),
        *_faults("Odd", audit.odd),
    ]


def _faults(title: str, faults: Sequence[ImageFault]) -> list[Element]:
    heading = element("h3", f"{title}: {len(faults):,}")
    if not faults:
        return [heading, element("p", "None found.", {"class": "clean"})]
    rows = [(fault.image_id, fault.dx, fault.reason) for fault in faults[:SHOWN]]
    return [
        heading,
        table(("image", "dx", "why"), rows),
        *_more(len(faults) - SHOWN, "images"),
    ]


def _findings(audit: Audit) -> list[Element]:
    if not audit.findings:
        return []
    what = "What reading the table told, rows without an image included"
    rows = [(finding.level, finding.message) for finding in audit.findings]
    return [element("h2", "Notes and warnings"), table(("level", "what"), rows, what)]


def _duplicates(audit: Audit) -> str:
    exact = sum(pair.exact for pair in audit.pairs)
    gaps = "" if audit.pairs_complete else ", and more: too many to look at all"
    return f"duplicates: {exact:,} exact, {len(audit.pairs) - exact:,} near{gaps}"


def _said_of(confound: Confound) -> str:
    told = [f"{value} is always {dx}" for value, dx in confound.values_of_one_dx.items()]
    told += [f"{dx} is always {value}" for dx, value in confound.dx_of_one_value.items()]
    how_much = f"{confound.column} goes along with dx (Cramér's V {confound.cramers_v:.2f})"
    return f"{how_much} and is never a feature" + (f": {', '.join(told)}" if told else "")


def _names(items: Sequence[str]) -> str:
    return f" ({', '.join(items[:SHOWN])}{', …' if len(items) > SHOWN else ''})" if items else ""


def _more(count: int, what: str) -> list[Element]:
    return [element("p", f"{count:,} more {what} stand in audit.json.")] if count > 0 else []
