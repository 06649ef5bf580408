"""Sources: order, checksums, resume, retry, two processes at once, and what to do without them."""

import gzip
import hashlib
import io
import multiprocessing
import os
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from etude.data import available, download, fetch, registry, verify
from etude.data.registry import lookup, sources
from etude.errors import DataError, SourceUnavailable, UsageError

BODY = b"the official bytes\n" * 5000


def sha(raw):
    return hashlib.sha256(raw).hexdigest()


class Server:
    """A local web server whose behaviour a test scripts."""

    def __init__(self):
        self.files, self.log, self.faults = {}, [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.log.append((self.path, self.headers.get("Range")))
                fault = outer.faults.pop(0) if outer.faults else None
                body = outer.files.get(self.path.strip("/"))
                if isinstance(fault, int):
                    self.send_error(fault)
                    return
                if body is None:
                    self.send_error(404)
                    return
                start = 0
                if (wanted := self.headers.get("Range")) and fault != "ignore range":
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                    if start >= len(body):
                        self.send_error(416)
                        return
                if fault == "nonsense":
                    self.wfile.write(b"no status line at all\r\n\r\n")
                    self.close_connection = True
                    return
                if fault == "another range":
                    start += 1
                part = body[start:]
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                if fault == "cut":
                    self.wfile.write(part[: len(part) // 2])
                    self.close_connection = True
                elif fault == "spoil":
                    self.wfile.write(b"x" * len(part))
                else:
                    self.wfile.write(part)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server():
    running = Server()
    yield running
    running.server.shutdown()


@pytest.fixture
def table(monkeypatch, tmp_path, server):
    """A registry of one set, `toy`, with one file at the server; a cache of its own; no ETUDE_DATA."""
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("ETUDE_DATA", raising=False)
    monkeypatch.delenv("ETUDE_OFFLINE", raising=False)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    server.files["toy.txt"] = BODY
    content = {
        "toy": {
            "title": "A toy",
            "kind": "text",
            "version": "1",
            "license": "CC0",
            "page": "https://example.org/toy",
            "urls": [f"{server.address}/{{file}}"],
            "files": [{"name": "toy.txt", "bytes": len(BODY), "sha256": sha(BODY)}],
        },
        "packages": {},
        "aliases": {"plaything": "toy"},
    }
    monkeypatch.setattr(registry, "_table", lambda: content)
    sources.cache_clear()
    yield content
    sources.cache_clear()


def cached_file(tmp_path):
    return tmp_path / "cache" / "sets" / "toy" / "toy.txt"


def test_download_is_checked_kept_and_described(table, server, tmp_path):
    files = fetch("toy")
    assert files.path.read_bytes() == BODY
    assert files.path == cached_file(tmp_path)
    assert (files.version, files.license, files.sha256) == ("1", "CC0", sha(BODY))
    assert files.provenance == ({"name": "toy", "version": "1", "sha256": sha(BODY), "license": "CC0"},)
    assert fetch("plaything").paths == files.paths
    assert len(server.log) == 1  # the second time it came from the cache
    assert not list((tmp_path / "cache" / "downloads").iterdir())


def test_a_gzip_around_the_file_is_taken_off(table, server):
    server.files["toy.txt"] = gzip.compress(BODY)
    assert fetch("toy").path.read_bytes() == BODY


def test_a_file_that_is_called_gz_is_kept_packed(table, server):
    packed = gzip.compress(BODY)
    server.files["toy.tar.gz"] = packed
    table["toy"]["files"] = [{"name": "toy.tar.gz", "sha256": sha(packed)}]
    assert fetch("toy").path.read_bytes() == packed


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_one_archive_serves_several_files(table, server, form):
    buffer = io.BytesIO()
    if form == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("in/a.txt", b"a")
            archive.writestr("in/b.txt", b"b")
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name in "ab":
                info = tarfile.TarInfo(f"in/{name}.txt")
                info.size = 1
                archive.addfile(info, io.BytesIO(name.encode()))
    server.files["all"] = buffer.getvalue()
    table["toy"]["files"] = [
        {"name": f"{n}.txt", "sha256": sha(n.encode()), "urls": [f"{server.address}/all!in/{n}.txt"]} for n in "ab"
    ]
    files = fetch("toy")
    assert [p.read_text() for p in files.paths.values()] == ["a", "b"]
    assert len(server.log) == 1
    assert fetch("toy/b.txt").path.read_text() == "b"
    assert list(fetch("toy/*.txt").paths) == ["a.txt", "b.txt"]
    with pytest.raises(ValueError, match=r"has 2 files: a.txt, b.txt"):
        files.path  # noqa: B018


def test_an_interrupted_download_goes_on_where_it_stopped(table, server):
    server.faults = ["cut"]
    assert fetch("toy").path.read_bytes() == BODY
    assert [wanted for _, wanted in server.log] == [None, f"bytes={len(BODY) // 2}-"]


def test_a_server_that_cannot_resume_starts_again(table, server):
    server.faults = ["cut", "ignore range"]
    assert fetch("toy").path.read_bytes() == BODY


@pytest.mark.parametrize("faults", [["nonsense"], ["cut", "nonsense"], ["cut", "another range"]])
def test_an_answer_that_makes_no_sense_is_asked_for_again(table, server, faults):
    server.faults = list(faults)
    assert fetch("toy").path.read_bytes() == BODY
    assert len(server.log) == len(faults) + 1


def test_the_part_of_a_killed_process_is_used(table, server):
    part = download._staging(f"{server.address}/toy.txt")
    part.write_bytes(BODY[:100])
    assert fetch("toy").path.read_bytes() == BODY
    assert server.log == [("/toy.txt", "bytes=100-")]


@pytest.mark.parametrize("junk", [b"not the beginning", b"z" * (len(BODY) + 7)])
def test_a_spoilt_part_is_thrown_away(table, server, junk):
    download._staging(f"{server.address}/toy.txt").write_bytes(junk)
    assert fetch("toy").path.read_bytes() == BODY
    assert server.log[-1] == ("/toy.txt", None)


def test_a_broken_server_is_asked_again(table, server):
    server.faults = [503, 500]
    assert fetch("toy").path.read_bytes() == BODY


def test_corrupt_content_is_fetched_once_more_and_then_refused(table, server, tmp_path):
    server.faults = ["spoil"]
    assert fetch("toy").path.read_bytes() == BODY
    cached_file(tmp_path).unlink()
    server.files["toy.txt"] = b"something else"
    with pytest.raises(SourceUnavailable, match=r"toy.txt: its sha256 differs"):
        fetch("toy")
    assert not cached_file(tmp_path).exists()


def test_the_second_address_serves_when_the_first_does_not(table, server):
    table["toy"]["urls"] = [f"{server.address}/gone/{{file}}", f"{server.address}/{{file}}"]
    assert fetch("toy").path.read_bytes() == BODY


@pytest.mark.parametrize("damage", [BODY[:-1], b"", BODY.replace(b"official", b"0fficial", 1)])
def test_a_damaged_cache_file_is_fetched_again(table, server, tmp_path, damage):
    fetch("toy")
    cached_file(tmp_path).write_bytes(damage)
    assert verify("toy").state == "altered"
    assert fetch("toy").path.read_bytes() == BODY
    assert verify("toy").state == "complete"


def test_a_damaged_cache_file_is_not_read_offline(table, tmp_path, monkeypatch):
    fetch("toy")
    cached_file(tmp_path).write_bytes(BODY[:-1])
    monkeypatch.setenv("ETUDE_OFFLINE", "1")
    with pytest.raises(SourceUnavailable, match=r"is not the official file"):
        fetch("toy")


@pytest.mark.parametrize("packed", [False, True])
def test_the_folder_of_etude_data_comes_before_the_network(table, server, tmp_path, monkeypatch, packed):
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    (folder / ("toy.txt.gz" if packed else "toy.txt")).write_bytes(gzip.compress(BODY) if packed else BODY)
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path / "data"))
    assert fetch("toy").path.read_bytes() == BODY
    assert server.log == []
    assert available()[0].state == "here"
    assert verify("toy").files["toy.txt"].startswith("ETUDE_DATA complete")


@pytest.mark.parametrize("content", [b"altered", gzip.compress(BODY)[:-20], b""])
def test_an_altered_file_of_etude_data_is_not_read(table, server, tmp_path, monkeypatch, content):
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    (folder / "toy.txt.gz").write_bytes(content)
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path / "data"))
    assert verify("toy").state == "altered"
    assert fetch("toy").path.read_bytes() == BODY
    assert len(server.log) == 1


