"""Errors that a user can mend. The command line prints them as one line and exits with `exit_code`."""


class EtudeError(Exception):
    """Base of every error meant for a user: says what is wrong and how to mend it.

    `exit_code` is the command line's: 2 wrong use, 3 a study or its surroundings broke.
    """

    exit_code = 2


class UsageError(EtudeError):
    """The caller asked for something that does not exist or does not fit."""


class DataError(EtudeError, ValueError):
    """The user's data cannot be used as they are; the message names row, column or file."""


class SourceUnavailable(EtudeError):
    """A data set cannot be had here; the message lists the ways to get it. A study is then skipped."""

    exit_code = 3


class MissingExtra(EtudeError, ImportError):
    """An optional dependency is not installed; the message holds the install command."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'etude[{extra}]'")
        self.package, self.extra = package, extra


class LedgerError(EtudeError):
    """The ledger cannot be opened, read or written."""

    exit_code = 3


class StudyError(EtudeError):
    """A study broke while it ran."""

    exit_code = 3
