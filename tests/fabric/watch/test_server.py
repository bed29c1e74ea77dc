"""The server of the watch, talked to through sockets as its clients do."""

import json
import socket
import time
from contextlib import suppress

import pytest

from fulmen.fabric.watch.report import failure_of
from fulmen.fabric.watch.server import Server

TOKEN = "secret"


class Client:
    def __init__(self, server, rank, token=TOKEN):
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        self.lines = self.socket.makefile("r")
        self.send({"rank": rank, "token": token})
        self.send({"begins": 1})

    def send(self, message):
        self.socket.sendall((json.dumps(message) + "\n").encode())

    def stand(self, collective, **more):
        return {"collective": collective, "name": "", "line": "", "place": "", "in_step": False, "ranks": [], **more}

    def wait_in(self, collective, **more):
        self.send({"stands": self.stand(collective, **more)})

    def hear(self):
        line = self.lines.readline()
        return json.loads(line) if line else None

    def hears_nothing(self):
        self.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            self.socket.recv(1)
        return True

    def close(self):
        self.lines.close()
        self.socket.close()


@pytest.fixture
def server():
    return Server(2, TOKEN)


@pytest.fixture
def clients(server):
    clients = [Client(server, rank) for rank in range(2)]
    while len(server._runs) < 2:
        time.sleep(0.01)
    yield clients
    for client in clients:
        with suppress(OSError):  # some have closed it
            client.send({"left": True})
        client.close()


def test_a_failure_is_told_to_all_and_reported(clients):
    error = ValueError("a bad batch")
    clients[1].send({"failed": failure_of(1, error) | {"run": 1}})
    for rank, client in enumerate(clients):
        told = client.hear()["failure"]
        assert (told["kind"], told["rank"], told["run"]) == ("raised", 1, 1)
        client.send({"seen": client.stand("barrier", place=f"batch {rank}")})
    for client in clients:
        report = client.hear()["report"]
        assert report.startswith("Rank 1 of 2 failed first: ValueError: a bad batch")
        assert report.endswith("Where the others stood:\n  rank 0: batch 0, in barrier")


def test_the_first_failure_of_a_run_counts_until_all_have_failed(clients):
    clients[0].send({"failed": failure_of(0, ValueError("first")) | {"run": 1}})
    assert clients[1].hear()["failure"]["rank"] == 0
    clients[1].send({"failed": failure_of(1, ValueError("second")) | {"run": 1}})
    heard = [clients[1].hear() for _ in range(2)]
    assert {next(iter(message)) for message in heard} == {"common", "report"}
    clients[1].send({"begins": 2})
    clients[1].send({"failed": failure_of(1, ValueError("third")) | {"run": 2}})
    assert clients[1].hear()["failure"]["run"] == 2


def test_a_broken_connection_is_a_death(clients):
    clients[1].close()
    assert clients[0].hear()["failure"] == {"kind": "died", "rank": 1, "exit_code": None, "run": 1}


def test_a_launcher_knows_how_a_process_died(clients):
    clients[0].send({"ended": 1, "exit_code": -9})
    clients[0].hear()
    clients[0].send({"seen": clients[0].stand("")})
    clients[1].hear()
    clients[1].send({"seen": clients[1].stand("")})
    assert "Rank 1 of 2 was killed by SIGKILL. Was it out of memory?" in clients[0].hear()["report"]


def test_who_left_may_close_its_connection(clients):
    clients[1].send({"left": True})
    clients[1].close()
    assert clients[0].hears_nothing()


def answer(client, stand):
    client.send({"stands": stand, "answers": client.hear()["ask"]})


def test_processes_that_part(clients):
    clients[0].wait_in("barrier")
    clients[1].wait_in("all_reduce", name="loss")
    answer(clients[0], clients[0].stand("barrier"))
    answer(clients[1], clients[1].stand("all_reduce", name="loss"))
    assert clients[0].hear()["failure"]["kind"] == "parted"


def test_who_has_gone_on_meanwhile_has_not_parted(clients):
    clients[0].wait_in("barrier")
    clients[1].wait_in("all_reduce", name="loss")
    answer(clients[0], None)
    answer(clients[1], clients[1].stand("all_reduce", name="loss"))
    assert clients[0].hears_nothing()


def test_who_is_too_busy_to_answer_has_not_parted(clients, monkeypatch):
    monkeypatch.setattr("fulmen.fabric.watch.server._ANSWER_SECONDS", 0.1)
    clients[0].wait_in("barrier")
    clients[1].wait_in("all_reduce")
    for number in range(1, 4):
        assert clients[0].hear() == {"ask": number}
    clients[0].send({"stands": None})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"collective": "barrier"}, {"collective": "barrier", "line": "b.py:1"}),
        ({"collective": "send"}, {"collective": "recv"}),
        ({"collective": "barrier", "ranks": [0]}, {"collective": "all_reduce", "ranks": [1]}),
    ],
)
def test_processes_that_do_not_part(clients, one, other):
    clients[0].wait_in(**one)
    clients[1].wait_in(**other)
    assert clients[0].hears_nothing()


def test_others_wait_for_one_that_left(clients):
    clients[1].send({"left": True})
    clients[0].wait_in("barrier")
    answer(clients[0], clients[0].stand("barrier"))
    assert clients[0].hear()["failure"] == {"kind": "left", "rank": 1, "left": [1], "run": 1}


@pytest.mark.parametrize("left_first", [True, False])
def test_a_broken_exchange_is_explained_by_one_that_left(clients, left_first):
    clients[0].send({"begins": 2})
    messages = [(clients[1], {"left": True}), (clients[0], {"broken": True})]
    for client, message in messages if left_first else reversed(messages):
        client.send(message)
        time.sleep(0.05)
    assert clients[0].hear()["failure"]["kind"] == "left"


@pytest.mark.parametrize("hello", [b"{}\n", b"[]\n", b"\xff\n", b'{"rank": 0, "token": "wrong"}\n', b"x" * 5000])
def test_who_does_not_know_the_token_is_not_heard(server, hello):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as stranger:
        stranger.sendall(hello)
        with suppress(ConnectionResetError):  # it was closed with bytes unread
            assert stranger.recv(1) == b""
    assert server._connections == {}


def test_only_this_machine_can_connect_unless_there_are_others():
    assert Server(2, TOKEN)._socket.getsockname()[0] == "127.0.0.1"
    assert Server(2, TOKEN, is_reachable=True)._socket.getsockname()[0] in ("::", "0.0.0.0")
