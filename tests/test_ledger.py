"""The ledger's own arithmetic agrees with real servers, on every branch."""

from __future__ import annotations

from ledger import Entry, Ledger, differences, read_state
from plain_client import PlainClient
from servers import StartServer


def write(plain: PlainClient, *entries: Entry) -> None:
    for entry in entries:
        *_, replies = plain.exchange(entry.commands())
        assert isinstance(replies, list)
        assert not [reply for reply in replies if isinstance(reply, Exception)]


def chain(ledger: Ledger, before: int, count: int) -> list[Entry]:
    entries: list[Entry] = []
    for _ in range(count):
        entries.append(ledger.begin(before))
        before = entries[-1].number
    return entries


def test_a_servers_state_is_what_the_ledger_says(
    server_name: str, start_server: StartServer
) -> None:
    ledger = Ledger(seed=1)
    with PlainClient(start_server(server_name).client()) as plain:
        write(plain, *chain(ledger, 0, 1500))
        head, state = read_state(plain)
        assert head == 1500
        assert differences(ledger.state(head), state) == []
        assert len(state) > 300


def test_what_is_lost_is_another_branch(start_server: StartServer) -> None:
    ledger = Ledger(seed=2)
    first = chain(ledger, 0, 1100)
    lost = chain(ledger, first[-1].number, 30)
    second = chain(ledger, first[-1].number, 30)
    with PlainClient(start_server("redis-7.0").client()) as plain:
        write(plain, *first, *second)
        head, state = read_state(plain)
    assert differences(ledger.state(head), state) == []
    assert differences(ledger.state(lost[-1].number), state) != []
    assert ledger.stands_on(head, first[-1].number)
    assert not ledger.stands_on(head, lost[0].number)


def test_one_entry_less_is_seen(start_server: StartServer) -> None:
    ledger = Ledger(seed=3)
    entries = chain(ledger, 0, 50)
    with PlainClient(start_server("redis-7.0").client()) as plain:
        write(plain, *entries[:20], *entries[21:])
        head, state = read_state(plain)
    assert head == 50
    assert differences(ledger.state(head), state) != []
