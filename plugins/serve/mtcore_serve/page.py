"""The page: a form, and below it what every task answers, with probabilities as bars; HTML that works without JavaScript."""

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from mtcore.data.text import number_text
from mtcore_serve.asking import Document, asked_of
from mtcore_serve.calling import answers
from mtcore_serve.errors import BadRequest, Refused, Unauthorised
from mtcore_serve.fleet import Answered, Fleet, Online
from mtcore_serve.guard import Keys
from mtcore_serve.limits import Limits
from mtcore_serve.refusals import Gone, WrongMediaType, headers_of
from mtcore_serve.schemas import as_answer

SHOWN = 5
"""So many labels have their bars at once; a longer set folds the rest away."""
FORM_FIELDS = 100


@dataclass(frozen=True)
class Form:
    """What a person sent."""

    values: Mapping[str, str]

    @property
    def key(self) -> str:
        return self.values.get("key", "")

    @property
    def task(self) -> str:
        """The task that is open; empty where all are asked."""
        return self.values.get("open", self.values.get("task", ""))

    @property
    def asks(self) -> bool:
        """Whether answers are wanted, and not another form."""
        return "open" not in self.values

    def typed(self, name: str) -> str:
        """What stands in a text box: what was typed there, or else the one text that was typed before another task was opened."""
        texts = [value for key, value in self.values.items() if key == "text" or key.startswith("field:")]
        return self.values.get(name, texts[0] if len(texts) == 1 else "")

    def document(self, online: Mapping[str, Online]) -> Document:
        if self.task in online:
            return {field: self.values.get(f"field:{field}", "") for field in online[self.task].spec.fields}
        return self.values.get("text", "")


@dataclass(frozen=True)
class Bar:
    """A label and its probability."""

    label: str
    probability: float
    is_answer: bool


@dataclass(frozen=True)
class Card:
    """A task's answer as it is shown."""

    name: str
    online: Online
    version: str
    answer: str = ""
    labels: tuple[str, ...] = ()
    bars: tuple[Bar, ...] = ()
    flags: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Outcome:
    """All that came of a form."""

    cards: Sequence[Card]
    skipped: Sequence[str]
    milliseconds: float
    tokens: int


def page_routes(fleet: Fleet, limits: Limits, keys: Keys) -> APIRouter:
    """`GET /` shows the form, `POST /` the form and its answers. A key is read from the form, compared, and not kept."""
    router = APIRouter()
    environment = Environment(
        loader=PackageLoader("mtcore_serve"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("page.html")
    style, script = (files("mtcore_serve").joinpath("templates", name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    headers = {
        "Content-Security-Policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
    }

    def show(form: Form, outcome: Outcome | None = None, problem: Refused | None = None, may_see: bool = True) -> Response:
        online = fleet.tasks if may_see else {}
        text = template.render(
            style=Markup(style),
            script=Markup(script),
            form=form,
            online=online,
            opened=online.get(form.task),
            outcome=outcome,
            problem=problem,
            asks_key=bool(keys),
            shown=SHOWN,
            limits=limits,
        )
        status = 200 if problem is None else problem.status
        return HTMLResponse(text, status, headers | (headers_of(problem) if problem else {}))

    @router.get("/")
    async def page() -> Response:
        return show(Form({}), may_see=not keys)

    @router.post("/")
    async def page_answers(request: Request) -> Response:
        form, may_see = Form({}), not keys
        try:
            form = await _form(request)
            if not keys.admit(form.key.encode()):
                raise Unauthorised("This key is not one of the server's." if form.key else "This server asks for a key.")
            may_see = True
            outcome = await _outcome(request, fleet, form, limits) if form.asks else None
        except Gone:
            raise
        except Refused as error:
            return show(form, problem=error, may_see=may_see)
        return show(form, outcome)

    return router


async def _form(request: Request) -> Form:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise WrongMediaType("The page takes its own form.")
    try:
        pairs = parse_qsl((await request.body()).decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=FORM_FIELDS)
    except ValueError:
        raise BadRequest("The form could not be read.") from None
    return Form(dict(pairs))


async def _outcome(request: Request, fleet: Fleet, form: Form, limits: Limits) -> Outcome:
    begun = time.perf_counter()
    online = fleet.tasks
    asked = asked_of([form.document(online)], [form.task] if form.task else None, online, limits, "The text")
    (answered,) = await answers(request, fleet, asked)
    cards = [_card(name, online[name], answered) for name in asked[0].ask.tasks]
    return Outcome(cards, asked[0].skipped, (time.perf_counter() - begun) * 1000, answered.tokens)


def _card(name: str, online: Online, answered: Answered) -> Card:
    found = answered.answers[name]
    if isinstance(found, Refused):
        return Card(name, online, online.version, problem=str(found))
    version = answered.versions[name]
    told = as_answer(online.spec, found, version)
    answer: Any = told["answer"]
    chosen = tuple(answer) if isinstance(answer, list) else (number_text(answer) if isinstance(answer, float) else answer,)
    ranked = told["probabilities"] or {}
    bars = tuple(Bar(label, value, label in chosen) for label, value in ranked.items())
    words = ", ".join(chosen) if chosen else "none"
    return Card(name, online, version, words, chosen, bars, tuple(found.flags))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
