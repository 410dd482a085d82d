"""The pages at their addresses, and the whole application: what `palan serve` serves."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, cast
from urllib.parse import parse_qs, quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from palan.core import whole
from palan.drift.nouns import Alarm
from palan.errors import Conflict, NotFound, PalanError
from palan.flows import jobs, registered, status
from palan.flows.log import log
from palan.flows.react import react
from palan.flows.release import release
from palan.flows.serve import Site
from palan.http import app
from palan.http.answers import told
from palan.ledger import Entry
from palan.releases.nouns import Release
from palan.remedies.nouns import Remedy
from palan.web import data as data_pages
from palan.web import pages, views
from palan.web import runs as runs_pages

PAGE_ENTRIES = 50

Page = Callable[[Request], Awaitable[Response]]


def application(site: Site) -> ASGIApp:
    """Return the ASGI application of a project: decisions, API and pages."""

    async def not_there(request: Request, code: int, what: str, hint: str) -> Response:
        # A path that is no route is no business of the API's description: say it for a person.
        return await _sorry(site, code, what, "`palan status` says what there is" if code == 404 else hint)

    return app.build(site, routes(site), not_there)


def routes(site: Site) -> list[Route]:
    """Return the routes of the pages, their static files and their forms."""
    project = site.project

    def page(build: Callable[[Request], str]) -> Page:
        """Return an endpoint that builds the page in a thread; a user's mistake becomes a page that says what to do."""

        async def endpoint(request: Request) -> Response:
            return await _answered(site, lambda: run_in_threadpool(lambda: HTMLResponse(build(request))))

        return endpoint

    def home(_request: Request) -> str:
        return pages.home(cast(views.Home, status.status(project, site.url)))

    def model(request: Request) -> str:
        name = request.path_params["model"]
        if name not in project.config.models and registered.known(project, name):
            return pages.registered(cast(views.RegisteredPage, status.registered_page(project, name)))
        return pages.model(cast(views.ModelPage, status.model_page(project, name, site.url)))

    def alarm(request: Request) -> str:
        return pages.alarm(cast(views.AlarmPage, status.alarm_page(project, request.path_params["id"])))

    def ledger(request: Request) -> str:
        return pages.ledger(ledger_view(site, request.query_params.get("page", "1"), request.query_params.get("subject", "")))

    def job_list(_request: Request) -> str:
        return pages.jobs(jobs_view(site))

    def job(request: Request) -> str:
        return pages.job(job_view(site, request.path_params["id"]))

    def run_list(request: Request) -> str:
        return pages.runs(runs_pages.runs_view(project, _frame(site), request.query_params))

    def run_rows(request: Request) -> str:
        return pages.run_rows(runs_pages.rows_view(project, _frame(site), request.query_params))

    def run(request: Request) -> str:
        return pages.run(runs_pages.run_view(project, _frame(site), request.path_params["id"], request.query_params))

    def compare(request: Request) -> str:
        return pages.compare(runs_pages.compare_view(project, _frame(site), request.query_params))

    def table(request: Request) -> str:
        return pages.table(data_pages.table_view(project, request.path_params["table"]))

    def version(request: Request) -> str:
        return pages.version(data_pages.version_view(project, request.path_params["table"], request.path_params["number"]))

    def diff(request: Request) -> str:
        return pages.diff(data_pages.diff_view(project, request.path_params["table"], request.query_params))

    def in_quarantine(request: Request) -> str:
        return pages.quarantine(data_pages.quarantine_view(project, request.path_params["table"], request.query_params))

    def csv(build: Callable[[Request], str], name: str) -> Page:
        async def endpoint(request: Request) -> Response:
            headers = {"content-disposition": f'attachment; filename="{name}.csv"'}
            return await _answered(site, lambda: run_in_threadpool(lambda: Response(build(request), media_type="text/csv", headers=headers)))

        return endpoint

    async def static(request: Request) -> Response:
        asset = pages.STATIC.get(request.path_params["name"])
        if asset is None:
            return Response("not found", 404, media_type="text/plain")
        return Response(asset.data, media_type=asset.type, headers={"cache-control": "public, max-age=31536000, immutable"})

    def ask(request: Request) -> str:
        return pages.confirm(confirm_view(site, request.path_params["do"], request.path_params["subject"]))

    async def do(request: Request) -> Response:
        form = await request.body()
        return await _answered(site, lambda: run_in_threadpool(_do, site, request.path_params["do"], request.path_params["subject"], form))

    return [
        Route("/", page(home), methods=["GET"]),
        Route("/models/{model}", page(model), methods=["GET"]),
        Route("/alarms/{id}", page(alarm), methods=["GET"]),
        Route("/ledger", page(ledger), methods=["GET"]),
        Route("/runs", page(run_list), methods=["GET"]),
        Route("/runs.csv", csv(lambda request: runs_pages.runs_csv(project, request.query_params), "runs"), methods=["GET"]),
        Route("/runs/rows", page(run_rows), methods=["GET"]),
        Route("/runs/compare", page(compare), methods=["GET"]),
        Route("/runs/compare.csv", csv(lambda request: runs_pages.compare_csv(project, request.query_params), "compare"), methods=["GET"]),
        Route("/runs/{id}", page(run), methods=["GET"]),
        Route("/runs/{id}/values.csv", csv(lambda request: runs_pages.run_csv(project, request.path_params["id"]), "run"), methods=["GET"]),
        Route("/data", page(lambda _: pages.data(data_pages.tables_view(project))), methods=["GET"]),
        Route("/data/{table}", page(table), methods=["GET"]),
        Route("/data/{table}/versions/{number}", page(version), methods=["GET"]),
        Route("/data/{table}/diff", page(diff), methods=["GET"]),
        Route("/data/{table}/quarantine", page(in_quarantine), methods=["GET"]),
        Route("/data/{table}/quarantine.csv", csv(lambda request: data_pages.quarantine_csv(project, request.path_params["table"], request.query_params), "quarantine"), methods=["GET"]),
        Route("/lineage/{subject}", page(lambda request: pages.lineage(data_pages.lineage_view(project, request.path_params["subject"]))), methods=["GET"]),
        Route("/jobs", page(job_list), methods=["GET"]),
        Route("/jobs/{id}", page(job), methods=["GET"]),
        Route("/static/{name}", static, methods=["GET"]),
        Route("/ui/{do}/{subject}", page(ask), methods=["GET"]),
        Route("/ui/{do}/{subject}", do, methods=["POST"]),
    ]


