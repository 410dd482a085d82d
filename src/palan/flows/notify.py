"""Tell an address outside of each page that opens and closes: once, whatever dies, and again and again while nobody answers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import partial

from palan.core import canonical, digest_of, stamp
from palan.drift.nouns import Alarm
from palan.errors import Busy, PalanError
from palan.flows.journal import MOST, Journal
from palan.flows.project import Project
from palan.runs.run import Attempt, Step

OLDEST = timedelta(days=28)
"""How long ago a page may have opened that is still told of: an address that was just declared hears no history."""

PAUSE = timedelta(minutes=1)
"""How long a try waits after the first that failed; each next one waits four times as long."""

SECONDS = 10.0
"""How long the address may take to answer."""

KEY = "Idempotency-Key"


def notify(project: Project, journal: Journal) -> Iterator[str]:
    """Tell of what is new, one sentence for each; what failed is told again at a later tick, and given up after MOST tries.

    Raises:
        PalanError: the address did not take it.
    """
    now, records = project.clock(), project.store.records
    for alarm in records.find(Alarm, order="time", since=now - OLDEST, lane="page"):
        told = False  # of its end only whoever was told of its beginning
        for event in ("opened", "closed")[: 2 if alarm.status == "closed" else 1]:
            if event == "closed" and not told:
                break
            name, parts = f"notify {event} {alarm.id}", {"alarm": alarm.id, "event": event}
            key = digest_of([name, parts])
            told = records.get(Step, key) is not None
            attempt = records.get(Attempt, key)
            if told or (attempt and (attempt.count >= MOST or now < attempt.time + PAUSE * 4 ** max(attempt.count - 1, 0))):
                continue
            url = address(project)
            journal.effect(name, parts, partial(_post, url, _message(project, alarm, event)), partial(_ask, url))
            told = True
            yield f"told {event} of {alarm.model}"


def _message(project: Project, alarm: Alarm, event: str) -> dict[str, str]:
    """Return what is sent: `text` is all that a chat needs, the rest is for programs."""
    text = f"{project.config.name}: {alarm.model}: {alarm.what}" if event == "opened" else f"{project.config.name}: {alarm.model}: the page is closed: {alarm.what}"
    return {"text": text, "event": event, "project": project.config.name, "model": alarm.model, "alarm": alarm.id, "what": alarm.what, "seen": stamp(alarm.time), "next": f"palan why {alarm.id}"}


def address(project: Project) -> str:
    """Return the address that `[project] notify` names, or the variable that it is kept in.

    Raises:
        PalanError: no such variable, or what is in it is no address.
    """
    given = project.config.notify
    url = os.environ.get(given[1:], "") if given.startswith("$") else given
    if not url.startswith(("http://", "https://")):
        raise PalanError(f"[project] notify = {given}, and that variable holds no address", f"export {given[1:]}=https://...")
    return url


def _post(url: str, message: Mapping[str, str], key: str) -> int:
    status, _ = _request(url, "POST", key, canonical(message))
    if not 200 <= status < 300:
        raise Busy(f"[project] notify: the address answered {status}", "see why there; palan tick tries again")
    return status


def _ask(url: str, key: str) -> int | None:
    """Ask whether the address has taken this key: only one that names the key in its answer knows what was asked."""
    status, echoed = _request(url, "GET", key)
    return status if status == 200 and echoed == key else None


def _request(url: str, method: str, key: str, body: bytes | None = None) -> tuple[int, str]:
    """Send one request, follow nothing, and return the status and the key that the answer names."""
    import http.client
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=SECONDS)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(method, path, body, {KEY: key, "User-Agent": "palan", **({"Content-Type": "application/json"} if body else {})})
        answer = connection.getresponse()
        answer.read(1 << 16)
        return answer.status, answer.headers.get(KEY, "")
    except (OSError, http.client.HTTPException, ValueError) as error:  # not the address: it may hold a secret
        raise Busy(f"[project] notify: {parts.hostname} does not answer: {error}", "see whether it is there; palan tick tries again") from error
    finally:
        connection.close()
