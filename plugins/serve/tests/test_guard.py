"""Nothing passes without a key, and no body that is too large or too slow."""

import asyncio
import socket
from urllib.parse import urlsplit

import pytest
from mtcore_serve.access import KEY, Record
from mtcore_serve.asking import Asked
from mtcore_serve.calling import answers
from mtcore_serve.errors import TooLarge
from mtcore_serve.fleet import Ask
from mtcore_serve.guard import Guard, Keys
from mtcore_serve.limits import Limits
from mtcore_serve.refusals import Gone, refusal
from starlette.requests import Request

ASKED = {"documents": ["hello"]}


def test_every_route_but_health_and_ready_demands_a_key(doors, http):
    paths = http.get(f"{doors.open}/openapi.json").json()["paths"]
    asked = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert {path for _, path in asked} >= {
        "/v1/predict",
        "/v1/tasks/{task}:predict",
        "/v1/chat/completions",
        "/health",
        "/ready",
        "/metrics",
    }
    asked += [("GET", "/openapi.json"), ("GET", "/nothing"), ("PUT", "/"), ("GET", "/health/"), ("POST", "/ready")]
    for key in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic a key of this server"}, {"Authorization": "Bearer"}):
        statuses = {(method, path): http.request(method, doors.locked + path, headers=key).status_code for method, path in asked}
        assert {route for route, status in statuses.items() if status != 401} == {("GET", "/health"), ("GET", "/ready")}


@pytest.mark.parametrize("key", ["a key of this server", "another"])
def test_any_of_the_keys_opens(doors, http, key):
    response = http.post(f"{doors.locked}/v1/predict", json=ASKED, headers={"Authorization": f"Bearer {key}"})
    assert response.status_code == 200


def test_the_document_says_that_a_key_is_demanded(doors, http):
    document = http.get(f"{doors.locked}/openapi.json", headers={"Authorization": "Bearer another"}).json()
    assert document["paths"]["/v1/predict"]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/health"]["get"]
    assert "401" in document["paths"]["/v1/predict"]["post"]["responses"]
    without = http.get(f"{doors.open}/openapi.json").json()
    assert "key" not in without["components"].get("securitySchemes", {})
    assert "421" in without["paths"]["/health"]["get"]["responses"]


def test_without_keys_everything_is_admitted():
    assert Keys([]).admit(b"")
    assert not Keys([])
    assert not Keys(["a"]).admit(b"")


async def guarded(messages, headers=()):
    """What a guarded app answers, what it was given, and how many messages were read."""
    sent, given, read = [], [], 0

    async def receive():
        nonlocal read
        await asyncio.sleep(0)
        read += 1
        return next(messages)

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        given.append((await receive())["body"])
        await refusal(TooLarge("the app was reached"))(scope, receive, send)

    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": list(headers)}
    await Guard(app, Limits(body_bytes=10), Keys([]))(scope, receive, send)
    return sent[0]["status"], given, read


def test_a_body_is_read_no_further_than_its_bound():
    def endless():
        while True:
            yield {"type": "http.request", "body": b"1234", "more_body": True}

    assert asyncio.run(guarded(endless())) == (413, [], 3)
    assert asyncio.run(guarded(endless(), [(b"content-length", b"11")])) == (413, [], 0)
    whole = iter([{"type": "http.request", "body": b"12345", "more_body": i < 1} for i in range(2)])
    assert asyncio.run(guarded(whole)) == (413, [b"1234512345"], 2)


def test_bodies_together_take_no_more_memory_than_their_bound_and_who_has_no_key_takes_it_from_nobody_who_has():
    async def attempt():
        entered, leave, statuses = asyncio.Semaphore(0), asyncio.Event(), []

        async def app(scope, receive, send):
            entered.release()
            await leave.wait()
            await refusal(TooLarge("the app was reached"))(scope, receive, send)

        guard = Guard(app, Limits(body_bytes=10, bodies_bytes=15), Keys(["a key"]))

        async def ask(key):
            async def receive():
                return {"type": "http.request", "body": b"1234567890"}

            async def send(message):
                statuses.extend([message["status"]] if "status" in message else [])

            headers = [(b"authorization", b"Bearer " + key)]
            await guard({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive, send)

        waiting = [asyncio.create_task(ask(key)) for key in (b"", b"a key")]
        for _ in waiting:
            await entered.acquire()
        for key in (b"", b"a key"):
            await ask(key)
        leave.set()
        await asyncio.gather(*waiting)
        await ask(b"")
        return statuses

    assert asyncio.run(attempt()) == [429, 429, 413, 413, 413]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[(host, 421) for host in ("evil.example", "EVIL.example.:80", "1.evil.example")],
        *[(host, 200) for host in ("127.0.0.1:80", "[::1]:80", "localhost", "a.localhost:80", "server")],
    ],
)
def test_a_site_that_points_its_name_to_loopback_reads_nothing(doors, http, host, status):
    for path in ("/", "/v1/tasks"):
        assert http.get(doors.open + path, headers={"Host": host}).status_code == status
    assert http.get(doors.locked, headers={"Host": host}).status_code == 200  # where there are keys, they guard


def test_a_client_that_leaves_early_reaches_no_route():
    status, given, _ = asyncio.run(guarded(iter([{"type": "http.request", "more_body": True}, {"type": "http.disconnect"}])))
    assert (status, given) == (499, [])


def test_a_body_that_does_not_come_is_not_waited_for(doors):
    where = urlsplit(doors.open)
    with socket.create_connection((where.hostname, where.port), timeout=5) as connection:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
        connection.sendall(head + b'{"documents"')
        answer = b"".join(iter(lambda: connection.recv(4096), b""))  # until the server closes
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"too_slow" in answer


def test_a_client_that_leaves_before_its_answer_frees_its_place():
    withdrawn = []

    class Slow:
        async def answer(self, asked, timeout=None):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                withdrawn.extend(asked)
                raise

    async def leave():
        return {"type": "http.disconnect"}

    request = Request({"type": "http", KEY: Record("1")}, leave)
    asked = Asked(Ask({"text": "hello"}, ("t/a",)))
    with pytest.raises(Gone):
        asyncio.run(asyncio.wait_for(answers(request, Slow(), [asked]), 5))
    assert withdrawn == [asked.ask]
