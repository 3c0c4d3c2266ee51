"""What Prometheus is told is what its own tool accepts, and what the docs list."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h11
import pytest
import trio
import trio.testing

from conftest import IN_CI
from kvtape.errors import UsageError
from kvtape.record.journal import UPLOAD_BOUNDS, Durations, Journal
from kvtape.watch.fleet import summary
from kvtape.watch.metrics import Reading, exposition
from kvtape.watch.pages import readyz, serve
from kvtape.watch.status import status_of
from kvtape.watch.web import Page, Pages, listen, serve_pages
from replicas import wait_until
from servers import FOLDER, StartServer
from watching import is_stored, made_up, options_for, until, watched

ROOT = Path(__file__).parents[1]
PROMTOOL = FOLDER / "promtool" / "bin" / "promtool"


def promtool(*arguments: str, content: bytes = b"") -> str:
    """Return what promtool says; it must be content."""
    if not PROMTOOL.exists():
        reason = "promtool is missing: run tools/servers"
        if IN_CI:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    done = subprocess.run(
        [str(PROMTOOL), *arguments], input=content, capture_output=True, check=False
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


# The rules.


def test_the_alert_rules_fire_when_they_should() -> None:
    assert "SUCCESS" in promtool(
        "check", "rules", str(ROOT / "docs/operations/alerts.yml")
    )
    assert "SUCCESS" in promtool("test", "rules", str(ROOT / "tests" / "alerts.yml"))


def test_the_alert_rules_are_about_metrics_that_exist() -> None:
    rules = (ROOT / "docs/operations/alerts.yml").read_text()
    assert set(re.findall(r"\bkvtape_\w+", rules)) <= documented()


# The metrics.


def documented() -> set[str]:
    table = (ROOT / "docs/metrics.md").read_text()
    return set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))


def families(content: bytes) -> dict[str, str]:
    """Return the families and their HELP."""
    lines = re.findall(r"^# HELP (\S+) (.+)$", content.decode(), re.MULTILINE)
    return dict(lines)


@asynccontextmanager
async def serving(pages: Pages) -> AsyncIterator[int]:
    with trio.fail_after(20):
        listeners = await listen("0")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_pages, listeners, pages)
            yield listeners[0].socket.getsockname()[1]
            nursery.cancel_scope.cancel()


async def exchange(port: int, data: bytes) -> bytes:
    """Send bytes and return all that is answered."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(data)
        answer = b""
        async for piece in stream:
            answer += piece
        return answer


