"""A component under test, and the checks that all components share: options, and the module that it stands in."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.reduction import ForkingPickler
from typing import Any

from pydantic import ValidationError

from mtcore.config import validate, with_default_use
from mtcore.contracts import Component, Options
from mtcore.testing.check import Body, Failed
from mtcore.testing.modules import import_fast, import_light


@dataclass(frozen=True)
class ComponentUnderTest:
    """A component's class and the options it is tried with."""

    cls: type[Component]
    options: Mapping[str, Any]
    module: str | None = ""

    def __post_init__(self) -> None:
        _ = self.config  # options that cannot be used are the caller's mistake, and no check of the component

    @cached_property
    def config(self) -> Options:
        """Raises ConfigError where the options are not the component's."""
        table = with_default_use(self.cls.Config, dict(self.options))
        return validate(self.cls.Config, table, f"{self.cls.__name__} {self.cls.name!r}")

    def build(self) -> Any:
        """The component anew, as a resumed run would build it."""
        return self.cls(self.config)


def options_strict(subject: ComponentUnderTest) -> str:
    """Options are frozen, refuse what they do not know, and come back from JSON."""
    config = subject.config
    fix = "derive Config from mtcore.contracts.Options and leave its model_config alone"
    try:
        subject.cls.Config.model_validate({**dict(config), "no_such_option": 1})
    except ValidationError:
        pass
    else:
        raise Failed("an option that does not exist is taken", fix)
    try:
        config.no_such_option = 1  # type: ignore[attr-defined]
    except (ValidationError, ValueError):
        pass
    else:
        raise Failed("options can be changed after they were checked", fix)
    if subject.cls.Config.model_validate_json(config.model_dump_json()) != config:
        raise Failed("options come back from JSON as other ones", "give options types that JSON has")
    return ", ".join(subject.cls.Config.model_fields) or "no options"


def picklable(subject: ComponentUnderTest) -> str:
    """The component goes to another process with its options."""
    try:
        back = ForkingPickler.loads(ForkingPickler.dumps(subject.build()))
    except Exception as error:
        raise Failed(
            f"{type(error).__name__}: {error}", "keep nothing in the instance but its config, and the class at the top of a module"
        ) from error
    if back.config != subject.config:
        raise Failed("it comes back with other options", "leave config as it is given")
    return f"{subject.cls.__module__}.{subject.cls.__qualname__}"


SHARED: tuple[Body, ...] = (options_strict, picklable, import_light, import_fast)
