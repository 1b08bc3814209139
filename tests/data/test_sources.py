"""Files, folders, hubs and URLs become local files; what contradicts itself is refused before anything is read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lorikeet.base import yaml_lines
from lorikeet.base.errors import DataError, DownloadError, LorikeetError, MissingExtra, RecipeError
from lorikeet.data import rows as rows_module
from lorikeet.data.folders import by_split, split_of
from lorikeet.data.pipeline import DataOptions, Prepared, prepare
from lorikeet.data.sources import check_sources, open_source, validation_of

pytestmark = pytest.mark.usefixtures("cache")


def write(path: Path, count: int = 4, say: str = "say") -> Path:
    """A .jsonl file (or .json) of `count` alpaca rows that no other call's `say` makes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"instruction": f"{say} {number}", "output": f"it is {number}"} for number in range(count)]
    lines = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(lines)
    return path


def run(tokenizer: Any, train: Any, *, seed: int = 0, **options: Any) -> Prepared:
    chosen = DataOptions(train=train, **options)
    return prepare(chosen, tokenizer, chosen.template.bind(tokenizer), seed=seed)


def opened(source: Any) -> list[str]:
    (entry,) = DataOptions(train=source).train
    return [Path(file).name for file in open_source(entry).files]


@pytest.mark.parametrize(
    "name, split",
    [
        ("train.json", "train"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("train/part.csv", "train"),
        ("dev.jsonl.gz", "validation"),
        ("notes_valid.csv", "validation"),
        ("val/x.json", "validation"),
        ("my-test.jsonl", "test"),
        ("test_2.txt", "test"),
        ("data/train_sft-00000-of-00003-a1b2.parquet", "train_sft"),
        ("training.json", "train"),
        ("trainer.json", None),
        ("latest.json", None),
        ("alpaca_en_demo.json", None),
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_what_is_no_data_is_left_out() -> None:
    names = [
        "README.md",
        "dataset_info.json",
        ".hidden.json",
        "state.json",
        "a.py",
        "LICENSE.txt",
        "b.json",
        "c.json.gz",
    ]
    assert by_split(names) == {None: ["b.json", "c.json.gz"]}


def test_a_folder_with_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train.json", "train_more.jsonl", "dev.json", "test/a.jsonl", "notes.json"):
        write(tmp_path / "d" / name)
    folder = str(tmp_path / "d")
    assert opened(folder) == ["train.json", "train_more.jsonl"]
    assert "split train: train.json train_more.jsonl; left out: notes.json" in capsys.readouterr().err
    assert opened({"path": folder, "split": "valid"}) == ["dev.json"]
    assert opened({"path": folder, "split": "test"}) == ["a.jsonl"]
    with pytest.raises(DataError, match=r"no files of the split 'extra'[\s\S]*allowed +split: validation"):
        opened({"path": folder, "split": "extra"})


def test_a_folder_of_files_without_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.json", "a.jsonl", "run/metrics.jsonl", "README.md"):
        write(tmp_path / "d" / name)
    assert opened(str(tmp_path / "d")) == ["a.jsonl", "b.json"]
    assert "all data files: a.jsonl b.json" in capsys.readouterr().err
    with pytest.raises(DataError, match="no files of the split 'train'"):
        opened({"path": str(tmp_path / "d"), "split": "train"})
    write(tmp_path / "e" / "inner" / "c.json")
    assert opened(str(tmp_path / "e")) == ["c.json"]
    write(tmp_path / "d" / "dev.json")
    assert opened(str(tmp_path / "d")) == ["a.jsonl", "b.json"]
    assert "the files that are not of validation: a.jsonl b.json" in capsys.readouterr().err


def test_folders_without_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"there are no data files[\s\S]*an empty folder"):
        opened(str(tmp_path / "empty"))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    with pytest.raises(DataError, match=r"save_to_disk[\s\S]*to_parquet"):
        opened(str(tmp_path / "saved"))
    write(tmp_path / "only" / "test.json")
    with pytest.raises(DataError, match=r"no files of the split 'train'[\s\S]*split: test"):
        opened(str(tmp_path / "only"))


def test_a_folder_validates_with_its_own_split(tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "d"
    write(folder / "train.jsonl", 6), write(folder / "test.jsonl", 2, "ask")
    prepared = run(tokenizer, str(folder))
    assert len(prepared.train) == 6 and prepared.validation is not None and len(prepared.validation) == 2
    assert "(test); data.validation=null leaves it unused" in capsys.readouterr().err
    write(folder / "dev.jsonl", 3, "tell")
    prepared = run(tokenizer, str(folder))
    assert prepared.validation is not None and len(prepared.validation) == 3
    assert prepared.validation_counts is not None and prepared.validation_counts.rows == 3
    assert run(tokenizer, str(folder), validation=None).validation is None
    part = run(tokenizer, str(folder), validation=2)
    assert part.validation is not None and len(part.train) == 4 and len(part.validation) == 2
    assert validation_of(DataOptions(train=[{"path": str(folder), "split": "dev"}])) is None
    assert validation_of(DataOptions(train=[str(folder / "train.jsonl")])) is None


def test_sources_are_prepared_one_by_one(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = str(write(tmp_path / "a.jsonl", 6)), str(write(tmp_path / "b.jsonl", 3, "ask"))
    alone = run(tokenizer, a)
    with monkeypatch.context() as patch:
        real, written = rows_module._write, []
        patch.setattr(rows_module, "_write", lambda *given: (written.append(given[1]), real(*given)))
        both = run(tokenizer, [a, b])
        assert written == [(b,)]
        mixed = run(tokenizer, [{"path": b, "weight": 1}, {"path": a, "weight": 2}])
        assert written == [(b,)]
    assert len(both.train) == len(mixed.train) == 9 and both.counts.rows == 9 == both.epoch_examples
    assert (
        mixed.epoch_examples == 9
        and len({alone.train.fingerprint, both.train.fingerprint, mixed.train.fingerprint}) == 3
    )
    assert [one["weight"] for one in mixed.as_dict()["sources"]] == [1, 2]
    assert [one["counts"]["rows"] for one in mixed.as_dict()["sources"]] == [3, 6]
    assert "weight 2, 1 passes an epoch; 6 rows" in str(mixed) and "an epoch draws 9 examples" in str(mixed)
    assert "sources" not in alone.as_dict()
    shown = [one.origin.file for one in mixed.preview() if one.origin is not None]
    assert shown[:4] == [b, a, b, a] and len(shown) == 9


def test_the_split_is_of_all_sources_together(tokenizer: Any, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 12), write(tmp_path / "b.jsonl", 12)  # the same conversations twice
    prepared = run(tokenizer, [{"path": str(a), "weight": 1}, {"path": str(b), "weight": 1}], validation=4)
    assert prepared.validation is not None and len(prepared.validation) == 8 and len(prepared.train) == 16
    sides = [{tuple(one.tokens.tolist()) for one in side} for side in (prepared.train, prepared.validation)]
    assert not sides[0] & sides[1]


def test_formats_and_limits_of_a_source(tokenizer: Any, tmp_path: Path) -> None:
    a, odd = write(tmp_path / "a.jsonl", 6), tmp_path / "odd.csv"
    odd.write_text("q,a\none,1\ntwo,2\nthree,3\n")
    columns = {"kind": "columns", "prompt": "q", "response": "a"}
    sources = [{"path": str(a), "max_examples": 4}, {"path": str(odd), "format": columns, "max_examples": 2}]
    assert len(run(tokenizer, sources).train) == 6
    assert len(run(tokenizer, [str(a), {"path": str(odd), "format": columns}], max_examples=8).train) == 8
    assert len(run(tokenizer, [str(a), {"path": str(odd), "format": columns}], max_examples=6).train) == 6
    saved = DataOptions(train=sources).model_dump(mode="json")
    assert saved["train"][0] == {"path": str(a), "max_examples": 4}
    assert DataOptions.model_validate(saved) == DataOptions(train=sources)


W = {"weight": 1}
CONTRADICTIONS: list[tuple[dict, str]] = [
    ({"train": [{"path": "a.json", **W}, "b.json"]}, r"some have none[\s\S]*none for b\.json[\s\S]*weight: 1"),
    ({"train": [{"path": "a.json", "weight": 3}]}, r"train\.0\.weight: has no effect, because there is only one"),
    ({"train": ["a.json", "b.json", "a.json"]}, r"data\.train\.2: the source is there twice"),
    ({"train": [{"path": "a", **W}, {"path": "b", **W}], "max_examples": 9}, r"data\.max_examples: says nothing"),
    ({"train": "a.json", "validation": [{"path": "b.json", **W}]}, r"data\.validation\.0\.weight: has no effect"),
    ({"train": "a.json", "validation": ["b.json", "b.json"]}, r"data\.validation\.1: the source is there twice"),
]


@pytest.mark.parametrize("options, message", CONTRADICTIONS)
def test_contradictions(options: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_sources(DataOptions(**options))


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan"), "much"])
def test_weights_that_are_none(weight: object) -> None:
    with pytest.raises(ValueError, match=r"train\.0"):
        DataOptions(train=[{"path": "a.json", "weight": weight}, {"path": "b.json", "weight": 1}])


@pytest.mark.parametrize(
    "source, error, message",
    [
        ("no.json", DataError, "no such file"),
        ("folder-that-is-not", DataError, "no such file or folder"),
        ("data/no.jsonl", DataError, "no such file"),
        ("s3://bucket/x", DataError, r"cannot be read[\s\S]*try +hf:bucket/x"),
        ("https://example.org/page", DataError, "does not name a data file"),
        ({"path": "https://example.org/x.json", "split": "test"}, RecipeError, "`split` has no effect"),
        ({"path": "{here}/a.json", "split": "train"}, RecipeError, "`split` has no effect on .*one file"),
        ({"path": "{here}/a.json", "name": "main"}, RecipeError, "`name` has no effect"),
        ({"path": "{here}", "revision": "v1"}, RecipeError, "`revision` has no effect"),
        ({"path": "hf:org/set@v1", "revision": "v2"}, RecipeError, "given twice"),
    ],
)
def test_sources_that_cannot_be_opened(source: Any, error: type[LorikeetError], message: str, tmp_path: Path) -> None:
    write(tmp_path / "a.json")
    if isinstance(source, dict):
        source = {**source, "path": source["path"].replace("{here}", str(tmp_path))}
    with pytest.raises(error, match=message):
        opened(source)


def test_a_file_in_two_sources(tokenizer: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "d" / "a.jsonl")
    with pytest.raises(RecipeError, match=r"a file is read twice[\s\S]*a\.jsonl by"):
        run(tokenizer, [str(tmp_path / "d"), str(file)])


def test_a_weighted_source_that_is_left_empty(tokenizer: Any, tmp_path: Path) -> None:
    a, b = str(write(tmp_path / "a.jsonl", 12)), str(write(tmp_path / "b.jsonl", 1, "ask"))
    mix = [{"path": a, "weight": 1}, {"path": b, "weight": 1}]
    seeds = [seed for seed in range(9) if len(run(tokenizer, [a, b], validation=9, seed=seed).validation.parts[1])]  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"takes every conversation of .*b\.jsonl"):
        run(tokenizer, mix, validation=9, seed=seeds[0])
    assert len(run(tokenizer, [a, b], validation=9, seed=seeds[0]).train) == 4  # end to end, nothing is missed
    c = str(write(tmp_path / "c.jsonl", 2, "a longer question " * 9))
    with pytest.raises(DataError, match=r"c\.jsonl: no row is left"):
        run(tokenizer, [{"path": a, "weight": 1}, {"path": c, "weight": 1}], max_length=64, truncation="drop")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(URL, folder) of a web server."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


def test_a_url(tokenizer: Any, site: tuple[str, Path]) -> None:
    url, folder = site
    write(folder / "mine rows.jsonl", 3)
    prepared = run(tokenizer, f"{url}/mine%20rows.jsonl?download=true")
    assert len(prepared.train) == 3
    (folder / "mine rows.jsonl").unlink()
    assert len(run(tokenizer, f"{url}/mine%20rows.jsonl?download=true").train) == 3  # kept
    (folder / "page.json").write_text("<!DOCTYPE html><html>sign in</html>")
    for _ in range(2):
        with pytest.raises(DataError, match="a web page came instead"):
            opened(f"{url}/page.json")
    with pytest.raises(DownloadError, match="not found"):
        opened(f"{url}/absent.json")


def test_the_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    for name in ("org/set", "hf:org/set"):
        with pytest.raises(MissingExtra, match=r"lorikeet-llm\[hf\]"):
            opened(name)


def test_the_recipes_of_the_page_are_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data-sources.md").read_text()
    blocks = page.split("```yaml\n")[1:]
    assert len(blocks) == 4
    for block in blocks:
        options = DataOptions.model_validate(yaml_lines.parse(block.split("```")[0], "page").values)
        check_sources(options)
        assert DataOptions.model_validate(options.model_dump(mode="json")) == options
