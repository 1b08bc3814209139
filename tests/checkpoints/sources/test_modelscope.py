import hashlib
import json

import pytest
import torch

from lorikeet.base.errors import CheckpointError, DownloadError
from lorikeet.checkpoints import download
from lorikeet.checkpoints import hf as hf_kind
from lorikeet.checkpoints.open import open_checkpoint

from .conftest import left

API = "/api/v1/models/org/model/repo"


@pytest.fixture
def files(tmp_path):
    """A small Hugging Face folder, with things beside it that are not wanted."""
    folder = tmp_path / "made"
    folder.mkdir()
    hf_kind.save(folder, {"model_type": "llama"}, iter([("a", torch.ones(30_000))]))
    made = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    more = {"tokenizer.json": b"{}", "modeling.py": b"boom(", "README.md": b"x", "pytorch_model.bin": b"pickle"}
    more["consolidated.safetensors"] = b"the weights a second time"
    return made | more | {"onnx/model.safetensors": b"x", "../evil.json": b"x", ".hidden.json": b"x"}


@pytest.fixture
def publish(site):
    """Put files into org/model; `odd` changes entries of the list."""

    def publish_(files, revision="master", sums=True, odd=None):
        entries = [{"Path": "onnx", "Name": "onnx", "Type": "tree", "Size": 0}]
        for name, content in files.items():
            sum_ = hashlib.sha256(content).hexdigest() if sums else ""
            entry = {"Path": name, "Name": name, "Type": "blob", "Size": len(content), "Sha256": sum_}
            entries.append(entry | (odd or {}).get(name, {}))
            site.files[f"{API}?Revision={revision}&FilePath={name.replace('/', '%2F')}"] = content
        site.files[f"{API}/files?Revision={revision}&Recursive=True"] = json.dumps(
            {"Code": 200, "Success": True, "Data": {"Files": entries}}
        ).encode()

    return publish_


@pytest.mark.parametrize("sums", [True, False])
def test_the_folder_is_taken_and_nothing_else(site, publish, files, models, sums):
    publish(files, sums=sums)
    seen = []
    path = download.download("modelscope:org/model", progress=lambda done, total: seen.append((done, total)))
    assert open_checkpoint(path).names() == ["a"]
    assert left(models) == ["config.json", "lorikeet-source.json", "model.safetensors", "tokenizer.json"]
    total = sum(len(files[name]) for name in ("config.json", "model.safetensors", "tokenizer.json"))
    assert seen[-1] == (total, total)
    site.requests.clear()
    assert download.resolve("modelscope:org/model") == path and site.requests == []


def test_a_revision(publish, files, site):
    publish(files, revision="v1.0")
    assert download.download("modelscope:org/model@v1.0").name == "v1.0"
    with pytest.raises(DownloadError, match="not found"):
        download.download("modelscope:org/model")


def test_an_interrupted_download_goes_on(site, publish, files, models):
    publish(files)
    site.faults = [None, None, ("cut", 20_000), 404]  # the list, config.json, then the weights
    with pytest.raises(DownloadError, match="not found"):
        download.download("modelscope:org/model")
    with pytest.raises(CheckpointError, match=r"did not finish[\s\S]*model.safetensors.part"):
        open_checkpoint(models / "modelscope" / "org--model" / "master")
    site.requests.clear()
    download.download("modelscope:org/model")
    assert site.wanted("FilePath=config.json") == [] and site.wanted("model.safetensors") == ["bytes=20000-"]


def test_one_gguf_file_is_taken_several_are_not(publish, site, gguf_bytes):
    publish({"model-q4.gguf": gguf_bytes, "README.md": b""})
    assert download.download("modelscope:org/model").name == "model-q4.gguf"
    publish({"q4.gguf": gguf_bytes, "q8.gguf": gguf_bytes}, revision="two")
    with pytest.raises(DownloadError, match=r"2 GGUF files[\s\S]*q4.gguf q8.gguf[\s\S]*resolve/master/q4.gguf"):
        download.download("modelscope:org/model@two")


def test_pickles_only_when_allowed(publish, files, tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "weights.bin")
    weights = (tmp_path / "weights.bin").read_bytes()
    publish({"config.json": files["config.json"], "pytorch_model.bin": weights})
    with pytest.raises(DownloadError, match=r"pickled weights: pytorch_model.bin[\s\S]*--allow-pickle"):
        download.download("modelscope:org/model")
    assert download.download("modelscope:org/model", allow_pickle=True).is_dir()


@pytest.mark.parametrize(
    "odd, said",
    [
        ({"model.safetensors": {"Sha256": "0" * 64}}, "checksum differs"),
        ({"model.safetensors": {"Size": 77}}, "another file than promised"),
        ({"model.safetensors": {"Size": None}}, "cannot be listed"),
    ],
)
def test_files_that_are_not_what_the_list_says(publish, files, models, odd, said):
    publish(files, odd=odd)
    with pytest.raises(DownloadError, match=said):
        download.download("modelscope:org/model")
    assert "model.safetensors" not in left(models) and "lorikeet-source.json" not in left(models)


def test_weights_that_are_not_there(publish, files):
    publish({"config.json": files["config.json"], "README.md": b""})
    with pytest.raises(DownloadError, match=r"holds no model[\s\S]*config.json README.md"):
        download.download("modelscope:org/model")


def test_a_shard_that_is_not_there(publish, files):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    shards = {"model.safetensors.index.json": json.dumps(index).encode(), names[0]: files["model.safetensors"]}
    publish({"config.json": files["config.json"], **shards})
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing[\s\S]*no model-00002-of-00002"):
        download.download("modelscope:org/model")


@pytest.mark.parametrize(
    "answer, said",
    [
        (b"<html>", "no list of files"),
        (b"[]", "no list of files"),
        (b'{"Code": 10010205001, "Message": "record not found"}', "record not found"),
        (b'{"Code": 200, "Data": {"Files": null}}', "no list of files"),
    ],
)
def test_answers_that_are_no_list(site, answer, said):
    site.files[f"{API}/files?Revision=master&Recursive=True"] = answer
    with pytest.raises(DownloadError, match=rf"modelscope:org/model cannot be listed[\s\S]*{said}"):
        download.download("modelscope:org/model")


@pytest.mark.parametrize("status, said", [(404, "not found"), (403, "gated, private"), (401, "gated, private")])
def test_refusals(site, publish, files, status, said):
    publish(files)
    site.faults = [status]
    with pytest.raises(DownloadError, match=said):
        download.download("modelscope:org/model")


@pytest.mark.parametrize(
    "name", ["modelscope:", "modelscope:name", "modelscope:a/b/c", "modelscope:../x", "modelscope:a/b@"]
)
def test_names_that_cannot_be_read(name):
    with pytest.raises(DownloadError, match=r"cannot be read[\s\S]*modelscope:ORG/NAME"):
        download.resolve(name)
