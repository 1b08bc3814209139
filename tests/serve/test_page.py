"""What the page promises without a browser: what it is made of, what it may reach, and what it may not show."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from lorikeet.serve import page
from lorikeet.serve.protocol import ChatRequest
from serve.fake_api import USUAL, FakeApi

SCRIPTS = sorted(page.WEB.glob("*.js"))


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return TestClient(FakeApi(tmp_path / "report.html").app)


class Elements(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def elements() -> list[tuple[str, dict[str, str | None]]]:
    return Elements((page.WEB / "index.html").read_text("utf-8")).found


def test_every_file_that_the_page_names_is_sent(client: TestClient) -> None:
    named = [attrs.get("src") or attrs.get("href") for tag, attrs in elements() if tag in ("script", "link")]
    for script in SCRIPTS:
        found = re.findall(r'from "\./([^"]+)"', script.read_text("utf-8"))
        named += [f"page/{name}" for name in found]
    assert len(named) >= 8
    for name in named:
        answer = client.get(f"/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["content-type"].split(";")[0] in (
            "text/javascript", "text/css", "image/svg+xml",
        )  # fmt: skip
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_files_are_in_the_package() -> None:
    settings = (Path(page.__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    packed = re.search(r'"\*" = \[(.*)\]', settings)
    assert packed is not None
    assert {f'"*{path.suffix}"' for path in page.WEB.iterdir()} <= set(packed[1].split(", "))


def test_nothing_comes_from_another_server(client: TestClient) -> None:
    """No address of elsewhere is loaded, and the policy would stop it."""
    for path in page.WEB.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert not re.findall(r"""(?:src|href|url\(|import|fetch\()\W{0,2}(?:https?:)?//""", text), path.name
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]


def test_no_script_makes_html_of_text() -> None:
    for script in SCRIPTS:
        text = script.read_text("utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not [attrs for _, attrs in elements() if any(name.startswith("on") for name in attrs)]


def test_whatever_can_be_operated_has_a_name() -> None:
    labelled = {attrs["for"] for tag, attrs in elements() if tag == "label"}
    for tag, attrs in elements():
        if tag in ("input", "select", "textarea"):
            assert attrs["id"] in labelled or attrs.get("aria-label"), attrs
    ids = [attrs["id"] for _, attrs in elements() if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = {name for script in SCRIPTS for name in re.findall(r'\$\("([\w-]+)"\)', script.read_text("utf-8"))}
    assert used <= set(ids) and len(used) > 15


def test_numbers_are_those_that_the_api_takes() -> None:
    listed = re.findall(r"const (?:NUMBERS|MORE) = \[(.*?)\]", (page.WEB / "settings.js").read_text("utf-8"))
    names = set(re.findall(r'"(\w+)"', " ".join(listed)))
    assert {"top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"} < names
    assert names < set(ChatRequest.model_fields)
    bounds = {attrs["id"]: attrs for tag, attrs in elements() if tag == "input" and attrs["id"] in names}
    told: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
    for side in ("min", "max"):
        given = {name: float(str(found[side])) for name, found in bounds.items() if side in found}
        whole = {name: int(value) if bounds[name].get("step") == "1" else value for name, value in given.items()}
        ChatRequest.model_validate(
            told | {name: value for name, value in whole.items() if (name, value) != ("top_p", 0)}
        )


FAILED_SIDE = """
const said = (text, reason) => ({ ...newReply("m"), text, reason });
const talk = new Talk();
talk.turns = [
  { user: "one", replies: [said("", "error"), said("b1", "stop")] },
  { user: "two", replies: [said("a2", "stop"), said("", "error")] },
  { user: "three", replies: [said("", "error"), said("", "error")] },
];
const rows = talk.rows("", {});
const told = rows.map((row) => row.messages.map((one) => one.content));
const read = Talk.read(JSON.stringify(rows)).talk.turns.map((one) => one.user);
console.log(JSON.stringify([told, read]));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_chat_in_which_one_side_failed_is_saved_and_read_again() -> None:
    script = (page.WEB / "talk.js").read_text("utf-8") + FAILED_SIDE
    done = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows, read = json.loads(done.stdout)
    assert rows == [["one", "b1", "two", "a2"]] * 2 and read == ["one", "two"]


def test_files_stay_short() -> None:
    assert [path.name for path in page.WEB.iterdir() if len(path.read_text("utf-8").splitlines()) > 400] == []
    assert sum(path.stat().st_size for path in page.WEB.iterdir()) < 64 << 10


@pytest.mark.parametrize("name", ["nothing.js", "../page.py", "..%2fpage.py", "%2e%2e/page.py", "index.html%00.js"])
def test_other_files_are_not_sent(client: TestClient, name: str) -> None:
    answer = client.get(f"/page/{name}")
    assert answer.status_code == 404 and "import" not in answer.text


def test_the_report_is_read_when_it_is_asked_for(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/page/about").json() == {"report": False, "usual": USUAL}
    answer = client.get("/report")
    assert answer.status_code == 404 and "no report" in answer.json()["error"]["message"]
    (tmp_path / "report.html").write_text("<h1>Run</h1><script>let a = 1</script>")
    assert client.get("/page/about").json()["report"] is True
    assert client.get("/report").text.startswith("<h1>Run</h1>")
    assert "sha256-" in client.get("/").headers["content-security-policy"]


def test_without_a_report_there_is_none() -> None:
    client = TestClient(FakeApi().app)
    assert client.get("/page/about").json()["report"] is False and client.get("/report").status_code == 404


def test_the_page_is_open_and_the_report_is_not_where_a_key_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("secret")
    client = TestClient(FakeApi(tmp_path / "report.html", key="k").app)
    assert client.get("/").status_code == client.get("/page/page.js").status_code == 200
    assert client.get("/report").status_code == 401
    assert client.get("/report", headers={"Authorization": "Bearer k"}).text == "secret"


def test_the_page_is_no_part_of_the_api(client: TestClient) -> None:
    assert set(client.get("/openapi.json").json()["paths"]) == {"/v1/models", "/v1/chat/completions"}
