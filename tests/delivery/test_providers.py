"""Readings from a Prometheus-compatible server, JSON and a database: a number, no data, or an error that says why."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from receiver import LIMIT_S, Receiver, Says, delivery_settings, receiving, until

from benchmarks.postgres import PostgresServer
from core.errors import DataError
from core.gates import Verdict
from delivery.judges import Reading, judge
from delivery.metrics import Metric, Provider
from delivery.outbound import Outbound
from delivery.plan import Plan
from delivery.providers import External, json_reading, prometheus_reading, row_reading


@pytest.fixture(scope="module")
def server() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def metric(**provider: dict[str, str]) -> Metric:
    return Metric(name="errors", provider=Provider(**provider), failure_condition="result > 0.05")  # type: ignore[arg-type] # of pydantic


def read(asked: Metric, environ: dict[str, str] | None = None, within_s: float = LIMIT_S) -> Reading:
    async def reading() -> Reading:
        async with Outbound(delivery_settings("localhost")) as outbound:
            return await External(outbound, environ or {}, within_s=within_s).read(asked)

    return asyncio.run(reading())


def failure(asked: Metric, environ: dict[str, str] | None = None, within_s: float = LIMIT_S) -> str:
    with pytest.raises(DataError) as raised:
        read(asked, environ, within_s)
    assert raised.value.code == "provider_failed"
    return str(raised.value)


# Prometheus


def vector(*values: str) -> bytes:
    result = [{"metric": {"arm": str(i)}, "value": [1435781451.781, value]} for i, value in enumerate(values)]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()


def scalar(value: str) -> bytes:
    return json.dumps({"status": "success", "data": {"resultType": "scalar", "result": [1435781451, value]}}).encode()


def instant(server: Receiver, query: str = 'max(error_ratio{arm="challenger"})') -> Metric:
    return metric(prometheus={"address": f"{server.url}/prom/", "query": query})


def test_an_instant_query_is_sent_as_it_is_written_and_its_one_sample_is_the_value(server: Receiver) -> None:
    server.says["/prom/api/v1/query"] = Says(body=vector("0.25"))
    assert read(instant(server)).value == 0.25
    asked = server.seen[-1]
    assert (asked.method, asked.path) == ("GET", "/prom/api/v1/query")
    assert parse_qs(asked.query)["query"] == ['max(error_ratio{arm="challenger"})']
    server.says["/prom/api/v1/query"] = Says(body=scalar("3e-2"))
    assert read(instant(server)).value == 0.03


@pytest.mark.parametrize("body", [vector(), vector("NaN"), vector("+Inf"), scalar("-Inf")])
def test_no_sample_and_no_finite_sample_are_no_data_and_never_a_pass(body: bytes) -> None:
    reading = prometheus_reading(body)
    assert reading.value is None
    assert judge(metric(http={"url": "http://localhost", "key": "x"}), reading, {}).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (Says(body=vector("1", "2")), "2 samples where one is needed; aggregate them"),
        (Says(body=vector("one")), "answered 'one', which is no number"),
        (
            Says(400, b'{"status":"error","errorType":"bad_data","error":"parse error at char 3"}'),
            "parse error at char 3",
        ),
        (Says(503, b"starting"), "HTTP 503: starting"),
        (Says(body=b'{"status":"error","error":"late"}'), "not an answer of Prometheus"),
        (Says(body=b'{"status":"success","data":{"resultType":"matrix","result":[]}}'), "with a scalar or a vector"),
        (Says(body=b'{"status":"success","data":{"resultType":"vector","result":[{"histogram":[1,{}]}]}}'), "value"),
        (Says(body=b"<html>"), "not an answer of Prometheus"),
        (Says(body=b""), "not an answer of Prometheus"),
        (Says(302, headers={"location": "/login"}), "redirects are not followed"),
    ],
)
def test_anything_else_is_an_error_that_shows_the_query(server: Receiver, said: Says, expected: str) -> None:
    server.says["/prom/api/v1/query"] = said
    text = failure(instant(server, "rate(x[5m])"))
    assert expected in text and text.startswith("errors (address ")
    assert "query 'rate(x[5m])'" in text


def test_a_server_that_is_late_or_not_there_is_an_error(server: Receiver) -> None:
    server.says["/prom/api/v1/query"] = Says(body=vector("0"), after_s=3.0)
    assert "no answer within 0.2 s" in failure(instant(server), within_s=0.2)
    nobody = metric(prometheus={"address": "http://localhost:1", "query": "up"})
    assert "query 'up'" in failure(nobody) and "no answer" in failure(nobody)


# A number in a JSON answer


def test_a_dotted_key_leads_to_a_number(server: Receiver) -> None:
    server.says["/arms"] = Says(body=b'{"arms": [{"error_ratio": 0.5}, {"error_ratio": 7}], "empty": null}')

    def at(key: str) -> float | None:
        return read(metric(http={"url": f"{server.url}/arms?window=5m", "key": key})).value

    assert (at("arms.0.error_ratio"), at("arms.1.error_ratio")) == (0.5, 7.0)
    assert (at("empty"), at("arms.2.error_ratio"), at("typo"), at("arms.x"), at("arms.0.error_ratio.x")) == (None,) * 5
    for key, kind in (("arms", "list"), ("arms.0", "dict")):
        assert f"key '{key}' is {kind}, not a number" in failure(metric(http={"url": f"{server.url}/arms", "key": key}))


@pytest.mark.parametrize("text", ['"0.1"', "true", "[]", "{}"])
def test_what_only_looks_like_a_number_is_an_error(text: str) -> None:
    with pytest.raises(DataError, match="not a number"):
        json_reading(f'{{"x": {text}}}'.encode(), "x")


@pytest.mark.parametrize("text", ["null", "NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_what_is_not_finite_is_no_data(text: str) -> None:
    assert json_reading(f'{{"x": {text}}}'.encode(), "x").value is None


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"x": ' + b"1" * 5000 + b"}"])
def test_what_is_no_json_is_an_error(body: bytes) -> None:
    with pytest.raises(DataError, match="not JSON"):
        json_reading(body, "x")


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.text(max_size=8))
def test_no_bytes_whatever_get_more_out_of_a_provider_than_a_reading_or_a_data_error(body: bytes, key: str) -> None:
    for reader in (prometheus_reading, lambda body: json_reading(body, key)):
        with suppress(DataError):
            assert isinstance(reader(body), Reading)


# A database


@pytest.fixture
def ledger(tmp_path: Path) -> dict[str, str]:
    with sqlite3.connect(tmp_path / "led ger.db") as connection:
        connection.execute("create table fill (arm text, loss real)")
        connection.executemany("insert into fill values (?, ?)", [("challenger", 0.25), ("challenger", 0.75)])
    connection.close()
    return {"METRICS_LEDGER": f"sqlite:///{tmp_path}/led ger.db"}


def sql(query: str, url_env: str = "METRICS_LEDGER") -> Metric:
    return metric(sql={"url_env": url_env, "query": query})


def test_a_row_is_a_value_and_perhaps_how_many_samples_are_behind_it(ledger: dict[str, str]) -> None:
    both = read(sql("select avg(loss) as value, count(*) as samples from fill where arm like 'chal%'"), ledger)
    assert (both.value, both.samples) == (0.5, 2)
    alone = read(sql("  WITH worst AS (SELECT max(loss) AS loss FROM fill) SELECT loss FROM worst;\n"), ledger)
    assert (alone.value, alone.samples) == (0.75, 0)


@pytest.mark.parametrize(
    "query",
    ["select loss from fill where 0", "select null", "select avg(loss), count(*) from fill where 0", "select 9e999"],
)
def test_no_row_and_no_finite_value_are_no_data(query: str, ledger: dict[str, str]) -> None:
    assert read(sql(query), ledger) == Reading() or read(sql(query), ledger).value is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("select loss from fill", "one row"),
        ("select 1, 2, 3", "one row"),
        ("select 'low'", "value is str, not a number"),
        ("select 1, -1", "samples is -1"),
        ("select 1, 0.5", "samples is 0.5"),
        ("select losses from fill", "no such column: losses"),
        ("select 1; delete from fill", "one SELECT"),
        ("delete from fill", "one SELECT"),
        ("attach 'x' as y", "one SELECT"),
    ],
)
def test_any_other_query_is_an_error_that_shows_it(query: str, expected: str, ledger: dict[str, str]) -> None:
    text = failure(sql(query), ledger)
    assert expected in text and repr(query) in text and "METRICS_LEDGER" in text


def test_a_query_cannot_write_even_if_it_begins_like_one_that_reads(ledger: dict[str, str], tmp_path: Path) -> None:
    assert "readonly database" in failure(sql("with old as (select 1) delete from fill returning 1"), ledger)
    written = {"METRICS_LEDGER": ledger["METRICS_LEDGER"].replace("///", "///file:") + "?uri=true"}
    assert "readonly database" in failure(sql("with old as (select 1) delete from fill returning 1"), written)
    assert read(sql("select count(*) from fill"), written).value == 2
    typo = {"METRICS_LEDGER": f"sqlite:///{tmp_path}/typo.db"}
    assert "unable to open database file" in failure(sql("select 1"), typo)
    assert not (tmp_path / "typo.db").exists()


def test_a_query_without_end_is_an_error_and_stops(ledger: dict[str, str]) -> None:
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    assert "errors (url_env" in failure(sql(endless), ledger, within_s=0.3)
    deadline = time.monotonic() + LIMIT_S
    while any(thread.name.startswith("aside-databases") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "it goes on using the machine"
        time.sleep(0.05)


def test_a_query_that_waits_holds_up_no_event_loop(ledger: dict[str, str]) -> None:
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"

    async def turns() -> int:
        async with Outbound(delivery_settings()) as outbound:
            reading = asyncio.create_task(External(outbound, ledger, within_s=0.5).read(sql(endless)))
            count = 0
            while not reading.done():
                await asyncio.sleep(0.01)
                count += 1
            assert isinstance(reading.exception(), DataError)
            return count

    assert asyncio.run(turns()) > 5


def test_on_postgres_a_query_reads_and_neither_writes_nor_goes_on(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    environ, engine = {"METRICS_LEDGER": url.render_as_string(hide_password=False)}, sa.create_engine(url)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("create table fill as select generate_series(1, 3)::numeric / 4 as loss")
        reading = read(sql("select max(loss), count(*) from fill where 'a%' like 'a%' and ':x' <> ''"), environ)
        assert (reading.value, reading.samples) == (0.75, 3)
        assert read(sql("select 'NaN'::float8"), environ).value is None
        assert "read-only" in failure(sql("with old as (delete from fill returning 1) select 1 from old"), environ)
        off = "select set_config('transaction_read_only', 'off', true)"
        assert "read-write mode" in failure(sql(off), environ)
        assert "errors (url_env" in failure(sql("select 1 from pg_sleep(600)"), environ, within_s=0.3)
        running = "select count(*) from pg_stat_activity where query like '%%pg_sleep(600)' and state = 'active'"
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            until(lambda: connection.exec_driver_sql(running).scalar() == 0)
            assert connection.exec_driver_sql("select count(*) from fill").scalar() == 3
    finally:
        engine.dispose()
        postgres.drop(url)


@pytest.mark.parametrize(
    ("url_env", "url", "expected"),
    [
        ("HRM_API_TOKEN", "s3same", "METRICS_<NAME>"),
        ("PATH", "s3same", "METRICS_<NAME>"),
        ("METRICS_OTHER", "", "METRICS_OTHER is not set"),
        ("METRICS_X", "s3same", "no SQLAlchemy URL"),
        ("METRICS_X", "nosuch://desk:s3same@localhost/x", "nosuch"),
        ("METRICS_X", "sqlite+nosuch:///s3same", "nosuch"),
        ("METRICS_X", "postgresql://desk:s3same@localhost:port/x", "no SQLAlchemy URL"),
    ],
)
def test_a_database_that_cannot_be_had_is_named_and_its_secret_is_not(url_env: str, url: str, expected: str) -> None:
    text = failure(sql("select 1", url_env), {url_env: url})
    assert expected in text and "s3same" not in text


def test_the_url_may_stand_in_a_file(ledger: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "url").write_text(ledger["METRICS_LEDGER"] + "\n")
    assert read(sql("select 4"), {"METRICS_LEDGER_FILE": str(tmp_path / "url")}).value == 4
    assert "not readable" in failure(sql("select 4"), {"METRICS_LEDGER_FILE": str(tmp_path / "none")})


@given(st.lists(st.tuples(st.none() | st.floats() | st.integers() | st.text(max_size=3) | st.booleans()), max_size=2))
def test_rows_are_a_reading_or_a_data_error(rows: list[tuple[object, ...]]) -> None:
    with suppress(DataError):
        assert isinstance(row_reading(rows), Reading)


# Before anything starts


def plan_with(where: str, provider: dict[str, object]) -> Plan:
    """A plan that uses the provider in one of its analyses, with an argument."""
    measured = {"name": "errors", "provider": provider, "failureCondition": "result > 1"}
    watched = {**measured, "count": 0} if where in ("backgroundAnalysis", "postPromotionAnalysis") else measured
    use = {"templates": [{"name": "outside", "args": {"host": "elsewhere"}}]}
    steps: list[object] = [{"setWeight": 50}, {"pause": {}}, *([{"analysis": use}] if where == "steps" else [])]
    template = {"args": {"host": "localhost"}, "metrics": [watched]}
    others = {} if where == "steps" else {where: use}
    return Plan.model_validate({"steps": steps, "analysisTemplates": {"outside": template}, **others})


@pytest.mark.parametrize("where", ["steps", "backgroundAnalysis", "prePromotionAnalysis", "postPromotionAnalysis"])
@pytest.mark.parametrize(
    ("provider", "problem"),
    [
        ({"prometheus": {"address": "http://localhost:9090", "query": "up"}}, ""),
        ({"sql": {"url_env": "METRICS_LEDGER", "query": "select 1"}}, ""),
        ({"service": "p95_ms"}, ""),
        ({"prometheus": {"address": "http://{{args.host}}", "query": "up"}}, "errors: elsewhere:80 is not in"),
        ({"http": {"url": "http://elsewhere:1234/x", "key": "x"}}, "errors: elsewhere:1234 is not in"),
        ({"sql": {"url_env": "METRICS_OTHER", "query": "select 1"}}, "errors: METRICS_OTHER is not set"),
    ],
)
def test_a_plans_providers_are_checked_before_anything_starts(
    where: str, provider: dict[str, object], problem: str, ledger: dict[str, str]
) -> None:
    async def check() -> None:
        async with Outbound(delivery_settings("localhost")) as outbound:
            External(outbound, ledger).require_usable(plan_with(where, provider))

    if problem:
        with pytest.raises(DataError, match=problem):
            asyncio.run(check())
    else:
        asyncio.run(check())


def test_the_services_own_readings_are_not_asked_for_here() -> None:
    own = Metric(name="p95", provider=Provider(service="p95_ms"), failure_condition="result > 1")
    assert "ask the service" in failure(own)
