"""The JSON API's two ways to write, with a bearer token; cookies count nothing here, so no other site can use them."""

from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from etude import ROOMS
from etude.page import store
from etude.page import tables as t
from etude.page.accounts import account_of_token
from etude.page.records import check_identifiers, make_record
from etude.page.search.lexical import reindex
from etude.page.security import limit
from etude.page.web.api import problems, public
from etude.page.web.context import may_change, reader, site
from etude.page.web.pages import find_paper

router = APIRouter(prefix="/api", tags=["writing"], responses=problems(422))
_bearer = HTTPBearer(auto_error=False, description="A token from the account page.")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
Short = Annotated[str, Field(max_length=300)]


def caller(request: Request, given: Bearer) -> dict[str, Any]:
    """Whose token the request carries; 401 without a good one."""
    account = account_of_token(site(request).db, given.credentials) if given is not None else None
    if account is None:
        raise HTTPException(401, "give a token of your account page: Authorization: Bearer TOKEN", _CHALLENGE)
    return account


_CHALLENGE = {"WWW-Authenticate": "Bearer"}
Caller = Annotated[dict[str, Any], Depends(caller)]


class NewPaper(BaseModel):
    """A paper to add."""

    model_config = ConfigDict(extra="forbid")
    title: Annotated[str, Field(min_length=1, max_length=1000)]
    abstract: Annotated[str, Field(max_length=20_000)] = ""
    authors: Annotated[list[Short], Field(max_length=5000)] = []
    arxiv_id: Short = ""
    doi: Short = ""
    url: Annotated[str, Field(max_length=2000)] = ""
    code_url: Annotated[str, Field(max_length=2000)] = ""
    tags: Annotated[list[Short], Field(max_length=20)] = []
    room: Short = ""


class NewVote(BaseModel):
    """A vote to give or to take back."""

    model_config = ConfigDict(extra="forbid")
    paper: Short
    wanted: bool = True


class Votes(BaseModel):
    """How many votes a paper has now."""

    paper: str
    votes: int


@router.post("/papers", status_code=201, responses=problems(400, 401, 429))
def add_paper(request: Request, new: NewPaper, account: Caller) -> dict[str, Any]:
    """Add a paper; one that is here already is returned, and changed only if the caller may edit it."""
    s = site(request)
    if new.room and new.room not in ROOMS:
        raise HTTPException(400, f"there is no room {new.room!r}")
    try:
        check_identifiers(new.model_dump())
        record = make_record(**(new.model_dump() | {"room": new.room or None}))
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    with s.db.begin() as c:
        limit(c, "submit", str(account["id"]), s.now)
        match = store.add(
            c, record, source="form", now=s.now, by=account["handle"], account=account["id"],
            may_change=may_change(s, account),
        )  # fmt: skip
        assert match.paper_id is not None
        reindex(c, [match.paper_id])
        row = c.execute(sa.select(t.paper).where(t.paper.c.id == match.paper_id)).mappings().one()
    return public(dict(row))


@router.post("/vote", responses=problems(400, 401, 404, 429))
def vote(request: Request, new: NewVote, account: Caller) -> Votes:
    """Vote for a paper, or take the vote back; saying it twice is the same."""
    s = site(request)
    paper = find_paper(s, new.paper)
    with s.db.begin() as c:
        limit(c, "vote", str(account["id"]), s.now)
        network = reader(request).network
        total = store.cast(c, paper["id"], account["id"], new.wanted, now=s.now, network=network)
    return Votes(paper=paper["slug"], votes=total)
