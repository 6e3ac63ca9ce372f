"""Any folder of images with a table and a class list of its own."""

from __future__ import annotations

from collections.abc import Sequence

from dermalyze.data.image_folder import EXTENSIONS, OnMissing, find_table, open_folder
from dermalyze.data.metadata_file import Report, read_metadata_file
from dermalyze.data.table import LesionTable, note_extra_columns, table_of
from dermalyze.data.tidying import UNKNOWN
from dermalyze.errors import ConfigError

HELP = (
    "data=folder reads any folder of images (.jpg, .jpeg, .png) with a CSV that has a row an "
    "image. data=synthetic needs no download."
)


def read_folder(
    *,
    root: str,
    table: str | None,
    classes: Sequence[str],
    image_column: str,
    class_column: str,
    lesion_column: str | None,
    dx_type_column: str | None,
    age_column: str | None,
    sex_column: str | None,
    localization_column: str | None,
    dataset_column: str | None,
    on_missing: OnMissing,
) -> LesionTable:
    """Read a folder of images with a row an image in a comma- or tab-separated table.

    All that is checked of HAM10000 is checked here. Each column is given by its name in the table;
    of those that are None, nothing is known.

    Args:
        root: folder with the images, in it or up to two folders below.
        table: relative to `root` or to the working folder; None: the only *.csv, *.tsv or *.tab.
        classes: in the model's order; the table may spell them with other capitals.
        image_column: the image's file name, with or without its ending.
        class_column: one of `classes`.
        lesion_column: what is the same for images of one lesion, or of one patient. None: each
            image is a lesion of its own, and a split may put two pictures of one lesion into two
            parts, so the table comes with a warning.
        dx_type_column: how the class was established.
        age_column: years.
        sex_column: the patient's.
        localization_column: where on the body.
        dataset_column: clinic or camera, for data/split=leave_one_source_out.
        on_missing: what to do for a row without an image: refuse the table, or leave the row out.

    Raises:
        ConfigError: fewer than two classes, two that differ in capitals only, an empty one, or one
            column for two things.
        DataError: no such folder or table, or faults in it, all of them in one message.
    """
    columns = {
        "image_id": image_column,
        "dx": class_column,
        "lesion_id": lesion_column,
        "dx_type": dx_type_column,
        "age": age_column,
        "sex": sex_column,
        "localization": localization_column,
        "dataset": dataset_column,
    }
    given = {column: name for column, name in columns.items() if name is not None}
    _refuse(classes, given)
    folder = open_folder(root, holds_images=lambda below: True, how_to_get=HELP)
    path = find_table(
        folder,
        table,
        names=("*.csv", "*.tsv", "*.tab"),
        option="data.source.table",
        how_to_get=HELP,
    )
    file = read_metadata_file(
        path,
        needed=tuple(given.values()),
        mend="Or give the names it has, such as data.source.class_column=NAME; "
        "data.source.lesion_column=null for none.",
    )
    report = Report(file)
    note_extra_columns(report, given.values())
    rows = file.frame(tuple(given.values())).rename(columns={v: k for k, v in given.items()})
    endings = "|".join(sorted(EXTENSIONS))
    # An id may hold dots: only what is an image's ending is taken off.
    image_ids = rows["image_id"].str.strip()
    rows["image_id"] = image_ids.str.replace(rf"\.({endings})$", "", case=False, regex=True)
    if lesion_column is None:
        report.tell(
            "warning",
            "no_lesions",
            "images each taken for a lesion of its own, since data.source.lesion_column is null: "
            "pictures of one lesion may train a model and test it",
            rows["image_id"],
        )
        rows["lesion_id"] = rows["image_id"]
    for column in ("dx_type", "age", "sex", "localization"):
        if column not in given:
            rows[column] = UNKNOWN
    return table_of(
        rows,
        tuple(code.strip() for code in classes),
        folder,
        report,
        on_missing=on_missing,
        name=folder.root.name,
    )


def _refuse(classes: Sequence[str], columns: dict[str, str]) -> None:
    problems = []
    folded = [code.strip().casefold() for code in classes]
    if len(folded) < 2 or len(set(folded)) < len(folded) or "" in folded:
        problems.append(
            f"data.source.classes={list(classes)}: give two or more, each once (capitals do not "
            "tell two apart) and none empty, such as data.source.classes=[benign,malignant]."
        )
    if len(set(columns.values())) < len(columns):
        problems.append(
            "one column is given for two things: "
            + ", ".join(f"{name!r} for {column}" for column, name in columns.items())
            + ". Give each its own, or null."
        )
    if problems:
        raise ConfigError("\n".join(problems))
