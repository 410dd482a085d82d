"""Judge deliveries with another tool, as its documentation says, each rule by what the tool has for it. Run by bench_conformance.py.

Reads {"tool", "cells": [{"rule", "form", "file", ...}]} on standard input; prints for each cell [says, rows]: whether the delivery
passes ("pass", "fail", "no way" where the tool takes no such input or rule, or what it raised) and which rows it returns.
"""

import json
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import polars as pl

warnings.filterwarnings("ignore")
NO_WAY = ("no way", [])
FILES = {"csv": pl.read_csv, "parquet": pl.read_parquet, "ndjson": pl.read_ndjson}


def frames(cell):
    """Return what the tool is given: a frame, a lazy frame, or several in turn."""
    form, path = cell["form"], cell["file"]
    if form == "lazy":
        return [pl.scan_parquet(path)]
    if form == "stream":
        rows = pl.read_parquet(path)
        return [rows[begin : begin + 3] for begin in range(0, max(rows.height, 1), 3)]
    return [FILES.get(form, pl.read_parquet)(path)]


# --- pandera -------------------------------------------------------------------------------------------------------


def pandera(cell):
    import pandera.polars as pa

    column, check = pa.Column, pa.Check
    schemas = {
        "not null": lambda: {"x": column(pl.Float64)},
        "not NaN": lambda: {"x": column(pl.Float64, check(lambda data: data.lazyframe.select(pl.col(data.key).is_not_nan())))},
        "finite": lambda: {"x": column(pl.Float64, check(lambda data: data.lazyframe.select(pl.col(data.key).is_finite())))},
        "range": lambda: {"x": column(pl.Float64, check.in_range(-10, 10), nullable=True)},
        "range from": lambda: {"x": column(pl.Int64, check.ge(0), nullable=True)},
        "values": lambda: {"x": column(pl.String, check.isin(["A", "B"]), nullable=True)},
        "pattern": lambda: {"x": column(pl.String, check.str_matches("^[A-Z]{2}$"), nullable=True)},
        "unique": lambda: {"x": column(pl.Int64, unique=True)},
        "number as text": lambda: {"x": column(pl.Int64, coerce=True)},
        "two columns": lambda: {"x": column(pl.Int64, nullable=True), "y": column(pl.Int64, nullable=True)},
        "rows": dict,
    }
    wide = {
        "two columns": [check(lambda data: data.lazyframe.select(pl.col("y") <= pl.col("x")))],
        "rows": [check(lambda data: data.lazyframe.select(pl.len().is_between(2, 4)))],
    }
    schema = pa.DataFrameSchema({"n": column(pl.Int64), **schemas[cell["rule"]]()}, checks=wide.get(cell["rule"]))
    found, failed = [], False
    for frame in frames(cell):
        try:
            schema.validate(frame, lazy=True)
        except pa.errors.SchemaErrors as error:
            failed = True
            places = error.failure_cases["index"].drop_nulls().cast(pl.Int64).to_list() if "index" in error.failure_cases.columns else []
            numbers = frame["n"].to_list()
            found += [numbers[place] for place in places]
    return ("fail" if failed else "pass", found)


# --- dataframely ---------------------------------------------------------------------------------------------------


def dataframely(cell):
    import dataframely as dy

    columns = {
        "not null": lambda: {"x": dy.Float64()},
        "not NaN": lambda: {"x": dy.Float64()},
        "finite": lambda: {"x": dy.Float64()},
        "range": lambda: {"x": dy.Float64(nullable=True, min=-10, max=10)},
        "range from": lambda: {"x": dy.Int64(nullable=True, min=0)},
        "values": lambda: {"x": dy.String(nullable=True, check=lambda each: each.is_in(["A", "B"]))},
        "pattern": lambda: {"x": dy.String(nullable=True, regex="^[A-Z]{2}$")},
        "unique": lambda: {"x": dy.Int64(unique=True)},
        "number as text": lambda: {"x": dy.Int64()},
        "two columns": lambda: {"x": dy.Int64(nullable=True), "y": dy.Int64(nullable=True), "ordered": dy.rule()(lambda cls: pl.col("y") <= pl.col("x"))},
        "rows": lambda: {"banded": dy.rule()(lambda cls: pl.len().is_between(2, 4))},
    }[cell["rule"]]()
    schema = type("Delivery", (dy.Schema,), {"n": dy.Int64(), "__annotations__": {}, **columns})
    found = []
    for frame in frames(cell):
        result = schema.filter(frame, cast=True)
        if isinstance(frame, pl.LazyFrame):
            result = result.collect_all()
        found += result.failure.invalid()["n"].to_list()
    return ("fail" if found else "pass", found)


# --- Pointblank ----------------------------------------------------------------------------------------------------


