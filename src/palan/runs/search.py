"""The search language: text to a tree that a store can turn into SQL.

    metrics.loss < 0.3 AND (params.model IN ('trees', 'net') OR NOT tags.stage = 'draft') AND solver IS NOT NULL

Words are upper or lower case. A metric is its last value; `min(metrics.loss)` and `max(metrics.loss)` are its extremes.
Parameters compare as numbers with a number, as text with a text. A comparison with something that a run does not have is
false. The filter strings of MLflow's search are a subset: `status = 'FINISHED'` is `status = 'done'`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, NoReturn

import msgspec

from palan.core import unstamp
from palan.errors import PalanError, nearest

Kind = Literal["attribute", "metric", "param", "tag"]
Stat = Literal["last", "min", "max"]

KINDS: dict[str, Kind] = {
    "attribute": "attribute", "attributes": "attribute", "attr": "attribute", "run": "attribute",
    "metric": "metric", "metrics": "metric",
    "param": "param", "params": "param", "parameter": "param", "parameters": "param",
    "tag": "tag", "tags": "tag",
}  # fmt: skip

ATTRIBUTES = {
    "id": "id", "run_id": "id", "name": "name", "run_name": "name", "Run name": "name", "run name": "name",
    "status": "status", "flow": "flow", "subject": "subject", "experiment": "subject", "parent": "parent",
    "time": "time", "start_time": "time", "created": "time", "Created": "time", "ended": "ended", "end_time": "ended",
    "code": "code", "reason": "reason", "deleted": "deleted",
}  # fmt: skip
"""What a run has by itself, with the other words for it, and the column that holds it."""

TIMES = ("time", "ended", "deleted")

STATUSES = {"RUNNING": "running", "SCHEDULED": "running", "FINISHED": "done", "FAILED": "failed", "KILLED": "killed"}
"""What MLflow calls the status of a run, and palan's word for it."""

