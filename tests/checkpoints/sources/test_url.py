import hashlib

import pytest

from lorikeet.base.errors import DownloadError
from lorikeet.checkpoints import download

from .conftest import left


@pytest.fixture
def url(site, gguf_bytes):
    site.files["/models/tiny.gguf"] = gguf_bytes
    return f"{site.url}/models/tiny.gguf"


def test_a_file_is_fetched_and_kept(site, url, gguf_bytes, models):
    digest = hashlib.sha256(gguf_bytes).hexdigest()
    path = download.resolve(f"{url}#sha256={digest}")
    assert path.name == "tiny.gguf" and path.read_bytes() == gguf_bytes
    assert left(models) == ["lorikeet-source.json", "tiny.gguf"]
    site.requests.clear()
    assert download.resolve(url) == download.resolve(f"{url}#sha256={digest.upper()}") == path
    assert site.requests == []
    with pytest.raises(DownloadError, match="checksum differs"):  # what lies here is not what is asked for
        download.resolve(f"{url}#sha256={'0' * 64}")


def test_two_servers_may_have_files_of_one_name(site, url, gguf_bytes):
    site.files["/other/tiny.gguf?download=true"] = gguf_bytes
    assert download.resolve(url) != download.resolve(f"{site.url}/other/tiny.gguf?download=true")


def test_an_interrupted_download_goes_on(site, url, gguf_bytes):
    site.etag, site.faults = '"one"', [("cut", 100_000), 404]
    with pytest.raises(DownloadError):
        download.resolve(url)
    site.requests.clear()
    assert download.resolve(url).read_bytes() == gguf_bytes
    assert site.requests == [("/models/tiny.gguf", "bytes=100000-")]


@pytest.mark.parametrize(
    "damage", [lambda b: b"<!DOCTYPE html><title>Sign in</title>", lambda b: b[:-9], lambda b: b""]
)
def test_what_is_no_model_is_deleted(site, url, models, damage):
    site.files["/models/tiny.gguf"] = damage(site.files["/models/tiny.gguf"])
    with pytest.raises(DownloadError, match=r"what came is no model; it is deleted[\s\S]*complete GGUF"):
        download.resolve(url)
    assert left(models) == []


@pytest.mark.parametrize(
    "status, said", [(404, "not found"), (401, "gated"), (403, "gated"), (500, "cannot be reached")]
)
def test_refusals(site, url, status, said):
    site.faults = [status] * 9
    with pytest.raises(DownloadError, match=said):
        download.resolve(url)


@pytest.mark.parametrize(
    "name, said",
    [
        ("http://example.com/a.gguf", r"plain http[\s\S]*try +https://example.com/a.gguf"),
        ("ftp://example.com/a.gguf", "cannot be read"),
        ("https:///a.gguf", "cannot be read"),
        ("https://example.com/a.gguf#main", "no checksum"),
        ("https://example.com/a.gguf#sha256=12", "no checksum"),
        ("https://example.com/model.safetensors", "one .gguf file"),
        ("https://example.com/", "one .gguf file"),
        ("https://example.com/a-00001-of-00002.gguf", "one part of a split GGUF"),
        ("https://huggingface.co/org/name", r"one .gguf file[\s\S]*try +hf:org/name"),
        ("https://www.modelscope.cn/models/org/name/summary", r"one .gguf file[\s\S]*try +modelscope:org/name"),
        ("https://huggingface.co/org/name/blob/main/a.gguf", r"page about a file[\s\S]*/resolve/main/a.gguf"),
    ],
)
def test_addresses_that_cannot_become_a_model(name, said):
    with pytest.raises(DownloadError, match=said):
        download.resolve(name)
