"""Rules: a decision table, or plain Python that answers rows without having learnt anything."""

from __future__ import annotations

from typing import Any

import polars as pl

from palan.core import Schema
from palan.errors import PalanError
from palan.models.contract import Violation
from palan.models.table import Table, check_table, decide, unsettled
from palan.models.user import UserModel, bare, frame_of, guarded


class Rules(UserModel):
    """Answers rows by rules that a person wrote."""

    kind = "rules"

    @property
    def name(self) -> str:
        return "the decision table" if isinstance(self.model, Table) else super().name

    @property
    def verbs(self) -> list[str]:
        known = super().verbs
        return known if isinstance(self.model, Table) else [verb for verb in known if verb != "table"]

    def decide(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the answers, a row each. A decision table adds the column `rule`: the number of the rule that fired.

        Raises:
            PalanError: a column that the table needs is missing or of another type.
            ModelFailed: Python rules raised.
        """
        if isinstance(self.model, Table):
            return decide(self.model, rows)
        with guarded(self.model, "decide"):
            own = bare(self.model)
            answer = own(rows) if own is not None else self.model.decide(rows)
        return frame_of(answer, rows.height, self.model, "decide")

    def check(self, input: Any, output: Any) -> list[Violation]:
        """Return the model's own violations; for a table, the rows where no rule fires, or too many."""
        if isinstance(self.model, Table):
            return unsettled(self.model, input)
        return super().check(input, output)

    def table(self, domain: Schema) -> list[dict[str, Any]]:
        """Return the table's gaps, overlaps, shadowed and dead rules over the domain, each with an example.

        Raises:
            PalanError: the rules are Python, so there is no table.
        """
        if not isinstance(self.model, Table):
            raise PalanError(f"{self.name} is Python, not a decision table", "write the rules as a CSV table to have them checked")
        return check_table(self.model, domain)

    def state(self) -> dict[str, bytes]:
        return {} if isinstance(self.model, Table) else super().state()
