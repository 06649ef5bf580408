"""Concatenated representations of several trained nets, and how different the nets are.

Source: Zhang & Bottou 2022, arXiv 2212.07346, section 3 (Cat_n). One training run keeps the features that still lower
its loss; runs from other seeds keep others, so their concatenation serves new tasks better than one net.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from etude.layers.modes import evaluating
from etude.layers.surgery import Record, TargetError, match
from etude.training.probes import LinearProbe
from etude.training.similarity import cka_matrix, effective_rank, model_inputs

ROWS = 1024  # of an array that go through the nets at once
SIGNAL_LAYERS = (
    nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.AvgPool1d, nn.MaxPool1d, nn.LPPool1d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d,
)  # fmt: skip
"""What puts out (N, channels, positions)."""


def last_linear(net: nn.Module) -> str:
    """Dotted name of the last linear layer, whose input is taken as the representation.

    Raises
    ------
    TargetError
        If the net has none.
    """
    names = [name for name, m in net.named_modules() if isinstance(m, nn.Linear)]
    if not names:
        raise TargetError(f"{type(net).__name__} has no linear layer, so name the layer that holds its representation")
    return names[-1]


def represent(net: nn.Module, batch: Any, layer: str | None = None, *, item: int | str = 0) -> Tensor:
    """What `layer` puts out on a batch (None: what the last linear layer takes in), as (N, p).

    Axes behind the second are averaged, with a warning where the layer was named. Three axes are an error, as channels
    and positions cannot be told apart, unless the last has one entry or the layer is one of `SIGNAL_LAYERS`.
    """
    args, kwargs = model_inputs(batch)
    signals = False
    if layer is None:
        taken: list[Tensor] = []
        head = net.get_submodule(last_linear(net))
        handle = head.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
        try:
            net(*args, **kwargs)
        finally:
            handle.remove()
        if not taken:
            raise TargetError(f"{type(net).__name__} does not call its last linear layer: name a layer")
        value = taken[-1]
    else:
        with Record(net, [layer], item=item) as record:
            net(*args, **kwargs)
            found = list(record.features.items())
        if not found:
            raise TargetError(f"{type(net).__name__} does not call {layer!r}")
        name, value = found[-1]
        signals = isinstance(record.layers[name.split(":")[0]], SIGNAL_LAYERS)
    if value.ndim > 3 or (value.ndim == 3 and (signals or value.shape[2] == 1)):
        if layer is not None:
            warnings.warn(f"{layer!r} puts out {tuple(value.shape)}: averaged over its last axes", stacklevel=3)
        return value.flatten(2).mean(2)
    if value.ndim == 1 or value.ndim == 3:
        raise ValueError(f"a representation is (rows, features), got {tuple(value.shape)}: name another layer")
    return value


class CatRepresentation(nn.Module):
    """The representations of several nets side by side: (N, ...) -> (N, p_1 + ... + p_n).

    A module (gradients flow into the members), and a scikit-learn transformer through `fit` and `transform`, which
    run the members in eval mode and without gradient.

    Parameters
    ----------
    nets
        Trained nets of any architecture; they are moved to the first one's device and dtype.
    layers
        Name of the layer that holds the representation, one for all or one a net. None: the input of each net's
        last linear layer.
    normalize
        "batch": each feature standardised with the statistics of `fit` (a batch norm without scale and shift).
        "l2": each net's block scaled to length 1. None: as it is; then a block of large numbers dominates a ridge.
    item
        Part of an output that is a tuple.

    Raises
    ------
    ValueError
        Without nets, or with other than one layer a net.
    TargetError
        For a layer that a net has not (a KeyError too); the message lists what there is.

    Examples
    --------
    >>> nets = [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2)]
    >>> CatRepresentation(nets).fit(torch.rand(20, 3)).transform(torch.rand(5, 3)).shape
    torch.Size([5, 8])
    """

    def __init__(
        self,
        nets: Sequence[nn.Module],
        layers: str | Sequence[str] | None = None,
        normalize: Literal["batch", "l2"] | None = "batch",
        *,
        item: int | str = 0,
    ) -> None:
        super().__init__()
        if not nets:
            raise ValueError("there are no nets to join: give at least one")
        if normalize not in ("batch", "l2", None):
            raise ValueError(f"normalize must be 'batch', 'l2' or None, got {normalize!r}")
        names = [layers] * len(nets) if layers is None or isinstance(layers, str) else list(layers)
        if len(names) != len(nets):
            raise ValueError(f"{len(nets)} nets need one layer or {len(nets)}, got {len(names)}")
        for net, name in zip(nets, names, strict=True):
            match(net, last_linear(net) if name is None else name)
        _warn_copies(nets)
        first = next(nets[0].parameters(), None)
        for net in nets[1:]:
            if first is not None:
                net.to(device=first.device, dtype=first.dtype)
        self.nets = nn.ModuleList(nets)
        self.layers, self.normalize, self.item = names, normalize, item
        self._given_layers = layers
        self.register_buffer("mean", None)
        self.register_buffer("deviation", None)
        self.block_dims: tuple[int, ...] = ()

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters, as scikit-learn asks for them."""
        return {"nets": list(self.nets), "layers": self._given_layers, "normalize": self.normalize, "item": self.item}

    def set_params(self, **params: Any) -> Self:
        """Change parameters, as scikit-learn does; the statistics of `fit` are forgotten.

        Raises
        ------
        ValueError, TargetError
            For an unknown parameter; as the constructor.
        """
        known = self.get_params()
        if unknown := sorted(set(params) - set(known)):
            raise ValueError(f"no parameter {unknown[0]!r}: there are {', '.join(known)}")
        vars(self).update(vars(type(self)(**known | params)))
        return self

    def __sklearn_clone__(self) -> Self:
        """A fresh one with copies of the nets, which are trained and stay as they are."""
        return type(self)(**self.get_params() | {"nets": copy.deepcopy(list(self.nets))})

    def blocks(self, x: Any) -> list[Tensor]:
        """Each net's own representation, not normalised: a list of (N, p_i)."""
        x = self._moved(x)
        made = [represent(net, x, layer, item=self.item) for net, layer in zip(self.nets, self.layers, strict=True)]
        self.block_dims = tuple(b.shape[1] for b in made)
        return made

    def forward(self, x: Any) -> Tensor:
        """(N, p_1 + ... + p_n). With "batch", call `fit` first."""
        blocks = self.blocks(x)
        if self.normalize == "l2":
            blocks = [b / b.norm(dim=1, keepdim=True).clamp_min(1e-12) for b in blocks]
        value = torch.cat(blocks, 1)
        if self.normalize == "batch":
            if self.mean is None:
                raise RuntimeError("normalize='batch' needs statistics: call fit(data) first")
            value = (value - self.mean) / self.deviation
        return value

    def fit(self, X: Any, y: Any = None) -> "CatRepresentation":
        """Mean and deviation of every feature, on an array, a tensor, (x, y), a split, or an iterable of batches.

        Raises
        ------
        ValueError
            If there are no rows, or a feature is not finite.
        """
        if self.normalize == "batch":
            parts = [torch.cat(self._quiet(batch), 1).double() for batch in batches_of(X)]
            if not sum(map(len, parts)):
                raise ValueError("the data are empty: the statistics of features need at least one row")
            rows = torch.cat(parts)
            if not bool(rows.isfinite().all()):
                row, column = (~rows.isfinite()).nonzero()[0].tolist()
                raise ValueError(
                    f"feature {column} of row {row} is {float(rows[row, column])}: statistics need finite numbers, "
                    "leave such rows out"
                )
            like = parts[0]
            dtype = next((p.dtype for p in self.parameters()), like.dtype)
            self.mean = rows.mean(0).to(dtype)
            deviation = rows.std(0, correction=0).to(dtype)
            self.deviation = torch.where(deviation > 1e-6, deviation, 1.0)  # a dead feature stays 0
        return self

    def transform(self, X: Any) -> Any:
        """Features of what `fit` takes; of an array an array comes back.

        With "batch" and without `fit` before, these rows are fitted to, and a warning says so.
        """
        if self.normalize == "batch" and self.mean is None:
            warnings.warn("fit was not called: features are standardised with these very rows", stacklevel=2)
            X = X if isinstance(X, Tensor | np.ndarray | tuple) else list(X)
            self.fit(X)
        X = X[0] if is_pair(X) else X
        with evaluating(self), torch.no_grad():
            parts = [self(batch) for batch in batches_of(X)]
        if not parts:
            raise ValueError("the data hold no batch to transform")
        made = torch.cat(parts)
        return made.cpu().numpy() if isinstance(X, np.ndarray) else made

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """`fit`, then `transform`."""
        return self.fit(X).transform(X)

    @torch.no_grad()
    def _quiet(self, batch: Any) -> list[Tensor]:
        with evaluating(self):
            return self.blocks(batch)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Statistics of a fitted one are taken on by one that is not fitted yet."""
        for name in ("mean", "deviation"):
            if getattr(self, name) is None and prefix + name in state:
                setattr(self, name, torch.empty_like(state[prefix + name]))
        super()._load_from_state_dict(state, prefix, *rest)

    def _moved(self, x: Any) -> Any:
        first = next(self.parameters(), None)
        if first is None or not isinstance(x, Tensor):
            return x
        return x.to(first.device, first.dtype) if x.is_floating_point() else x.to(first.device)

    def extra_repr(self) -> str:
        return f"{len(self.nets)} nets, normalize={self.normalize!r}"


def _every_other(y: NDArray[Any]) -> NDArray[np.bool_]:
    """Every other row of each label, so that both halves hold all of them in whatever order they come."""
    half = np.zeros(len(y), dtype=bool)
    half[np.argsort(y, kind="stable")[::2]] = True
    return half


def is_pair(data: Any) -> bool:
    """Whether this is inputs with labels, such as a `Split`, and not a tuple of batches.

    Two tensors alike in type and in the shape of a row are two batches of inputs, as `Tensor.split` gives them.
    """
    if not isinstance(data, tuple) or len(data) < 2 or not isinstance(data[0], Tensor | np.ndarray):
        return False
    if hasattr(data, "_fields"):  # a named tuple, such as `Split`
        return True
    x, y = data[:2]
    if len(data) > 2 or not isinstance(y, Tensor | np.ndarray):
        return len(data) == 2
    return y.dtype != x.dtype or y.shape[1:] != x.shape[1:] or (x.ndim == 1 and len(x) == len(y))


def batches_of(X: Any) -> Iterator[Any]:
    """Batches of an array or tensor (of a pair the first), or the iterable's own (the inputs of each)."""
    X = X[0] if is_pair(X) else X
    if isinstance(X, np.ndarray):
        X = torch.as_tensor(X)
        X = X.float() if X.dtype == torch.float64 else X
    if isinstance(X, Tensor):
        yield from X.split(ROWS)
        return
    if not isinstance(X, Iterable):
        raise ValueError(f"data are an array, a tensor or an iterable of batches, got {type(X).__name__}")
    for batch in X:
        args, kwargs = model_inputs(batch)
        yield args[0] if args else kwargs


