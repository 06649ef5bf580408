"""Cached arrays: computed once, never altered, never half-written."""

import multiprocessing
import os

import pytest
import torch
from safetensors.torch import save_file

from etude.data import cache as cache_module
from etude.data import cached


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored(folder):
    return sorted((folder / "arrays").rglob("*.safetensors"))


def value(x):
    return lambda: {"x": torch.tensor(x), "empty": torch.zeros(0, 3), "half": torch.ones(2).bfloat16()}


def test_made_once_and_the_same_in_every_type():
    first = cached("numbers", {"a": 1}, value([1.0, 2.0]))
    second = cached("numbers", {"a": 1}, lambda: pytest.fail("it was there"))
    for found in (first, second):
        assert found["x"].tolist() == [1.0, 2.0]
        assert found["empty"].shape == (0, 3)
        assert found["half"].dtype == torch.bfloat16


def test_keys_and_kinds_are_kept_apart_and_order_does_not_matter(folder):
    assert cached("a", {"k": 1, "m": [1, 2]}, value([1.0]))["x"].tolist() == [1.0]
    assert cached("a", {"m": [1, 2], "k": 1}, value([9.0]))["x"].tolist() == [1.0]
    assert cached("a", {"k": 2, "m": [1, 2]}, value([2.0]))["x"].tolist() == [2.0]
    assert cached("b", {"k": 1, "m": [1, 2]}, value([3.0]))["x"].tolist() == [3.0]
    assert len(stored(folder)) == 3


def test_views_and_shared_storage_can_be_stored():
    base = torch.arange(6.0).view(2, 3)
    found = cached("views", {}, lambda: {"row": base[0], "turned": base.T, "again": base})
    assert found["turned"].tolist() == base.T.tolist()
    assert found["row"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_damaged_file_is_never_read(folder, damage):
    cached("numbers", {}, value([1.0, 2.0]))
    (path,) = stored(folder)
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[-6] ^= 255
    elif damage == "cut":
        raw = raw[:-3]
    elif damage == "empty":
        raw = bytearray()
    path.write_bytes(bytes(raw))
    if damage == "foreign":
        save_file({"x": torch.zeros(2)}, path)
    assert cached("numbers", {}, value([1.0, 2.0]))["x"].tolist() == [1.0, 2.0]
    assert cached("numbers", {}, lambda: pytest.fail("it was made again"))["x"].tolist() == [1.0, 2.0]


def test_changing_what_came_back_does_not_change_the_file():
    cached("numbers", {}, value([1.0]))["x"].add_(5)
    found = cached("numbers", {}, value([1.0]))["x"]
    found.add_(5)
    assert cached("numbers", {}, lambda: pytest.fail("altered"))["x"].tolist() == [1.0]


def test_a_failing_maker_leaves_nothing_behind(folder):
    def broken():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cached("numbers", {}, broken)
    assert stored(folder) == []
    assert cached("numbers", {}, value([1.0]))["x"].tolist() == [1.0]


def test_an_interrupted_write_is_invisible(folder):
    target = folder / "sets" / "s" / "f"

    def interrupted():
        with cache_module.written(target) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(target.parent.iterdir()) == []


def _ask(queue, log):
    def make():
        with open(log, "a") as stream:
            stream.write("made\n")
        return {"x": torch.ones(3)}

    queue.put(cached("numbers", {"both": True}, make)["x"].tolist())


@pytest.mark.skipif(os.name == "nt", reason="optional: forks")
def test_two_processes_compute_once(tmp_path):
    context = multiprocessing.get_context("fork")
    queue, log = context.Queue(), tmp_path / "log"
    workers = [context.Process(target=_ask, args=(queue, log)) for _ in range(3)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join(30)
    assert results == [[1.0, 1.0, 1.0]] * 3
    assert log.read_text() == "made\n"


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "file"))  # a file where a folder should be
    assert cached("numbers", {}, value([4.0]))["x"].tolist() == [4.0]
    assert "set ETUDE_CACHE" in caplog.text


def test_keys_are_json():
    with pytest.raises(ValueError, match="must be made of JSON values"):
        cached("numbers", {"t": torch.ones(1)}, value([1.0]))
    with pytest.raises(ValueError, match="must be made of JSON values"):
        cached("numbers", {"t": float("nan")}, value([1.0]))


def test_clearing_frees_one_kind(folder):
    cached("a", {}, value([1.0]))
    cached("b", {}, value([1.0]))
    assert cache_module.clear("a") > 0
    assert [p.parent.name for p in stored(folder)] == ["b"]
    for kind in ("..", ".", "", "a/..", "/tmp", "..\\.."):
        with pytest.raises(ValueError, match="no kind of cached array"):
            cache_module.clear(kind)
    assert stored(folder)


def test_a_hash_is_taken_anew_when_the_file_changes(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"one")
    first = cache_module.file_sha256(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert cache_module.file_sha256(path) != first


def test_the_users_cache_folder_is_the_default(monkeypatch):
    monkeypatch.delenv("ETUDE_CACHE")
    assert cache_module.cache_root().name == "etude"
