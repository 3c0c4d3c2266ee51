"""Each refusal becomes a sentence with the next step, and never shows the password.

All of them are heard by a replica, in the place where servers say them; the texts are
theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from kvtape.errors import ProtocolError
from kvtape.replication.refusal import RefusedError, quoted, refused
from kvtape.replication.replica import NEED_DATA, Replica


@dataclass(frozen=True)
class Refusal:
    """What a server says instead, after how many of the handshake's replies."""

    said: bytes
    after: bytes
    meaning: str
    is_passing: bool = False


PASSWORD = "s3cret pässword"
AT_AUTH = b""
AT_REPLCONF = b"+OK\r\n"
AT_PSYNC = b"+OK\r\n" * 5
AT_SNAPSHOT = AT_PSYNC + b"+FULLRESYNC %b 7\r\n" % (b"f" * 40)
# As Redis 6.2, Redis 7.0 and Valkey say it; it is the longest line of all.
DENIED = [
    "is enabled, no bind address was specified, no authentication password is "
    "requested to clients.",
    "is enabled and no password is set for the default user.",
]
ADVICE = (
    " In this mode connections are only accepted from the loopback interface. If you "
    "want to connect from external computers to Redis you may adopt one of the "
    "following solutions: 1) Just disable protected mode sending the command 'CONFIG "
    "SET protected-mode no' from the loopback interface by connecting to Redis from "
    "the same host the server is running, however MAKE SURE Redis is not publicly "
    "accessible from internet if you do so. Use CONFIG REWRITE to make this change "
    "permanent. 2) Alternatively you can just disable the protected mode by editing "
    "the Redis configuration file, and setting the protected mode option to 'no', and "
    "then restarting the server. 3) If you started the server manually just for "
    "testing, restart it with the '--protected-mode no' option. 4) Setup a bind "
    "address or an authentication password. NOTE: You only need to do one of the above "
    "things in order for the server to start accepting connections from the outside."
)
UNKNOWN = "-ERR unknown command '%s', with args beginning with: '%s' \r\n"

REFUSALS = {
    "NOAUTH": Refusal(
        b"-NOAUTH Authentication required.\r\n", AT_REPLCONF, "it wants a password"
    ),
    "WRONGPASS": Refusal(
        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        AT_AUTH,
        "the user name or the password is wrong",
    ),
    "a wrong password before Redis 6": Refusal(
        b"-ERR invalid password\r\n", AT_AUTH, "the password is wrong"
    ),
    "NOPERM": Refusal(
        b"-NOPERM User tape has no permissions to run the 'psync' command\r\n",
        AT_PSYNC,
        "ACL SETUSER <user> +psync +replconf",
    ),
    "no password configured": Refusal(
        b"-ERR AUTH <password> called without any password configured for the default "
        b"user. Are you sure your configuration is correct?\r\n",
        AT_AUTH,
        "no password is configured for its default user: leave the password out",
    ),
    "no password configured before Redis 6": Refusal(
        b"-ERR Client sent AUTH, but no password is set\r\n",
        AT_AUTH,
        "no password is set there",
    ),
    "unknown AUTH": Refusal(
        (UNKNOWN % ("AUTH", PASSWORD)).encode(), AT_AUTH, "it does not know AUTH:"
    ),
    "unknown AUTH that shows a part of it": Refusal(
        (UNKNOWN % ("AUTH", PASSWORD[:6])).encode(), AT_AUTH, "it does not know AUTH:"
    ),
    "a proxy that shows the password": Refusal(
        f"-ERR will not AUTH {PASSWORD}, sorry\r\n".encode(),
        AT_AUTH,
        "it refused AUTH ('ERR will not AUTH ***, sorry')",
    ),
    "unknown REPLCONF": Refusal(
        (UNKNOWN % ("REPLCONF", "listening-port' '70000")).encode(),
        AT_REPLCONF,
        "it does not know REPLCONF: a managed service",
    ),
    "an unknown option": Refusal(
        b"-ERR Unrecognized REPLCONF option: capa\r\n",
        AT_REPLCONF * 2,
        "it does not know REPLCONF capa eof: it is older than Redis 6.2",
    ),
    "unknown PSYNC": Refusal(
        (UNKNOWN % ("PSYNC", "?' '-1")).encode(), AT_PSYNC, "it does not know PSYNC:"
    ),
    "LOADING": Refusal(
        b"-LOADING Redis is loading the dataset in memory\r\n",
        AT_PSYNC,
        "it is loading its data",
        is_passing=True,
    ),
    "BUSY": Refusal(
        b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL.\r\n",
        AT_REPLCONF,
        "it is busy with a script",
        is_passing=True,
    ),
    "NOMASTERLINK": Refusal(
        b"-NOMASTERLINK Can't SYNC while not connected with my master\r\n",
        AT_PSYNC,
        "a replica that has lost its own primary",
        is_passing=True,
    ),
    "NOMASTERLINK in a FAILOVER": Refusal(
        b"-NOMASTERLINK Can't SYNC while failing over\r\n",
        AT_PSYNC,
        "a FAILOVER is under way",
        is_passing=True,
    ),
    "a lost link before Redis 5": Refusal(
        b"-ERR Can't SYNC while not connected with my master\r\n",
        AT_PSYNC,
        "a replica that has lost its own primary",
        is_passing=True,
    ),
    "MASTERDOWN": Refusal(
        b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to "
        b"'no'.\r\n",
        AT_PSYNC,
        "a replica that has lost its own primary",
        is_passing=True,
    ),
    "maxclients": Refusal(
        b"-ERR max number of clients reached\r\n",
        AT_AUTH,
        "it has reached its maxclients",
        is_passing=True,
    ),
    "no fork": Refusal(
        b"\n\n-ERR BGSAVE failed, replication can't continue\r\n",
        AT_PSYNC,
        "it could not fork",
        is_passing=True,
    ),
    "no fork after all": Refusal(
        b"\n\n-ERR BGSAVE failed, replication can't continue\r\n",
        AT_SNAPSHOT,
        "it could not fork",
        is_passing=True,
    ),
    "HTTP": Refusal(
        b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n", AT_AUTH, "speaks HTTP"
    ),
    "a TLS alert": Refusal(b"\x15\x03\x01\x00\x02\x02\x46", AT_AUTH, "speaks TLS"),
    "a TLS alert with a newline in it": Refusal(
        b"\x15\x03\x03\x00\x02\x02\x0a", AT_AUTH, "speaks TLS"
    ),
    "a TLS handshake": Refusal(b"\x16\x03\x01\x02\x00", AT_AUTH, "speaks TLS"),
    "something new": Refusal(
        b"-ERR out of cheese\r\n", AT_PSYNC, "it refused PSYNC ('ERR out of cheese')"
    ),
    "nothing but the fact": Refusal(b"-\r\n", AT_PSYNC, "it refused PSYNC ('')"),
    **{
        f"DENIED {which}": Refusal(
            f"-DENIED Redis is running in protected mode because protected mode "
            f"{why}{ADVICE}\r\n".encode(),
            AT_AUTH,
            "it is in protected mode: set a password there",
        )
        for which, why in enumerate(DENIED)
    },
}

