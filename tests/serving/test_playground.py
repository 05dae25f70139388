"""The playground in a real browser, over the real HTTP app of a tiny mixture."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEY = "key-of-the-tests"
PROMPT = "What is <b>the capital</b> of France?"
MAX_TOKENS = 12
ANSWER_TOKENS = ".answer .text:not(.prompt) > [role=option]"

pytestmark = [
    pytest.mark.serving,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's package `chromium`"),
]


@dataclass(frozen=True)
class Server:
    url: str

    def ask(self, **body: Any) -> dict[str, Any]:
        """A chat completion of the same settings as the tests give on the page."""
        body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": MAX_TOKENS, "temperature": 0, **body}
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=120)
        answer.raise_for_status()
        return answer.json()


@pytest.fixture(scope="module")
def server(mixse_dir: Callable[..., Path]) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "mixse_dir": str(mixse_dir()),
        "name": "tiny",
        "engine": {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8, "enforce_eager": True},
        "api_key_env": "PLAYGROUND_KEYS",
    }
    environment = {**os.environ, "PLAYGROUND_KEYS": KEY, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    script = Path(__file__).with_name("http_server.py")
    process = subprocess.Popen([sys.executable, str(script), json.dumps(settings), str(port)], env=environment)
    found = Server(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 300
        while not is_up(found.url):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        yield found
    finally:
        process.terminate()
        process.wait(60)


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as starter:
        # Chromium's own sandbox does not start for root.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = starter.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page before a key is given; at the end, that it kept to itself and to its policy."""
    context = browser.new_context(base_url=server.url)
    page = context.new_page()
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto("/")
    expect(page.get_by_role("alert")).to_have_text("The server asks for an API key. Enter it under Access.")
    yield page
    context.close()
    # A refused request is on the console too, and some tests provoke one.
    assert [text for text in messages if not text.startswith("Failed to load resource")] == []
    assert [url for url in requests if not url.startswith(server.url)] == []


def give_key(page: Any, key: str = KEY) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_label("API key").press("Enter")


def send(page: Any, *systems: str, prompt: str = PROMPT, max_tokens: int = MAX_TOKENS) -> None:
    for system in systems:
        page.get_by_label(system, exact=True).check()
    page.get_by_label("Max tokens").fill(str(max_tokens))
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Prompt", exact=True).press("Control+Enter")


def is_done(page: Any) -> None:
    expect(page.locator("#state")).to_have_text("Done.", timeout=60_000)


def expert_of(gate: list[float] | None) -> int | None:
    return gate.index(max(gate)) if gate and max(gate) > 0 else None


def shown_expert(token: Any) -> int | None:
    found = re.search(r"colour-(\d)", token.get_attribute("class") or "")
    return int(found[1]) if found else None


def test_tokens_are_coloured_by_the_expert_that_the_api_names(page: Any, server: Server) -> None:
    give_key(page)
    expect(page.locator("#about")).to_have_text("tiny: 3 experts in 2 layers, 1 of them a token")
    send(page)
    is_done(page)
    routing = server.ask(model="tiny", vllm_xargs={"mixse_routing": "layers"})["mixse_routing"]
    choice = routing["choices"][0]
    start = choice["prompt_tokens"]
    tokens = page.locator(ANSWER_TOKENS)
    assert tokens.all_text_contents() == choice["tokens"][start:]
    experts = [expert_of(gate) for gate in choice["gates"]]
    assert [shown_expert(token) for token in tokens.all()] == experts[start:]
    assert len({expert for expert in experts if expert is not None}) > 1
    page.get_by_text("The prompt as the model reads it").click()
    assert page.get_by_role("listbox", name="Tokens of the prompt").text_content() == "".join(choice["tokens"][:start])
    assert page.locator(".answer b").count() == 0

    legend = page.locator(".legend li").all_text_contents()
    assert [entry.split()[0] for entry in legend] == ["knowledge", "math", "coding"]
    routed = [expert for expert in experts[start:] if expert is not None]
    assert legend[0].endswith(f" {100 * routed.count(0) / len(routed):.0f}%")

    cells = page.locator(".layers tbody tr")
    assert cells.count() == 3 and cells.first.locator("td").count() == 2
    tokens.nth(1).hover()
    shown = [[int(cell.rstrip("%")) for cell in row.locator("td").all_text_contents()] for row in cells.all()]
    expected = [[100 * choice["layers"][layer][start + 1][expert] for layer in (0, 1)] for expert in range(3)]
    assert shown == [pytest.approx(row, abs=0.51) for row in expected]
    numbers = [float(number) for number in page.locator(".gate .number").all_text_contents()]
    assert numbers == pytest.approx(choice["gates"][start + 1], abs=0.0051)


def test_answers_stand_side_by_side(page: Any, server: Server) -> None:
    give_key(page)
    send(page, "base", "math")
    is_done(page)
    answers = page.locator(".answer")
    assert answers.locator("h2").all_text_contents() == ["MiXSE", "base", "math"]
    for index, model in ((1, "tiny/base"), (2, "tiny/math")):
        text = server.ask(model=model)["choices"][0]["message"]["content"]
        assert answers.nth(index).locator(".text").first.text_content() == text
    boxes = [answers.nth(index).bounding_box() for index in range(3)]
    assert boxes[0]["y"] == boxes[1]["y"] == boxes[2]["y"] and boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]


