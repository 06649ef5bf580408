"""Finding studies: a file `studies/<slug_with_underscores>.py` with a `Study` subclass is a study."""

import difflib
import importlib
import inspect
from functools import cache, lru_cache
from importlib import resources

from etude import catalogue
from etude.errors import StudyError, UsageError
from etude.lab.digest_memory import remembered_digest
from etude.lab.study import Study


@lru_cache(maxsize=1)
def runnable() -> tuple[str, ...]:
    """Slugs that have a study, sorted. Reads file names only, imports nothing."""
    files = resources.files("etude.studies").iterdir()
    return tuple(
        sorted(f.name[:-3].replace("_", "-") for f in files if f.name.endswith(".py") and not f.name.startswith("_"))
    )


def present_digest(slug: str, tier: str) -> str | None:
    """The digest of a study's code as it is now; None where there is no study, or its code cannot be read."""
    try:
        return remembered_digest(slug, tier) if slug in runnable() else None
    except SyntaxError:
        return None


@cache
def study(slug: str) -> Study:
    """The study of a paper.

    Raises
    ------
    UsageError
        If no such paper exists (with the nearest names), or it has no study yet.
    StudyError
        If its file cannot be imported, or defines another number of studies than one.
    """
    if slug not in runnable():
        paper = catalogue.load(slug)  # unknown slug: raises with the nearest names
        near = difflib.get_close_matches(slug, runnable(), 3, 0.3)
        hint = f"; papers that run: {', '.join(near or runnable())}"
        raise UsageError(f"{paper.slug} is in the catalogue but has no study yet (not runnable yet){hint}")
    try:
        module = importlib.import_module(f"etude.studies.{slug.replace('-', '_')}")
    except SyntaxError as error:
        raise StudyError(
            f"the study of {slug} cannot be read: {error.msg} ({error.filename}, line {error.lineno}); mend that line"
        ) from error
    found = [
        c for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, Study) and c.__module__ == module.__name__
    ]  # fmt: skip
    if len(found) != 1:
        raise StudyError(f"{module.__name__} must define exactly one Study, found {[c.__name__ for c in found]}")
    return found[0]()
