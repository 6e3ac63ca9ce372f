"""Write a trained model as a file for other programs: `python -m dermalyze.export --help`."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from dermalyze.command import command

logger = logging.getLogger("dermalyze")

_NEXT = {
    "onnx": "python -m dermalyze.evaluate checkpoint={path}",
    "onnx_int8": "python -m dermalyze.evaluate checkpoint={path}",
    "torch_export": "torch.export.load({path!r}).module()(images), uint8 images of shape (B, 3, "
    "size, size), gives logits",
    "safetensors": "python -m dermalyze.evaluate checkpoint={path}",
}


@command("export")
def main(cfg: DictConfig) -> None:
    """Export one model, hold the export against it, and say how they agree."""
    # Imported here, so that --help and --cfg job need neither torch nor mlflow.
    from dermalyze.exporting.export_run import export
    from dermalyze.exporting.schema import Export
    from dermalyze.run_folder import CONFIG
    from dermalyze.schema import checked
    from dermalyze.taxonomy import DISCLAIMER

    done = export(checked(cfg, Export))
    found = done.found
    lines = [
        f"against the model, on {found.images} validation images:",
        f"  largest difference of a probability  {found.largest_difference:.2g}",
        f"  both name the same class             {found.agreement:.4f}",
        "  balanced accuracy, model and export  "
        + ", ".join(f"{value:.4f}" for value in found.balanced_accuracy),
    ]
    if cfg.format == "onnx_int8":
        names = f" ({', '.join(done.in_float32)})" if done.in_float32 else ""
        lines.append(f"  layers left in float32               {len(done.in_float32)}{names}")
    logger.info("\n".join(lines))
    size = done.path.stat().st_size / 2**20
    then = _NEXT[cfg.format].format(path=str(done.path))
    if cfg.format != "torch_export" and not (done.path.parent / CONFIG).is_file():
        # Outside a run's folder a model does not say which data it was trained on.
        then = f"python -m dermalyze.predict checkpoint={done.path} images=IMAGES"
    logger.info("made %s (%.1f MiB). Next: %s\n%s", done.path, size, then, DISCLAIMER)


if __name__ == "__main__":
    main()
