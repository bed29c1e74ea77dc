from __future__ import annotations

import io
import os
import pty

import pytest

from fulmen.terminal import can_redraw, is_terminal, make_console


@pytest.fixture
def terminal():
    controller, device = pty.openpty()
    with os.fdopen(device, "w") as stream:
        yield stream
    os.close(controller)


def test_what_a_terminal_is(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert is_terminal(terminal)
    assert not is_terminal(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(terminal)


def test_a_closed_stream_and_a_mere_writer_are_no_terminal():
    closed = io.StringIO()
    closed.close()
    assert not is_terminal(closed)

    class Writer:
        def write(self, text):
            return len(text)

    assert not can_redraw(Writer())


def test_a_console_off_the_terminal_writes_plain_text(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    make_console(file=stream).print("[bold red]word[/]")
    assert stream.getvalue() == "word\n"
