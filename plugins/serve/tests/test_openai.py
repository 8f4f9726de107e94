"""Clients of OpenAI's API ask tasks as if they were models, and are refused in a form they know."""

import json
import math

import openai
import pytest


@pytest.fixture(scope="module")
def client(doors):
    with openai.OpenAI(base_url=f"{doors.open}/v1", api_key="none", max_retries=0) as client:
        yield client


def user(content):
    return [{"role": "user", "content": content}]


def test_the_client_library_asks_tasks(client):
    told = client.chat.completions.create(
        model="toys/multi-class", messages=user("hello"), temperature=0.3, logprobs=True, top_logprobs=3, seed=1
    )
    assert told.choices[0].message.content == "art"
    assert told.choices[0].finish_reason == "stop"
    assert told.usage.total_tokens == 10
    assert len(told.system_fingerprint) == 12
    (token,) = told.choices[0].logprobs.content
    assert (token.token, token.logprob) == ("art", math.log(0.75))
    assert [top.token for top in token.top_logprobs] == ["art", "ice", "law"]


def test_answers_that_are_no_single_label_are_text_too(client):
    def content(task, text):
        return client.chat.completions.create(model=task, messages=user(text)).choices[0].message.content

    assert json.loads(content("toys/multi-label", "hello")) == ["0"]
    assert content("toys/regression", [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]) == "0.5"
    assert content("toys/generation", '{"text": "is a text like any other"}') == "<b>a & b</b>"
    assert content("toys/pair", json.dumps({"premise": "a", "hypothesis": "b"})) == "0"


def test_a_stream_is_one_chunk(client):
    stream = client.chat.completions.create(
        model="toys/binary", messages=user("hello"), stream=True, stream_options={"include_usage": True}
    )
    answer, usage = list(stream)
    assert (answer.choices[0].delta.content, answer.choices[0].finish_reason) == ("0", "stop")
    assert (usage.choices, usage.usage.prompt_tokens) == ([], 10)


def test_tasks_are_listed_as_models(client):
    listed = list(client.models.list())
    assert "toys/pair" in {model.id for model in listed}
    assert client.models.retrieve("toys/binary") in listed


@pytest.mark.parametrize(
    ("asked", "error", "code", "words"),
    [
        ({"model": "toys/nothing"}, openai.NotFoundError, "unknown_task", "not online"),
        (
            {"messages": [{"role": "system", "content": "SECRET"}, *user("a")]},
            openai.UnprocessableEntityError,
            "bad_request",
            "exactly one",
        ),
        ({"messages": user([{"type": "image_url"}])}, openai.UnprocessableEntityError, "bad_request", "messages"),
        ({"model": "toys/pair", "messages": user("SECRET")}, openai.UnprocessableEntityError, "bad_request", "premise, hypothesis"),
        ({"model": "toys/pair", "messages": user('{"premise": "SECRET"}')}, openai.UnprocessableEntityError, "bad_request", "hypothesis"),
        ({"n": 2}, openai.UnprocessableEntityError, "bad_request", "n: "),
        ({"stop": "SECRET"}, openai.UnprocessableEntityError, "bad_request", "not known here"),
        ({"model": "toys/generation", "logprobs": True}, openai.UnprocessableEntityError, "bad_request", "logprobs"),
        ({"top_logprobs": 2}, openai.UnprocessableEntityError, "bad_request", "without logprobs"),
        ({"messages": user("explode")}, openai.UnprocessableEntityError, "unanswerable", "model"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_form_that_clients_know(client, asked, error, code, words):
    with pytest.raises(error, match=words) as caught:
        client.chat.completions.create(**{"model": "toys/binary", "messages": user("hello"), **asked})
    assert caught.value.code == code
    assert caught.value.type in ("invalid_request_error", "not_found_error")
    assert "SECRET" not in str(caught.value)


def test_a_wrong_key_is_an_authentication_error(doors):
    with openai.OpenAI(base_url=f"{doors.locked}/v1", api_key="wrong", max_retries=0) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
