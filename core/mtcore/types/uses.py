"""Components as a run file names them."""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["filter", "sampler", "scheduler", "method", "launcher", "observer"]


class Use(BaseModel):
    """A component by name, with its options still unresolved: `{ use = "temperature", tau = 2.0 }`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: ClassVar[Kind]
    use: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class FilterUse(Use):
    kind = "filter"


class SamplerUse(Use):
    kind = "sampler"


class SchedulerUse(Use):
    kind = "scheduler"


class MethodUse(Use):
    kind = "method"


class LauncherUse(Use):
    kind = "launcher"


class ObserverUse(Use):
    kind = "observer"
