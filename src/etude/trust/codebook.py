"""Codebook features: a network whose hidden states are sums of a few codes that can be read, searched and forced.

``cb = wrap(model, targets)`` puts codebooks behind (or before) modules of any network by hooks; the network keeps
its parameters, their names and its way of being saved, and `unwrap` gives it back as it was.

Source: Tamkin, Taufeeque & Goodman 2023, arXiv 2310.17230.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from etude.data.randomness import stream
from etude.layers.modes import evaluating
from etude.layers.surgery import TargetError
from etude.trust.codebook_layer import CodebookLayer
from etude.trust.codebook_places import Places, all_match, attach, by_name, carries, find_places, run, widths_of
from etude.trust.codebook_search import CodeHit, CodeIndex

FILE = "codebooks.safetensors"


def wrap(
    model: nn.Module,
    targets: str | Sequence[str],
    num_codes: int = 1000,
    k: int = 1,
    *,
    groups: int | Mapping[str, int] = 1,
    gradient: str = "aeloss",
    similarity: str = "cosine",
    dead_after: int | None = None,
    commitment: float = 0.25,
    dim: int | Mapping[str, int] | None = None,
    example: Any = None,
    generator: torch.Generator | None = None,
) -> "CodebookModel":
    """Put a codebook on every place that `targets` names.

    Parameters
    ----------
    targets
        Names or globs of modules ("*.mlp"): what they put out is quantised, of a tuple the first tensor. With ":in"
        behind it ("*.attn.c_proj:in") the first tensor that goes in is: the heads' outputs before the projection.
    num_codes, k
        Codes in each codebook, and how many of them make up a state (of each group).
    groups
        Codebooks side by side, each on its own slice (one a head): one number, or by name or glob as in `targets`.
    gradient, similarity, dead_after
        See `CodebookLayer`; `gradient` is "aeloss", "base", "vqvae" or "fullaeloss".
    commitment
        beta: how much "vqvae" and "fullaeloss" pull the activations towards their codes.
    dim, example
        Width of the activations: given, or measured by running the model once on `example` (a tensor, a tuple of
        arguments or a mapping of keywords), or else taken from the modules' weights.
    generator
        Where the codes start, N(0, 1). `CodebookModel.initialize` puts them on data.

    Raises
    ------
    ValueError
        If a target matches nothing (`TargetError`, which lists what there is) or carries a codebook already, k does
        not lie in 1..num_codes, `gradient` is unknown, or a width cannot be told or cut into groups. The model is then
        as it was.
    """
    places = find_places(model, [targets] if isinstance(targets, str) else list(targets))
    if taken := [name for name, (m, _) in places.items() if carries(m)]:
        raise ValueError(f"{taken[0]!r} carries a codebook already: unwrap the model first")
    widths = widths_of(model, places, dim, example)
    for option, given in (("groups", groups), ("dim", dim)):
        all_match(option, given, places)
    like = next(iter(model.parameters()), torch.empty(0))
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32  # half is too coarse for distances
    layers = []
    for name, (module, _) in places.items():
        layer = CodebookLayer(
            widths[name], num_codes, k, groups=by_name(groups, name, 1), gradient=gradient, similarity=similarity,
            dead_after=dead_after, commitment=commitment, name=name, generator=generator,
        )  # fmt: skip
        layers.append(layer.to(like.device).to(dtype).train(module.training))
    return CodebookModel(model, places, layers)


class CodebookModel(nn.Module):
    """A network and its codebooks; called as the network is. Made by `wrap`.

    Attributes
    ----------
    model
        The network itself; what runs through it (``cb.model.generate``) runs through the codebooks.
    codebooks
        The layers, in the order of `names`.
    """

    def __init__(self, model: nn.Module, places: Places, layers: Sequence[CodebookLayer]) -> None:
        super().__init__()
        self.model = model
        self.codebooks = nn.ModuleList(layers)
        self.names = tuple(places)
        self.training = model.training
        self._handles: list[Any] = [model.register_forward_pre_hook(self._begin)]
        for (module, at_input), layer in zip(places.values(), layers, strict=True):
            self._handles.append(attach(module, at_input, layer))

    @property
    def layers(self) -> dict[str, CodebookLayer]:
        """The codebooks by the name of their place."""
        if not self._handles:
            raise RuntimeError("this model has been unwrapped: wrap it anew")
        return dict(zip(self.names, self.codebooks, strict=True))  # type: ignore[arg-type]

    def _begin(self, *_: Any) -> None:
        for layer in self.codebooks:
            layer.calls.clear()  # type: ignore[union-attr,operator]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network says with its states replaced by codes."""
        return self.model(*args, **kwargs)

    def reconstruction_loss(self) -> Tensor:
        """Sum over the codebooks of |y - z|^2 of the last pass; has a gradient only with ``gradient="base"``."""
        losses = [call.loss for layer in self.layers.values() for call in layer.calls]
        if not losses:
            self._require_enabled()
            raise RuntimeError("run the model before asking for its reconstruction loss")
        return torch.stack(losses).sum()

    # --- reading -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def codes(self, batch: Any) -> dict[str, Tensor]:
        """Chosen codes (..., G, k) of every place for a batch, in eval mode; a place that runs again is "name:1".

        The axis of the groups is there for one group, too: (B, T, 1, k).
        """
        self._require_enabled()
        with evaluating(self):
            run(self.model, batch)
        found = {}
        for name, layer in self.layers.items():
            for i, call in enumerate(layer.calls):
                found[f"{name}:{i}" if i else name] = call.indices
        return found

    def index(self, dataset: Any, *, tokenizer: Any = None, batch_size: int = 64) -> CodeIndex:
        """Run a corpus once and remember where every code fires; see `CodeIndex`."""
        return CodeIndex.build(self.codes, dataset, tokenizer=tokenizer, batch_size=batch_size)

    def search(
        self, dataset: Any, predicate: Any, *, min_precision: float = 0.9, tokenizer: Any = None, batch_size: int = 64
    ) -> list[CodeHit]:
        """Codes by how well they detect a concept; see `CodeIndex.search`."""
        index = self.index(dataset, tokenizer=tokenizer, batch_size=batch_size)
        return index.search(predicate, min_precision=min_precision)

    def live_fractions(self) -> dict[str, float]:
        """Share of each codebook's codes that the last thousand training passes chose."""
        return {name: layer.live_fraction() for name, layer in self.layers.items()}

    # --- intervening -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def force(
        self, codes: Mapping[str, Any], *, positions: Any = None, groups: Sequence[int] | None = None
    ) -> Iterator[None]:
        """Inside the block, places hold the given codes.

        Parameters
        ----------
        codes
            Name, end of a name after a dot, or glob of codebooks to indices (m,), m <= k, the same for all groups, or
            (G, m); a list of tensors is stacked.
        positions
            Slice, index or list of indices in the time of a pass; None: everywhere. While a cached model generates,
            a pass is one token: positions of the prompt cannot be held there.
        groups
            Which groups (heads); None: all.

        Raises
        ------
        TypeError
            For codes that are no whole numbers.
        IndexError
            If an index lies beyond the codebook, or (when the model runs) a position or the start of a slice beyond
            the sequence.
        """
        layers = self.layers
        with contextlib.ExitStack() as stack:
            for pattern, wanted in codes.items():
                names = [n for n in layers if fnmatchcase(n, pattern) or n.endswith(f".{pattern}") or n == pattern]
                if not names:
                    raise TargetError(f"no codebook named {pattern!r}; there are {', '.join(layers)}")
                if isinstance(wanted, list | tuple) and any(isinstance(w, Tensor) for w in wanted):
                    stacked = torch.stack([torch.as_tensor(w) for w in wanted])
                    wanted = stacked[0] if len(stacked) == 1 and stacked.ndim > 1 else stacked
                if not isinstance(wanted, Tensor):
                    wanted = torch.as_tensor(wanted)
                if wanted.numel() and (wanted.is_floating_point() or wanted.dtype == torch.bool):
                    raise TypeError(f"codes of {pattern!r} must be whole numbers, got {wanted.dtype}")
                for name in names:
                    stack.enter_context(layers[name].quantizer.force(wanted, groups=groups, positions=positions))
            yield

    @contextlib.contextmanager
    def shuffled(self, generator: torch.Generator) -> Iterator[None]:
        """Inside the block every token gets the codes of another token of the batch: a control that must lose."""
        for layer in self.layers.values():
            layer.shuffle = generator
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.shuffle = None

    def disable(self) -> None:
        """The network runs as if there were no codebooks."""
        for layer in self.layers.values():
            layer.enabled = False

    def enable(self) -> None:
        """The codebooks act again."""
        for layer in self.layers.values():
            layer.enabled = True

    def _require_enabled(self) -> None:
        if not any(layer.enabled for layer in self.layers.values()):
            raise RuntimeError("the codebooks are disabled, so no codes are chosen: enable() them first")

    def unwrap(self) -> nn.Module:
        """Take all codebooks off; the network itself, which gives the same numbers as if it had never had any."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return self.model

    # --- training ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def initialize(
        self,
        batches: Iterable[Any],
        *,
        method: str = "rows",
        max_rows: int = 20_000,
        generator: torch.Generator | None = None,
    ) -> None:
        """Start every code at an activation of the network without codebooks.

        Parameters
        ----------
        method
            ``"rows"``: random activations. ``"kmeans"``: their clusters.
        max_rows
            Activations kept of each place.
        """
        layers, kept = self.layers, {name: [] for name in self.names}  # type: ignore[var-annotated]
        enabled = [layer.enabled for layer in layers.values()]
        self.disable()
        for layer in layers.values():
            layer.keep_rows = True
        try:
            with evaluating(self):
                for batch in batches:
                    run(self.model, batch)
                    for name, layer in layers.items():
                        kept[name] += [call.rows.flatten(0, -3) for call in layer.calls if call.rows is not None]
                    if all(sum(map(len, rows)) >= max_rows for rows in kept.values()):
                        break
        finally:
            for layer, acts in zip(layers.values(), enabled, strict=True):
                layer.enabled, layer.keep_rows = acts, False
                layer.calls.clear()
        generator = stream(0, "codes") if generator is None else generator
        for name, layer in layers.items():
            if not kept[name]:
                raise ValueError(f"{name}: no batch reached this place, so its codes have nowhere to start")
            rows = torch.cat(kept[name])[:max_rows]
            layer.quantizer.initialize([rows], method=method, generator=generator)

    def replace_dead(
        self, generator: torch.Generator, optimizer: torch.optim.Optimizer | None = None, *, noise: float = 0.0
    ) -> int:
        """Put idle codes of all places on activations of the last training pass; see `CodebookLayer.replace_dead`."""
        return sum(layer.replace_dead(generator, optimizer, noise=noise) for layer in self.layers.values())

    # --- keeping -----------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write ``codebooks.safetensors``: codes, normalisation and counts. The network saves itself as ever."""
        tensors = {
            f"{i}.{key}": value.detach().cpu().contiguous()
            for i, layer in enumerate(self.layers.values())
            for key, value in layer.state_dict().items()
        }
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path / FILE, metadata={"names": json.dumps(self.names)})
        return path / FILE

    def load(self, folder: str | Path) -> "CodebookModel":
        """Read what `save` wrote into codebooks of the same places and sizes.

        Raises
        ------
        ValueError
            If the file belongs to other places or sizes.
        """
        with safe_open(Path(folder) / FILE, framework="pt") as file:
            names = tuple(json.loads((file.metadata() or {}).get("names", "[]")))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if names != self.names:
            raise ValueError(
                f"{Path(folder) / FILE} holds codebooks of {list(names)}, this model has {list(self.names)}"
            )
        sizes, own = ({k: tuple(t.shape) for k, t in d.items()} for d in (tensors, self.codebooks.state_dict()))
        if wrong := sorted(k for k in sizes.keys() | own.keys() if sizes.get(k) != own.get(k)):
            found = f"{wrong[0]} is {sizes.get(wrong[0])} there and {own.get(wrong[0])} here"
            raise ValueError(f"{Path(folder) / FILE} does not fit these codebooks: {found}")
        self.codebooks.load_state_dict(tensors)
        return self
