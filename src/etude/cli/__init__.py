"""The command line. Exit codes: 0 done, 2 wrong use, 3 a study or its surroundings broke, 130 interrupted."""

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, UnusedCliTokensError
from rich.markup import escape

from etude import __version__
from etude.cli import data, papers, results, run
from etude.cli.console import err
from etude.errors import EtudeError
from etude.page import commands as page

app = App(
    name="etude",
    version=__version__,
    suppress_keyboard_interrupt=False,
    help="Papers you can run: does this paper's method work?",
)
for part in (papers, run, results, data, page):
    part.register(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; a user's mistake is one line, never a traceback."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app(given, exit_on_error=False, print_error=False)
    except UnusedCliTokensError as error:
        extra = " ".join(error.unused_tokens or ())
        command = " ".join(("etude", *(error.command_chain or ())))
        return _complain(f"{command} does not take {extra!r}: see {command} --help", 2)
    except CycloptsError as error:
        return _complain(" ".join(str(error).split()), 2)
    except EtudeError as error:
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        if given[:1] != ["run"]:
            return _complain("interrupted", 130)
        how = "the same command without --fresh" if "--fresh" in given else "the same command"
        return _complain(f"interrupted: what is finished stays in the ledger; {how} continues it", 130)
    except BrokenPipeError:
        return 0
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    err.print(f"[red]etude:[/] {escape(' '.join(message.split()))}", soft_wrap=True)
    return code
