import hashlib

import pytest

from lorikeet.base.errors import DownloadError, OutputError
from lorikeet.checkpoints.sources import _fetch
from lorikeet.checkpoints.sources._fetch import fetch, is_private, read_url, shown

CONTENT = bytes(range(256)) * 800
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def get(site, tmp_path):
    """Fetch /file; what came."""
    site.files["/file"] = CONTENT

    def get_(sha256=SHA256, size=None, url=f"{site.url}/file"):
        fetch(url, tmp_path / "got", sha256=sha256, size=size, progress=lambda done, total: None)
        return (tmp_path / "got").read_bytes()

    return get_


def names(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("faults", [[503], ["reset"], [429, 500, 502], [("cut", 90_000)], ["reset", 503, ("cut", 10)]])
@pytest.mark.parametrize("sha256", [SHA256, None])
def test_passing_faults_are_tried_again(get, site, faults, sha256, tmp_path):
    site.etag = '"one"'
    site.faults = list(faults)
    assert get(sha256) == CONTENT
    assert names(tmp_path) == ["got"]  # neither the part nor the note of its version


def test_a_connection_that_breaks_off_often_but_gets_on_is_followed_to_the_end(get, site):
    site.faults = [("cut", 50_000)] * 20  # each enough to go on; more of them than attempts
    assert len(CONTENT) > 50_000 * 4 == 50_000 * _fetch.ATTEMPTS
    assert get() == CONTENT


@pytest.mark.parametrize(
    "status, said", [(404, "not found"), (401, "gated, private"), (403, "gated, private"), (410, "not found")]
)
def test_final_answers_are_not_asked_for_twice(get, site, status, said):
    site.faults = [status] * 9
    with pytest.raises(DownloadError, match=said):
        get()
    assert len(site.requests) == 1


def test_a_server_that_stays_broken(get, site):
    site.faults = [500] * 9
    with pytest.raises(DownloadError, match=r"cannot be reached[\s\S]*500"):
        get()
    assert len(site.requests) == _fetch.ATTEMPTS
    with pytest.raises(DownloadError, match="500"):
        site.faults = [500] * 9
        read_url(f"{site.url}/file", {})


def test_a_short_file_is_refused_before_it_is_fetched(get, site):
    with pytest.raises(DownloadError, match=r"another file than promised[\s\S]*204,800 bytes[\s\S]*999"):
        get(size=999)


def test_a_length_that_is_not_true(get, site, tmp_path):
    site.faults = [("says", 1000)]  # the client reads only that much
    with pytest.raises(DownloadError, match="checksum differs"):
        get()
    assert names(tmp_path) == []
    site.faults = [("says", 10 * len(CONTENT))]  # and here waits for more, in vain, until it asks for the rest
    assert get() == CONTENT


def test_a_server_that_tells_no_length(get, site):
    site.length = False
    assert get() == CONTENT
    with pytest.raises(DownloadError, match="keeps breaking off"):
        site.faults = [("cut", 10)] * 9
        get(hashlib.sha256(b"").hexdigest(), size=len(CONTENT) + 1)


def test_a_wrong_checksum_leaves_nothing(get, tmp_path):
    with pytest.raises(DownloadError, match="checksum differs"):
        get("0" * 64)
    assert names(tmp_path) == []


def test_what_is_whole_already_is_not_fetched_again(get, site, tmp_path):
    get()
    site.requests.clear()
    assert get() == CONTENT and site.requests == []
    (tmp_path / "got").write_bytes(b"something else")
    assert get() == CONTENT and len(site.requests) == 1


def test_a_part_of_an_unchecked_file_is_continued_only_if_it_is_the_same_file(get, site, tmp_path):
    def interrupted(etag):
        site.etag, site.faults = etag, [("cut", 10_000), 404]
        with pytest.raises(DownloadError):
            get(None)
        site.requests.clear()

    interrupted('"one"')
    assert get(None) == CONTENT
    assert site.requests == [("/file", "bytes=10000-")]
    interrupted('"one"')
    site.etag = '"two"'  # changed meanwhile: the server sends everything
    assert get(None) == CONTENT
    for unproved in (None, 'W/"one"'):  # nobody can say whether it changed
        interrupted(unproved)
        assert get(None) == CONTENT
        assert site.requests == [("/file", None)]
    assert names(tmp_path) == ["got"]


def test_a_part_that_is_already_whole(get, site, tmp_path):
    (tmp_path / "got.part").write_bytes(CONTENT)
    assert get() == CONTENT
    assert len(site.requests) == 1  # 416 said how long it is
    (tmp_path / "got").unlink()
    (tmp_path / "got.part").write_bytes(CONTENT + b"more")
    assert get() == CONTENT


def test_redirects_are_followed_but_not_out_of_https(get, site, monkeypatch):
    site.redirects["/moved"] = "/file"
    assert get(url=f"{site.url}/moved") == CONTENT
    site.redirects["/moved"] = "http://example.com/file"
    with pytest.raises(DownloadError, match="leads to an insecure one"):
        get("0" * 64, url=f"{site.url}/moved")


def test_a_password_goes_to_its_server_alone_and_is_never_shown(get, site):
    site.redirects["/moved"] = f"http://localhost:{site.server.server_port}/file"
    secret = site.url.replace("://", "://me:pass%20word@")
    assert get(url=f"{secret}/moved") == CONTENT
    assert site.headers[0]["Authorization"] == "Basic bWU6cGFzcyB3b3Jk"
    assert "Authorization" not in site.headers[1]
    with pytest.raises(DownloadError) as caught:
        read_url(f"{secret}/absent?token=hidden", {})
    assert "pass" not in str(caught.value) and "hidden" not in str(caught.value) and "/absent" in str(caught.value)
    assert read_url(f"{secret}/absent", {}, missing_ok=True) is None


def test_a_full_disk(get, site, monkeypatch):
    from lorikeet.base import files

    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(OutputError, match="not enough disk space"):
        get()


def test_a_folder_where_the_part_should_be(get, tmp_path):
    (tmp_path / "got.part").mkdir()
    with pytest.raises(OutputError, match=r"got.part cannot be written"):
        get()


@pytest.mark.parametrize("url, private", [("https://x/y", True), ("http://x/y", False), ("http://[::1]/y", True)])
def test_is_private(url, private):
    assert is_private(url) is private


def test_shown():
    assert shown("https://me:secret@host:1/a/b?token=1#frag") == "https://host:1/a/b"
