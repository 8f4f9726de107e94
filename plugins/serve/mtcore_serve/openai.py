"""The routes of OpenAI's chat API, so that its clients work: a model is a task, its one message a document, its content the answer."""

import math
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field
from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response

from mtcore.data.text import number_text
from mtcore.types import Frozen, Prediction, TaskSpec
from mtcore_serve.access import record_of
from mtcore_serve.asking import Document, asked_of, known_task
from mtcore_serve.calling import answers
from mtcore_serve.description import ASKING, body, refused
from mtcore_serve.errors import BadRequest, Refused
from mtcore_serve.fleet import Fleet, Online
from mtcore_serve.limits import Limits
from mtcore_serve.schemas import TaskName, as_answer, read

LEAST = -9999.0
"""How that API writes the logarithm of 0."""
Ignored = Annotated[Any, Field(description="Taken, and changes nothing: an answer is the most probable one, and as long as its task says.")]


class TextPart(Frozen):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Frozen):
    """A document, where its role is `user`."""

    role: Literal["assistant", "developer", "function", "system", "tool", "user"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: Ignored = None


class StreamOptions(Frozen):
    """What comes with a stream."""

    include_usage: bool = False
    include_obfuscation: Ignored = None


class TextFormat(Frozen):
    """The one format of answers."""

    type: Literal["text"]


class ChatRequest(Frozen):
    """A chat completion. A parameter that would change the form of an answer is refused."""

    model: TaskName
    """A task."""
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    """One, of the role user: the text of the task's single field, or a JSON object of its fields."""
    n: Literal[1] | None = None
    logprobs: bool | None = None
    """Of the whole answer, as if it were one token; only of tasks that choose one of several labels or numbers."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: TextFormat | None = None
    frequency_penalty: Ignored = None
    max_completion_tokens: Ignored = None
    max_tokens: Ignored = None
    metadata: Ignored = None
    presence_penalty: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    reasoning_effort: Ignored = None
    safety_identifier: Ignored = None
    seed: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    temperature: Ignored = None
    top_p: Ignored = None
    user: Ignored = None
    verbosity: Ignored = None


class Model(BaseModel):
    """A task that is online."""

    id: str
    object: Literal["model"]
    created: int
    """When this server began."""
    owned_by: str
    """The group whose bundle answers it."""


class ModelList(BaseModel):
    """All tasks that are online."""

    object: Literal["list"]
    data: list[Model]


class ChatCompletion(BaseModel):
    """An answer; its one choice holds what OpenAI's own holds."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    """The version of the bundle that answered."""
    choices: list[dict[str, Any]]
    usage: dict[str, int]
    """What went through the model, all of it as prompt: an answer is scored rather than written."""
    flags: list[str]
    """`truncated`: the text was cut."""


def openai_routes(fleet: Fleet, limits: Limits) -> APIRouter:
    """`/v1/chat/completions` and `/v1/models`."""
    router = APIRouter(tags=["OpenAI's API"])
    begun = int(time.time())

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        openapi_extra=body(ChatRequest),
        responses=refused(*ASKING) | {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def chat_completions(request: Request) -> Response:
        """Answer one document for one task."""
        asked = await read(request, ChatRequest)
        online = fleet.tasks
        known_task(asked.model, online)
        task = online[asked.model]
        _check(asked, task.spec)
        documents = asked_of([_document(asked.messages, task.spec)], [asked.model], online, limits, "the message")
        (answered,) = await answers(request, fleet, documents)
        answer = answered.answers[asked.model]
        if isinstance(answer, Refused):
            raise answer
        version = answered.versions[asked.model]
        content = _content(task.spec, answer)
        told = {
            "id": f"chatcmpl-{record_of(request.scope).id}",
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": version,
            "flags": list(answer.flags),
        }
        rest = {
            "index": 0,
            "finish_reason": "stop",
            "logprobs": _logprobs(content, answer, asked.top_logprobs or 0) if asked.logprobs else None,
        }
        message = {"role": "assistant", "content": content, "refusal": None}
        usage = {"prompt_tokens": answered.tokens, "completion_tokens": 0, "total_tokens": answered.tokens}
        if asked.stream:
            chunk = told | {"object": "chat.completion.chunk", "choices": [rest | {"delta": message}]}
            wants_usage = asked.stream_options is not None and asked.stream_options.include_usage
            last = [told | {"object": "chat.completion.chunk", "choices": [], "usage": usage}] if wants_usage else []
            return _events([chunk, *last])
        return _json(told | {"object": "chat.completion", "choices": [rest | {"message": message}], "usage": usage})

    @router.get("/v1/models", response_model=ModelList)
    async def models() -> Response:
        """Every task that is online."""
        return _json({"object": "list", "data": [_model(name, online, begun) for name, online in fleet.tasks.items()]})

    @router.get("/v1/models/{model:path}", response_model=Model, responses=refused(404, 422))
    async def model(model: Annotated[str, Path(min_length=1, max_length=256)]) -> Response:
        """One task."""
        online = fleet.tasks
        known_task(model, online)
        return _json(_model(model, online[model], begun))

    return router


def _check(asked: ChatRequest, spec: TaskSpec) -> None:
    if asked.top_logprobs is not None and not asked.logprobs:
        raise BadRequest("top_logprobs is asked for without logprobs")
    if asked.stream_options is not None and not asked.stream:
        raise BadRequest("stream_options is given without stream")
    if asked.logprobs and spec.output in ("generation", "multi-label"):
        raise BadRequest(f"logprobs: the answer of a {spec.output} task is no choice among labels whose probabilities are all known")


def _document(messages: list[Message], spec: TaskSpec) -> Document:
    if len(messages) != 1 or messages[0].role != "user":
        raise BadRequest("messages: a task is asked with exactly one, of the role user; its instruction is the model's own")
    content = messages[0].content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    if len(spec.fields) == 1:
        return {spec.fields[0]: text}
    try:
        fields = from_json(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise BadRequest(f"messages: the content for this task is a JSON object of its fields {', '.join(spec.fields)}")
    return fields


def _content(spec: TaskSpec, prediction: Prediction) -> str:
    answer = as_answer(spec, prediction, "")["answer"]
    if isinstance(answer, float):
        return number_text(answer)
    return answer if isinstance(answer, str) else to_json(answer).decode()


def _logprobs(content: str, prediction: Prediction, top: int) -> Mapping[str, Any]:
    """The answer as one token: its probability is that of the whole label, however many tokens the model needs for it."""
    probabilities = sorted((prediction.probabilities or {}).items(), key=lambda item: -item[1])
    known = [_token(label, probability) for label, probability in probabilities]
    chosen = next(token for token in known if token["token"] == content)
    return {"content": [chosen | {"top_logprobs": known[:top]}], "refusal": None}


def _token(label: str, probability: float) -> dict[str, Any]:
    return {"token": label, "logprob": max(math.log(probability), LEAST) if probability > 0 else LEAST, "bytes": list(label.encode())}


def _model(name: str, online: Online, begun: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": begun, "owned_by": online.group}


def _json(value: object) -> Response:
    return Response(to_json(value), media_type="application/json")


def _events(chunks: list[dict[str, Any]]) -> Response:
    """Server-sent events: an answer is known as a whole, so its stream is one chunk."""
    lines = [to_json(chunk) for chunk in chunks] + [b"[DONE]"]
    return Response(b"".join(b"data: " + line + b"\n\n" for line in lines), media_type="text/event-stream")