def test_offline_lists_the_ways(table, monkeypatch, server):
    monkeypatch.setenv("ETUDE_OFFLINE", "1")
    with pytest.raises(SourceUnavailable) as caught:
        fetch("toy")
    text = str(caught.value)
    assert "ETUDE_OFFLINE is set" in text
    for way in ("set ETUDE_DATA", "toy/toy.txt", "path=", "etude data fetch toy", server.address, "example.org/toy"):
        assert way in text
    assert server.log == []


def test_no_network_lists_the_ways_at_once(table, monkeypatch):
    table["toy"]["urls"] = ["http://nowhere.invalid/{file}"]
    with pytest.raises(SourceUnavailable, match=r"(?s)nowhere.invalid/toy.txt.*ways to get it"):
        fetch("toy")


def test_path_is_taken_as_a_folder_or_a_file_and_checked(table, tmp_path, server):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "toy.txt.gz").write_bytes(gzip.compress(BODY))
    assert fetch("toy", path=tmp_path / "mine").path.read_bytes() == BODY
    plain = tmp_path / "any name"
    plain.write_bytes(BODY)
    assert fetch("toy", path=plain).path == plain
    plain.write_bytes(b"other")
    with pytest.raises(DataError, match=r"is not the official toy.txt of toy"):
        fetch("toy", path=plain)
    with pytest.raises(DataError, match=r"holds no toy.txt of toy"):
        fetch("toy", path=tmp_path / "cache")
    assert server.log == []


