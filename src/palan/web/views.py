"""What each page is given: plain dicts, exactly the ones that `palan status --json` and its kin print.

Every time is ISO 8601 text in UTC (`core.stamp`). A number that is not known is None, never 0 or NaN. Texts are plain:
the templates escape them. Lists may be empty: each page then names the command that fills them. A flow builds these
dicts without importing this file (the layers point the other way); `tests/test_web_pages.py` checks both ends.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

Verdict = Literal["right", "attention", "wrong", "learning", "not asked", "not released"]
"""right: nothing to do. attention: a remedy or a canary waits for a person. wrong: an open page (harm or fault), or it does
not answer. learning: too little history to judge. not asked: nobody asks it, or not yet. not released: no champion yet.
A digest makes no verdict: it is ranked news, and stands as a note."""

Do = Literal["approve", "reject", "rollback", "stop"]
"""What a person may do from a page: `/ui/{do}/{subject}`. GET asks (see `Confirm`), POST does.
The subject of approve and reject is a remedy's id, of rollback a model's name, of stop a job's id."""


class Frame(TypedDict):
    """What stands around every page."""

    project: str
    now: str  # the project's clock
    simulated: bool  # the clock is a replay's, not the wall's
    ledger_ok: bool | None  # None: the chain was not verified for this page
    ledger_entries: int
    open_alarms: int  # pages: a digest asks for nothing


class Action(TypedDict):
    """A button: it leads to the page that asks for confirmation."""

    do: Do
    subject: str
    label: str  # "Approve", "Roll back to delay@2"


class Step(TypedDict):
    """What to do next, why, and the command to type."""

    text: str  # "Put dewp and temp back to °F from 2013-09-01"
    reason: str  # "it wins 0.021 log loss a decision (0.014 to 0.028), nothing else is surely above 0"
    command: str  # "palan react delay --approve"
    actions: list[Action]  # [] when there is nothing to click


class Done(TypedDict):
    """What happened last."""

    time: str
    text: str  # "released delay@4 as a canary of 20%"
    actor: str


class Series(TypedDict):
    """One value a day (or a window), oldest first. `values` has the length of `times`; None where nothing is known."""

    times: list[str]
    values: list[float | None]


class Mark(TypedDict):
    """A moment on a chart."""

    time: str
    kind: Literal["release", "canary", "roll back", "repair", "alarm", "fault"]
    label: str  # short: "delay@4", "°C"


class Loss(TypedDict):
    """The realised loss over time with what is still accepted."""

    times: list[str]
    values: list[float | None]
    low: NotRequired[list[float | None]]  # an interval around each value, where there is one
    high: NotRequired[list[float | None]]
    threshold: float | None  # above it the watch pages; None while learning
    usual: float | None  # the median of what is normal; None while learning
    unit: str  # "log loss", "minutes"
    marks: list[Mark]


# -- home: GET / ---------------------------------------------------------------------------------------------------------


class Share(TypedDict):
    """One arm of a release."""

    version: str  # "delay@4"
    role: str  # champion | canary | shadow
    share: float  # 0..1
    until: str | None  # when a canary is due to be judged


class ModelLine(TypedDict):
    """One model of the first screen."""

    name: str
    kind: str
    verdict: Verdict
    why: str  # one sentence
    champion: str | None  # "delay@3"
    champion_since: str | None
    canary: Share | None
    decisions: int  # answered in the last window
    window: str  # "7d"
    degraded: int  # of these, answered by a fallback
    violations: int  # of these, with a violation
    traffic: Series  # decisions a day
    loss: Loss  # per day or window; empty lists when no outcome is known
    alarm: str | None  # id of the open alarm that the verdict is about
    notes: int  # digests that still tell something
    last: Done | None
    next: Step | None


class DataLine(TypedDict):
    """One data table of the first screen."""

    name: str
    version: int | None  # None: nothing was ingested yet
    rows: int
    added: int  # rows that the last delivery added
    time: str | None  # of the last delivery
    quarantined: int  # rows in open quarantine
    verdict: Literal["right", "attention", "wrong", "empty"]  # wrong: the last delivery could not be taken in
    why: str  # "all 2,876 rows hold", "34 rows are in quarantine, because dewp is above temp + 1"
    command: str  # the next thing to type, "" when there is none


