"""A sequential module read as what `PhyLL` trains: black boxes and linear layers in turn."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

Box = Callable[[Tensor], Tensor]


def boxes_and_linears(module: nn.Sequential, blackbox: Sequence[str]) -> tuple[list[Box | None], list[nn.Linear]]:
    """The linear layers not named in `blackbox`, and what stands before each of them: None where nothing does.

    Raises
    ------
    ValueError
        For an unknown name, a trainable module that is not an `nn.Linear`, or modules after the last one.
    TypeError
        If `module` is no `nn.Sequential`, or `blackbox` one string.
    """
    if not isinstance(module, nn.Sequential):
        raise TypeError(
            f"the module must be an nn.Sequential of boxes and nn.Linear layers, got {type(module).__name__}"
        )
    if isinstance(blackbox, str):
        raise TypeError(f"blackbox is a sequence of names, such as [{blackbox!r}], got {blackbox!r}")
    named = dict(module.named_children())
    if unknown := sorted(set(blackbox) - set(named)):
        raise ValueError(f"no sub-module {unknown[0]!r}: there are {', '.join(named)}")
    boxes: list[Box | None] = []
    linears: list[nn.Linear] = []
    before: list[nn.Module] = []
    for name, part in named.items():
        if isinstance(part, nn.Linear) and name not in blackbox:
            boxes.append(nn.Sequential(*before) if before else None)
            linears.append(part)
            before = []
        elif name not in blackbox and any(True for _ in part.parameters()):
            raise ValueError(f"{name} ({type(part).__name__}) is neither a black box nor an nn.Linear to train")
        else:
            before.append(part)
    if not linears or before:
        raise ValueError("the last module must be an nn.Linear that is trained")
    return boxes, linears
