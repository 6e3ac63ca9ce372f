"""Look at what an augmentation does: `python -m dermalyze.show_augmentation --help`."""

from __future__ import annotations

import logging
import shlex
from io import BytesIO
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dermalyze.command import command
from dermalyze.errors import ConfigError, DataError

logger = logging.getLogger("dermalyze")


@command("show_augmentation")
def main(cfg: DictConfig) -> None:
    """Draw a contact sheet: a row an image, first as it is, then as training would see it."""
    import numpy as np
    from hydra.utils import instantiate

    from dermalyze.augmentation.contact_sheet import augmented_views, contact_sheet
    from dermalyze.data.decode import PreprocessSpec, decode
    from dermalyze.files import write_whole
    from dermalyze.schema import ShownAugmentation, checked
    from dermalyze.taxonomy import DISCLAIMER

    config = checked(cfg, ShownAugmentation)
    hydra = HydraConfig.get()
    chosen = hydra.runtime.choices["augmentation"]
    typed = hydra.overrides.task
    option = [f"augmentation={chosen}", *(w for w in typed if w.startswith("augmentation."))]
    same_data = [word for word in typed if word.startswith(("data=", "data."))]
    output = Path(
        config["output"] or Path(config["paths"]["outputs"]) / "augmentation" / f"{chosen}.png"
    )
    if output.suffix.lower() != ".png":
        raise ConfigError(f"output={output}: a name that ends in .png is needed.")
    augment = instantiate(config["augmentation"], _convert_="all")
    paths = _paths(config)
    places = np.linspace(0, len(paths) - 1, min(config["rows"], len(paths))).round().astype(int)
    spec = PreprocessSpec(image_size=config["size"])
    images_RSS3 = np.stack([decode(paths[place], spec) for place in places])
    views = augmented_views(augment, images_RSS3, views=config["views"], seed=config["seed"])
    sheet = contact_sheet(views, title=" ".join(option))
    if config["compact"]:
        sheet = sheet.quantize(256, kmeans=1)
    png = BytesIO()
    sheet.save(png, "PNG", optimize=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, png.getvalue())
    logger.info(
        "made %s (%d images, %d views of each)\nNext: python -m dermalyze.train %s\n%s",
        output,
        len(views),
        config["views"],
        " ".join(map(shlex.quote, option + same_data)),
        DISCLAIMER,
    )


def _paths(config: dict[str, Any]) -> list[str]:
    """Return the images to choose from: of a folder by name, of a table by class."""
    from dermalyze.data.image_folder import open_folder
    from dermalyze.dataset import read_table

    if config["images"] is None:
        data = {**config["data"], "merge_duplicates": False}
        frame = read_table(data, cache=config["paths"]["cache"]).frame
        return list(frame.sort_values("label", kind="stable")["path"])
    if not Path(config["images"]).expanduser().is_dir():
        raise DataError(f"images={config['images']}: there is no such folder.")
    folder = open_folder(config["images"], holds_images=lambda below: True, how_to_get="")
    paths = [path for paths in folder.images.values() for path in paths]
    if not paths:
        raise DataError(
            f"images={config['images']}: no .jpg, .jpeg or .png in it or up to two folders below."
        )
    return sorted(paths)


if __name__ == "__main__":
    main()