def classes_in(batches: Iterable[Any]) -> NDArray[Any] | None:
    """The classes that batches bring, one a row; None where they bring none, one only, or other targets."""
    found: list[NDArray[Any]] = []
    for batch in batches:
        y = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        if isinstance(batch, Mapping):
            y = next((batch[name] for name in ("labels", "label", "y") if name in batch), None)
        part = np.asarray(y.cpu() if isinstance(y, Tensor) else y)
        if y is None or part.ndim != 1 or part.dtype.kind not in "iubOUS":
            return None
        found.append(part)
    return np.concatenate(found) if len(np.unique(np.concatenate(found))) > 1 else None


def _warn_copies(nets: Sequence[nn.Module]) -> None:
    states = [list(net.state_dict().values()) for net in nets]
    for i, a in enumerate(states):
        for j in range(i):
            b = states[j]
            same = len(a) == len(b) and all(s.shape == t.shape and torch.equal(s, t.to(s)) for s, t in zip(a, b))
            if same and a:
                warnings.warn(f"members are copies: net {i} equals net {j} and adds nothing", stacklevel=3)
                return


@dataclass(frozen=True)
class DiversityReport:
    """How different the members are.

    `cka` (n, n) between members; `effective_rank` of the whole and `member_ranks` of each; `probe_scores` (n,)
    accuracy of a probe on the first 1, 2, ... members, None without labels.
    """

    cka: Tensor
    effective_rank: float
    member_ranks: tuple[float, ...]
    probe_scores: tuple[float, ...] | None


