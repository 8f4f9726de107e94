"""The API answers what its document promises, and says what it did in one line."""

import asyncio
import json
import logging

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mtcore_serve.app import create_app
from mtcore_serve.errors import Overloaded
from mtcore_serve.limits import Limits
from mtcore_serve.metrics import Metrics
from mtcore_serve.refusals import refusal
from mtcore_serve.schemas import PredictResponse, TaskList, TaskResponse
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

LABELLED = {"toys/binary", "toys/ordinal", "toys/multi-class", "toys/multi-label", "toys/regression"}


def test_one_text_is_answered_by_every_task_that_takes_one(doors, http):
    response = http.post(doors.open + "/v1/predict", json={"documents": ["hello"]})
    body = PredictResponse.model_validate(response.json(), strict=True)
    (result,) = body.results
    assert result.skipped == ["toys/pair"]
    assert set(result.answers) == LABELLED | {"toys/generation"}
    answers = {task: answer.answer for task, answer in result.answers.items()}
    assert answers["toys/binary"] == "0"
    assert answers["toys/multi-label"] == ["0"]
    assert answers["toys/regression"] == 0.5
    assert answers["toys/generation"] == "<b>a & b</b>"
    assert result.answers["toys/generation"].probabilities is None
    assert body.usage.tokens == 60


def test_documents_are_answered_in_their_order_by_the_tasks_that_were_named(doors, http):
    documents = [{"premise": "a", "hypothesis": "b", "text": "c"}, {"premise": "a", "hypothesis": "b" * 1500}]
    body = http.post(doors.open + "/v1/predict", json={"documents": documents, "tasks": ["toys/pair"], "top": 1, "timeout": 5}).json()
    first, second = (result["answers"]["toys/pair"] for result in body["results"])
    assert first["probabilities"] == {"0": 0.75}
    assert (first["flags"], second["flags"]) == ([], ["truncated"])


def test_a_task_that_fails_fails_alone(doors, http):
    body = http.post(doors.open + "/v1/predict", json={"documents": ["explode", "hello"]})
    assert body.status_code == 200
    first, second = body.json()["results"]
    assert {answer["error"]["code"] for answer in first["answers"].values()} == {"unanswerable"}
    assert set(first["answers"]["toys/binary"]["error"]) == {"code", "message"}
    assert all("answer" in answer for answer in second["answers"].values())
    alone = http.post(doors.open + "/v1/tasks/toys/binary:predict", json={"text": "explode"})
    assert (alone.status_code, alone.json()["error"]["code"]) == (422, "unanswerable")


@pytest.mark.parametrize("document", [{"text": "hello"}, {"fields": {"text": "hello"}}])
def test_one_task_has_a_route_of_its_own(doors, http, document):
    body = http.post(doors.open + "/v1/tasks/toys/multi-class:predict", json=document | {"top": 2}).json()
    answer = TaskResponse.model_validate(body, strict=True)
    assert answer.answer == "art"
    assert list(answer.probabilities) == ["art", "ice"]


def test_tasks_are_described_so_that_a_client_can_ask_them(doors, http):
    tasks = {task.name: task for task in TaskList.model_validate(http.get(doors.open + "/v1/tasks").json()).tasks}
    assert tasks["toys/pair"].fields_schema["required"] == ["premise", "hypothesis"]
    assert (tasks["toys/binary"].is_qualified, tasks["toys/pair"].is_qualified, tasks["toys/ordinal"].is_qualified) == (True, False, None)
    assert tasks["toys/regression"].number_range.high == 2
    assert tasks["toys/regression"].labels is None


def test_states_and_metrics_are_told(doors, http):
    assert http.get(doors.open + "/health").json() == {"status": "alive"}
    assert http.get(doors.open + "/ready").json() == {"status": "ready"}
    assert 'route="/ready"' in http.get(doors.open + "/metrics").text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"documents": [None]}, "documents[0]: should be a valid string or an object"),
        ({"documents": ["a"], "tasks": "toys/binary"}, "tasks: should be 'all' or a valid array"),
        ({"documents": [{}]}, "documents has all fields of no task online"),
        ({"documents": ["a"], "tasks": ["toys/binarx"]}, "the task asked for is not online; did you mean 'toys/binary'"),
        ({"documents": ["a"], "tasks": ["toys/binary", "nothing"]}, "tasks[1] is not online"),
        ([], "the body should be an object"),
    ],
)
def test_a_refusal_says_where_and_what_would_do(doors, http, body, words):
    assert words in http.post(doors.open + "/v1/predict", json=body).json()["error"]["message"]


class Troubled:
    """A fleet that takes nothing, and breaks where it is looked at."""

    is_ready = False

    @property
    def tasks(self):
        raise ValueError("SEC" + "RET")  # a traceback shows lines of code


def test_trouble_of_the_server_has_a_status_an_id_and_no_details(caplog):
    async def ask(path):
        app = create_app(Troubled(), Limits(), Metrics())
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://here") as client:
            return await client.get(path)

    assert asyncio.run(ask("/health")).status_code == 200
    ready = asyncio.run(ask("/ready"))
    assert (ready.status_code, ready.json()["error"]["code"], ready.headers["Retry-After"]) == (503, "not_ready", "1")
    failed = asyncio.run(ask("/v1/tasks"))
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal")
    assert "SECRET" not in failed.text + caplog.text
    assert failed.headers["X-Request-Id"] in caplog.text
    assert "ValueError" in caplog.text


def test_when_to_come_again_is_said_in_whole_seconds():
    assert refusal(Overloaded("full", 2.3)).headers["Retry-After"] == "3"
    assert refusal(Overloaded("full", 0.01)).headers["Retry-After"] == "1"


def test_a_request_leaves_one_line_without_its_text(doors, http, caplog):
    with caplog.at_level(logging.INFO, "mtcore_serve.access"):
        response = http.post(doors.open + "/v1/tasks/toys/binary:predict", json={"text": "a SECRET"}, headers={"X-Request-Id": "SECRET"})
        http.get(doors.open + "/health")  # the line is written when the answer is gone, but before the next request is read
    lines = [json.loads(record.message) for record in caplog.records if record.name == "mtcore_serve.access"]
    (line,) = (line for line in lines if line["route"] == "/v1/tasks/{task:path}:predict")
    assert (line["status"], line["documents"], line["tasks"], line["tokens"]) == (200, 1, 1, 10)
    assert line["request_id"] == response.headers["X-Request-Id"]
    assert "SECRET" not in caplog.text


def test_whatever_a_client_makes_of_the_document_the_answer_keeps_to_it(doors):
    schema = schemathesis.openapi.from_url(f"{doors.open}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 9
    for operation in operations:

        @given(case=st.one_of(operation.as_strategy(mode) for mode in GenerationMode))
        @settings(max_examples=10, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def attempt(case):
            # what is online decides which fields and tasks there are, so that a body of the right form may still be refused
            response = case.call_and_validate(excluded_checks=[positive_data_acceptance, not_a_server_error])
            assert response.status_code < 500 or "retry-after" in response.headers  # a timeout of next to nothing is no failure

        attempt()