refusals = pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())


def hear(replica: Replica, pieces: list[bytes]) -> None:
    for piece in pieces:
        replica.receive_data(piece)
        while replica.next_event() is not NEED_DATA:
            pass


def heard(pieces: list[bytes]) -> RefusedError:
    replica = Replica(username="tape", password=PASSWORD)
    with pytest.raises(RefusedError) as caught:
        hear(replica, pieces)
    return caught.value


@refusals
def test_a_refusal_says_what_it_means_and_whether_it_passes(refusal: Refusal) -> None:
    error = heard([refusal.after, refusal.said])
    assert refusal.meaning in str(error)
    assert error.is_passing is refusal.is_passing
    assert len(str(error)) < 500


@refusals
def test_no_refusal_shows_the_password(refusal: Refusal) -> None:
    error = heard([refusal.after, refusal.said])
    # Of a password of several words, even one would be too much.
    assert "s3cret" not in str(error)
    assert "s3cret" not in repr(error)


@refusals
def test_a_refusal_is_the_same_however_it_is_cut_and_whatever_follows(
    refusal: Refusal,
) -> None:
    said = refusal.said
    singly = [said[i : i + 1] for i in range(len(said))]
    expected = str(heard([refusal.after, said]))
    assert str(heard([refusal.after + said + AT_PSYNC])) == expected
    assert str(heard([refusal.after, *singly])) == expected
    # A line of a thousand bytes is not cut everywhere: it would be a matter of seconds.
    for cut in range(1, len(said), 1 + len(said) // 60):
        assert str(heard([refusal.after, said[:cut], said[cut:]])) == expected


def test_what_protected_mode_says_is_longer_than_redis_reads() -> None:
    assert all(len(REFUSALS[f"DENIED {which}"].said) > 1024 for which in (0, 1))


def test_a_password_that_is_part_of_the_servers_words_changes_no_meaning() -> None:
    replica = Replica(password="password")
    said = (
        b"-ERR AUTH <password> called without any password configured for the ...\r\n"
    )
    with pytest.raises(RefusedError, match="no password is configured") as caught:
        hear(replica, [said])
    assert "<***> called without any *** configured" in str(caught.value)


def test_an_answer_to_auth_that_is_none_shows_no_password() -> None:
    with pytest.raises(ProtocolError) as caught:
        hear(Replica(password="s3cret"), [b"+AUTH s3cret\r\n"])
    assert str(caught.value) == "the server answered AUTH with '+AUTH ***'"


def test_a_quotation_is_short_and_stays_on_one_line() -> None:
    assert quoted("ERR a\nb") == r"'ERR a\nb'"
    assert quoted("x" * 200) == repr("x" * 200)
    assert quoted("x" * 201) == repr("x" * 200 + "...")


def test_a_secret_at_the_edge_of_a_quotation_is_not_shown_in_part() -> None:
    assert "s3" not in quoted("x" * 198 + "s3cret", "s3cret")


def test_an_ordinary_clients_refusal_is_told_in_the_same_words() -> None:
    error = refused("NOPERM User tape has no permissions", "INFO")
    assert "ACL SETUSER" in str(error)
    assert not error.is_passing
