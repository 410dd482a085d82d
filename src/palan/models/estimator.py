"""Estimators: a class with fit(data) and decide(rows), or any object with predict or predict_proba as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from palan.errors import ModelFailed, PalanError
from palan.models.contract import Violation
from palan.models.user import UserModel, bare, frame_of, guarded, outcomes_of

SURE = 1e-15  # no probability is taken as smaller: one impossible thing that happens must not cost infinity


class Estimator(UserModel):
    """Answers rows by what it has learnt.

    `inputs` and `outcome` are only needed by objects in scikit-learn's style, whose fit takes X and y.
    """

    kind = "estimator"

    def __init__(self, model: Any, *, inputs: Sequence[str] = (), outcome: str = "") -> None:
        super().__init__(model)
        self.inputs = list(inputs)
        self.outcome = outcome

    def fit(self, data: Any) -> None:
        if callable(getattr(self.model, "decide", None)) or not callable(getattr(self.model, "fit", None)):
            super().fit(data)
            return
        if not self.outcome:
            raise PalanError(f"{self.name}.fit(X, y) needs to know which column is y", "set outcome and inputs of the model in palan.toml")
        columns = self.inputs or [name for name in data.columns if name != self.outcome]
        with guarded(self.model, "fit"):
            self.model.fit(data.select(columns), data[self.outcome].to_numpy())

    def decide(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the answers, a row each: the column `output`, or the columns that the model names.

        A classifier in scikit-learn's style answers the probability of its second class, or one column
        `output_<class>` for each of three and more.

        Raises:
            ModelFailed: its code raised, or it did not give one answer for each row.
        """
        own = bare(self.model)
        if own is not None:
            with guarded(self.model, "decide"):
                answer = own(rows)
            return frame_of(answer, rows.height, self.model, "decide")
        if callable(getattr(self.model, "decide", None)):
            return frame_of(self.call("decide", rows), rows.height, self.model, "decide")
        return self._predict(rows)

    def _predict(self, rows: pl.DataFrame) -> pl.DataFrame:
        verb = "predict_proba" if callable(getattr(self.model, "predict_proba", None)) else "predict"
        named = getattr(self.model, "feature_names_in_", None)
        # an estimator that was fitted on bare arrays knows its columns by position only
        features = rows.to_numpy() if named is None else rows.select([str(name) for name in named]) if set(named) <= set(rows.columns) else None
        if features is None:
            missing = [str(name) for name in named if name not in rows.columns] if named is not None else []
            raise ModelFailed(f"{self.name} was fitted on a column {missing[0]!r} that these rows do not have", "send it, or build the model again")
        if rows.is_empty():
            features = features[:0]
            if verb == "predict":
                return pl.DataFrame({"output": pl.Series("output", [], dtype=pl.Float64)})
            classes = list(getattr(self.model, "classes_", [0, 1]))
            names = ["output"] if len(classes) == 2 else [f"output_{c}" for c in classes]
            return pl.DataFrame({name: pl.Series(name, [], dtype=pl.Float64) for name in names})
        answer = np.asarray(self.call(verb, features))
        if verb == "predict" or answer.ndim == 1:
            return frame_of(answer, rows.height, self.model, verb)
        classes = list(getattr(self.model, "classes_", range(answer.shape[1])))
        if len(classes) == 2:
            return frame_of(answer[:, 1], rows.height, self.model, verb)
        return pl.DataFrame({f"output_{c}": answer[:, i] for i, c in enumerate(classes)})

    @property
    def verbs(self) -> list[str]:
        if self._is_plain_palan():
            return super().verbs
        return [verb for verb in ("fit",) if callable(getattr(self.model, verb, None))] + ["score"]

    def _is_plain_palan(self) -> bool:
        return bare(self.model) is not None or callable(getattr(self.model, "decide", None))

    def score(self, outputs: Any, outcomes: Any) -> list[float]:
        """Return the loss of each decision: by the model's own `score`, or for an object in scikit-learn's style the log
        loss (nats) of its probabilities and the squared error of anything else.
        """
        if self._is_plain_palan():
            return super().score(outputs, outcomes)
        told = outcomes_of(outcomes)
        if not callable(getattr(self.model, "predict_proba", None)):
            return [float(loss) for loss in (outputs["output"].to_numpy() - told.astype(float)) ** 2]
        classes = list(self.model.classes_)
        if len(classes) == 2:
            second = outputs["output"].to_numpy()
            given = np.where(told == classes[1], second, 1.0 - second)
        else:
            place = {label: i for i, label in enumerate(classes)}
            table = outputs.to_numpy()
            given = np.array([table[row, place[label]] if label in place else 0.0 for row, label in enumerate(told)])
        return [float(loss) for loss in -np.log(np.clip(given, SURE, 1.0))]

    def check(self, input: Any, output: Any) -> list[Violation]:
        """Return the model's own violations, and each answer that is null, NaN or infinite."""
        return not_finite(output) + super().check(input, output)


def not_finite(output: pl.DataFrame) -> list[Violation]:
    """Return a violation for each column of answers that holds nulls, NaN or infinities, with the first row of them."""
    found = []
    for column in output.get_columns():
        broken = column.is_null()
        if column.dtype.is_float():
            broken = broken | ~column.is_finite().fill_null(False)
        if broken.any():
            count = int(broken.sum())
            found.append(Violation("every answer is a finite value", f"{column.name}[{broken.arg_max()}]", float(count), f"{count} of {output.height} are not"))
    return found