def pointblank(cell):
    import pointblank as pb

    steps = {
        "not null": lambda plan: plan.col_vals_not_null("x"),
        "not NaN": lambda plan: plan.col_vals_expr(pl.col("x").is_not_nan()),
        "finite": lambda plan: plan.col_vals_expr(pl.col("x").is_finite()),
        "range": lambda plan: plan.col_vals_between("x", -10, 10, na_pass=True),
        "range from": lambda plan: plan.col_vals_ge("x", 0, na_pass=True),
        "values": lambda plan: plan.col_vals_in_set("x", ["A", "B", None]),
        "pattern": lambda plan: plan.col_vals_regex("x", "^[A-Z]{2}$", na_pass=True),
        "unique": lambda plan: plan.rows_distinct("x"),
        "number as text": lambda plan: plan.col_vals_regex("x", r"^\s*-?\d+\s*$"),
        "two columns": lambda plan: plan.col_vals_le("y", pb.col("x"), na_pass=True),
        "rows": lambda plan: plan.row_count_match(3, tol=1),
    }
    given = [cell["file"]] if cell["form"] in ("csv", "parquet") else frames(cell)
    found, failed = [], False
    for frame in given:
        plan = steps[cell["rule"]](pb.Validate(frame)).interrogate(extract_limit=10**9)
        if any(step.eval_error for step in plan.validation_info):
            return ("an error in the report", [])
        if not plan.all_passed():
            failed = True
            extract = plan.get_data_extracts(i=1, frame=True) if cell["rule"] != "rows" else None
            if isinstance(extract, pl.LazyFrame):
                extract = extract.collect()
            if extract is not None:  # of rows_distinct the extract has the tested columns alone, with the number of the row
                found += extract["n"].to_list() if "n" in extract.columns else [number - 1 for number in extract["_row_num_"]]
    return ("fail" if failed else "pass", found)


# --- Great Expectations --------------------------------------------------------------------------------------------

GX = {}


def great_expectations(cell):
    import great_expectations as gx
    import great_expectations.expectations as gxe

    if not GX:
        import logging

        logging.disable(logging.CRITICAL)
        GX["context"] = gx.get_context(mode="ephemeral")
        GX["context"].variables.progress_bars = {"globally": False, "metric_calculations": False}
        GX["source"] = GX["context"].data_sources.add_pandas("pandas")
        GX["asset"] = GX["source"].add_dataframe_asset("frame")
        GX["batch"] = GX["asset"].add_batch_definition_whole_dataframe("whole")
    expectation = {
        "not null": lambda: gxe.ExpectColumnValuesToNotBeNull(column="x"),
        "not NaN": lambda: gxe.ExpectColumnValuesToNotBeNull(column="x"),
        "finite": lambda: gxe.ExpectColumnValuesToBeBetween(column="x", min_value=-1.7976931348623157e308, max_value=1.7976931348623157e308),
        "range": lambda: gxe.ExpectColumnValuesToBeBetween(column="x", min_value=-10, max_value=10),
        "range from": lambda: gxe.ExpectColumnValuesToBeBetween(column="x", min_value=0),
        "values": lambda: gxe.ExpectColumnValuesToBeInSet(column="x", value_set=["A", "B"]),
        "pattern": lambda: gxe.ExpectColumnValuesToMatchRegex(column="x", regex="^[A-Z]{2}$"),
        "unique": lambda: gxe.ExpectColumnValuesToBeUnique(column="x"),
        "number as text": lambda: gxe.ExpectColumnValuesToMatchRegex(column="x", regex=r"^\s*-?\d+\s*$"),
        "two columns": lambda: gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="x", column_B="y", or_equal=True, ignore_row_if="either_value_is_missing"),
        "rows": lambda: gxe.ExpectTableRowCountToBeBetween(min_value=2, max_value=4),
    }[cell["rule"]]()
    if cell["form"] == "lazy":
        return NO_WAY
    if cell["form"] in ("csv", "parquet", "ndjson"):
        read = GX["context"].data_sources.pandas_default
        batches = [read.read_csv(cell["file"]) if cell["form"] == "csv" else read.read_parquet(cell["file"]) if cell["form"] == "parquet" else read.read_json(cell["file"], lines=True)]
    else:
        batches = [GX["batch"].get_batch(batch_parameters={"dataframe": frame.to_pandas()}) for frame in frames(cell)]
    found, failed = [], False
    for batch in batches:
        result = batch.validate(expectation, result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["n"]})
        if result.exception_info and "exception_message" in str(result.exception_info) and any(each.get("raised_exception") for each in _infos(result.exception_info)):
            return ("an error in the report", [])
        if not result.success:
            failed = True
            found += [row["n"] for row in result.result.get("unexpected_index_list") or []]
    return ("fail" if failed else "pass", found)


def _infos(told):
    return [told] if "raised_exception" in told else list(told.values())


def main():
    asked = json.load(sys.stdin)
    tool = globals()[asked["tool"]]
    told = []
    with ThreadPoolExecutor(1) as alone:
        for cell in asked["cells"]:
            if cell["form"] == "stream" and cell["rule"] in ("unique", "rows"):
                told.append(NO_WAY)  # none of them judges a stream, and batches judged alone do not tell what holds of all of them
                continue
            answer = alone.submit(tool, cell)
            error = answer.exception()  # whatever a tool raises is its answer
            says, rows = (f"{type(error).__name__}: {str(error)[:80]}", []) if error else answer.result()
            told.append([says, sorted({int(row) for row in rows})])
    print(json.dumps(told))


if __name__ == "__main__":
    main()
