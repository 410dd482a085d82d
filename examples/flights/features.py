"""From what is delivered to what the models learn from: plain functions from tables to tables."""

from __future__ import annotations

import polars as pl

WEATHER = ["temp", "dewp", "humid", "wind_speed", "precip", "visib", "pressure"]
CATEGORIES = ["carrier", "origin", "dest"]
NUMBERS = ["hour", "minute", "weekday", "distance", "age", "seats", "hour_departures", *WEATHER]
LATE_AFTER = 15  # minutes: the US Department of Transportation's own definition of "on time"
HUBS = ["ATL", "ORD", "CLT", "DFW", "IAH", "DTW", "MSP", "DEN", "PHX", "SLC"]
UTC_TIME = pl.Datetime("us", "UTC")


def departures(flights: pl.DataFrame, weather: pl.DataFrame, planes: pl.DataFrame) -> pl.DataFrame:
    """Return one row for each scheduled departure: what is known before it, then its two outcomes.

    Known before: the schedule, the aircraft, and the weather observed at the airport in the scheduled hour.
    Outcomes: `dep_delay` in minutes (null when cancelled) and `late`. A cancelled flight counts as late: it did not
    leave within fifteen minutes of its schedule, and leaving it out would make every storm look calm.
    """
    observed = weather.select("origin", pl.col("time_hour").cast(UTC_TIME), *WEATHER)
    aircraft = planes.select("tailnum", "seats", built="year").unique("tailnum", keep="last")
    scheduled = flights.with_columns(pl.col("time_hour").cast(UTC_TIME))
    local = pl.col("time_hour").dt.convert_time_zone("America/New_York")
    return (
        scheduled.with_columns(hour_departures=pl.len().over("origin", "time_hour"))
        .join(observed, on=["origin", "time_hour"], how="left", maintain_order="left")
        .join(aircraft, on="tailnum", how="left", maintain_order="left")
        .select(
            id=flight_id(local),
            scheduled=pl.col("time_hour") + pl.duration(minutes="minute"),
            carrier="carrier",
            origin="origin",
            dest="dest",
            hour=local.dt.hour().cast(pl.Int64),
            minute=pl.col("minute").cast(pl.Int64),
            weekday=local.dt.weekday().cast(pl.Int64),
            distance=pl.col("distance").cast(pl.Int64),
            age=(local.dt.year() - pl.col("built")).clip(0).cast(pl.Int64),
            seats=pl.col("seats").cast(pl.Int64),
            hour_departures=pl.col("hour_departures").cast(pl.Int64),
            **{column: pl.col(column).cast(pl.Float64) for column in WEATHER},
            dep_delay=pl.col("dep_delay").cast(pl.Int64),
            late=(pl.col("dep_delay").is_null() | (pl.col("dep_delay") > LATE_AFTER)).cast(pl.Int64),
        )
        .sort("scheduled", "id")
    )


def flight_id(local: pl.Expr) -> pl.Expr:
    """Name a departure by its local day and time: `2013-05-01-UA1545-EWR-0515`."""
    return pl.format(
        "{}-{}{}-{}-{}{}",
        local.dt.strftime("%Y-%m-%d"),
        "carrier",
        "flight",
        "origin",
        local.dt.strftime("%H"),
        pl.col("minute").cast(pl.String).str.zfill(2),
    )


def cases(flights: pl.DataFrame) -> pl.DataFrame:
    """Return one row for each passenger case: a departure that was late or cancelled, as the service desk sees it."""
    local = pl.col("time_hour").cast(UTC_TIME).dt.convert_time_zone("America/New_York")
    leaves = local.dt.hour() * 60 + pl.col("minute") + pl.col("dep_delay").fill_null(0)
    return (
        flights.with_columns(id=flight_id(local))
        .filter(pl.col("dep_delay").is_null() | (pl.col("dep_delay") > LATE_AFTER))
        .select(
            "id",
            scheduled=pl.col("time_hour").cast(UTC_TIME) + pl.duration(minutes="minute"),
            cancelled=pl.col("dep_delay").is_null(),
            delay_minutes=pl.col("dep_delay").fill_null(0).clip(0).cast(pl.Int64),
            distance_km=(pl.col("distance") * 1.609344).round(0).cast(pl.Int64),
            # whoever leaves after midnight, or not at all in the evening, needs a bed
            overnight=pl.when(pl.col("dep_delay").is_null()).then(local.dt.hour() >= 18).otherwise(leaves >= 24 * 60),
        )
        .sort("scheduled", "id")
    )


def connections(flights: pl.DataFrame) -> pl.DataFrame:
    """Return one row for each flight into a hub with an onward flight that could wait for its passengers.

    The delays are recorded: `inbound_delay` when it left New York (known when the onward flight must choose) and
    `arr_delay` when it came in (known later). No public data says who changed planes, so the onward flight is a
    scenario that follows from the flight number: minutes to change, passengers changing, passengers aboard, and
    minutes until the next service.
    """
    local = pl.col("time_hour").cast(UTC_TIME).dt.convert_time_zone("America/New_York")
    number = pl.col("flight").cast(pl.Int64)
    return (
        flights.with_columns(id=flight_id(local))
        .filter(pl.col("dest").is_in(HUBS) & pl.col("arr_delay").is_not_null())
        .select(
            "id",
            scheduled=pl.col("time_hour").cast(UTC_TIME) + pl.duration(minutes="minute"),
            dest="dest",
            waited=pl.lit(0, pl.Int64),
            inbound_delay=pl.col("dep_delay").cast(pl.Int64),
            change_minutes=10 + 5 * (number % 7),
            transferring=2 + number % 11,
            aboard=60 + 20 * (number % 5),
            next_service=60 + 60 * (number % 4),
            arr_delay=pl.col("arr_delay").cast(pl.Int64),
        )
        .sort("scheduled", "id")
    )
