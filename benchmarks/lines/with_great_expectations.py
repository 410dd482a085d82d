"""The job with Great Expectations: verify each new file of feed/, append the rows that hold, keep the others with their reasons."""

import json
import sys
from pathlib import Path

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd

ROOT = Path(sys.argv[1])
TABLE, QUARANTINE, SEEN = ROOT / "trips.parquet", ROOT / "quarantine", ROOT / "seen.json"
NUMBERS = ["id", "plane", "dep", "arr", "dist", "temp", "wind", "seats"]
WHOLE = ["id", "plane", "seats"]

context = gx.get_context(mode="file", project_root_dir=ROOT)
context.variables.progress_bars = {"globally": False, "metric_calculations": False}
if "trips" not in {definition.name for definition in context.validation_definitions.all()}:
    whole = context.data_sources.add_pandas("trips").add_dataframe_asset("trips").add_batch_definition_whole_dataframe("file")
    suite = context.suites.add(gx.ExpectationSuite("trips"))
    for name in ("id", "at", "code", "carrier", "plane", "dep", "arr", "dist", "wind", "seats", "note"):
        suite.add_expectation(gxe.ExpectColumnValuesToNotBeNull(column=name))
    for name in NUMBERS:
        suite.add_expectation(gxe.ExpectColumnValuesToMatchRegex(column=f"raw_{name}", regex=r"^-?\d+$" if name in WHOLE else r"^-?\d+(\.\d+)?$"))
    suite.add_expectation(gxe.ExpectColumnValuesToMatchRegex(column="raw_at", regex=r"^\d{4}-\d\d-\d\d"))
    suite.add_expectation(gxe.ExpectColumnValuesToBeUnique(column="id"))
    suite.add_expectation(gxe.ExpectColumnValuesToMatchRegex(column="code", regex="^[A-Z0-9]{6}$"))
    suite.add_expectation(gxe.ExpectColumnValuesToBeInSet(column="carrier", value_set=["AA", "UA", "DL", "WN", "B6", "EV"]))
    for name, low, high in (("plane", 0, 4999), ("dist", 0, 6000), ("temp", -100, 150), ("wind", 0, None), ("seats", 1, 900)):
        suite.add_expectation(gxe.ExpectColumnValuesToBeBetween(column=name, min_value=low, max_value=high))
    suite.add_expectation(gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="arr", column_B="earliest", or_equal=True, ignore_row_if="either_value_is_missing"))
    context.validation_definitions.add(gx.ValidationDefinition(name="trips", data=whole, suite=suite))
definition = context.validation_definitions.get("trips")


def read(path):
    """Return the rows as text, and in their types: an expectation about a number asks for a column of numbers."""
    raw = pd.read_csv(path, dtype=str)
    typed = raw.copy()
    for name in NUMBERS:
        typed[name], typed[f"raw_{name}"] = pd.to_numeric(raw[name], errors="coerce"), raw[name]
    typed["at"], typed["raw_at"] = pd.to_datetime(raw["at"], errors="coerce", utc=True), raw["at"]
    typed["earliest"] = typed["dep"] - 400
    return raw, typed


def verify(path):
    raw, typed = read(path)
    told = definition.run(batch_parameters={"dataframe": typed}, result_format={"result_format": "COMPLETE"})
    reasons = {}
    for result in told.results:
        for row in result.result.get("unexpected_index_list") or []:
            reasons.setdefault(row, []).append(f"{result.expectation_config.type} {result.expectation_config.kwargs}")
    bad = raw.loc[sorted(reasons)].assign(line=[row + 2 for row in sorted(reasons)], reasons=[reasons[row] for row in sorted(reasons)], file=path.name)
    return typed.drop(index=list(reasons))[list(raw.columns)], bad


seen = json.loads(SEEN.read_text()) if SEEN.exists() else {}
QUARANTINE.mkdir(exist_ok=True)
for path in sorted((ROOT / "feed").glob("*.csv")):
    if seen.get(path.name) == path.stat().st_mtime_ns:
        continue
    good, bad = verify(path)
    table = pd.concat([pd.read_parquet(TABLE), good]) if TABLE.exists() else good
    table.drop_duplicates("id", keep="last").to_parquet(TABLE.with_suffix(".new"))
    bad.to_parquet(QUARANTINE / f"{path.stem}.parquet")
    TABLE.with_suffix(".new").replace(TABLE)
    seen[path.name] = path.stat().st_mtime_ns
    SEEN.write_text(json.dumps(seen))
    print(f"{path.name}: {len(good)} good, {len(bad)} in quarantine")
