"""The page shows every task's answer to whoever may see it, runs no script but its own, and shows data as text."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import httpx2
import pytest

KEY = "a key of this server"
CHROMIUM = shutil.which("chromium")


class Text(HTMLParser):
    """The text of a page, without styles and scripts, and all of its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.elements, self._skips = [], [], False
        self.feed(page)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._skips = tag in ("style", "script")

    def handle_endtag(self, tag):
        self._skips = False

    def handle_data(self, data):
        if not self._skips:
            self.words.append(data)


def shown(response: httpx2.Response) -> Text:
    return Text(response.text)


def test_a_text_is_answered_by_all_tasks_with_bars_versions_and_verdicts(doors, http):
    page = shown(http.post(doors.open, data={"text": "hello " * 200}))
    assert "6 in " in page.text
    assert "toys/multi-class not judged Answer multi-class. art" in page.text
    assert "art 75.0 % ice 3.6 %" in page.text
    assert "3 more" in page.text  # of eight labels five are shown at once
    assert "toys/binary ✓ qualified" in page.text
    assert "the text was too long and was cut" in page.text
    assert "<b>a & b</b>" in page.text  # as text: it is what a model wrote
    assert "Not asked, because they take several fields: toys/pair." in page.text
    assert page.text.count("· toys ") == 6  # group, and then the version
    assert ("rect", {"width": "75.00%", "height": "100%"}) in page.elements


def test_a_task_is_opened_and_its_fields_are_asked(doors, http):
    opened = shown(http.post(doors.open, data={"open": "toys/pair", "text": ""}))
    names = [attributes.get("name") for tag, attributes in opened.elements if tag == "textarea"]
    assert names == ["field:premise", "field:hypothesis"]
    fields = {"task": "toys/pair", "field:premise": "</textarea><script>alert(1)</script>", "field:hypothesis": "b"}
    answered = http.post(doors.open, data=fields)
    assert "toys/pair ✗ not qualified Answer binary. 0" in shown(answered).text
    assert "<script>alert" not in answered.text
    kept = shown(http.post(doors.open, data={"open": "toys/binary", "text": "typed before"}))
    assert "typed before" in kept.text


@pytest.mark.parametrize(
    ("form", "status", "words"),
    [
        ({"text": " "}, 422, "The text is empty"),
        ({"text": "x" * 3000}, 413, "longer than the 2000"),
        ({"text": "a", "task": "toys/nothing"}, 404, "not online"),
        ({"task": "toys/pair", "field:premise": "a"}, 422, "'hypothesis' is empty"),
        ({f"{number}": "" for number in range(101)}, 422, "could not be read"),
    ],
)
def test_what_cannot_be_asked_is_said_on_the_page(doors, http, form, status, words):
    response = http.post(doors.open, data=form)
    assert response.status_code == status
    assert words in shown(response).text


def test_with_keys_the_page_says_and_answers_nothing_without_one(doors, http):
    locked = [
        http.get(doors.locked),
        http.post(doors.locked, data={"text": "hello"}),
        http.post(doors.locked, data={"text": "hello", "key": "wrong"}),
        http.post(doors.locked, data={"open": "toys/pair", "key": "wrong"}),
    ]
    assert [response.status_code for response in locked] == [200, 401, 401, 401]
    assert not any("toys/" in shown(response).text for response in locked)
    answered = http.post(doors.locked, data={"text": "hello", "key": KEY})
    assert "art 75.0 %" in shown(answered).text
    assert KEY not in answered.text


def test_the_page_allows_nothing_but_its_own_style_and_script(doors, http):
    response = http.get(doors.open)
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in re.sub(r"https?-equiv", "", response.text)
    assert not any(name.startswith("on") or name == "style" for _, attributes in shown(response).elements for name in attributes)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_in_a_browser_answers_appear(doors, tmp_path):
    page = tmp_path / "ask.html"
    page.write_text(
        f'<form method="post" action="{doors.open}/"><input name="text" value="hello"></form><script>document.forms[0].submit()</script>'
    )
    options = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    )
    command = [CHROMIUM, *options.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "art 75.0 %" in Text(seen).text
    assert ("small", {"class": "hint"}) in Text(seen).elements  # the page's own script ran: without it the hint is hidden
