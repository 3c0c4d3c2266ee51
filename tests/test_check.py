"""What an operator runs first, against real servers, disks and stores."""

from __future__ import annotations

import json
import re
import socket
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
import trio
from fsspec import AbstractFileSystem
from s3fs import S3FileSystem
from trio.testing import MockClock

from certificates import Authority, start_tls_server
from kvtape.check.ask import ask_server
from kvtape.check.finding import Finding
from kvtape.check.repository import PROBES, identify, probe, stored
from kvtape.check.spool import disk_facts, position
from kvtape.check.survey import CheckOptions, run_checks
from kvtape.cli.check import document, lines
from kvtape.errors import RepositoryError
from kvtape.server.url import ServerUrl
from kvtape.storage.repository import create_repository, open_repository
from kvtape.storage.store import LocalStore
from object_store import Bucket
from plain_client import PlainClient
from recording import REPLID, SOURCE, THEN, Tape, taping
from replicas import attach, wait_until
from servers import Server, StartServer
from verbs import Outcome, kvtape

QUICK = ("--sample", "100ms", "--json")

# How fast and how large this machine is, which no test can know.
OF_THE_MACHINE = {"spool-disk", "spool-space", "fork-memory", "reachability"}
RELEASES = ["redis-6.2", "redis-7.0", "valkey-9.1"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(server: Server, *arguments: object, user: str = "") -> Outcome:
    url = f"redis://{user}127.0.0.1:{server.port}"
    common = ("--repo", "repo", "--spool", "spool", *QUICK)
    return kvtape("check", url, *common, *arguments)


def verdicts(outcome: Outcome) -> dict[str, str]:
    """Return the verdicts by name, each name once."""
    checks = outcome.document()["checks"]
    names = [check["name"] for check in checks]
    assert len(names) == len(set(names))
    return {check["name"]: check["verdict"] for check in checks}


def one(outcome: Outcome, name: str) -> dict[str, Any]:
    [found] = [c for c in outcome.document()["checks"] if c["name"] == name]
    result: dict[str, Any] = found
    return result


def named(outcome: Outcome, verdict: str) -> set[str]:
    return {name for name, found in verdicts(outcome).items() if found == verdict}


# Servers.


def test_a_server_as_it_comes_is_a_primary_without_a_backlog(
    folder: Path, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    with PlainClient(server.client()) as plain:
        plain.ask("SET", "key", "value")
        before = plain.info("stats")
        outcome = checked(server)
        after = plain.info("stats")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.document()["verdict"] == "warn"
    assert named(outcome, "warn") - OF_THE_MACHINE == {"role", "backlog"}
    assert named(outcome, "unknown") == set()
    assert one(outcome, "backlog")["measured"]["is_upper_bound"] is True
    assert abs(one(outcome, "clock")["measured"]["offset_seconds"]) < 60
    # Nothing was asked for that would cost the server anything, or count.
    for field in ("sync_full", "total_forks", "total_error_replies"):
        assert after.get(field) == before.get(field)
    assert list((folder / "repo").iterdir()) == []
    assert not (folder / "spool").exists()


@pytest.mark.parametrize("server_name", RELEASES, indirect=True)
def test_a_replica_with_good_settings_is_ok_in_every_way(
    folder: Path, server_name: str, start_server: StartServer
) -> None:
    primary = start_server(server_name)
    replica = start_server(server_name, repl_backlog_size="64mb")
    attach(replica, primary)
    outcome = checked(replica)
    assert (outcome.status, outcome.err) == (0, "")
    assert named(outcome, "ok") | OF_THE_MACHINE == verdicts(outcome).keys()
    assert one(outcome, "role")["measured"] == {"role": "replica", "link": "up"}
    seen = one(checked(primary), "sharing")["measured"]
    assert seen == {"replicas": 1, "tapes": 0}
    primary.kill()
    with PlainClient(replica.client()) as plain:
        wait_until(lambda: plain.info("replication")["master_link_status"] == "down")
    outcome = checked(replica)
    assert (outcome.status, outcome.err) == (5, "kvtape: failed: role\n")


@pytest.mark.parametrize("server_name", RELEASES, indirect=True)
def test_a_user_with_the_least_rights_is_told_what_is_unknown_and_why(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    with PlainClient(server.client()) as plain:
        plain.ask(
            *("ACL", "SETUSER", "me", "on", ">secret", "-@all", "+psync", "+replconf")
        )
        outcome = checked(server, user="me:secret@")
        assert (outcome.status, outcome.err) == (0, "")
        unknown = {
            *("min-replicas", "sharing", "persistence", "fork-memory", "backlog"),
            *("backlog-ttl", "output-buffer", "permission", "clock", "spool-space"),
        }
        assert named(outcome, "unknown") == unknown
        assert named(outcome, "warn") - OF_THE_MACHINE == {"role"}
        assert "+info" in one(outcome, "backlog")["hint"]
        assert "+time" in one(outcome, "clock")["hint"]
        assert "+acl" in one(outcome, "permission")["hint"]
        # With one more right it is known, also that one is missing.
        plain.ask("ACL", "SETUSER", "me", "+acl", "+info")
        outcome = checked(server, user="me:secret@")
        assert one(outcome, "permission")["verdict"] == "ok"
        assert named(outcome, "unknown") == {"clock", "backlog-ttl", "output-buffer"}
        plain.ask("ACL", "SETUSER", "me", "-psync")
        outcome = checked(server, user="me:secret@")
        assert (outcome.status, outcome.err) == (5, "kvtape: failed: permission\n")
        assert one(outcome, "permission")["measured"] == {
            "psync": False,
            "replconf": True,
        }


@pytest.mark.parametrize("command", ["PSYNC", "REPLCONF"])
@pytest.mark.parametrize("server_name", RELEASES, indirect=True)
def test_a_service_that_blocks_replication_is_told(
    server_name: str, start_server: StartServer, command: str
) -> None:
    server = start_server(server_name, rename_command=f"{command} ''")
    outcome = checked(server)
    assert (outcome.status, outcome.err) == (5, "kvtape: failed: permission\n")
    message = one(outcome, "permission")["message"]
    assert f"it does not know {command}: a managed service" in message


def test_a_wrong_password_fails_and_is_not_repeated(start_server: StartServer) -> None:
    server = start_server("valkey-9.1", requirepass="right")
    for user in ("", ":hunter2@"):
        outcome = checked(server, user=user)
        assert (outcome.status, outcome.err) == (5, "kvtape: failed: reachability\n")
        assert "password" in one(outcome, "reachability")["message"]
        assert one(outcome, "backlog")["verdict"] == "unknown"
        assert one(outcome, "repository-write")["verdict"] == "ok"
        assert "hunter2" not in outcome.out
    assert checked(server, user=":right@").status == 0
    url = f"redis://127.0.0.1:{server.port}"
    env = {"KVTAPE_PASSWORD": "right"}
    assert kvtape("check", url, "--repo", "repo", *QUICK, env=env).status == 0


def test_nobody_there_is_a_failure_and_the_rest_unknown() -> None:
    outcome = kvtape("check", "redis://127.0.0.1:1", "--repo", "repo", *QUICK)
    assert (outcome.status, outcome.err) == (5, "kvtape: failed: reachability\n")
    assert "Connection refused" in one(outcome, "reachability")["message"]
    assert {"version", "clock", "output-buffer"} <= named(outcome, "unknown")


def test_a_server_that_hangs_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = ServerUrl("127.0.0.1", silent.getsockname()[1])
        # Time passes as soon as everybody waits.
        clock = MockClock(autojump_threshold=0.05)
        facts = trio.run(ask_server, url, 3.0, clock=clock)
    assert facts.trouble == f"{url.address} did not answer for 10 s"


def test_over_tls_all_is_checked_as_without(
    folder: Path, start_server: StartServer
) -> None:
    authority = Authority(folder / "ca")
    certificate = authority.issue("127.0.0.1")
    secured = start_tls_server(start_server, "redis-7.0", authority, certificate)
    address = f"127.0.0.1:{secured.port}"
    ca = ("--repo", "repo", "--tls-ca", authority.file, *QUICK)
    given = (*ca, "--tls-cert", certificate.cert, "--tls-key", certificate.key)
    outcome = kvtape("check", f"rediss://{address}", *given)
    assert (outcome.status, outcome.err) == (0, "")
    assert named(outcome, "warn") - OF_THE_MACHINE == {"role", "backlog"}
    outcome = kvtape("check", f"rediss://{address}", *ca)
    assert (outcome.status, outcome.err) == (5, "kvtape: failed: reachability\n")
    assert "client certificate" in one(outcome, "reachability")["message"]
    url = secured.url(client=certificate)
    with taping(secured.server, folder / "repo", url=url):
        pass
    # What the source says is an address; the certificates say that it means TLS.
    outcome = kvtape("check", *given, "--spool", "repo-spool")
    assert (outcome.status, outcome.err) == (0, "")
    assert one(outcome, "resume")["verdict"] == "ok"


def test_a_primary_that_counts_replicas_fails_until_that_is_accepted(
    start_server: StartServer,
) -> None:
    server = start_server("redis-7.0", min_replicas_to_write="1")
    outcome = checked(server)
    assert (outcome.status, outcome.err) == (5, "kvtape: failed: min-replicas\n")
    assert one(outcome, "min-replicas")["measured"]["min_replicas_to_write"] == 1
    assert checked(server, "--ack", "hidden").status == 0


def test_a_node_of_a_cluster_is_told(start_server: StartServer) -> None:
    server = start_server("valkey-9.1", cluster_enabled="yes")
    assert {"cluster", "role"} <= named(checked(server), "warn")


# What is recorded.


@pytest.mark.parametrize("server_name", RELEASES, indirect=True)
def test_a_recording_is_checked_while_it_runs_and_after_it_was_lost(
    folder: Path, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name, repl_backlog_size="64kb")
    spool = ("--spool", folder / "repo-spool")
    with taping(server, folder / "repo") as recording:
        server.client().set("key", "value")
        end = recording.catch_up()
        found = position(None, folder / "repo-spool")
        assert found is not None
        assert (found.replid, found.offset) >= (recording.replid, end)
        outcome = checked(server, *spool)
        assert outcome.status == 0, outcome.out
        assert one(outcome, "sharing")["measured"]["tapes"] == 1
        assert one(outcome, "resume")["measured"]["is_attached"] is True
    with PlainClient(server.client()) as plain:
        wait_until(lambda: plain.info("replication")["connected_slaves"] == "0")
    # The source knows its server.
    outcome = kvtape("check", "--repo", "repo", *spool, *QUICK)
    assert outcome.status == 0, outcome.out
    for name in ("stored", "gaps", "resume"):
        assert one(outcome, name)["verdict"] == "ok"
    assert one(outcome, "resume")["measured"]["can_continue"] is True
    assert one(outcome, "stored")["measured"]["age_seconds"] < 60
    # Now more is written than the backlog holds.
    for number in range(100):
        server.client().set(f"key:{number}", "x" * 2048)
    outcome = kvtape("check", "--repo", "repo", *spool, *QUICK)
    assert (outcome.status, outcome.err) == (5, "kvtape: failed: resume\n")
    server.kill()
    outcome = kvtape("check", "--repo", "repo", *spool, *QUICK)
    assert (outcome.status, outcome.err) == (5, "kvtape: failed: reachability\n")
    assert one(outcome, "resume")["verdict"] == "unknown"


def test_gaps_and_age_and_damage_are_told(folder: Path) -> None:
    def judged(seconds: int) -> dict[str, Finding]:
        catalogue = tape.folder.catalogue()
        found = stored(SOURCE, catalogue, tape.time + seconds * 1000)
        return {finding.name: finding for finding in found}

    tape = Tape(folder / "repo")
    assert judged(0)["stored"].verdict == "warn"
    tape.snapshot()
    tape.commands(("SET", "key", "value"))
    for seconds, verdict in ((0, "ok"), (299, "ok"), (400, "warn"), (4000, "fail")):
        assert judged(seconds)["stored"].verdict == verdict
        assert judged(seconds)["gaps"].verdict == "ok"
    for number in range(7):
        tape.gap(tape.end + 500, f"reason {number}")
        tape.snapshot()
    gaps = judged(0)["gaps"]
    assert (gaps.verdict, gaps.measured) == ("fail", {"gaps": 7})
    assert "reason 6; and 2 before" in gaps.message
    assert "reason 1" not in gaps.message
    path = next((folder / "repo").rglob("manifest.json"))
    path.write_text("{")
    assert judged(0)["stored"].verdict == "fail"


def test_which_source_is_meant_must_be_clear(folder: Path) -> None:
    for name in ("one", "two"):
        Tape(folder / "repo", source=name).snapshot()
    outcome = kvtape("check", "--repo", "repo", *QUICK)
    assert (outcome.status, outcome.out) == (2, "")
    assert "holds the sources one, two: say which by --source" in outcome.err
    # Another server is not recorded yet, so that nothing stored is meant.
    outcome = kvtape("check", "redis://127.0.0.1:1", "--repo", "repo", *QUICK)
    assert "stored" not in verdicts(outcome)


def test_a_server_may_be_named_in_the_file(folder: Path) -> None:
    (folder / "kvtape.toml").write_text(
        'repo = "repo"\nurl = "redis://127.0.0.1:1"\n[check]\nsample = "1ms"\n'
    )
    outcome = kvtape("check", "--json")
    assert "127.0.0.1:1" in one(outcome, "reachability")["message"]


# The repository.


REPOSITORY = {
    f"repository-{name}"
    for name in ("list", "identity", "write", "read", "create-only", "delete")
}


def test_what_record_would_do_by_the_file_is_checked(
    folder: Path, start_server: StartServer
) -> None:
    server = start_server("valkey-8.1")
    server.client().config_set("min-replicas-to-write", 1)
    (folder / "kvtape.toml").write_text(
        f'repo = "{folder / "repo"}"\n[record]\nack = "hidden"\nspool = "spools"\n'
        f'[sources.shop]\nurl = "redis://127.0.0.1:{server.port}"\n'
        'spool-limit = "1MiB"\n'
    )
    found = kvtape("check", "--json", "--sample", "0")
    assert verdicts(found)["min-replicas"] == "warn"
    assert one(found, "reachability")["verdict"] == "ok"
    assert "1.0 MiB" in one(found, "spool-space")["message"]


def test_of_several_sources_in_the_file_one_is_checked(
    folder: Path, start_server: StartServer
) -> None:
    server = start_server("valkey-8.1", requirepass="a-secret")
    (folder / "kvtape.toml").write_text(
        f'repo = "{folder / "repo"}"\n[sources.down]\nurl = "redis://127.0.0.1:1"\n'
        f'[sources.shop]\nurl = "redis://127.0.0.1:{server.port}"\n'
    )
    found = kvtape("check")
    assert found.status == 2
    assert "the sources down, shop: say which to check by --source" in found.err
    env = {"KVTAPE_PASSWORD_SHOP": "a-secret"}
    shop = kvtape("check", "--json", "--sample", "0", "--source", "shop", env=env)
    assert verdicts(shop)["reachability"] == "ok"
    down = kvtape("check", "--json", "--source", "down", env=env)
    assert "127.0.0.1:1: Connection refused" in one(down, "reachability")["message"]


@pytest.mark.parametrize("server_name", ["valkey-8.1"], indirect=True)
def test_an_announced_endpoint_counts_for_what_is_acknowledged(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    assert "means hidden" in one(checked(server), "ack")["message"]
    announced = one(checked(server, "--announce", "127.0.0.1:1"), "ack")
    assert announced["message"] == "--ack auto with --announce means received here"


def test_without_a_server_the_repository_and_the_spool_are_checked() -> None:
    outcome = kvtape("check", "--repo", "repo", *QUICK)
    assert (outcome.status, outcome.err) == (0, "")
    found = verdicts(outcome)
    assert found.keys() == {*REPOSITORY, "spool-disk", "spool-space", "reachability"}
    assert named(outcome, "ok") | OF_THE_MACHINE == {*REPOSITORY, *OF_THE_MACHINE}
    assert "no URL was given" in one(outcome, "reachability")["message"]


class Hanging(AbstractFileSystem):  # type: ignore[misc]
    """A store that does not answer while anybody waits for it."""

    protocol = "hanging"
    over = threading.Event()

    def ls(self, path: str, **_: object) -> list[object]:
        """Wait for what does not happen."""
        self.over.wait()
        return []


def test_a_store_out_of_reach_is_no_lack_of_a_permission(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    S3FileSystem.clear_instance_cache()
    place = identify(bucket.url)
    S3FileSystem.clear_instance_cache()
    [listed, _] = place.findings
    assert listed.verdict == "fail"
    assert listed.hint.startswith("is the store in reach?")
    assert any("http://127.0.0.1:1/" in line for line in lines(place.findings))


def test_a_store_that_hangs_is_given_up() -> None:
    fsspec.register_implementation("hanging", Hanging, clobber=True)
    # Time passes as soon as everybody waits.
    clock = MockClock(autojump_threshold=0.2)
    try:
        found = trio.run(run_checks, CheckOptions("hanging://x"), clock=clock)
    finally:
        Hanging.over.set()
    told = {finding.name: finding for finding in found}
    assert told["repository-list"].verdict == "fail"
    assert told["repository-list"].message == "no answer for 60 s"
    assert {f.verdict for f in found if f.name != "repository-list"} == {"unknown"}
    assert told.keys() > REPOSITORY


def test_a_foreign_place_is_not_written_to(folder: Path) -> None:
    (folder / "repo").mkdir()
    (folder / "repo" / "precious").write_text("theirs")
    outcome = kvtape("check", "--repo", "repo", *QUICK)
    assert (outcome.status, outcome.err) == (5, "kvtape: failed: repository-identity\n")
    assert "is no kvtape repository" in one(outcome, "repository-identity")["message"]
    assert {"repository-write", "repository-delete"} <= named(outcome, "unknown")
    assert [path.name for path in (folder / "repo").iterdir()] == ["precious"]


def test_a_place_that_is_no_folder_fails(folder: Path) -> None:
    (folder / "repo").write_text("a file")
    outcome = kvtape("check", "--repo", "repo", "--spool", "repo", *QUICK)
    assert outcome.status == 5
    assert re.fullmatch(r"kvtape: failed: [a-z, -]+\n", outcome.err)
    assert {"repository-list", "spool-disk"} <= named(outcome, "fail")
    outcome = kvtape("check", "--repo", "nosuch://host/x", *QUICK)
    assert (outcome.status, outcome.err) == (5, "kvtape: failed: repository-list\n")
    assert named(outcome, "unknown") >= REPOSITORY - {"repository-list"}


def test_a_store_that_takes_nothing_fails_and_the_rest_is_not_tried(
    folder: Path,
) -> None:
    (folder / "repo").write_text("a file")
    found = {
        finding.name: finding.verdict for finding in probe(LocalStore(folder / "repo"))
    }
    assert found == {
        "repository-write": "fail",
        "repository-read": "unknown",
        "repository-create-only": "unknown",
        "repository-delete": "unknown",
    }


def test_a_probe_that_cannot_be_deleted_is_fine_and_in_nobodys_way(
    folder: Path,
) -> None:
    class AppendOnly(LocalStore):
        """A store whose users may not delete, as good ones are set up."""

        def delete(self, path: str) -> None:
            raise RepositoryError(f"cannot delete {self.url}/{path}: Access Denied")

    found = {f.name: f for f in probe(AppendOnly(folder / "repo"))}["repository-delete"]
    assert (found.verdict, found.measured) == ("ok", {"can_delete": False})
    assert "Access Denied): fine, prune elsewhere" in found.message
    [left] = (folder / "repo" / PROBES).iterdir()
    assert str(left) in found.hint
    # The place is as empty as it was.
    outcome = kvtape("check", "--repo", "repo", *QUICK)
    assert one(outcome, "repository-identity")["measured"] == {"sources": 0}
    assert outcome.status == 0
    create_repository("repo", THEN)
    assert open_repository("repo").sources() == {}
    outcome = kvtape("check", "--repo", "repo", *QUICK)
    assert "a repository with" in one(outcome, "repository-identity")["message"]
    assert left.exists()


def test_a_store_that_overwrites_is_found_out(folder: Path) -> None:
    class Overwriting(LocalStore):
        """What no store here is; the check must not take its word."""

        def put(self, path: str, source: Path | bytes) -> None:
            assert isinstance(source, bytes)
            self.delete(path)
            super().put(path, source)

    found = {f.name: f for f in probe(Overwriting(folder / "repo"))}
    assert found["repository-create-only"].verdict == "fail"
    assert found["repository-delete"].verdict == "ok"


# The spool.


def test_the_disk_is_measured_where_the_spool_will_be(folder: Path) -> None:
    disk = disk_facts(folder / "not" / "there")
    assert disk.folder == str(folder)
    assert disk.trouble is None
    assert disk.free_bytes
    assert disk.sync_seconds
    assert list(folder.iterdir()) == []


def test_a_spool_with_a_torn_segment_tells_what_is_before(folder: Path) -> None:
    tape = Tape(folder / "repo").snapshot()
    tape.commands(("SET", "key", "value"))
    tape.commands(("SET", "key", "other"))
    segment = max((folder / "repo").rglob("*.seg"))
    catalogue = tape.folder.catalogue()
    found = position(catalogue, folder / "spool")
    assert found is not None
    assert (found.replid, found.offset) == (REPLID, tape.end)
    recording = folder / "spool" / "recording"
    recording.mkdir(parents=True)
    content = segment.read_bytes()
    for torn in (content, content[:-1], content[:-30] + b"garbage" * 9):
        (recording / "stream.seg").write_bytes(torn)
        found = position(None, folder / "spool")
        assert found is not None
        assert (found.replid, found.offset) == (REPLID, tape.end)


# What is printed.

FINDINGS = [
    Finding("role", "warn", "it is a primary", {"role": "primary"}, "prefer " * 20),
    Finding("backlog", "unknown", "INFO is not allowed", {}, "+info"),
    Finding("clock", "ok", "the same as here", {"offset_seconds": 0.25}),
    Finding("sharing", "unknown", "INFO is not allowed", {}, "+info"),
    Finding("gaps", "fail", "lost " * 40, {"gaps": 1}, "look"),
]


def test_what_people_read_fits_80_columns_and_says_a_reason_once() -> None:
    told = list(lines(FINDINGS))
    assert max(map(len, told)) <= 80
    assert told[0] == "warn     role: it is a primary"
    assert told[1].startswith("        -> prefer prefer")
    assert "unknown  backlog, sharing: INFO is not allowed" in told
    assert sum("+info" in line for line in told) == 1
    assert not any("\x1b" in line for line in told)
    coloured = list(lines(FINDINGS, has_colours=True))
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in coloured] == told
    assert coloured != told


def test_the_document_has_the_promised_fields() -> None:
    found = document(FINDINGS)
    assert json.loads(json.dumps(found))["verdict"] == "fail"
    assert document(FINDINGS[1:4])["verdict"] == "unknown"
    assert found["checks"] == [
        {
            "name": finding.name,
            "verdict": finding.verdict,
            "measured": finding.measured,
            "message": finding.message,
            "hint": finding.hint,
        }
        for finding in FINDINGS
    ]


def test_the_text_is_readable_and_plain_in_a_pipe(start_server: StartServer) -> None:
    server = start_server("redis-7.0")
    url = f"redis://127.0.0.1:{server.port}"
    outcome = kvtape("check", url, "--repo", "repo", "--sample", "1ms")
    assert (outcome.status, outcome.err) == (0, "")
    # But for a path, which could not be copied if it were cut.
    lines_of_words = [one for one in outcome.out.splitlines() if " " in one.strip()]
    assert max(map(len, lines_of_words)) <= 80
    assert "\x1b" not in outcome.out
    assert "warn     role: it is a primary\n" in outcome.out
