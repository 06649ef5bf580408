"""Find, replace and record the modules of any model.

`match` turns what a user writes (globs, modules, a test) into modules by name; `replace` exchanges them, all or
none; `Record` keeps what chosen layers put out during the forward pass that runs anyway.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

Targets = str | nn.Module | Sequence[str | nn.Module] | Callable[[str, nn.Module], bool] | None
Kind = type | tuple[type, ...]
SHOWN = 12  # names listed in an error


class TargetError(ValueError, KeyError):
    """A target names no module of the model, or modules that cannot be changed together; a KeyError, as a name is."""

    __str__ = ValueError.__str__  # a KeyError would put its message in quotes


def _kind_name(kind: Kind) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(k.__name__ for k in kinds)


def _listed(names: Iterable[str]) -> str:
    names = [n for n in names if n]
    shown = ", ".join(repr(n) for n in names[:SHOWN])
    return shown + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "") if names else "none"


def match(model: nn.Module, targets: Targets = None, kind: Kind = nn.Module) -> dict[str, nn.Module]:
    """The modules of `model` that `targets` means, by dotted name, in the model's order.

    Parameters
    ----------
    targets
        A name or glob ("encoder.*", "*.attention"), a module of the model, a sequence of both, or a test
        ``targets(name, module) -> bool``. None: every module of `kind`. The empty name "" is the model itself;
        no glob and no test reaches it.
    kind
        Only modules of this class (or of one of these) count.

    Returns
    -------
    Each module once: one that stands in several places (tied) has the first of its names that was asked for.

    Raises
    ------
    TargetError
        If any one target matches no module of `kind`, or nothing matches at all.
    """
    every = dict(model.named_modules(remove_duplicate=False))
    rooted = _asks_root(targets)
    fitting = {name: every[name] for name in every if isinstance(every[name], kind) and (name or rooted)}
    where = type(model).__name__
    if targets is None:
        if not fitting:
            raise TargetError(f"{where} has no {_kind_name(kind)}; it is made of {_kinds_in(every)}")
        return _once(fitting.items())
    if callable(targets) and not isinstance(targets, nn.Module):
        chosen = {name: m for name, m in fitting.items() if targets(name, m)}
        if not chosen:
            raise TargetError(f"the given test chose no {_kind_name(kind)} of {where}; it has {_listed(fitting)}")
        return _once(chosen.items())
    wanted = [targets] if isinstance(targets, (str, nn.Module)) else list(targets)
    found: set[str] = set()
    unknown: list[str] = []
    for target in wanted:
        names = _names(target, fitting)
        found |= names
        if not names:
            unknown.append(repr(target) if isinstance(target, str) else f"a {type(target).__name__} from elsewhere")
    if unknown or not wanted:
        raise TargetError(_unknown(unknown, wanted, fitting, every, kind, where))
    return _once((name, m) for name, m in fitting.items() if name in found)


def _asks_root(targets: Targets) -> bool:
    if isinstance(targets, (str, nn.Module)):
        targets = [targets]
    return isinstance(targets, Sequence) and any(t == "" or isinstance(t, nn.Module) for t in targets)


def _names(target: str | nn.Module, fitting: Mapping[str, nn.Module]) -> set[str]:
    if isinstance(target, nn.Module):
        return {name for name, m in fitting.items() if m is target}
    if not isinstance(target, str):
        raise TargetError(f"a target is a name, a glob or a module, got {type(target).__name__}")
    if target in fitting:
        return {target}
    return {name for name in fitting if name and fnmatchcase(name, target)}


def _once(pairs: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    first: dict[nn.Module, str] = {}
    for name, m in pairs:
        first.setdefault(m, name)
    return {name: m for m, name in first.items()}


def _kinds_in(every: Mapping[str, nn.Module]) -> str:
    return ", ".join(sorted({type(m).__name__ for m in every.values()}))


def _unknown(
    unknown: list[str],
    wanted: Sequence[Any],
    fitting: Mapping[str, nn.Module],
    every: Mapping[str, nn.Module],
    kind: Kind,
    where: str,
) -> str:
    if not wanted:
        return f"targets is empty; {where} has {_listed(fitting)}"
    other = [n for t in wanted if isinstance(t, str) for n in every if n and fnmatchcase(n, t) and n not in fitting]
    text = f"no {_kind_name(kind)} named {', '.join(unknown)} in {where}"
    if other:
        return f"{text}: {other[0]!r} is a {type(every[other[0]]).__name__}; there are {_listed(fitting)}"
    near = [n for t in wanted if isinstance(t, str) for n in difflib.get_close_matches(t, fitting, 3, 0.5)]
    return f"{text}{f'; did you mean {_listed(dict.fromkeys(near))}?' if near else ''}; it has {_listed(fitting)}"


@dataclass(frozen=True, slots=True)
class SurgeryReport:
    """What `replace` did. `replaced` holds dotted names in the model's order."""

    replaced: tuple[str, ...]
    parameters_before: int
    parameters_after: int
    originals: Mapping[str, nn.Module] = field(default_factory=dict, repr=False, compare=False)
    """The modules that stood there, under every one of their names."""

    def undo(self, model: nn.Module) -> None:
        """Put the original modules back, the same objects with whatever weights they hold now.

        Raises
        ------
        TargetError
            If the model has lost one of the places.
        """
        places = {name: _place(model, name) for name in self.originals}
        for name, (parent, child) in places.items():
            setattr(parent, child, self.originals[name])


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, child = name.rpartition(".")
    try:
        parent = model.get_submodule(path)
    except AttributeError:
        parent = None
    if parent is None or child not in parent._modules:
        raise TargetError(f"{type(model).__name__} has no place {name!r} any more")
    return parent, child


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def replace(
    model: nn.Module, targets: Targets, make: Callable[[nn.Module], nn.Module], kind: Kind = nn.Module
) -> SurgeryReport:
    """Exchange modules of `model` in place.

    Every new module is made before the first is put in, so an exception leaves the model as it was. A module that
    stands in several places is made once and put into all of them. New parts take over the training mode of the
    module whose place they take.

    Parameters
    ----------
    targets, kind
        As in `match`.
    make
        From the module that stands there to the one that shall (it may hold the old one).

    Raises
    ------
    TargetError
        If nothing matches, a target contains another one, or a target is the model itself.
    """
    chosen = match(model, targets, kind)
    for name, m in chosen.items():
        if m is model:
            raise TargetError(f"{type(model).__name__} itself cannot be replaced in place: replace it where it is used")
        inner = [n for n, other in chosen.items() if other is not m and any(other is sub for sub in m.modules())]
        if inner:
            raise TargetError(f"targets overlap: {name!r} contains {inner[0]!r}; replace them one after the other")
    before = _count(model)
    fresh = {id(m): make(m) for m in chosen.values()}
    for name, m in chosen.items():
        if not isinstance(fresh[id(m)], nn.Module):
            raise TargetError(f"make returned {type(fresh[id(m)]).__name__} for {name!r}; it must return a module")
    changed = {name: m for name, m in chosen.items() if fresh[id(m)] is not m}
    if not changed:
        raise TargetError(f"make left {_listed(chosen)} as they were: nothing was replaced")
    ids = {id(m) for m in changed.values()}
    places = {name: m for name, m in model.named_modules(remove_duplicate=False) if id(m) in ids}
    spots = {name: _place(model, name) for name in places}
    for m in changed.values():
        kept = set(m.modules())
        for part in fresh[id(m)].modules():
            if part not in kept:
                part.training = m.training
    for name, (parent, child) in spots.items():
        setattr(parent, child, fresh[id(places[name])])
    return SurgeryReport(tuple(changed), before, _count(model), places)