class DeadStep(TypedDict):
    """A step that is given up: why, and the command that lets it be tried again."""

    step: str
    why: str
    attempts: int
    command: str


class RegisteredLine(TypedDict):
    """A model that an MLflow client registered: palan shows it, and neither judges nor serves it."""

    name: str
    newest: str | None  # "fraud@3", None when it has no version
    aliases: dict[str, str]  # alias -> "fraud@2"
    updated: str


class Home(TypedDict):
    """GET / and `palan status --json`."""

    frame: Frame
    models: list[ModelLine]
    registered: list[RegisteredLine]  # those that changed last
    data: list[DataLine]
    ledger: list[EntryLine]  # the last few entries, newest first
    dead: list[DeadStep]  # what failed so often that it is not tried any more
    command: str  # what fills an empty project: "palan init"


# -- one model: GET /models/{name} -----------------------------------------------------------------------------------------


class GateLine(TypedDict):
    """One gate's finding on a version."""

    gate: str  # "champion"
    verdict: Literal["pass", "fail", "cannot tell"]
    text: str
    against: str  # "delay@3", "" when it needs no other version
    figures: dict[str, Any]


class VersionLine(TypedDict):
    """One version of a model, newest first."""

    ref: str  # "delay@4"
    number: int
    id: str  # digest of the manifest
    time: str
    role: str  # champion | canary | shadow | previous | "" (built, not serving)
    data: str  # "departures@5", "" when it needs none
    params: dict[str, Any]
    metrics: dict[str, float]
    reason: str  # why it was built
    gates: list[GateLine]


class RegisteredVersion(TypedDict):
    """A version that an MLflow client registered, newest first."""

    ref: str  # "fraud@3"
    number: int
    time: str
    aliases: list[str]
    stage: str  # "Production", "" when it is in none
    run: str  # id of the run that it came from, ""
    source: str  # where its files lie
    description: str


class RegisteredModel(RegisteredLine):
    """A registered model with its newest versions."""

    description: str
    tags: dict[str, str]
    versions: list[RegisteredVersion]
    next: str  # how palan gets a model of its own under this name


class RegisteredPage(TypedDict):
    """GET /models/{name}, of a model that only MLflow's clients know."""

    frame: Frame
    model: RegisteredModel


class ReleaseLine(TypedDict):
    """One change of the routing, newest first."""

    epoch: int
    time: str
    text: str  # "delay@4 is champion", "canary delay@4 takes 20%", "repair of temp", "end of repair of temp"
    reason: str
    actor: str


class AlarmLine(TypedDict):
    """One alarm in a list, newest first."""

    id: str
    time: str  # when it was raised
    since: str  # when the change began
    model: str
    lane: Literal["page", "digest"]
    status: Literal["open", "answered", "closed"]
    what: str
    diagnosis: str
    remedy: str  # the chosen one in a few words, "" while none is


class DecisionLine(TypedDict):
    """One decision of the log, newest first."""

    id: str
    time: str
    key: str
    version: str
    arm: str
    status: str
    inputs: dict[str, Any]  # one row; of an instance only its top-level scalars
    outputs: Any
    outcome: Any  # None while it is not known
    degraded: str
    violations: int


class FieldLine(TypedDict):
    """One input of the signature. A nested field's name has its path: "flights[].carrier"."""

    name: str
    type: str  # "float?"
    rule: str  # "-30 to 120", "at least 0", "one of EWR, JFK, LGA", ""
    unit: str


