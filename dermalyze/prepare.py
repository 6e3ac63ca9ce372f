"""Read and check a data set before training on it: `python -m dermalyze.prepare --help`."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig

from dermalyze.command import command
from dermalyze.errors import ConfigError, DataError

logger = logging.getLogger("dermalyze")

_PLAIN = re.compile(r"[\w/.+@-]+")  # what Hydra takes as it stands


@command("prepare")
def main(cfg: DictConfig) -> None:
    """Read and audit a data set; write labels.csv, summary.json, audit.json and audit.html."""
    from hydra.utils import instantiate

    from dermalyze.data.audit import audit
    from dermalyze.data.audit_page import summary_lines, write_audit
    from dermalyze.data.duplicates import join_lesions, remember_pairs
    from dermalyze.data.metadata_file import listed
    from dermalyze.data.table import summary
    from dermalyze.dataset import read_table
    from dermalyze.files import spreadsheet_cell, write_json, write_whole
    from dermalyze.schema import Preparation, checked
    from dermalyze.taxonomy import DISCLAIMER

    config = checked(cfg, Preparation)
    data, cache = config["data"], config["paths"]["cache"]
    chosen = HydraConfig.get().runtime.choices["data"]
    if data["download"]:
        if not data["downloads"]:
            raise ConfigError(
                f"data.download=true: data={chosen} names nothing to download (data.downloads). "
                "Put the files into data.root yourself and leave data.download out."
            )
        instantiate(config["download"], _convert_="all")
    as_read = read_table({**data, "merge_duplicates": False}, cache=cache)
    folder = Path(config["output"]) / as_read.name
    found = audit(as_read, **data["duplicates"], **config["audit"])
    write_audit(found, folder)  # first, because it shows the duplicates that cannot be joined
    merge = data["merge_duplicates"]
    if found.pairs_complete or merge:
        pairs = remember_pairs(found, as_read, cache)  # training need not look for them again
    table = join_lesions(as_read, pairs) if merge else as_read
    labels = table.frame.drop(columns=["path", "label"]).map(
        lambda cell: spreadsheet_cell(cell) if isinstance(cell, str) else cell
    )
    write_whole(folder / "labels.csv", labels.to_csv(index=False))
    counts = summary(table)
    lesions = table.frame["lesion_id"].nunique()
    write_json(
        folder / "summary.json",
        {
            "data": table.name,
            "root": str(Path(data["root"]).expanduser().resolve()),
            "images": len(table),
            "lesions": lesions,
            "classes": counts.to_dict(orient="index"),
            "missing_images": list(table.missing_images),
            "findings": [
                {"level": f.level, "kind": f.kind, "message": f.message, "items": list(f.items)}
                for f in table.findings
            ],
            "fingerprint": table.fingerprint,
            "disclaimer": DISCLAIMER,
        },
    )
    logger.info(
        "%s: %d images of %d lesions\n%s",
        table.name,
        len(table),
        lesions,
        counts.to_string(float_format="{:.3f}".format),
    )
    logger.info("audit\n%s", "\n".join(summary_lines(found)))
    if found.across_lesions and not merge:
        logger.warning(
            "%d pairs of images show the same under two lesion ids, so a split can part them; "
            "data.merge_duplicates=true joins such lesions",
            len(found.across_lesions),
        )
    if table.missing_images:
        logger.warning(
            "%d rows of the table have no image (named in summary.json). Training refuses them but "
            "for data.on_missing=drop, which some recipes say themselves",
            len(table.missing_images),
        )
    logger.info("made %s (labels.csv, summary.json, audit.json, audit.html)", folder)
    drop = bool(found.broken or table.missing_images)
    training = f"python -m dermalyze.train {_same_data(chosen, data['root'], drop=drop)}"
    if found.broken:  # training would refuse them, once it has decoded all the others
        path_of = dict(zip(as_read.frame["image_id"], as_read.frame["path"], strict=True))
        unreadable = [f"{path_of[fault.image_id]}: {fault.reason}" for fault in found.broken]
        mend = "Get these files anew, or take them out of the folder"
        message = listed("images that cannot be read", mend, unreadable)
        raise DataError("\n".join([*message, f"Next, once they are out: {training}"]))
    logger.info("Next: %s\n%s", training, DISCLAIMER)


def _same_data(chosen: str, root: str, *, drop: bool) -> str:
    """Return the overrides that give another command the data that this one was given."""
    own = ("data=", "data.root=", "data.download=", "data.on_missing=")
    typed = [word for word in HydraConfig.get().overrides.task if word.startswith("data.")]
    others = [word for word in typed if not word.startswith(own)]
    words = [
        f"data={chosen}",
        f"data.root={as_value(root)}",
        *others,
        *["data.on_missing=drop"] * drop,
    ]
    return " ".join(map(shlex.quote, words))


def as_value(text: str) -> str:
    """Return a text as Hydra's grammar takes it, in which commas, brackets and = mean something."""
    return text if _PLAIN.fullmatch(text) else QuotedString(text, Quote.single).with_quotes()


if __name__ == "__main__":
    main()