class Hook:
    """A hook of one module: a copy of the module, by deepcopy or pickle, gets one that does nothing.

    Copied functions would go on calling back for the original, and closures cannot be pickled.
    """

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return None if self.call is None else self.call(*args)

    def __reduce__(self) -> tuple[type["Hook"], tuple[()]]:
        return Hook, ()


class Record:
    """Keeps what chosen layers put out while the model runs; the hooks are gone after the `with` block.

    ``with Record(model, ["encoder.*"]) as r: loss = model(x).sum() + r.features["encoder.2"].mean()``

    Parameters
    ----------
    layers
        As `targets` of `match`.
    detach
        Cut the features from the graph; otherwise gradients flow through them.
    item
        Which part of an output that is a tuple, list or mapping.

    Attributes
    ----------
    features
        Name to tensor in the order of the calls. A layer that runs again within one pass of the model (a tied
        one) adds ``name:1``, ``name:2``. A new pass of the model starts afresh.

    Notes
    -----
    Where the model holds an in-place module (``nn.ReLU(inplace=True)``) the next layer gets a copy to write into, so
    a feature stays what the layer put out. Code that writes into it by itself is found out when `features` is read.
    A copy of the model (deepcopy, pickle) that is made meanwhile is not recorded.
    """

    def __init__(self, model: nn.Module, layers: Targets, *, detach: bool = False, item: int | str = 0) -> None:
        self.model, self.detach, self.item = model, detach, item
        self.layers = match(model, layers)
        self._copies = any(getattr(m, "inplace", False) is True for m in model.modules())
        self._features: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "Record":
        if self._handles:
            raise RuntimeError("this Record is recording already: use one `with` block at a time")
        self.clear()
        self._handles.append(self.model.register_forward_pre_hook(Hook(lambda *_: self.clear())))
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_hook(Hook(self._hook(name))))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        def keep(_: nn.Module, __: Any, output: Any) -> Tensor | None:
            value = self._pick(name, output)
            passed_on = None
            if self._copies or value.is_inference():
                if isinstance(output, Tensor):
                    passed_on = value.clone()  # the feature itself stays in the graph of what follows
                else:
                    value = value.clone()
            if self.detach:
                value = value.detach()
            key, again = name, 0
            while key in self._features:
                again += 1
                key = f"{name}:{again}"
            self._features[key] = value
            if not value.is_inference():
                self._versions[key] = value._version
            return passed_on

        return keep

    def _pick(self, name: str, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            try:
                output = output[self.item]
            except (KeyError, IndexError, TypeError) as error:
                raise TargetError(f"{name!r} puts out {type(output).__name__} without a part {self.item!r}") from error
        if not isinstance(output, Tensor):
            raise TargetError(f"{name!r}: part {self.item!r} is {type(output).__name__}, not a tensor; set item=")
        return output

    @property
    def features(self) -> dict[str, Tensor]:
        """The recorded features by name.

        Raises
        ------
        RuntimeError
            If the model has written into one of them since.
        """
        for name, version in self._versions.items():
            if self._features[name]._version != version:
                raise RuntimeError(
                    f"the output of {name!r} was changed in place after it was recorded: "
                    "record the layer after it, or make that operation out of place"
                )
        return dict(self._features)

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def clear(self) -> None:
        """Forget all features (and let go of their graphs)."""
        self._features.clear()
        self._versions.clear()