class ModelPage(TypedDict):
    """GET /models/{name}."""

    frame: Frame
    model: ModelLine
    about: str  # first line of the model's docstring, ""
    means: str  # what its loss is: the first line of its score's docstring, ""
    arms: list[Share]
    repairs: list[RepairLine]  # that the release applies to what callers send
    versions: list[VersionLine]
    registered: list[RegisteredVersion]  # what MLflow's clients registered under the same name
    releases: list[ReleaseLine]
    alarms: list[AlarmLine]
    decisions: list[DecisionLine]
    jobs: list[JobLine]  # the last few of an instance model, else []
    signature: list[FieldLine]
    shape: Literal["rows", "instance"]
    curl: str  # a whole command that works now
    infer: str  # the same by the Open Inference Protocol, "" where it does not apply
    actions: list[Action]  # e.g. rollback when there is a previous champion


class RepairLine(TypedDict):
    """A repair that is in force."""

    column: str
    expression: str
    since: str
    until: str | None
    reason: str


# -- an alarm: GET /alarms/{id} ----------------------------------------------------------------------------------------------


class Candidate(TypedDict):
    """One remedy that was tried by replay. Figures are what it gains a decision against doing nothing; `cost` in the same unit."""

    name: str  # "retrain on the last 60 days"
    action: str  # remedies.menu: nothing | roll back | retrain | rework data | ...
    gain: float | None  # None: it could not be tried, `verdict` says why
    low: float | None
    high: float | None
    cost: float
    net_low: float | None
    verdict: str  # one sentence
    chosen: bool


class ColumnShift(TypedDict):
    """How far one column moved, most first."""

    column: str
    distance: float
    threshold: float | None
    text: str  # "99% of its rows; mean 51.6, now 10"
    changed: bool  # by more than chance explains


class AlarmPage(TypedDict):
    """GET /alarms/{id}."""

    frame: Frame
    id: str
    model: str
    time: str
    lane: Literal["page", "digest"]
    status: Literal["open", "answered", "closed"]
    since: str
    until: str
    what: str  # one sentence
    diagnosis: str  # one of drift.nouns.DIAGNOSES
    because: str  # the diagnosis in a sentence or two
    columns: list[ColumnShift]
    evidence: dict[str, Any]  # plain figures; shown as a table
    loss: Loss  # around the alarm
    remedy: str | None  # id of the remedy, None while none was tried
    remedy_status: str  # proposed | approved | released | confirmed | rolled back | rejected | nothing | ""
    candidates: list[Candidate]
    choice: str  # name of the chosen candidate, "" while none is
    reason: str  # why, for a manager
    predicted: float | None  # gain a decision
    realised: float | None
    judged: str  # what was found since it was released, ""
    unit: str  # of all losses: "log loss"
    next: Step | None
    history: list[EntryLine]  # ledger entries about it, oldest first


# -- the ledger: GET /ledger?page=2&subject=delay --------------------------------------------------------------------------------


class EntryLine(TypedDict):
    """One entry of the ledger, as `palan log --json` gives it."""

    seq: int
    time: str
    actor: str
    verb: str  # in the past: "built", "rolled back"
    subject: str
    reason: str
    digest: str
    detail: dict[str, Any]


class BreakLine(TypedDict):
    """Where the chain does not hold."""

    seq: int
    what: str


class LedgerPage(TypedDict):
    """GET /ledger. `verified` is None when the chain was not walked for this page."""

    frame: Frame
    entries: list[EntryLine]  # newest first
    breaks: list[BreakLine]
    verified: str | None  # when the chain was walked
    head: str  # digest of the newest entry, "" when there is none
    subject: str  # the filter, ""
    subjects: list[str]  # what one can filter by
    page: int  # from 1
    pages: int


# -- jobs: GET /jobs, GET /jobs/{id} -------------------------------------------------------------------------------------------


class JobLine(TypedDict):
    """One job, newest first. `fate` is the job's, `status` the solver's."""

    id: str
    model: str
    version: str
    fate: Literal["queued", "running", "done", "failed", "cancelled"]
    status: str
    time: str
    seconds: float | None  # of solving so far
    objective: float | None
    bound: float | None
    gap: float | None  # relative, 0.012 is 1.2 %
    about: str  # the instance in a few words: "EWR 2013-05-01, 342 flights", ""
    priority: int  # a larger one is worked first
    queue: str  # jobs of one name share a limit; "" is none


