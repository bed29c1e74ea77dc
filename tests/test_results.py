from __future__ import annotations

import math

from fulmen.results import print_results


def test_one_loader_as_plain_text(capsys):
    print_results([{"val_loss": 0.123456789, "acc": 0.5, "count": 3}], "validate")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "Validate metric  DataLoader 0"
    assert lines[3].split() == ["acc", "0.5"]
    assert lines[4].split() == ["count", "3"]
    assert lines[5].split() == ["val_loss", "0.123457"]
    assert set(lines[0]) == {"-"}
    assert len({len(line) for line in lines}) == 1


def test_several_loaders_share_rows(capsys):
    print_results([{"loss/dataloader_idx_0": 1.0, "all": 2.0}, {"loss/dataloader_idx_1": math.nan}], "test")
    out = capsys.readouterr().out
    assert "Test metric" in out
    assert "dataloader_idx" not in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip("-")}
    assert rows["loss"] == ["1", "nan"]
    assert rows["all"] == ["2"]


def test_many_loaders_are_cut_into_blocks(capsys):
    print_results([{f"m/dataloader_idx_{index}": float(index)} for index in range(20)], "test")
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 120
    assert out.count("Test metric") > 1
    assert all(f"DataLoader {index}" in out for index in range(20))


def test_nothing_to_print(capsys):
    print_results([], "test")
    print_results([{}], "test")
    assert capsys.readouterr().out == ""


def test_off_a_terminal_there_is_no_control_code(capsys):
    print_results([{"[bold]loss": 1.0}], "test")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]loss" in out
