"""The bodies of the API as data: read in one strict pass, written as they are, and described in the OpenAPI document."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.requests import Request

from mtcore.types import Frozen, NumberRange, OutputKind, Prediction, TaskSpec
from mtcore_serve.errors import BadRequest, Refused
from mtcore_serve.fleet import Online
from mtcore_serve.refusals import WrongMediaType

Body = TypeVar("Body", bound=BaseModel)
MOST = 100
"""Mistakes of a body that are looked at: to list a hundred thousand unknown fields would stall everybody's answers."""
TaskName = Annotated[str, Field(max_length=256, examples=["hotel/id"])]
_FIELDS_SCHEMA = WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1})
# values are looked at one by one in `asking`, which stops at the first that is no text: pydantic would collect an error for each
Fields = Annotated[dict[str, Any], _FIELDS_SCHEMA]
Top = Annotated[int, Field(ge=1, description="So many of the most probable labels; all where it is left out.")]
Timeout = Annotated[
    float,
    Field(
        gt=0, allow_inf_nan=False, description="Seconds for which an answer is of use, where they are fewer than the server's own bound."
    ),
]


class PredictRequest(Frozen):
    """Documents and what is asked of them."""

    documents: Annotated[list[Annotated[str, Field(min_length=1)] | Fields], Field(min_length=1, fail_fast=True)]
    """Fields by name; a text stands for the field of every task that takes exactly one."""
    tasks: Literal["all"] | Annotated[list[TaskName], Field(min_length=1, fail_fast=True)] = "all"
    """Task names; `all` asks every task that a document has the fields for."""
    top: Top | None = None
    timeout: Timeout | None = None


class TaskRequest(Frozen):
    """One document for one task: its fields by name, or the text of its single field."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["fields"]}, {"required": ["text"]}]})

    fields: Fields | None = None
    text: Annotated[str, Field(min_length=1)] | None = None
    top: Top | None = None
    timeout: Timeout | None = None


class Problem(BaseModel):
    """Why there is no answer: a code for programs and a sentence for people."""

    code: str
    message: str


class ErrorDetail(Problem):
    """A problem, with what clients of OpenAI's API look for beside it."""

    type: str
    param: None


class ErrorBody(BaseModel):
    """What every refusal looks like."""

    error: ErrorDetail


class Answer(BaseModel):
    """A task's answer: a label, a list of labels, a number, or a generated text."""

    answer: str | float | list[str]
    probabilities: dict[str, float] | None
    """Of labels, the most probable first; null where an answer was generated. Where several labels are chosen: of each chosen one."""
    flags: list[str]
    """`truncated`: the text was longer than the model reads and was cut."""
    version: str
    """Of the bundle that answered."""


class Unanswered(BaseModel):
    """Why one task has no answer to a document; the others have theirs."""

    error: Problem


class Usage(BaseModel):
    """What went through the models."""

    tokens: int


class Result(BaseModel):
    """What one document was answered."""

    answers: dict[str, Answer | Unanswered]
    skipped: list[str]
    """Tasks that were not asked, because the document lacks a field of theirs; only with `all`."""


class PredictResponse(BaseModel):
    """A result for every document, in their order."""

    results: list[Result]
    usage: Usage


class TaskResponse(Answer):
    """The answer of the task that was asked."""

    usage: Usage


class TaskDescription(BaseModel):
    """A task that is online."""

    name: str
    output: OutputKind
    fields: list[str]
    labels: list[str] | None
    """In the task's canonical order; null where it has none."""
    number_range: NumberRange | None
    instruction: str
    group: str
    """Whose bundle answers it."""
    version: str
    is_qualified: bool | None
    """Whether its run found it good enough; null where that is not known."""
    fields_schema: dict[str, Any]
    """JSON schema of its fields."""


class TaskList(BaseModel):
    """All tasks that are online."""

    tasks: list[TaskDescription]


class Status(BaseModel):
    """That the process lives, or that it takes requests."""

    status: Literal["alive", "ready"]


async def read(request: Request, model: type[Body]) -> Body:
    """The body of a request as strict JSON; raises BadRequest, which says where and what, and nothing of what a client wrote.

    The parser refuses lone surrogates, bytes that are no UTF-8 and nesting deeper than 200; numbers that are none are refused by their field.
    """
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise WrongMediaType("a body is JSON in UTF-8: send it with Content-Type: application/json")
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise BadRequest(_first_problem(error, model)) from None


def as_answer(spec: TaskSpec, prediction: Prediction, version: str, top: int | None = None) -> dict[str, Any]:
    """A prediction as JSON (`Answer`)."""
    answer: Any = prediction.answer
    if isinstance(answer, tuple):
        answer = answer[0] if spec.output == "generation" else list(answer)
    probabilities = prediction.probabilities
    if probabilities is not None:
        probabilities = dict(sorted(probabilities.items(), key=lambda item: -item[1])[:top])
    return {"answer": answer, "probabilities": probabilities, "flags": list(prediction.flags), "version": version}


def as_problem(error: Refused) -> dict[str, Any]:
    """Why one task has no answer, as JSON (`Unanswered`)."""
    return {"error": {"code": error.code, "message": str(error)}}


def describe(name: str, online: Online) -> dict[str, Any]:
    """A task as JSON (`TaskDescription`)."""
    spec = online.spec
    schema = {"type": "object", "properties": {f: {"type": "string", "minLength": 1} for f in spec.fields}, "required": list(spec.fields)}
    return {
        "name": name,
        "output": spec.output,
        "fields": list(spec.fields),
        "labels": list(spec.labels) or None,
        "number_range": spec.number_range.model_dump() if spec.number_range else None,
        "instruction": spec.instruction,
        "group": online.group,
        "version": online.version,
        "is_qualified": online.is_qualified,
        "fields_schema": {**schema, "additionalProperties": False},
    }


def _first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """The first error in words of ours. Of its place only our own names and positions: the rest a client wrote."""
    if error.error_count() > MOST:
        return f"the body holds more than {MOST} mistakes; it takes {', '.join(model.model_fields)}"
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = errors[0]
    place = ""
    if first["loc"] and (name := str(first["loc"][0])) in model.model_fields:
        positions = [part for part in first["loc"][1:2] if isinstance(part, int)]
        place = name + "".join(f"[{i}]" for i in positions) + ": "
    elif first["type"] == "extra_forbidden":
        return f"the body holds a field that is not known here; it takes {', '.join(model.model_fields)}"
    wanted = "Input should be "
    if first["msg"].startswith(wanted):  # of a union there is one error for each type: either would do
        others = [e["msg"].removeprefix(wanted) for e in errors if e["loc"][:1] == first["loc"][:1] and e["msg"].startswith(wanted)]
        return f"{place or 'the body '}should be {' or '.join(dict.fromkeys(others))}"
    return place + first["msg"][:1].lower() + first["msg"][1:]
