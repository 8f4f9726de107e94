"""Whatever is sent: a refusal with a code, never a failure, nothing of it repeated, and nothing of it kept."""

import json
from pathlib import Path

import httpx2
import pytest

JSON = {"Content-Type": "application/json"}
SECRET = "SECRET"


def predict(**body):
    return json.dumps({"documents": [SECRET]} | body)


BODIES: dict[str, str | bytes] = {
    "lone surrogate": '{"documents": ["SECRET\\ud800"]}',
    "lone surrogate as a key": '{"documents": [{"SECRET\\udfff": "a"}]}',
    "NaN": '{"documents": ["SECRET"], "timeout": NaN}',
    "1e400": '{"documents": ["SECRET"], "timeout": 1e400}',
    "minus infinity": '{"documents": ["SECRET"], "timeout": -Infinity}',
    "an endless number": '{"documents": ["SECRET"], "top": ' + "9" * 90_000 + "}",
    "no timeout": predict(timeout=0),
    "top of nothing": predict(top=0),
    "top as text": predict(top=SECRET),
    "deep lists": "[" * 99_000,
    "deep objects": '{"documents":' * 7_000,
    "deep fields": '{"documents": [{"text": ' + "[" * 150 + '"SECRET"' + "]" * 150 + "}]}",
    "200 kB": predict(documents=[SECRET * 40_000]),
    "10k documents": predict(documents=["a"] * 10_000),
    "10k wrong documents": predict(documents=[1] * 10_000),
    "10k wrong fields": predict(documents=[{f"{SECRET}{i}": i for i in range(4_000)}]),
    "10k tasks": predict(tasks=[SECRET] * 5_000),
    "long task": predict(tasks=[SECRET * 1_000]),
    "unknown task": predict(tasks=[SECRET]),
    "no tasks": predict(tasks=[]),
    "wrong tasks": predict(tasks={SECRET: 1}),
    "unknown field of a document": predict(documents=[{SECRET: "a"}]),
    "unknown field of the body": predict(**{SECRET: 1}),
    "4k unknown fields of the body": predict(**{f"{SECRET}{i}": i for i in range(4_000)}),
    "wrong type of a field": predict(documents=[{"text": {SECRET: 1}}]),
    "null": "null",
    "a text": json.dumps(SECRET),
    "nothing": "",
    "white space": "\n \t",
    "cut off": predict()[:-3],
    "two bodies": predict() * 2,
    "NUL": predict(documents=[SECRET + "\0"]),
    "NUL as a byte": predict().replace(SECRET, SECRET + "\0"),
    "empty text": predict(documents=["", SECRET]),
    "empty document": predict(documents=[{}]),
    "no documents": predict(documents=[]),
    "no documents at all": "{}",
    "comment": "// SECRET\n{}",
    "UTF-8 that is none": b'{"documents": ["SECRET\xff"]}',
    "overlong UTF-8": b'{"documents": ["SECRET\xc0\xaf"]}',
    "UTF-16": predict().encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + predict().encode(),
    "compressed": b"\x1f\x8b\x08SECRET",
}


def is_refused(response: httpx2.Response) -> None:
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert error["code"] in ("bad_request", "too_large", "unknown_task", "unsupported_media_type", "not_found", "method_not_allowed")
    assert len(response.content) < 1000
    assert SECRET not in response.text
    assert not any(SECRET in value for value in response.headers.values())


@pytest.mark.parametrize("name", BODIES)
def test_a_poison_body_is_refused_on_every_route_and_nothing_of_it_is_repeated(doors, http, name):
    for route in ("/v1/predict", "/v1/tasks/toys/binary:predict", "/v1/chat/completions"):
        is_refused(http.post(doors.open + route, content=BODIES[name], headers=JSON))


@pytest.mark.parametrize(
    "text", ["[" * 1000, '"\\ud800"', '{"premise": NaN, "hypothesis": "SECRET"}', '{"premise": ["SECRET"], "hypothesis": "a"}', "null"]
)
def test_a_poison_body_inside_of_a_message_is_refused_too(doors, http, text):
    asked = {"model": "toys/pair", "messages": [{"role": "user", "content": text}]}
    is_refused(http.post(doors.open + "/v1/chat/completions", json=asked))


@pytest.mark.parametrize("kind", ["", SECRET, "text/plain", "multipart/form-data", "application/json; charset=utf-16"])
def test_a_body_of_another_kind_is_refused(doors, http, kind):
    response = http.post(doors.open + "/v1/predict", content=predict(), headers={"Content-Type": kind})
    is_refused(response)
    assert response.status_code == 415


def test_odd_paths_and_methods_are_refused_and_not_repeated(doors, http):
    for path in (
        f"/{SECRET}",
        f"/v1/tasks/{SECRET}:predict",
        f"/v1/models/{SECRET}%00%ff",
        f"/v1/predict/{SECRET}",
        f"/v1/../{SECRET}",
        "/docs",
    ):
        is_refused(http.get(doors.open + path))
        is_refused(http.post(doors.open + path, content=predict(), headers=JSON))
    is_refused(http.request("DELETE", doors.open + "/v1/predict"))
    assert "allow" in http.request("DELETE", doors.open + "/v1/predict").headers


def test_a_body_that_only_shows_its_length_on_the_way_is_refused_too(doors, http):
    response = http.post(doors.open + "/v1/predict", content=(b" " * 10_000 for _ in range(300)), headers=JSON)
    is_refused(response)
    assert response.status_code == 413


def test_a_hundred_poison_bodies_leave_nothing_behind(doors, http):
    bodies = [body for body in BODIES.values() if len(body) > 50_000]

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096

    for number in range(150):
        if number == 30:
            before = resident()
        http.post(doors.open + "/v1/predict", content=bodies[number % len(bodies)], headers=JSON)
    assert len(bodies) >= 5
    assert resident() - before < 4 << 20  # less than half of what was sent
