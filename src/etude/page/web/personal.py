"""One's own data: a zip to take away, the same zip to bring back, and leaving for good."""

import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form, Request, UploadFile
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from etude.errors import DataError, UsageError
from etude.lab.export import export, import_results
from etude.page import personal
from etude.page.security import new_token
from etude.page.web.context import Site, check_form, count, give_cookie, reader, require_account, site
from etude.page.web.render import render

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]
RESULTS = "results/"


@router.post("/account/export")
def export_zip(request: Request, csrf: Text) -> Response:
    """Everything of one's own as one zip; on a single-user page with the runs that were made here."""
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    more: dict[str, bytes] = {}
    if s.settings.mode == "single":
        with tempfile.TemporaryDirectory() as folder:
            for path in export(s.ledger, folder, own_data=True):
                more[RESULTS + path.relative_to(folder).as_posix()] = path.read_bytes()
    raw = personal.pack(personal.export(s.db, s.settings, account, s.now), more)
    headers = {"Content-Disposition": 'attachment; filename="etude-export.zip"', "Cache-Control": "no-store"}
    return Response(raw, media_type="application/zip", headers=headers)


@router.post("/account/import", response_class=HTMLResponse)
def import_zip(request: Request, csrf: Text, file: UploadFile) -> Response:
    """Bring an export back; what is there already stays."""
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    count(request, "import")
    raw = file.file.read()
    try:
        bundle = personal.read_bundle(raw)
        runs = {"runs": _runs(s, raw)} if s.settings.mode == "single" else {}
        many = s.settings.mode == "accounts"  # one's own page is nobody else's to protect
        new = personal.restore(s.db, account, bundle, s.now, limited=many, network=reader(request).network) | runs
    except DataError as error:
        page = render(request, "imported.html.j2", new=None, problem=str(error))
        page.status_code = 422
        return page
    return render(request, "imported.html.j2", new=new, problem=None)


def _runs(s: Site, raw: bytes) -> int:
    """Runs of an export, read as `etude import-results` reads them."""
    files = personal.unpack(raw, lambda name: name.startswith(RESULTS) and name.endswith(".json"))
    if not files:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for n, data in enumerate(files.values()):  # under names of our own: a zip's names are not to be trusted
            (Path(folder) / f"{n}.json").write_bytes(data)
        new, _ = import_results(s.ledger, folder)
    s.refresh_verdicts()
    return new


@router.post("/account/delete")
def delete_account(request: Request, csrf: Text, confirm: Text = "") -> Response:
    """Delete everything of one's own, when the handle was typed to confirm it."""
    check_form(request, csrf)
    account = require_account(request)
    s = site(request)
    if confirm.strip().lower() != account["handle"]:
        raise UsageError(f"nothing was deleted: type {account['handle']} to confirm it")
    personal.erase(s.db, s.settings, account)
    give_cookie(request, new_token())
    return RedirectResponse("/", status_code=303)
