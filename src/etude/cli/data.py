"""Commands about data sets: data list, data fetch, data verify."""

from cyclopts import App

from etude.cli.console import Json, emit, out


def data_list(*, json_: Json = False) -> None:
    """List the data sets by name, and where each would come from.

    Parameters
    ----------
    json_
        One JSON document on standard output.
    """
    from etude.lab.paperview import print_sources, source_records

    records = source_records()
    emit(records) if json_ else print_sources(out, records)


def data_fetch(name: str) -> None:
    """Fetch a data set into the cache and check it.

    Parameters
    ----------
    name
        The data set, e.g. mnist.
    """
    from etude.data.sources import fetch

    for path in fetch(name).paths.values():
        out.print(str(path), soft_wrap=True)


def data_verify(name: str | None = None) -> int:
    """Check the files of a data set (or of all that are here) against their checksums.

    Parameters
    ----------
    name
        Only this data set.
    """
    from etude.data.sources import available, verify

    altered = False
    for each in [name] if name else [s.name for s in available()]:
        status = verify(each)
        altered |= status.state == "altered"
        if name or status.state != "missing":
            out.print(f"{each}: {status.state}")
            if status.state != "complete":
                for file, found in status.files.items():
                    out.print(f"  {file}: {found}", soft_wrap=True)
    return 3 if altered else 0


def register(app: App) -> None:
    """Add the commands to the command line, as `etude data ...`."""
    group = App(name="data", help="Data sets: which there are, fetching and checking them.")
    group.command(data_list, name="list")
    group.command(data_fetch, name="fetch")
    group.command(data_verify, name="verify")
    app.command(group)