async def _answered(site: Site, work: Callable[[], Awaitable[Response]]) -> Response:
    try:
        response = await work()
    except Exception as error:  # noqa: BLE001 - the last door before the reader: logged whole, told as an id
        code, body = told(error)
        return await _sorry(site, code, body["error"][:1].upper() + body["error"][1:] if code == 500 else body["error"], body["hint"])
    response.headers.setdefault("cache-control", "no-store")
    return response


async def _sorry(site: Site, code: int, what: str, hint: str) -> Response:
    try:
        frame = await run_in_threadpool(_frame, site)
    except PalanError:
        frame = None  # the store itself is the trouble: the page stands alone
    return HTMLResponse(pages.error(code, what, hint, frame), code)


def _frame(site: Site) -> views.Frame:
    return cast(views.Frame, status.frame(site.project))


# --- views that belong to no other flow ----------------------------------------------------------------------------


def ledger_view(site: Site, page: str, subject: str) -> views.LedgerPage:
    """Return one page of the ledger, newest first, with the chain walked.

    Raises:
        Invalid: the page is no number.
    """
    wanted = whole(page, "page", 1, 10**9)
    entries = site.project.store.records.find(Entry, order="-seq")
    found = log(site.project, subject, limit=max(1, len(entries)), verify=True)
    chosen = list(reversed(found["entries"]))
    count = max(1, -(-len(chosen) // PAGE_ENTRIES))
    number = min(wanted, count)
    return {
        "frame": _frame(site),
        "entries": [cast(views.EntryLine, each) for each in chosen[(number - 1) * PAGE_ENTRIES : number * PAGE_ENTRIES]],
        "breaks": found["breaks"],
        "verified": _frame(site)["now"],
        "head": found["head"],
        "subject": subject,
        "subjects": sorted({each.subject.partition("@")[0].partition(" ")[0] for each in entries}),
        "page": number,
        "pages": count,
    }


def jobs_view(site: Site) -> views.JobsPage:
    """Return the newest jobs, and a command that submits one."""
    names = [name for name, serving in site.deciders.models.items() if serving.inputs.schema.shape == "instance"]
    name = names[0] if names else ""
    command = f'curl -X POST {site.url}/v1/models/{name}/jobs -d @request.json   # {{"instance": {{...}}}}' if name else ""
    return {"frame": _frame(site), "jobs": [cast(views.JobLine, each) for each in jobs.jobs(site.project)], "command": command}


def job_view(site: Site, id: str) -> views.JobPage:
    """Return one job with its incumbents.

    Raises:
        NotFound: no such job.
    """
    found = jobs.job(site.project, id)
    result: Mapping[str, Any] = found["result"]
    running = found["fate"] in ("queued", "running")
    return {
        "frame": _frame(site),
        "job": cast(views.JobLine, {name: found[name] for name in views.JobLine.__required_keys__}),
        "started": found["started"],
        "ended": found["ended"],
        "sense": result.get("sense", ""),
        "unit": "",
        "time_limit": found["time_limit"],
        "incumbents": found["incumbents"],
        "kpis": dict(result.get("kpis", {})),
        "violations": result.get("violations", []),
        "degraded": str(result.get("evidence", {}).get("degraded", "")),
        "reason": found["reason"],
        "decision": found["decision"],
        "plan": found["outputs"],
        "command": f"curl {site.url}/v1/jobs/{id}",
        "actions": [{"do": "stop", "subject": id, "label": "Stop and keep the best"}] if running else [],
    }


def confirm_view(site: Site, do: str, subject: str) -> views.Confirm:
    """Return the question before a button does what it says.

    Raises:
        NotFound: there is no such thing to do, or no such subject.
        Conflict: it was done already, or cannot be done any more.
    """
    project = site.project
    base: dict[str, Any] = {"frame": _frame(site), "do": do, "subject": subject, "csrf": site.csrf, "danger": False}
    if do in ("approve", "reject"):
        remedy = _waiting(site, subject)
        alarm = project.store.records.get(Alarm, remedy.alarm)
        about = alarm.what if alarm else remedy.alarm
        if do == "approve":
            effects = [f"{remedy.choice}: {remedy.reason}", "It goes through the gates first, and is rolled back if it does not help."]
            own: dict[str, Any] = {"question": f"Let palan do this for {remedy.model}: {remedy.choice}?", "label": "Approve"}
        else:
            effects = [f"{remedy.choice} is not done.", f"The alarm stays in the ledger: {about}"]
            own = {"question": f"Reject the remedy for {remedy.model}?", "label": "Reject", "danger": True}
        return cast(views.Confirm, {**base, **own, "effects": effects, "command": f"palan react {remedy.model} --{do}", "back": f"/alarms/{quote(remedy.alarm)}"})
    if do == "rollback":
        project.model(subject)
        now = project.store.records.get(Release, subject)
        if now is None:
            raise NotFound(f"{subject} is not released", f"palan release {subject}")
        if now.canary:
            question, effects = f"Take the canary {now.canary.version} off?", [f"{now.champion.version} answers every request of {subject} again."]
        elif now.previous:
            question, effects = f"Roll {subject} back to {now.previous}?", [f"{now.previous} answers every request instead of {now.champion.version}, within a second.", "No request fails meanwhile."]
        else:
            raise Conflict(f"{subject} has nothing to roll back to", f"palan log {subject}")
        return cast(views.Confirm, {**base, "question": question, "effects": effects, "label": "Roll back", "danger": True, "command": f"palan release {subject} --roll-back", "back": f"/models/{quote(subject)}"})
    if do == "stop":
        found = jobs.job(project, subject)
        if found["fate"] not in ("queued", "running"):
            raise Conflict(f"job {subject} is {found['fate']} already", f"/jobs/{subject}")
        command = f"curl -X POST {site.url}/v1/jobs/{subject}/stop"
        return cast(views.Confirm, {**base, "question": f"Stop this solve of {found['model']}?", "effects": ["The best answer so far is kept, checked and logged."], "label": "Stop", "danger": True, "command": command, "back": f"/jobs/{quote(subject)}"})
    raise NotFound(f'nothing is called "{do}" here', "approve, reject, rollback or stop")


def _waiting(site: Site, id: str) -> Remedy:
    remedy = site.project.store.records.get(Remedy, id)
    if remedy is None:
        raise NotFound(f'no remedy "{id}"', "palan status")
    if remedy.status != "proposed":
        raise Conflict(f"this remedy is {remedy.status} already", f"palan log {remedy.model}")
    return remedy


def _do(site: Site, do: str, subject: str, form: bytes) -> Response:
    """Do what a form asks, if it is one of this server's own forms.

    Raises:
        Conflict: the form is older than this server process, or another site made it.
    """
    fields = parse_qs(form.decode("utf-8", "replace"), keep_blank_values=True)
    csrf = fields.get("csrf", [""])[0]
    reason = fields.get("reason", [""])[0].strip()[:300]
    if not hmac.compare_digest(csrf.encode(), site.csrf.encode()):
        raise Conflict("this form is out of date", "go back, load the page again, and repeat it")
    question = confirm_view(site, do, subject)  # everything that is refused when asked is refused when done
    acts: Mapping[str, Callable[[], object]] = {
        "approve": lambda: react(site.project, _waiting(site, subject).model, approve=True, reason=reason),
        "reject": lambda: react(site.project, _waiting(site, subject).model, reject=True, reason=reason),
        "rollback": partial(release, site.project, subject, roll_back=True, reason=reason),
        "stop": partial(jobs.stop, site.project, subject, reason),
    }
    acts[do]()
    site.deciders.refresh()
    return RedirectResponse(question["back"], 303)
