"""The bolt."""

import logging

from fulmen.logo import LIGHTNING_LOGO, cli_lightning_logo, formatter


def test_the_bolt_is_printed(capsys):
    cli_lightning_logo()
    assert capsys.readouterr().out.strip() == LIGHTNING_LOGO.strip()
    assert all(character.isascii() for character in LIGHTNING_LOGO)
    assert max(map(len, LIGHTNING_LOGO.splitlines())) < 80


def test_records_show_their_level():
    record = logging.LogRecord("fulmen", logging.INFO, __file__, 1, "training %s", ("starts",), None)
    assert formatter.format(record) == "INFO: training starts"