def diversity_report(cat: CatRepresentation, X: Any, y: Any = None, *, debiased: bool = True) -> DiversityReport:
    """Members of a concatenation compared on rows of one's own.

    Parameters
    ----------
    X
        As in `CatRepresentation.transform`.
    y
        Labels of a new task, for the gain of each member added: half of the rows fit the probe, half test it. None:
        those that the batches of `X` bring, if any.
    debiased
        Of CKA.
    """
    if not isinstance(X, Tensor | np.ndarray):
        batches = [X] if is_pair(X) else list(X)
        y = classes_in(batches) if y is None else y
        X = X[0] if is_pair(X) else batches
    if cat.normalize == "batch" and cat.mean is None:
        cat.fit(X)
    rows = cat.transform(X)
    rows = torch.as_tensor(rows).cpu()
    parts = dict(enumerate(rows.split(list(cat.block_dims), 1)))
    named = {str(i): part for i, part in parts.items()}
    scores = None
    if y is not None:
        y = y.cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
        if len(y) != len(rows):
            raise ValueError(f"{len(rows)} rows and {len(y)} labels")
        half = torch.from_numpy(_every_other(y))
        ends = np.cumsum(cat.block_dims)
        scores = tuple(
            LinearProbe("ridge").fit(rows[half, :end], y[half.numpy()]).score(rows[~half, :end], y[~half.numpy()])
            for end in ends
        )  # fmt: skip
    ranks = tuple(float(effective_rank(part, centred=True)) for part in parts.values())
    return DiversityReport(
        cka_matrix(named, debiased=debiased).values, float(effective_rank(rows, centred=True)), ranks, scores
    )
