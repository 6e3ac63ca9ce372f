"""What every part of a checked configuration is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ConfigPart(BaseModel):
    """A part with fixed keys: another key, a value of another type, or no number, is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
