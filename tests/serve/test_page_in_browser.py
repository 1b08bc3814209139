"""The page as a person uses it, in a real Chromium. Skipped where there is no Chromium or no Playwright."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.fake_api import FakeApi, serving

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
PATIENCE = 300_000  # milliseconds that a busy machine may take
REPORT = "<title>notes</title><h1>Run</h1><script>document.title += ' drawn'</script>"
NO_CHATS = ["no json", "{}", '{"messages": 1}', '{"messages": [{"role": "tool", "content": "x"}]}']
BEYOND = "(({scrollWidth, clientWidth}) => scrollWidth - clientWidth)(document.querySelector('#log'))"
BELOW = "(({scrollHeight: a, scrollTop: b, clientHeight: c}) => a - b - c)(document.querySelector('#log'))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        launched = started.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeApi, str]]:
    report = tmp_path_factory.mktemp("run") / "report.html"
    report.write_text(REPORT)
    fake = FakeApi(report)
    with serving(fake) as address:
        yield fake, address


class Page:
    """A tab, and what a person does in it. `faults` are errors of its scripts and refused loads."""

    def __init__(self, tab: Any):
        self.tab, self.faults = tab, list[str]()
        tab.set_default_timeout(PATIENCE)
        tab.on("pageerror", lambda error: self.faults.append(str(error)))
        tab.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)

    def ask(self, text: str, *, wait: bool = True) -> None:
        self.tab.fill("#question", text)
        self.tab.press("#question", "Enter")
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until no reply is coming."""
        self.tab.wait_for_selector("#send:not([hidden])")

    def until(self, condition: Callable[[], bool]) -> None:
        """Until it holds. Not the browser's own waiting for a function: the page's policy refuses to compile one."""
        for _ in range(PATIENCE // 50):
            if condition():
                return
            self.tab.wait_for_timeout(50)
        raise AssertionError("waited in vain")

    def replies(self) -> list[str]:
        return [text.strip() for text in self.tab.locator(".reply .markdown").all_inner_texts()]


@pytest.fixture
def open_page(browser: Any, served: tuple[FakeApi, str]) -> Iterator[Callable[..., Page]]:
    """open_page(address=..., **options of the context): a tab that has the models."""
    contexts, pages = [], []

    def open_(address: str = served[1], *, models: bool = True, **options: Any) -> Page:
        contexts.append(browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options}))
        pages.append(Page(contexts[-1].new_page()))
        pages[-1].tab.goto(address)
        if models:
            pages[-1].tab.wait_for_selector("#model option", state="attached")
        return pages[-1]

    yield open_
    faults = [fault for page in pages for fault in page.faults]
    for context in contexts:
        context.close()
    assert faults == []


def test_a_reply_streams_and_the_next_message_carries_the_conversation(
    open_page: Callable[..., Page], served: tuple[FakeApi, str]
) -> None:
    page = open_page()
    page.tab.fill("#system", "Be brief.")
    page.ask("hello")
    page.ask("again")
    assert page.replies() == ["notes answers hello as message 2", "notes answers again as message 4"]
    asked = served[0].asked[-1]
    assert [message["role"] for message in asked["messages"]] == ["system", "user", "assistant", "user"]
    assert asked["messages"][2]["content"].strip() == "notes answers hello as message 2"
    assert asked["stream"] is True and not {"temperature", "seed", "stop"} & set(asked)
    assert "6 tokens" in page.tab.locator(".reply footer").last.inner_text()


