"""What the commands share: consoles, JSON, the types of options."""

import json
import sys
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from etude.lab.finite import finite

Json = Annotated[bool, Parameter(name="--json", negative=())]
Flag = Parameter(negative=())
LedgerOption = Annotated[str | None, Parameter(name="--ledger")]
Tier = Literal["quick", "laptop", "gpu"]

# Without a terminal (a pipe, a log) a table is as wide as it needs to be readable.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, highlight=False)


def emit(value: Any) -> None:
    """One JSON document on standard output, with null for NaN and infinity."""
    sys.stdout.write(json.dumps(finite(value), indent=1, default=str, allow_nan=False) + "\n")


def print_hint(ledger: Any) -> None:
    """Tell of published runs that the ledger lacks."""
    from etude.lab.export import unread_hint

    if hint := unread_hint(ledger):
        out.print(hint, style="dim", soft_wrap=True)


def print_claims(said: list[Any]) -> None:
    """The table of claims with a line of counts."""
    from etude.lab.console import below_tier, claims_table, count

    out.print(claims_table(said))
    out.print(count(said))
    if line := below_tier(said):
        out.print(line, style="dim")
