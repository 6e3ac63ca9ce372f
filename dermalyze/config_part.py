"""What every part of a checked configuration is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ConfigPart(BaseModel):
    """A part with fixed keys: another key, or a value of another type, is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)
