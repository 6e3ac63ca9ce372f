"""Read and check a data set before training on it: `python -m dermalyze.prepare --help`."""

from __future__ import annotations

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dermalyze.command import command
from dermalyze.errors import ConfigError

logger = logging.getLogger("dermalyze")


@command("prepare")
def main(cfg: DictConfig) -> None:
    """Read and audit a data set; write labels.csv, summary.json, audit.json and audit.html."""
    from hydra.utils import instantiate

    from dermalyze.data.audit import audit
    from dermalyze.data.audit_page import summary_lines, write_audit
    from dermalyze.data.table import LesionTable, summary
    from dermalyze.files import write_json
    from dermalyze.schema import Preparation, checked
    from dermalyze.taxonomy import DISCLAIMER

    config = checked(cfg, Preparation)
    chosen = HydraConfig.get().runtime.choices["data"]
    if config["data"]["download"]:
        if chosen != "ham10000":
            raise ConfigError(f"data.download=true fetches HAM10000; data={chosen} is another set")
        instantiate(config["download"], _convert_="all")
    table: LesionTable = instantiate(config["data"]["source"], _convert_="all")
    for finding in table.findings:
        level = logging.WARNING if finding.level == "warning" else logging.INFO
        logger.log(level, "%s", finding.message)

    folder = Path(config["output"]) / table.name
    folder.mkdir(parents=True, exist_ok=True)
    table.frame.drop(columns=["path", "label"]).to_csv(folder / "labels.csv", index=False)
    counts = summary(table)
    lesions = table.frame["lesion_id"].nunique()
    write_json(
        folder / "summary.json",
        {
            "data": table.name,
            "root": str(Path(config["data"]["root"]).resolve()),
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
    found = audit(table, **config["audit"])
    write_audit(found, folder)
    logger.info("audit\n%s", "\n".join(summary_lines(found)))
    drop = " data.on_missing=drop" if table.missing_images else ""
    if drop:
        logger.warning(
            "%d rows of the table have no image (named in summary.json). Training refuses that "
            "unless data.on_missing=drop is given",
            len(table.missing_images),
        )
    logger.info(
        "made %s (labels.csv, summary.json, audit.json, audit.html)\n"
        "Next: python -m dermalyze.train data=%s data.root=%s%s\n%s",
        folder,
        chosen,
        config["data"]["root"],
        drop,
        DISCLAIMER,
    )


if __name__ == "__main__":
    main()