def test_everything_can_be_done_with_the_keyboard(page: Any) -> None:
    def tab_to(name: str) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            focused = page.locator(":focus")
            assert focused.evaluate("element => getComputedStyle(element).outlineStyle") != "none"
            if focused.evaluate("element => (element.labels?.[0] ?? element).textContent.trim()").startswith(name):
                return
        raise AssertionError(f"{name} is not reached by Tab")

    tab_to("API key")
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#about")).to_contain_text("3 experts")
    for _ in range(20):
        page.keyboard.press("Shift+Tab")
        if page.locator("#prompt:focus").count():
            break
    page.keyboard.type("Write a function")
    tab_to("coding")
    page.keyboard.press("Space")
    tab_to("Max tokens")
    page.keyboard.press("Control+A")
    page.keyboard.type(str(MAX_TOKENS))
    tab_to("Send")
    page.keyboard.press("Enter")
    is_done(page)
    assert page.locator(".answer h2").all_text_contents() == ["MiXSE", "coding"]

    # The button that stops is off again, so the tokens come next, as one stop.
    page.keyboard.press("Tab")
    tokens = page.locator(ANSWER_TOKENS)
    expect(tokens.first).to_be_focused()
    titles = set()
    for key, index in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        expect(tokens.nth(index)).to_be_focused()
        titles.add(page.locator(".gate-title").first.text_content())
    assert len(titles) > 1 and all(title.startswith('Gate: token "') for title in titles)
    assert re.search(r": (not routed|no expert|\w+ \d+%)", tokens.first.get_attribute("aria-label"))
    page.keyboard.press("End")
    expect(tokens.last).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("region", name="Gate by expert and layer")).to_be_focused()
    expect(page.locator(".gate-title").first).to_have_text("Gate: mean over the answer")


def test_escape_stops_an_answer_and_keeps_what_is_there(page: Any) -> None:
    give_key(page)
    # Tiny models are quick; this one is held until it has been stopped.
    page.route("**/v1/chat/completions", lambda route: time.sleep(1) or route.continue_())
    send(page, max_tokens=400)
    expect(page.get_by_role("button", name="Stop")).to_be_enabled()
    page.keyboard.press("Escape")
    expect(page.locator("#state")).to_have_text("Stopped.")
    expect(page.locator(".answer .state")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


def test_a_wrong_key_and_a_refused_request_are_said_in_words(page: Any) -> None:
    give_key(page, "wrong")
    expect(page.get_by_role("alert")).to_have_text(
        "The server did not accept this API key. Check the key under Access."
    )
    give_key(page)
    send(page, max_tokens=100_000)
    expect(page.locator(".answer .problem")).to_contain_text("The server refused the request: ")
    expect(page.locator(".answer .problem")).to_contain_text("max_tokens")
    expect(page.locator("#state")).to_have_text("Done: 0 of 1 answers are complete.")


def test_a_lost_connection_is_said_in_words(page: Any) -> None:
    give_key(page)
    expect(page.locator("#about")).to_contain_text("3 experts")
    page.context.set_offline(True)
    send(page)
    expect(page.locator(".answer .problem")).to_contain_text("The server cannot be reached.")
    page.context.set_offline(False)


def test_a_busy_server_is_asked_again(page: Any) -> None:
    refusals = iter([True, True])

    def answer(route: Any) -> None:
        if next(refusals, False):
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error": {"message": "full"}})
        else:
            route.continue_()

    give_key(page)
    page.route("**/v1/chat/completions", answer)
    send(page)
    expect(page.locator(".answer .state")).to_have_text("The server is busy; trying again in 1 s …")
    is_done(page)
    assert page.locator(ANSWER_TOKENS).count() > 0


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        ('data: {"id": "x", "choices": []}\n\n', "The answer broke off: the connection to the server ended early."),
        ('data: {"error": {"message": "<i>engine</i>"}}\n\n', "The answer broke off: <i>engine</i>"),
    ],
)
def test_an_answer_that_breaks_off_says_so(page: Any, stream: str, words: str) -> None:
    give_key(page)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=stream))
    send(page)
    expect(page.locator(".answer .problem")).to_have_text(words)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes_have_contrast_on_a_narrow_screen(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 340, "height": 700})
    give_key(page)
    send(page, "base")
    is_done(page)
    background, text, muted = (
        page.locator(place).evaluate(f"element => getComputedStyle(element).{style}")
        for place, style in (("body", "backgroundColor"), ("body", "color"), ("#about", "color"))
    )
    assert (luminance(background) > 0.5) == (scheme == "light")
    # WCAG's AA for text.
    assert contrast(text, background) > 4.5 and contrast(muted, background) > 4.5
    assert page.evaluate("document.documentElement.scrollWidth") == 340


def luminance(colour: str) -> float:
    """WCAG's relative luminance of an rgb(...) colour."""
    channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [channel / 12.92 if channel <= 0.03928 else ((channel + 0.055) / 1.055) ** 2.4 for channel in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
