"""The passage store: search, what is left out, growth, saving."""

import numpy as np
import pytest

from etude.layers import NearestNeighbors, PassageStore


def letters(texts):
    """Counts of letters: a transparent encoder."""
    return np.array([[t.count(c) for c in "abc"] for t in texts], dtype=np.float32)


def store():
    return PassageStore(letters).add(
        ["aaa", "aab", "bbb", "bbc", "ccc"], ids=[10, 11, 12, 13, 14], sources=["x", "x", "y", "y", "z"]
    )


def test_store_returns_similar_passages():
    hits = store().search(letters(["a", "cc"]), 2)
    assert hits.ids.tolist() == [[10, 11], [14, 13]]
    assert (hits.similarities[:, 0] == 1).all()
    assert hits.vectors.shape == (2, 2, 3)
    assert hits.vectors[0, 1].tolist() == [2, 1, 0]


def test_excluding_an_id_excludes_its_source():
    passages = store()
    hits = passages.search(letters(["a", "a", "a"]), 5, exclude=[10, None, {12, 999}])
    assert [i for i in hits.ids[0] if i is not None] == [12, 13, 14]
    assert hits.ids[0, 3] is None
    assert hits.similarities[0, 3] == -float("inf")
    assert hits.vectors[0, 3].tolist() == [0, 0, 0]
    assert hits.ids[1].tolist()[:2] == [10, 11]
    assert set(hits.ids[2]) == {10, 11, 14, None}
    by_array = passages.search(letters(["a"]), 1, exclude=np.array([10]))
    assert by_array.ids[0, 0] == 12


def test_without_sources_only_the_id_itself_is_excluded():
    passages = PassageStore(letters).add(["a", "ab", "a"], ids=np.array([1, 2, 1]))
    hits = passages.search(letters(["a"]), 3, exclude=[1])
    assert hits.ids.tolist() == [[2, None, None]]


def test_store_grows_and_survives_saving(tmp_path):
    passages = store()
    passages.search(letters(["a"]), 1)
    passages.add(["abc"], ids=["new"])
    assert passages.search(letters(["abc"]), 1).ids[0, 0] == "new"
    passages.save(tmp_path / "s.safetensors")
    again = PassageStore.load(tmp_path / "s.safetensors", letters)
    assert len(again) == 6
    assert again.passages == passages.passages
    queries = letters(["ab", "c"])
    assert again.search(queries, 3).ids.tolist() == passages.search(queries, 3).ids.tolist()
    passages.save(tmp_path / "t.safetensors", with_passages=False)
    assert PassageStore.load(tmp_path / "t.safetensors", letters).passages == [""] * 6


def test_tuples_as_ids_survive_saving(tmp_path):
    PassageStore(letters).add(["a", "b"], ids=[("x", 1), ("x", 2)]).save(tmp_path / "s.safetensors")
    again = PassageStore.load(tmp_path / "s.safetensors", letters)
    assert again.search(letters(["a"]), 1, exclude=[[("x", 1)]]).ids.tolist() == [[("x", 2)]]


def test_store_names_bad_input():
    with pytest.raises(ValueError, match="one string"):
        PassageStore(letters).add("abc", ids=[1, 2, 3])
    for name, ids, sources in (("id", [1, [2]], None), ("source", [1, 2], [None, [2]])):
        with pytest.raises(TypeError, match=rf"{name} 1 cannot be hashed: \[2\] \(list\)"):
            PassageStore(letters).add(["a", "b"], ids=ids, sources=sources)
    with pytest.raises(ValueError, match="callable"):
        PassageStore("MiniLM")
    with pytest.raises(ValueError, match="euclidean"):
        PassageStore(letters, NearestNeighbors("euclidean"))
    with pytest.raises(ValueError, match="2 passages, 1 ids"):
        PassageStore(letters).add(["a", "b"], ids=[1])
    with pytest.raises(ValueError, match=r"1\.\.5.*got 6"):
        store().search(letters(["a"]), 6)
    with pytest.raises(ValueError, match=r"1\.\.0"):
        PassageStore(letters).search(letters(["a"]), 1)
    with pytest.raises(ValueError, match="2 columns.*3"):
        store().search(np.zeros((1, 2)), 1)
    grown = store()
    grown.encoder = lambda texts: np.zeros((len(texts), 7))
    with pytest.raises(ValueError, match="7 columns.*3"):
        grown.add(["x"], ids=[0])
    wrong = PassageStore(lambda texts: np.zeros((1, 2)))
    with pytest.raises(ValueError, match="1 vectors for 2 passages"):
        wrong.add(["x", "y"], ids=[0, 1])