def test_a_fallback_serves_when_the_set_cannot_be_had(table, server):
    server.files["other.txt"] = b"other"
    table["other"] = {**table["toy"], "files": [{"name": "other.txt", "sha256": sha(b"other")}]}
    table["toy"] |= {"urls": [], "fallback": "other"}
    sources.cache_clear()
    assert fetch("toy").name == "other"


def test_a_file_inside_a_pinned_package_is_read_without_importing_it(table, server, tmp_path, monkeypatch):
    wheel = tmp_path / "wheels" / "toydata-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toydata/__init__.py", "raise SystemExit('imported')")
        archive.writestr("toydata/toy.txt.gz", gzip.compress(BODY))
        archive.writestr("toydata-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toydata\nVersion: 1.0\n")
        archive.writestr(
            "toydata-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("toydata-1.0.dist-info/RECORD", "")
    table["toy"] |= {"urls": []}
    table["toy"]["files"][0] |= {"package": "toydata==1.0", "member": "toydata/toy.txt.gz"}
    table["packages"]["toydata==1.0"] = {"sha256": sha(wheel.read_bytes()), "file": wheel.name}
    sources.cache_clear()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert available()[0].state == "package"
    assert fetch("toy").path.read_bytes() == BODY
    cached_file(tmp_path).unlink()
    table["packages"]["toydata==1.0"]["sha256"] = "0" * 64
    with pytest.raises(SourceUnavailable, match=r"(?s)toydata-1.0.*expected 0000.*download the package toydata==1.0"):
        fetch("toy")
    assert server.log == []


def test_a_missing_package_says_so(table, monkeypatch):
    table["toy"] |= {"urls": []}
    table["toy"]["files"][0] |= {"package": "no-such-toy==1.0", "member": "x"}
    table["packages"]["no-such-toy==1.0"] = {"sha256": "0" * 64, "file": "no_such_toy-1.0-py3-none-any.whl"}
    sources.cache_clear()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SourceUnavailable, match=r"package no-such-toy==1.0: .*No matching distribution"):
        fetch("toy")


def _fetch(queue):
    queue.put(fetch("toy").path.read_bytes() == BODY)


@pytest.mark.skipif(os.name == "nt", reason="optional: forks")
def test_processes_that_fetch_at_once_download_once(table, server):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_fetch, args=(queue,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=30) for _ in workers] == [True] * 4
    for worker in workers:
        worker.join(30)
    assert len(server.log) == 1


def test_a_cache_that_cannot_be_written_is_named(table, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "file"))
    with pytest.raises(SourceUnavailable, match=r"set ETUDE_CACHE to a folder that can be written"):
        fetch("toy")


def test_an_unknown_name_gives_the_nearest(table):
    with pytest.raises(UsageError, match=r"no data set named 'playthin' \(did you mean 'plaything'\?\)"):
        fetch("playthin")
    with pytest.raises(UsageError, match=r"toy has no file 'x.txt'; it has toy.txt"):
        fetch("toy/x.txt")


# --- the registry itself ---------------------------------------------------------------------------------------


def test_every_source_is_complete():
    for name, source in sources().items():
        assert source.license, name
        assert source.version, name
        assert source.kind in ("images", "text", "table", "graph", "series", "weights"), name
        assert len({f.name for f in source.files}) == len(source.files), name
        assert not source.fallback or source.fallback in sources(), name
        for file in source.files:
            assert len(file.sha256) == 64, (name, file.name)
            assert not file.package or (file.package in registry.packages() and file.member), (name, file.name)
            assert all(url.startswith("http") for url in file.urls), (name, file.name)


def test_every_alias_leads_to_files():
    for alias in registry._table()["aliases"]:
        assert lookup(alias).files


def test_names_are_the_same_with_hyphens_and_underscores():
    assert lookup("fashion-mnist") == lookup("fashion_mnist") == lookup("Fashion_MNIST")


def test_what_installed_packages_carry_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path))
    monkeypatch.setenv("ETUDE_OFFLINE", "1")
    monkeypatch.delenv("ETUDE_DATA", raising=False)
    for name in ("photos", "lfw_subset"):
        assert verify(name).state == "complete", name
        assert fetch(name).paths
    states = {info.name: info.state for info in available()}
    assert states["mnist_5k"] == "package"
    assert states["mnist"] == "download"
    assert states["mathq"] == "bring"


@pytest.mark.skipif("ETUDE_DATA" not in os.environ, reason="optional: ETUDE_DATA is not set")
def test_every_file_of_etude_data_is_the_official_one():
    states = {name: verify(name).state for name in sources()}
    assert "altered" not in states.values(), states
    folder = os.environ["ETUDE_DATA"]
    there = [n for n in sources() if os.path.isdir(os.path.join(folder, n))]
    assert there
    assert {n: states[n] for n in there} == dict.fromkeys(there, "complete")
