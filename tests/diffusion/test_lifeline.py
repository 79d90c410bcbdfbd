"""A process that ends is told from one that is slow, and from one that says goodbye."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import pytest

from diffusion.errors import InputError
from diffusion.launched import launched
from diffusion.lifeline import Address, Lifeline


@pytest.fixture
def both():
    """The lifelines of two processes, in this one."""
    first, second = Lifeline(0, 2), Lifeline(1, 2, speaker=True)
    address, server = first.listen("127.0.0.1")
    with socket.create_connection((address.host, address.port)) as stranger:
        stranger.sendall(b'{"token": "guessed", "index": 1, "name": "?"}\n')
        joining = threading.Thread(target=second.connect, args=(address,))
        joining.start()
        first.accept(address, server)
        joining.join()
    yield first, second
    first.close()  # else their threads would end this process
    second.close()


def cut(lifeline: Lifeline) -> None:
    """What the system does where a process is killed."""
    for peer in lifeline._peers.values():
        with contextlib.suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)


def test_a_process_that_is_cut_off_is_named_with_its_number(both):
    first, second = both
    assert first.loss(0.05) is None and second.loss(0) is None  # slow is not lost
    cut(second)
    lost = first.loss(5)
    assert lost is not None and lost.speaks and lost.exit_code == 1
    assert str(lost).startswith(f"process 1 of 2 ({os.getpid()} on ")


def test_of_the_first_process_another_one_speaks(both):
    first, second = both
    cut(first)
    lost = second.loss(5)
    assert lost is not None and lost.speaks and str(lost).startswith("process 0 of 2 has ended")


def test_why_a_process_fails_is_told_to_the_others(both):
    first, second = both
    second.tell("process 1 of 2: no such file")
    second.close()
    assert str(first.loss(5)) == "process 1 of 2: no such file"


def test_a_process_that_says_goodbye_is_not_lost(both):
    first, second = both
    second.close()
    assert first.loss(0.2) is None


def test_a_first_process_that_is_not_there_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(InputError, match="cannot connect to the first one"):
        Lifeline(1, 2).connect(Address("127.0.0.1", port, "token"))


def test_what_a_launcher_says(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == (0, 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "16")
    with pytest.raises(InputError, match="start them with accelerate launch or torchrun"):
        launched()
    for name, value in {"RANK": "9", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="MASTER_PORT"):
        launched()
    monkeypatch.setenv("MASTER_PORT", "1")
    assert launched() == (9, 16, 1)
