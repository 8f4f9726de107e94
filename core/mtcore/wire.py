"""Events as JSON and back, for processes that tell each other what happens."""

from collections.abc import Mapping
from functools import cache
from typing import Any, cast, get_args

from pydantic import TypeAdapter

from mtcore import events

KINDS: Mapping[str, type] = {kind.__name__: kind for kind in get_args(events.Event)}


def event_to_json(event: events.Event) -> dict[str, Any]:
    """Plain data that `json.dumps` takes, the event's name under `event`; a loss that is no number stays what it is."""
    name = type(event).__name__
    return {"event": name, **_adapter(name).dump_python(event, mode="json")}


def event_from_json(data: Mapping[str, Any]) -> events.Event:
    """The event that was told. Raises KeyError for one that this version does not have."""
    fields = {key: value for key, value in data.items() if key != "event"}
    # JSON has lists where events have tuples
    return cast(events.Event, _adapter(data["event"]).validate_python(fields, strict=False))


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(KINDS[name])
