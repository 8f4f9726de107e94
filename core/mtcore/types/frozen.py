"""Strict, immutable data."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Strict, immutable data that knows its way to JSON and back."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