def test_what_is_set_is_asked_for_and_outlives_a_reload(
    open_page: Callable[..., Page], served: tuple[FakeApi, str]
) -> None:
    page = open_page()
    wanted = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 32, "seed": 5}
    more = {"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "presence_penalty": -0.5, "frequency_penalty": 0.5}
    page.tab.click("#more summary")
    wanted |= more
    for name, value in wanted.items():
        page.tab.fill(f"#{name}", str(value))
    page.tab.fill("#stop", "END\n\n###")
    page.tab.select_option("#model", "base")
    page.ask("hello")
    page.tab.reload()
    page.tab.wait_for_selector("#model option", state="attached")
    page.until(lambda: page.tab.input_value("#model") == "base")
    assert page.replies() == ["base answers hello as message 1"]
    assert page.tab.locator("#top_k").is_visible(), "what is set is seen"
    page.ask("again")
    for asked in served[0].asked[-2:]:
        assert {name: asked[name] for name in wanted} == wanted
        assert asked["stop"] == ["END", "###"] and asked["model"] == "base"


def test_an_empty_field_shows_what_the_server_takes_then(open_page: Callable[..., Page]) -> None:
    page = open_page()
    hints = "Object.fromEntries([...document.querySelectorAll('#options input')].map((a) => [a.id, a.placeholder]))"
    page.until(lambda: page.tab.evaluate(hints)["temperature"] == "0.25")
    shown = page.tab.evaluate(hints)
    assert (shown["top_k"], shown["max_tokens"], shown["seed"]) == ("0", "300", "none")


def test_the_system_prompt_of_training_stands_there_until_a_person_says_otherwise(
    open_page: Callable[..., Page], served: tuple[FakeApi, str]
) -> None:
    def reloaded(system: str | None) -> str:
        served[0].system = system
        page.tab.reload()
        page.tab.wait_for_selector("#model option", state="attached")
        return page.tab.input_value("#system")

    page = open_page()
    try:
        assert reloaded("Answer in JSON. \n") == "Answer in JSON. \n"
        page.ask("hello")
        assert served[0].asked[-1]["messages"][0] == {"role": "system", "content": "Answer in JSON. \n"}
        assert reloaded("Be brief.") == "Be brief."  # another model at the same address
        page.tab.fill("#system", "")
        assert reloaded("Be brief.") == ""
        page.tab.fill("#system", "Mine.")
        assert reloaded("Answer in JSON.") == "Mine." == reloaded(None)
    finally:
        served[0].system = None


def test_a_number_that_cannot_be_is_not_sent(open_page: Callable[..., Page], served: tuple[FakeApi, str]) -> None:
    page, before = open_page(), len(served[0].asked)
    page.tab.fill("#top_p", "3")
    page.ask("hello", wait=False)
    assert page.tab.evaluate("document.activeElement.id") == "top_p"
    assert len(served[0].asked) == before and page.tab.input_value("#question") == "hello"


def test_a_number_that_cannot_be_is_shown_where_it_was_folded_away(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.tab.click("#more summary")
    page.tab.fill("#presence_penalty", "3")
    page.tab.click("#more summary")
    page.ask("hello", wait=False)
    assert page.tab.evaluate("document.activeElement.id") == "presence_penalty"


def test_text_of_a_model_is_never_html(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.ask("hostile")
    reply = page.tab.locator(".reply .markdown")
    assert page.tab.evaluate("window.hacked") is None
    assert reply.locator("script, img, b, i, iframe").count() == 0
    assert "<script>window.hacked = 1</script>" in reply.inner_text()
    assert reply.locator("a").evaluate_all("all => all.map((a) => a.href)") == [
        "https://x.invalid/p.png", "https://example.org/a_b", "https://example.org/x",
    ]  # fmt: skip
    assert reply.locator("strong").all_inner_texts() == ["bold <b>not</b>", "14"]
    assert reply.locator("ol > li > ul > li").inner_text() == "inner" and reply.locator("ol > li").count() == 2
    assert reply.locator("pre code").inner_text() == 'def f(x):\n    return "<script>" * x'
    assert reply.locator("blockquote").inner_text().strip() == "quoted"


def test_json_is_shown_as_it_is_and_thoughts_apart(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.ask("json")
    assert page.tab.inner_text(".reply pre") == '{"merchant": "_A_ & *B*", "amount": 1}'
    assert page.tab.locator(".reply button").all_inner_texts() == ["Copy", "Answer again"], "one button copies it"
    page.ask("think")
    reply = page.tab.locator(".reply").last
    assert reply.locator(".markdown").inner_text() == "Done." and not reply.locator(".thinking div").is_visible()
    reply.locator("summary").click()
    assert reply.locator(".thinking div").inner_text() == "hm, äöü 鹦鹉"


def test_code_is_copied(open_page: Callable[..., Page]) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.ask("hostile")
    page.tab.click(".code button")
    page.tab.wait_for_selector(".code button:has-text('Copied')")
    assert page.tab.evaluate("navigator.clipboard.readText()").startswith("def f(x):")
    page.ask("think")
    page.tab.locator("[aria-label='Copy this reply']").last.click()
    page.tab.wait_for_selector("footer button:has-text('Copied')")
    assert page.tab.evaluate("navigator.clipboard.readText()") == "Done.", "not what it thought"


def test_side_by_side_each_model_reads_its_own_replies(
    open_page: Callable[..., Page], served: tuple[FakeApi, str]
) -> None:
    page = open_page()
    page.ask("alone")
    page.tab.check("#compare")
    page.ask("both")
    page.ask("once more")
    assert page.replies()[1:] == [
        "notes answers both as message 3", "base answers both as message 3",
        "notes answers once more as message 5", "base answers once more as message 5",
    ]  # fmt: skip
    last = {asked["model"]: [one["content"].split()[0] for one in asked["messages"]] for asked in served[0].asked[-2:]}
    assert last["notes"] == ["alone", "notes", "both", "notes", "once"]
    assert last["base"] == ["alone", "notes", "both", "base", "once"]
    again = page.tab.locator("[data-again]")
    assert again.all_inner_texts() == ["Both answer again"]
    page.tab.uncheck("#compare")
    page.until(lambda: again.all_inner_texts() == ["Answer again"])  # of what is chosen now
    left, right = (page.tab.locator(".reply").nth(at).bounding_box() for at in (3, 4))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]


def test_escape_stops_a_reply_and_the_server_knows(open_page: Callable[..., Page], served: tuple[FakeApi, str]) -> None:
    page, before = open_page(), served[0].left
    page.ask("slow", wait=False)
    page.tab.wait_for_selector(".reply:has-text('word3')")
    page.tab.keyboard.press("Escape")
    page.wait()
    assert "stopped" in page.tab.locator(".reply footer").inner_text()
    page.until(lambda: served[0].left == before + 1)
    page.ask("long")
    assert "cut at the most tokens" in page.tab.locator(".reply footer").last.inner_text()
    assert served[0].asked[-1]["messages"][1]["content"].startswith("word0")  # what was said is kept


def test_again_edit_and_new_chat_lose_nothing_unasked(
    open_page: Callable[..., Page], served: tuple[FakeApi, str]
) -> None:
    page = open_page()
    page.ask("one")
    page.ask("two")
    page.tab.keyboard.press("Alt+r")
    page.wait()
    assert [one["content"].split()[0] for one in served[0].asked[-1]["messages"]] == ["one", "notes", "two"]
    page.tab.click("[aria-label='Edit message 1']")
    assert page.tab.input_value("#question") == "one" and page.tab.locator(".replaced").count() == 2
    page.tab.keyboard.press("Escape")
    assert page.tab.locator(".replaced").count() == 0 and len(page.replies()) == 2
    page.tab.press("#question", "ArrowUp")
    page.ask("three")
    assert page.replies()[-1] == "notes answers three as message 3" and len(page.replies()) == 2
    page.tab.keyboard.press("Alt+n")
    assert page.replies() == []
    page.tab.click("text=Bring the last chat back")
    assert len(page.replies()) == 2


@pytest.mark.parametrize(
    ("text", "said", "kept"),
    [
        ("busy", "busy; try again in 7 s. Too many wait.", ""),
        ("breaks", "The engine stopped.", "notes answers breaks"),
        ("vanishes", "ended in the middle", "notes answers vanishes"),
    ],
)
def test_a_reply_that_fails_says_so_and_can_be_asked_again(
    open_page: Callable[..., Page], served: tuple[FakeApi, str], text: str, said: str, kept: str
) -> None:
    page = open_page()
    page.ask("before")
    page.ask(text)
    assert said in page.tab.locator(".reply .failed").inner_text() and page.replies()[-1] == kept
    page.tab.click("text=Try again")
    page.wait()
    assert [one["content"].split()[0] for one in served[0].asked[-1]["messages"]] == ["before", "notes", text]
    page.ask("after")
    assert len(served[0].asked[-1]["messages"]) == (5 if kept else 3)  # nothing said is nothing to read
    page.faults = [fault for fault in page.faults if "429" not in fault]


def test_a_server_that_is_gone_is_said(open_page: Callable[..., Page]) -> None:
    fake = FakeApi()
    with serving(fake) as address:
        page = open_page(address)
        assert page.tab.locator("#report").is_hidden()
    page.ask("hello")
    assert "does not answer" in page.tab.locator(".reply .failed").inner_text()
    page.faults.clear()


def test_a_chat_is_saved_and_loaded(
    open_page: Callable[..., Page], served: tuple[FakeApi, str], tmp_path: Path
) -> None:
    page = open_page()
    page.tab.fill("#system", "Be brief.")
    page.tab.fill("#seed", "7")
    page.tab.check("#compare")
    page.ask("hello\nyou")
    with page.tab.expect_download() as saved:
        page.tab.click("#save-json")
    file = tmp_path / saved.value.suggested_filename
    saved.value.save_as(file)
    rows = json.loads(file.read_text("utf-8"))
    assert [row["model"] for row in rows] == ["notes", "base"] and rows[0]["options"] == {"seed": 7}
    assert [one["role"] for one in rows[0]["messages"]] == ["system", "user", "assistant"]
    with page.tab.expect_download() as saved:
        page.tab.click("#save-markdown")
    text = Path(saved.value.path()).read_text("utf-8")
    assert "**You**\n\nhello\nyou" in text and "**base**\n\nbase answers" in text

    other = open_page()
    other.tab.set_input_files("#file", file)
    other.tab.wait_for_selector(".reply")
    assert other.replies() == page.replies() and other.tab.input_value("#seed") == "7"
    assert other.tab.is_checked("#compare") and other.tab.input_value("#system") == "Be brief."
    other.ask("on")
    assert len(served[0].asked[-1]["messages"]) == 4


@pytest.mark.parametrize("content", NO_CHATS)
def test_a_file_that_is_no_chat_changes_nothing(open_page: Callable[..., Page], tmp_path: Path, content: str) -> None:
    page, file = open_page(), tmp_path / "chat.json"
    page.ask("hello")
    file.write_text(content)
    page.tab.set_input_files("#file", file)
    page.tab.wait_for_selector("#notice:has-text('not a saved chat')")
    assert len(page.replies()) == 1


def test_a_key_is_asked_for_where_the_server_wants_one(open_page: Callable[..., Page], tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text(REPORT)
    with serving(FakeApi(report, key="secret")) as address:
        page = open_page(address, models=False)
        page.tab.wait_for_selector("#key", state="visible")
        assert page.tab.evaluate("document.activeElement.id") == "key"
        assert "API key" in page.tab.inner_text("#notice")
        page.tab.fill("#key", "secret")
        page.tab.keyboard.press("Tab")
        page.tab.wait_for_selector("#model option", state="attached")
        page.ask("hello")
        assert page.replies() == ["notes answers hello as message 1"]
        assert "secret" not in page.tab.evaluate("JSON.stringify(localStorage)")
        with page.tab.context.expect_page() as opened:
            page.tab.click("#report")
        page.until(lambda: opened.value.title() == "notes drawn")
        page.faults = [fault for fault in page.faults if "401" not in fault]


def test_the_report_is_one_click_away(open_page: Callable[..., Page]) -> None:
    page = open_page()
    with page.tab.context.expect_page() as opened:
        page.tab.click("#report")
    page.until(lambda: opened.value.title() == "notes drawn")


def test_everything_is_done_with_the_keyboard(open_page: Callable[..., Page]) -> None:
    page = open_page()
    keys = page.tab.keyboard
    assert page.tab.evaluate("document.activeElement.id") == "question"
    keys.type("one")
    keys.press("Shift+Enter")
    keys.type("two")
    keys.press("Enter")
    page.wait()
    assert page.replies() == ["notes answers one two as message 1"]
    keys.press("Alt+s")
    assert page.tab.locator("#settings").is_hidden()
    keys.press("Alt+s")
    assert page.tab.evaluate("document.activeElement.id") == "hide-settings"
    wanted = {"model", "compare", "system", "temperature", "top_p", "max_tokens", "seed", "stop", "save-json"}
    wanted |= {"top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
    wanted |= {"save-markdown", "load", "theme", "log", "question", "send"}
    seen = set()
    for _ in range(45):
        keys.press("Tab")
        if page.tab.evaluate("document.activeElement.parentElement.id") == "more" and "top_k" not in seen:
            keys.press("Enter")  # its summary
        seen.add(page.tab.evaluate("document.activeElement.id"))
    assert wanted <= seen
    names = page.tab.evaluate("[...document.querySelectorAll('.reply button')].map((b) => b.textContent)")
    assert names == ["Copy", "Answer again"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_both_colours(open_page: Callable[..., Page], scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    page.ask("hostile")
    ratios = page.tab.evaluate(CONTRAST)
    assert len(ratios) > 10 and {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}
    dark = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    page.tab.select_option("#theme", "light" if scheme == "dark" else "dark")
    assert page.tab.evaluate("getComputedStyle(document.body).backgroundColor") != dark


def test_a_phone_shows_all_of_it_without_scrolling_sideways(open_page: Callable[..., Page]) -> None:
    page = open_page(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    assert page.tab.locator("#settings").is_hidden()
    page.tab.click("#show-settings")
    assert page.tab.evaluate("document.querySelector('main').inert")
    page.tab.check("#compare")
    page.tab.keyboard.press("Escape")
    assert page.tab.evaluate("document.activeElement.id") == "show-settings"
    page.ask("hostile")
    page.ask("x" * 300)
    assert page.tab.evaluate("document.documentElement.scrollWidth") == 360
    assert page.tab.evaluate(BEYOND) == 0 and page.tab.evaluate(BELOW) < 2  # the newest reply is in sight
    upper, lower = (page.tab.locator(".reply").nth(at).bounding_box() for at in (0, 1))
    assert upper["x"] == lower["x"] and upper["width"] > 300
    assert page.tab.locator("#send").bounding_box()["y"] + 44 <= 740


def test_nothing_is_fetched_from_elsewhere(open_page: Callable[..., Page], served: tuple[FakeApi, str]) -> None:
    page = open_page(models=False)
    asked: list[str] = []
    page.tab.on("request", lambda request: asked.append(request.url))
    page.tab.reload()
    page.tab.wait_for_selector("#model option", state="attached")
    page.ask("hostile")
    assert len(asked) > 7 and {url for url in asked if not url.startswith(served[1])} == set()


CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = numbers(colour).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if ((numbers(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = {};
  const all = "h1 span, label, legend, button, a:not(.skip), p, code, td, summary, .text, .who, footer span";
  for (const node of document.querySelectorAll(all)) {
    if (!node.checkVisibility() || node.closest(":disabled")) continue;
    const pair = [light(getComputedStyle(node).color), light(ground(node))].sort((a, b) => b - a);
    const name = `${node.tagName} ${node.className} ${node.textContent.slice(0, 20)}`;
    found[name] = (pair[0] + 0.05) / (pair[1] + 0.05);
  }
  return found;
}"""