MARK = "→"
"""Stands before the character that an error is about."""

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
    | (?P<text>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*"|`[^`]*`)
    | (?P<op><=|>=|!=|<>|==|=|<|>)
    | (?P<sign>[(),.])
    | (?P<word>[^\W\d][\w/-]*|[\w/-]+)
    )""",
    re.VERBOSE,
)
_WORDS = ("and", "or", "not", "in", "like", "ilike", "is", "null", "asc", "desc", "true", "false")


class Field(msgspec.Struct, frozen=True):
    """What is compared or ordered by: `key` is a column of the run for an attribute."""

    kind: Kind
    key: str
    stat: Stat = "last"


class Compare(msgspec.Struct, frozen=True):
    """One comparison. `op` is one of = != < <= > >= like ilike in null; of `null` the values are empty."""

    field: Field
    op: str
    values: tuple[str | float | datetime, ...] = ()


class Not(msgspec.Struct, frozen=True):
    item: Condition


class Both(msgspec.Struct, frozen=True):
    """All of them (`every`), or any of them."""

    items: tuple[Condition, ...]
    every: bool


Condition = Compare | Not | Both


class Order(msgspec.Struct, frozen=True):
    """One key to order by. What lacks it comes last, whatever the direction."""

    field: Field
    descending: bool = False
    as_text: bool = False
    """Parameters that are numbers are ordered as text too, as MLflow does; else as numbers, before the others."""


def parse(text: str, attributes: Mapping[str, str] = ATTRIBUTES) -> Condition | None:
    """Return the tree of a search, or None for an empty one.

    Args:
        attributes: what the things that are searched have by themselves, if they are no runs.

    Raises:
        PalanError: the text is not a search; its second line marks the character.
    """
    reading = _Reading(text, attributes)
    if reading.token is None:
        return None
    found = reading.any_of()
    if reading.token is not None:
        reading.fail("AND, OR or the end is expected here")
    return found


def parse_order(keys: Sequence[str], attributes: Mapping[str, str] = ATTRIBUTES) -> list[Order]:
    """Return the keys to order by, each "metrics.loss", "params.lr desc" or "start_time ASC".

    Raises:
        PalanError: a key is not one; its second line marks the character.
    """
    found = []
    for text in keys:
        reading = _Reading(text, attributes)
        field = reading.field()
        direction = reading.take_word("asc", "desc")
        if reading.token is not None:
            reading.fail("ASC, DESC or the end is expected here")
        found.append(Order(field, direction == "desc"))
    return found


class _Token(msgspec.Struct, frozen=True):
    kind: str
    text: str
    at: int


class _Reading:
    """A text, read from left to right, one token ahead."""

    def __init__(self, text: str, attributes: Mapping[str, str]) -> None:
        self.text = text
        self.attributes = attributes
        self.tokens = self._tokens()
        self.place = 0

    def _tokens(self) -> list[_Token]:
        found = []
        at = 0
        while self.text[at:].strip():
            match = _TOKEN.match(self.text, at)
            if match is None:
                start = at + len(self.text[at:]) - len(self.text[at:].lstrip())
                quote = self.text[start] in "'\"`"
                self.fail("this quote is not closed" if quote else "this does not belong in a search", start)
            kind = str(match.lastgroup)
            found.append(_Token(kind, match[kind], match.start(kind)))
            at = match.end()
        return found

    @property
    def token(self) -> _Token | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def fail(self, why: str, at: int | None = None, hint: str = "") -> NoReturn:
        if at is None:
            at = self.token.at if self.token else len(self.text)
        shown = self.text.replace("\n", " ")
        raise PalanError(
            f"in the search, at character {at + 1}: {why}\n{shown[max(0, at - 50) : at]}{MARK}{shown[at : at + 30]}",
            hint or "metrics.loss < 0.3 AND params.model = 'trees'",
        )

    def take_word(self, *words: str) -> str:
        token = self.token
        if token is not None and token.kind == "word" and token.text.lower() in words:
            self.place += 1
            return token.text.lower()
        return ""

    def take(self, kind: str, *texts: str) -> _Token | None:
        token = self.token
        if token is not None and token.kind == kind and (not texts or token.text in texts):
            self.place += 1
            return token
        return None

    def any_of(self) -> Condition:
        items = [self.all_of()]
        while self.take_word("or"):
            items.append(self.all_of())
        return items[0] if len(items) == 1 else Both(tuple(items), every=False)

    def all_of(self) -> Condition:
        items = [self.one()]
        while self.take_word("and"):
            items.append(self.one())
        return items[0] if len(items) == 1 else Both(tuple(items), every=True)

    def one(self) -> Condition:
        if self.take_word("not"):
            return Not(self.one())
        if self.take("sign", "("):
            found = self.any_of()
            if not self.take("sign", ")"):
                self.fail("a ) is missing")
            return found
        return self.compare()

    def compare(self) -> Condition:
        field = self.field()
        if op := self.take("op"):
            name = {"<>": "!=", "==": "="}.get(op.text, op.text)
            return Compare(field, name, (self.value(field, name),))
        if self.take_word("is"):
            negated = self.take_word("not")
            if not self.take_word("null"):
                self.fail("NULL is expected here")
            return Not(Compare(field, "null")) if negated else Compare(field, "null")
        negated = self.take_word("not")
        op_word = self.take_word("in", "like", "ilike")
        if not op_word:
            self.fail("a comparison is expected here: = != < <= > >= IN LIKE ILIKE IS NULL")
        values = self.list_of(field) if op_word == "in" else (self.pattern(field),)
        found = Compare(field, op_word, values)
        # a run that lacks it is in neither list
        return Both((Not(found), Not(Compare(field, "null"))), every=True) if negated else found

    def list_of(self, field: Field) -> tuple[str | float | datetime, ...]:
        if not self.take("sign", "("):
            self.fail("a list in parentheses is expected here")
        values = [self.value(field, "in")]
        while self.take("sign", ","):
            values.append(self.value(field, "in"))
        if not self.take("sign", ")"):
            self.fail("a , or a ) is expected here")
        return tuple(values)

    def pattern(self, field: Field) -> str:
        if field.kind == "metric":
            self.fail("a metric is a number: LIKE is for text")
        if field.kind == "attribute" and field.key in TIMES:
            self.fail("a time is compared with = != < <= > >=: LIKE is for text")
        token = self.take("text") or self.take("quoted")
        if token is None:
            self.fail("a text in quotes is expected here, such as 'tree%'")
        return _unquoted(token.text)

    def value(self, field: Field, op: str) -> str | float | datetime:
        token = self.token
        if token is None:
            self.fail("a value is expected here")
        if token.kind == "number":
            self.place += 1
            if field.kind == "attribute" and field.key in TIMES:  # milliseconds, as MLflow has them
                return unstamp("1970-01-01").fromtimestamp(float(token.text) / 1000, unstamp("1970-01-01").tzinfo)
            if field.kind in ("tag", "attribute"):
                return token.text
            return float(token.text)
        if token.kind in ("text", "quoted"):
            self.place += 1
            text = _unquoted(token.text)
            if field == Field("attribute", "status") and self.attributes is ATTRIBUTES and "like" not in op:
                return STATUSES.get(text, text)
            if field.kind == "attribute" and field.key in TIMES:
                try:
                    return unstamp(text)
                except ValueError:
                    self.fail("this is no time", token.at, "write it as '2026-05-01' or '2026-05-01T12:00:00'")
            if field.kind == "metric":
                try:
                    return float(text)
                except ValueError:
                    self.fail("a metric is compared with a number", token.at)
            if field.kind == "param" and op in ("<", "<=", ">", ">="):
                try:
                    return float(text)
                except ValueError:
                    return text
            return text
        if token.kind == "word" and token.text.lower() in ("true", "false") and field.kind != "metric":
            self.place += 1
            return token.text
        self.fail("a number or a text in quotes is expected here")

    def field(self) -> Field:
        token = self.token
        if token is None:
            self.fail("something to compare is expected here, such as metrics.loss")
        following = self.tokens[self.place + 1] if self.place + 1 < len(self.tokens) else None
        if token.kind == "word" and token.text.lower() in ("min", "max", "last") and following is not None and following.text == "(":
            self.place += 2
            inner = self.field()
            if inner.kind != "metric":
                self.fail(f"{token.text} is of a metric", token.at)
            if not self.take("sign", ")"):
                self.fail("a ) is missing")
            stat: Stat = "min" if token.text.lower() == "min" else "max" if token.text.lower() == "max" else "last"
            return Field("metric", inner.key, stat)
        name = self.name()
        if not self.take("sign", "."):
            return self.attribute(name, token)
        kind = KINDS.get(name.lower())
        if kind is None:
            self.fail(f'there is no "{name}" to look in', token.at, nearest(name, ["metrics", "params", "tags", "attributes"]) or "metrics. params. tags. or attributes.")
        at = self.token
        key = self.name()
        while self.take("sign", "."):
            key += "." + self.name()
        return self.attribute(key, at or token) if kind == "attribute" else Field(kind, key)

    def attribute(self, name: str, token: _Token) -> Field:
        column = self.attributes.get(name) or self.attributes.get(name.lower())
        if column is None:
            self.fail(f'a run has no "{name}"', token.at, nearest(name, self.attributes) or f"metrics.{name} or params.{name}, or one of {', '.join(dict.fromkeys(self.attributes.values()))}")
        return Field("attribute", column)

    def name(self) -> str:
        token = self.token
        if token is None or token.kind not in ("word", "quoted", "number") or (token.kind == "word" and token.text.lower() in _WORDS[:8]):
            self.fail("a name is expected here")
        self.place += 1
        return _unquoted(token.text) if token.kind == "quoted" else token.text


def _unquoted(text: str) -> str:
    quote = text[0]
    return text[1:-1].replace(quote * 2, quote) if quote != "`" else text[1:-1]