class JobsPage(TypedDict):
    """GET /jobs."""

    frame: Frame
    jobs: list[JobLine]
    command: str  # a command that submits one, for the empty state


class IncumbentLine(TypedDict):
    """A best-so-far answer."""

    seconds: float
    objective: float | None
    bound: float | None


class ViolationLine(TypedDict):
    """Something that must hold and does not."""

    rule: str
    where: str
    amount: float
    message: str


class JobPage(TypedDict):
    """GET /jobs/{id}."""

    frame: Frame
    job: JobLine
    started: str | None
    ended: str | None
    sense: Literal["minimize", "maximize", ""]
    unit: str  # of the objective, ""
    time_limit: float | None
    incumbents: list[IncumbentLine]
    kpis: dict[str, float]
    violations: list[ViolationLine]
    degraded: str  # why a fallback answered, ""
    reason: str  # why it failed or was stopped, ""
    decision: str  # id in the log, ""
    plan: Any  # the output, shown as text and cut when long; None while there is none
    command: str  # how to fetch it: "curl ...", ""
    actions: list[Action]  # stop, while it runs


# -- runs: GET /runs, GET /runs/{id}, GET /runs/compare ----------------------------------------------------------------------------


class RunLine(TypedDict):
    """One run in a list; `values` are those of the page's columns, in their order."""

    run: str
    name: str
    experiment: str
    status: str  # running | done | failed | killed
    started: str
    values: list[float | str | None]


class RunColumn(TypedDict):
    """A column of a list: "metrics.loss". `order` is the address that orders by it, `direction` how it is ordered now."""

    name: str
    title: str
    order: str
    direction: Literal["", "up", "down"]


class Choice(TypedDict):
    """A box to tick."""

    value: str
    label: str
    chosen: bool


class RunsPage(TypedDict):
    """GET /runs. Whatever is chosen stands in the address."""

    frame: Frame
    runs: list[RunLine]
    columns: list[RunColumn]
    choices: list[Choice]  # the columns that one may choose
    q: str
    order: str  # keys, separated by commas
    flow: str
    flows: list[str]
    wrong: str  # what is wrong with the search, marked at its character, ""
    reading: bool  # more was logged than is read
    next: str  # addresses, "" where there is none
    first: str
    compare: str
    csv: str
    json: str
    poll: str  # where fresh rows of running runs come from


class Drawing(TypedDict):
    """A chart: `svg` is what is seen without JavaScript, `source` where its points come from."""

    metric: str
    svg: str
    source: str
    names: list[str]  # of its lines, in the order of their colours; [] for a single one


class RunPage(TypedDict):
    """GET /runs/{id}: `run` is what `palan runs show --json` prints."""

    frame: Frame
    run: dict[str, Any]
    drawings: list[Drawing]
    more: list[str]  # metrics whose curve is not drawn: ?metric= asks for it
    csv: str
    json: str
    poll: str  # "" when it has ended


class ComparePage(TypedDict):
    """GET /runs/compare: rows are names, or runs where there are many."""

    frame: Frame
    runs: list[dict[str, Any]]
    sections: list[tuple[str, dict[str, list[Any]]]]  # ("params", name -> a value for each run), only what differs
    left: int  # names that differ and are only in CSV and JSON
    same: dict[str, dict[str, Any]]
    seeds: list[dict[str, Any]]
    drawings: list[Drawing]
    more: list[tuple[str, str]]  # (metric, address that draws it)
    csv: str
    json: str


# -- asking first: GET /ui/{do}/{subject} ----------------------------------------------------------------------------------------


class Confirm(TypedDict):
    """The page between a button and what it does. It posts `csrf` and `reason` to `/ui/{do}/{subject}`."""

    frame: Frame
    do: Do
    subject: str
    question: str  # "Roll delay back to delay@2?"
    effects: list[str]  # what will happen, one sentence each
    label: str  # of the button that does it
    danger: bool  # it takes something away
    command: str  # the same in the shell
    back: str  # path to return to
    csrf: str
