"""Frozen text encoders: sentence vectors, hidden states of chosen layers, and a top that can be trained on its own.

Every distinct text is encoded once, in batches of like length, and kept in the cache under its content. With the
default pooling and normalisation, "all-MiniLM-L6-v2" gives the vectors of sentence-transformers.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data.cache import cached, file_sha256
from etude.data.progress import track
from etude.errors import MissingExtra
from etude.layers.modes import evaluating
from etude.layers.pretrained import pretrained_folder

POOLINGS = ("mean", "cls", "max")
Encode = Callable[[list[str]], Any]


class TokenStates(NamedTuple):
    """Hidden states (n, T, d) and mask (n, T), True = real token; padding states are zero."""

    states: Tensor
    mask: Tensor


def pool(states: Tensor, mask: Tensor, pooling: str = "mean") -> Tensor:
    """One vector a text from its token states: (..., T, d) and (..., T) to (..., d); no token gives zeros."""
    if pooling == "cls":
        return states[..., 0, :]
    here = mask[..., None]
    if pooling == "mean":
        return (states * here).sum(-2) / here.sum(-2).clamp_min(1)
    if pooling == "max":
        return states.masked_fill(~here, -torch.inf).amax(-2).masked_fill(~mask.any(-1)[..., None], 0.0)
    raise ValueError(f"unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")


class TextEncoder:
    """Texts to vectors.

    Parameters
    ----------
    encoder
        A name that `pretrained_folder` knows, a folder of a Hugging Face model with its tokenizer, such a
        model itself (then with `tokenizer`), or a function from a list of texts to (n, d).
    max_length
        Tokens that are read of a text, the rest is cut off; None: what the model's folder says.
    device, batch_size
        Where and how many at a time.
    precision
        ``"fp32"``, or ``"bf16"`` (autocast).

    Raises
    ------
    MissingExtra
        If transformers, or the package that carries the weights, is not installed.
    """

    def __init__(
        self,
        encoder: str | Path | nn.Module | Encode = "all-MiniLM-L6-v2",
        *,
        tokenizer: Any = None,
        max_length: int | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 32,
        precision: str = "fp32",
    ) -> None:
        if batch_size < 1 or (max_length is not None and max_length < 1):
            raise ValueError(f"batch_size and max_length must be at least 1, got {batch_size} and {max_length}")
        if precision not in ("fp32", "bf16"):
            raise ValueError(f'precision must be "fp32" or "bf16", got {precision!r}')
        self.device, self.batch_size, self.precision = torch.device(device), batch_size, precision
        self.model: Any = None
        self.function: Encode | None = None
        self.tokenizer, self._digest = tokenizer, ""
        self._stamp: tuple[Any, ...] | None = None  # of the weights that the digest is of
        if isinstance(encoder, nn.Module):
            if tokenizer is None:
                raise ValueError("a model needs its tokenizer: give tokenizer=")
            self.model = encoder
        elif isinstance(encoder, str | Path):
            self._load(pretrained_folder(encoder))
        elif callable(encoder):
            self.function = encoder
        else:
            raise ValueError(f"encoder must be a name, a folder, a model or a function, got {type(encoder).__name__}")
        if self.model is not None:
            self.model = self.model.to(self.device).eval().requires_grad_(False)
            limit = getattr(self.model.config, "max_position_embeddings", None)
            known = [n for n in (max_length, getattr(self, "_own_length", None), limit) if n]
            max_length = min(known) if known else 512
            if self.tokenizer.pad_token is None:
                self.tokenizer.pad_token = self.tokenizer.eos_token
            self._stamp = self._weights()
        self.max_length = max_length

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, whose weights lie elsewhere: a digest that is right stays so."""
        right = self.model is None or self._stamp == self._weights()
        return {**self.__dict__, "_digest": self._digest if right else "", "_stamp": None}

    def _load(self, folder: Path) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise MissingExtra("transformers", "hf", "a pretrained text encoder") from error
        from transformers.utils import logging

        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            self.model = AutoModel.from_pretrained(folder, local_files_only=True)
        finally:
            if bars:
                logging.enable_progress_bar()
        self.tokenizer = self.tokenizer or AutoTokenizer.from_pretrained(folder, local_files_only=True)
        own = folder / "sentence_bert_config.json"
        self._own_length = json.loads(own.read_text())["max_seq_length"] if own.is_file() else None
        weights = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".json", ".txt"))
        self._digest = hashlib.sha256("".join(file_sha256(p) for p in weights).encode()).hexdigest()

    def _weights(self) -> tuple[Any, ...]:
        """What changes with the weights and costs nothing: where they lie, and how often they were written."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return tuple((t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in tensors)

    @property
    def num_layers(self) -> int:
        """Transformer layers of the model."""
        return int(self._need_model("num_layers").config.num_hidden_layers)

    @property
    def digest(self) -> str:
        """What the vectors depend on, besides the texts; "" for a function, which is never cached.

        It follows the weights where they are trained, loaded or moved (but not what is written into ``.data``).
        """
        if self.function is not None:
            return ""
        now = self._weights()
        if self._stamp not in (None, now):
            self._digest = ""
        self._stamp = now
        if not self._digest:
            probe = self.tokenizer("Ein Test: a b-c, É \u00bd \u4e2d 12!")[
                "input_ids"
            ]  # shows case folding and the like
            total = hashlib.sha256(repr((sorted(self.tokenizer.get_vocab().items()), probe)).encode())
            for name, value in sorted(self.model.state_dict().items()):
                total.update(name.encode())
                total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            self._digest = total.hexdigest()
        return self._digest

    def encode(
        self,
        texts: Sequence[str],
        *,
        layers: str | int | Sequence[int] = "last",
        pooling: str = "mean",
        normalize: bool = True,
        cache: bool = True,
    ) -> Tensor:
        """Vectors (n, d) on the CPU, one a text; equal texts give equal vectors.

        Parameters
        ----------
        layers
            ``"last"``, or the number of a layer (0: the embeddings, 1: after the first layer), gives (n, d).
            Several numbers, or ``"all"`` (1 to the last), give (n, len(layers), d).
        pooling
            ``"mean"`` over tokens, ``"cls"`` (the first), or ``"max"``.
        normalize
            Scale to unit length; a zero vector stays.
        cache
            Keep the vectors on disk, under the digests of texts, weights and settings.

        Raises
        ------
        ValueError
            If `texts` is one string or holds something else (the place is named), or a layer does not exist.
        """
        rows = _checked(texts)
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        distinct = sorted(set(rows))
        place = {text: i for i, text in enumerate(distinct)}
        if self.function is not None:
            if layers != "last":
                raise ValueError("a function has no layers: leave layers='last'")
            found = torch.as_tensor(self.function(distinct)).float().cpu() if distinct else torch.zeros(0, 0)
            if found.ndim != 2 or len(found) != len(distinct):
                raise ValueError(f"the encoder returned {tuple(found.shape)} for {len(distinct)} texts, not (n, d)")
        else:
            numbers = self._numbers(layers)
            key = {"texts": _text_digest(distinct), "encoder": self.digest, "layers": numbers, "pooling": pooling,
                   "max_length": self.max_length, "precision": self.precision}  # fmt: skip

            def make() -> dict[str, Tensor]:
                return {"vectors": self._vectors(distinct, numbers, pooling)}

            found = (cached("text_vectors", key, make) if cache and distinct else make())["vectors"]
            found = found if layers == "all" or not isinstance(layers, str | int) else found[:, 0]
        vectors = found[torch.tensor([place[t] for t in rows], dtype=torch.long)]
        return F.normalize(vectors, dim=-1, eps=1e-12) if normalize else vectors

    def split_at(
        self, layer: int, *, pooling: str = "mean", normalize: bool = True
    ) -> tuple[Callable[..., TokenStates], "UpperEncoder"]:
        """Cut the model below `layer` + 1: a frozen lower part whose states are kept, and a trainable upper part.

        Returns
        -------
        lower, upper
            ``lower(texts, dtype=torch.float32, cache=True)`` gives the states after `layer` layers as `TokenStates`
            in the order of the texts; ``upper(states, mask)`` is a module with weights of its own (copies) that
            gives (n, d). Together they are the whole model.

        Raises
        ------
        ValueError
            If there is no such layer, or the model is not built of embeddings and a list of layers as BERT is.
        """
        model = self._need_model("split_at")
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"layer must lie in 0..{self.num_layers - 1}, got {layer}")
        _blocks(model)

        def lower(texts: Sequence[str], *, dtype: torch.dtype = torch.float32, cache: bool = True) -> TokenStates:
            rows = _checked(texts)
            distinct = sorted(set(rows))
            place = {text: i for i, text in enumerate(distinct)}
            key = {"texts": _text_digest(distinct), "encoder": self.digest, "below": layer, "dtype": str(dtype),
                   "max_length": self.max_length, "precision": self.precision}  # fmt: skip

            def make() -> dict[str, Tensor]:
                return self._states(distinct, layer, dtype)

            found = cached("text_states", key, make) if cache and distinct else make()
            at = torch.tensor([place[t] for t in rows], dtype=torch.long)
            return TokenStates(found["states"][at], found["mask"][at])

        return lower, UpperEncoder(model, layer, pooling, normalize)

    # --- running the model -----------------------------------------------------------------------------------

    def _need_model(self, what: str) -> Any:
        if self.model is None:
            raise ValueError(f"{what} needs a model, this encoder is a function")
        return self.model

    def _numbers(self, layers: str | int | Sequence[int]) -> list[int]:
        total = self.num_layers
        if isinstance(layers, str):
            if layers not in ("last", "all"):
                raise ValueError(f'layers must be "last", "all" or numbers, got {layers!r}')
            return [total] if layers == "last" else list(range(1, total + 1))
        numbers = [layers] if isinstance(layers, int) else [int(i) for i in layers]
        if not numbers or min(numbers) < 0 or max(numbers) > total:
            raise ValueError(f"layers must lie in 0..{total}, got {layers}")
        return numbers

    def _run(self, texts: list[str], numbers: list[int], what: str) -> Any:
        """Yield (row numbers, hidden states of the layers, mask), longest texts first."""
        ids = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"] if texts else []
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        parts = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        for rows in track(parts, what):
            batch = self.tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt").to(self.device)
            low = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
            with torch.no_grad(), evaluating(self.model), low:
                out = self.model(**batch, output_hidden_states=numbers != [self.num_layers])
            states = [out.last_hidden_state] if out.hidden_states is None else [out.hidden_states[i] for i in numbers]
            yield torch.tensor(rows), [s.float() for s in states], batch["attention_mask"].bool()

    def _vectors(self, texts: list[str], numbers: list[int], pooling: str) -> Tensor:
        out = torch.zeros(len(texts), len(numbers), self.model.config.hidden_size)
        for rows, states, mask in self._run(texts, numbers, "encoding texts"):
            out[rows] = torch.stack([pool(s, mask, pooling) for s in states], dim=1).cpu()
        return out

    def _states(self, texts: list[str], layer: int, dtype: torch.dtype) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {"states": torch.zeros(0, 0, self.model.config.hidden_size, dtype=dtype)}
        made["mask"] = torch.zeros(0, 0, dtype=torch.bool)
        for rows, (states,), mask in self._run(texts, [layer], "hidden states of texts"):
            if not len(made["mask"]):  # the longest texts come first
                made["states"] = torch.zeros(len(texts), *states.shape[1:], dtype=dtype)
                made["mask"] = torch.zeros(len(texts), mask.shape[1], dtype=torch.bool)
            made["states"][rows, : states.shape[1]] = (states * mask[..., None]).to(dtype).cpu()
            made["mask"][rows, : mask.shape[1]] = mask.cpu()
        return made


class UpperEncoder(nn.Module):
    """The upper layers of a BERT-like model: token states (n, T, d) and mask (n, T) to vectors (n, d)."""

    def __init__(self, model: nn.Module, layer: int, pooling: str = "mean", normalize: bool = True) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        blocks, owner, name = _blocks(model)
        kept, embeddings = nn.ModuleList(blocks[layer:]), model.embeddings
        # copy everything but the lower layers and the word table
        memo: dict[int, Any] = {id(blocks): None, id(embeddings): None}
        self.model = copy.deepcopy(model, memo)
        self.model.embeddings = _Given()
        setattr(self.model.get_submodule(owner), name, copy.deepcopy(kept))
        self.model.requires_grad_(True)
        if isinstance(getattr(self.model, "pooler", None), nn.Module):
            self.model.pooler.requires_grad_(False)  # not used by `pool`
        self.pooling, self.normalize = pooling, normalize

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        out = self.model(inputs_embeds=states.to(dtype), attention_mask=mask.long()).last_hidden_state
        vectors = pool(out, mask, self.pooling)
        return F.normalize(vectors, dim=-1, eps=1e-12) if self.normalize else vectors


class _Given(nn.Module):
    """Stands in for embeddings: hands on the states that came as input."""

    def forward(self, *args: Any, inputs_embeds: Tensor | None = None, **rest: Any) -> Tensor:
        assert inputs_embeds is not None
        return inputs_embeds


def _blocks(model: nn.Module) -> tuple[nn.ModuleList, str, str]:
    """The list of layers, the name of its owner and its name there."""
    total = int(model.config.num_hidden_layers)  # type: ignore[union-attr,arg-type]
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total and isinstance(
            getattr(model, "embeddings", None), nn.Module
        ):  # fmt: skip
            owner, _, name = path.rpartition(".")
            return module, owner, name
    raise ValueError(f"{type(model).__name__} is not built of `embeddings` and a list of {total} layers as BERT is")


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise ValueError("texts must be a list of texts, got one string: put it in a list")
    rows = list(texts)
    for i, text in enumerate(rows):
        if not isinstance(text, str):
            raise ValueError(f"text {i} is {type(text).__name__}, not a string")
    return rows


def _text_digest(texts: list[str]) -> str:
    total = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        total.update(len(raw).to_bytes(8, "little"))
        total.update(raw)
    return total.hexdigest()
