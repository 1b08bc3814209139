"""Data sets of the hub, against a stand-in for the hub's client that answers as the real one does."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from lorikeet.base.errors import DataError, DownloadError
from lorikeet.data.hub import hub_files, hub_name
from lorikeet.data.pipeline import DataOptions, prepare

pytestmark = pytest.mark.usefixtures("cache")
ROW = b'{"instruction": "q", "output": "a"}\n'


class Hub:
    """A hub with one data set; `branches` are its revisions, `fetched` what was downloaded."""

    def __init__(self, files: dict[str, bytes], card: dict[str, Any] | None = None, **branches: dict[str, bytes]):
        self.branches = {"main": files, **{name.replace("_", "/"): held for name, held in branches.items()}}
        self.card, self.fetched, self.asked = card, list[str](), list[str | None]()
        self.wrong, self.offline = "", False

    def dataset_info(self, name: str, *, revision: str | None, files_metadata: bool) -> Any:
        self.asked.append(revision)
        held = self.branches.get(revision or "main")
        if self.offline or name != "org/set" or held is None:
            raise OSError("offline" if self.offline else "404: no such data set")
        assert files_metadata
        siblings = [
            types.SimpleNamespace(rfilename=file, size=len(content), lfs=self._lfs(file, content))
            for file, content in held.items()
        ]
        card = None if self.card is None else types.SimpleNamespace(to_dict=lambda: self.card)
        return types.SimpleNamespace(sha=f"commit-of-{revision or 'main'}", siblings=siblings, card_data=card)

    def _lfs(self, file: str, content: bytes) -> Any:
        if not file.endswith(".jsonl"):
            return None
        return types.SimpleNamespace(sha256="0" * 64 if file == self.wrong else hashlib.sha256(content).hexdigest())

    def hf_hub_download(self, name: str, file: str, *, repo_type: str, revision: str, local_dir: Path) -> str:
        assert (name, repo_type) == ("org/set", "dataset")
        self.fetched.append(file)
        target = Path(local_dir) / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.branches[revision.removeprefix("commit-of-")][file])
        return str(target)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    def start(*files: str, card: dict[str, Any] | None = None, **branches: list[str]) -> Hub:
        held = {name: dict.fromkeys(listed, ROW) for name, listed in branches.items()}
        hub = Hub(dict.fromkeys(files, ROW), card, **held)
        module = types.SimpleNamespace(HfApi=lambda: hub, hf_hub_download=hub.hf_hub_download)
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        return hub

    return start


def ask(**options: Any) -> list[str]:
    given = {"revision": None, "config": None, "split": None, **options}
    return [Path(file).name for file in hub_files("org/set", **given)]


@pytest.mark.parametrize(
    "path, found",
    [
        ("hf:org/set", ("org/set", None)),
        ("hub:org/set@v1.0", ("org/set", "v1.0")),
        ("org/set", ("org/set", None)),
        ("org/set@refs/pr/3", ("org/set", "refs/pr/3")),
        ("hf:squad", ("squad", None)),
        ("squad", None),
        ("data/mine.json", None),
        ("data/mine.jsonl.gz", None),
        ("./org/set", None),
        ("../set", None),
        ("a/b/c", None),
        ("hf:a/b/c", None),
    ],
)
def test_which_names_are_the_hub_s(path: str, found: tuple[str, str | None] | None) -> None:
    assert hub_name(path) == found


def test_splits_by_the_files_names(serve: Any) -> None:
    hub = serve("README.md", "data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test.jsonl")
    assert ask() == ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    assert hub.fetched == ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]
    assert ask(split="test") == ["test.jsonl"]
    with pytest.raises(DataError, match=r"no split 'validation'[\s\S]*split: (train test|test train)"):
        ask(split="validation")


def test_what_was_fetched_needs_no_network(serve: Any) -> None:
    hub = serve("train.jsonl", v1=["train.jsonl"])
    (file,) = hub_files("org/set", revision=None, config=None, split=None)
    hub.offline = True
    assert ask() == ask(split="train") == ["train.jsonl"] and len(hub.asked) == 1
    with pytest.raises(DownloadError, match=r"revision v1: offline[\s\S]*network"):
        ask(revision="v1")
    hub.offline = False
    Path(file).write_bytes(b"changed")  # damaged: fetched again
    assert ask() == ["train.jsonl"] and Path(file).read_bytes() == ROW
    note = json.loads((Path(file).parent / "lorikeet-source.json").read_text())
    assert note["source"] == "hf:org/set@commit-of-main" and note["files"]["train.jsonl"]["size"] == len(ROW)
    assert ask(revision="v1") == ["train.jsonl"] and hub.asked[-1] == "v1"


def test_a_wrong_checksum_leaves_nothing(serve: Any) -> None:
    hub = serve("train.jsonl")
    hub.wrong = "train.jsonl"
    with pytest.raises(DownloadError, match="checksum differs"):
        ask()
    hub.wrong = ""
    assert ask() == ["train.jsonl"]


def test_the_card_says_which_files(serve: Any) -> None:
    files = [{"split": "train", "path": ["one/a.jsonl", "one/b.jsonl"]}, {"split": "test_sft", "path": "one/t*"}]
    configs = [{"config_name": "one", "data_files": files}, {"config_name": "two", "data_files": "two/**/*.jsonl"}]
    listed = ("one/a.jsonl", "one/b.jsonl", "one/c.jsonl", "one/t.jsonl", "two/x/train.jsonl", "two/dev.jsonl")
    serve(*listed, card={"configs": configs, "license": "mit"})
    assert ask(config="one") == ["a.jsonl", "b.jsonl"] and ask(config="one", split="test_sft") == ["t.jsonl"]
    assert ask(config="two") == ["train.jsonl"] and ask(config="two", split="dev") == ["dev.jsonl"]
    with pytest.raises(
        DataError, match=r"several configurations[\s\S]*name: one two[\s\S]*\{path: hf:org/set, name: one\}"
    ):
        ask()
    with pytest.raises(DataError, match=r"no configuration 'tow'[\s\S]*name: two"):
        ask(config="tow")
    configs[1]["default"] = True  # type: ignore[assignment]
    assert ask() == ["train.jsonl"]


def test_a_star_of_the_card_stays_within_its_folder(serve: Any) -> None:
    configs = [{"config_name": "default", "data_files": "*.jsonl"}, {"config_name": "all", "data_files": "**"}]
    serve("train.jsonl", "raw/train.jsonl", "raw/old/train.jsonl", card={"configs": configs})
    assert ask() == ["train.jsonl"] and len(ask(config="all")) == 3


def test_the_card_may_name_a_folder(serve: Any) -> None:
    serve("en/train.jsonl", "de/train.jsonl", card={"configs": [{"config_name": "de", "data_dir": "de"}]})
    assert Path(hub_files("org/set", revision=None, config=None, split=None)[0]).parent.name == "de"


def test_a_configuration_without_a_card_is_a_folder(serve: Any) -> None:
    serve("en/train.jsonl", "de/train.jsonl")
    assert "/de/" in hub_files("org/set", revision=None, config="de", split=None)[0]
    with pytest.raises(DataError, match=r"no configuration 'fr'[\s\S]*name: de en"):
        ask(config="fr")


def test_the_hub_s_own_copy_in_parquet(serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    copy = ["default/train/0000.parquet", "default/train/0001.parquet", "default/partial-test/0000.parquet"]
    hub = serve("set.py", "data.zip", refs_convert_parquet=copy)
    assert ask() == ["0000.parquet", "0001.parquet"] and hub.asked == [None, "refs/convert/parquet"]
    assert ask(split="test") == ["0000.parquet"]
    assert "only a part of the split test" in capsys.readouterr().err
    serve("set.py", refs_convert_parquet=["a/train/0000.parquet", "b/train/0000.parquet"])
    assert ask(config="b") == ["0000.parquet"]
    serve("set.py")
    with pytest.raises(DownloadError, match="refs/convert/parquet"):
        ask(config="c")


def test_several_configurations_of_the_copy(serve: Any) -> None:
    serve("set.py", refs_convert_parquet=["a/train/0000.parquet", "b/train/0000.parquet"])
    with pytest.raises(DataError, match=r"several configurations[\s\S]*name: a b"):
        ask()


def test_absent_data_sets(serve: Any) -> None:
    serve("train.jsonl")
    with pytest.raises(DownloadError, match=r"hf:org/other cannot be downloaded[\s\S]*404"):
        hub_files("org/other", revision=None, config=None, split=None)


def test_a_data_set_trains(serve: Any, tokenizer: Any) -> None:
    serve("train.jsonl", "test.jsonl")
    options = DataOptions(train="org/set", validation=[{"path": "org/set", "split": "test"}])  # type: ignore[list-item, arg-type]
    prepared = prepare(options, tokenizer, options.template.bind(tokenizer), seed=0)
    assert len(prepared.train) == 1 and prepared.validation is not None and len(prepared.validation) == 1
