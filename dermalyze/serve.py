"""Let trained models answer over HTTP: `python -m dermalyze.serve --help`."""

from __future__ import annotations

from contextlib import suppress

from omegaconf import DictConfig

from dermalyze.command import command


@command("serve")
def main(cfg: DictConfig) -> None:
    """Answer until it is stopped."""
    # Imported here, so that --help and --cfg job need no torch.
    from dermalyze.allocation import keep_freed_memory
    from dermalyze.schema import checked
    from dermalyze.serving.schema import Serving
    from dermalyze.serving.server import serve

    keep_freed_memory()
    with suppress(KeyboardInterrupt):  # how a server is ended, after its last answer
        serve(checked(cfg, Serving))


if __name__ == "__main__":
    main()