async def get(port: int, path: str) -> tuple[int, bytes]:
    answer = await exchange(port, b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n" % path.encode())
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target=path, headers=[("Host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(answer)
    response = client.next_event()
    assert isinstance(response, h11.Response)
    content = b""
    while isinstance(event := client.next_event(), h11.Data):
        content += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    return response.status_code, content


@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-9.1"], indirect=True)
async def test_the_metrics_of_a_recording_are_those_of_the_docs(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    async with watched(options_for(server, tmp_path)) as watched_fleet:
        with server.client() as client:
            await until(watched_fleet, lambda one: one.stored_offset is not None)
            client.set("key", "value")
        status = await until(watched_fleet, is_stored)
        async with trio.open_nursery() as nursery:
            port: int = await nursery.start(serve, watched_fleet, "127.0.0.1:0", 60.0)
            code, content = await get(port, "/metrics")
            ready = await get(port, "/readyz")
            health = await get(port, "/healthz")
            nursery.cancel_scope.cancel()
    assert code == 200
    assert ready == (200, b"ok\n")
    assert health == (200, b"ok\n")
    found = families(content)
    assert found.keys() == documented()
    assert all(text.endswith(".") for text in found.values())
    assert promtool("check", "metrics", content=content) == ""
    line = (
        f'kvtape_received_offset{{source="shop"}} {float(status.received_offset or 0)}'
    )
    assert line in content.decode()
    assert (
        'kvtape_full_resyncs_total{reason="first",source="shop"} 1.0'
        in content.decode()
    )


def test_a_source_that_never_began_is_at_risk_for_ever() -> None:
    journal = Journal("shop")
    status = status_of(journal, None, "cannot connect")
    content = exposition([Reading(status, journal.uploads)]).decode()
    assert 'kvtape_rpo_seconds{source="shop"} +Inf' in content
    assert 'kvtape_recording{source="shop"} 0.0' in content


def test_the_upload_histogram_counts_each_upload_once() -> None:
    durations = Durations()
    for seconds in (0.05, 0.06, 59.0, 61.0):
        durations.add(seconds)
    content = exposition([Reading(made_up(), durations)]).decode()
    found = re.findall(r'kvtape_upload_seconds_bucket{le="(.+?)".*} (\d+)', content)
    assert len(found) == len(UPLOAD_BOUNDS) + 1
    assert dict(found)["0.05"] == "1"
    assert dict(found)["60.0"] == "3"
    assert dict(found)["+Inf"] == "4"


# HTTP.

PAGES: Pages = {"/page": lambda: Page(200, b"content")}


async def test_what_is_not_there_or_not_asked_well_is_refused() -> None:
    async with serving(PAGES) as port:
        assert await get(port, "/page?x=1") == (200, b"content")
        assert await get(port, "/nosuch") == (404, b"there are /page\n")
        post = await exchange(port, b"POST /page HTTP/1.1\r\nHost: h\r\n\r\n")
        assert post.startswith(b"HTTP/1.1 405 ")
        head = await exchange(port, b"HEAD /page HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"Content-Length: 7\r\n" in head
        assert head.endswith(b"\r\n\r\n")
        for garbage in (
            b"\x16\x03\x01\x02\x00\r\n\r\n",
            b"x" * 100_000,
            b"GET\r\n\r\n",
        ):
            assert (await exchange(port, garbage)).startswith(b"HTTP/1.1 4")
        assert await get(port, "/page") == (200, b"content")


async def test_a_bug_in_a_page_ends_neither_the_server_nor_the_recording(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> Page:
        raise ZeroDivisionError

    async with serving(PAGES | {"/broken": broken}) as port:
        assert (await get(port, "/broken"))[0] == 500
        assert await get(port, "/page") == (200, b"content")
    assert "cannot answer /broken" in caplog.text


async def test_more_clients_than_are_served_at_once_are_hung_up_on() -> None:
    async with serving(PAGES) as port:
        lazy = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(32)]
        # Each is being served before the next one is looked at.
        await trio.testing.wait_all_tasks_blocked()
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert await stream.receive_some() == b""
        for stream in lazy:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert await get(port, "/page") == (200, b"content")


async def test_a_port_that_is_taken_is_a_mistake_of_the_operator() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"127.0.0.1:{port} \(--metrics\)"):
            await listen(str(port))
    with pytest.raises(UsageError, match="is no address"):
        await listen("nowhere")


def test_not_ready_says_which_source_and_why() -> None:
    well = made_up(source="shop")
    late = made_up(source="users", lag_seconds=100.0)
    assert readyz([well], 60) == Page(200, b"ok\n")
    page = readyz([well, late], 60)
    assert page.status == 503
    assert page.content.startswith(b"users: the writes of the last 100 s are at risk")


def test_a_summary_names_what_waits() -> None:
    waits = made_up(
        source="users", is_recording=False, phase="waiting", waiting_for="refused"
    )
    assert summary([made_up(), waits]) == "1 of 2 sources recording; users: refused"


@pytest.mark.slow
@pytest.mark.parametrize("server_name", ["redis-8.0"], indirect=True)
def test_record_serves_what_it_is_told_to(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "kvtape", "record", "--repo", "repo"),
            *(f"redis://127.0.0.1:{server.port}", "--spool", "spool"),
            *("--metrics", "0", "--ready-max-lag", "1h"),
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"/metrics on (http://127\.0\.0\.1:\d+)", line):
                break
        else:
            pytest.fail("it ended without serving")

        def is_ready() -> bool:
            try:
                with urllib.request.urlopen(f"{found[1]}/readyz", timeout=5) as page:
                    return bool(page.status == 200)
            except urllib.error.HTTPError as error:
                error.close()
                return False

        wait_until(is_ready)
        process.terminate()
        process.stderr.read()
        assert process.wait(20) == 0
