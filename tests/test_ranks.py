import inspect
import logging
import os
import subprocess
import sys
import warnings

import pytest
import torch.distributed as dist
from torch.utils.data import DataLoader

import fulmen
from fulmen.demos.boring_classes import BoringModel, RandomDataset
from fulmen.errors import LightningDeprecationWarning, PossibleUserWarning
from fulmen.ranks import (
    WarningCache,
    _rank_from,
    disable_possible_user_warnings,
    rank_prefixed_message,
    rank_zero_debug,
    rank_zero_deprecation,
    rank_zero_info,
    rank_zero_only,
    rank_zero_warn,
)
from processes import run_ranks


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"RANK": "3"}, 3),
        ({"LOCAL_RANK": "2"}, 2),
        ({"SLURM_PROCID": "5"}, 5),
        ({"JSM_NAMESPACE_RANK": "1"}, 1),
        ({"RANK": "4", "LOCAL_RANK": "0", "SLURM_PROCID": "9"}, 4),
        ({"LOCAL_RANK": "0", "SLURM_PROCID": "9"}, 0),
        ({"SLURM_PROCID": "2", "JSM_NAMESPACE_RANK": "1"}, 2),
        ({"RANK": "first", "LOCAL_RANK": "", "SLURM_PROCID": "5"}, 5),
    ],
)
def test_the_rank_is_the_first_variable_that_is_set(environment, rank):
    assert _rank_from(environment) == rank


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"])
def test_the_rank_is_known_at_import(variable):
    code = "from fulmen.ranks import rank_zero_only as only; print(only.rank, only(lambda: 'zero')())"
    clean = {name: value for name, value in os.environ.items() if not name.endswith(("RANK", "PROCID"))}
    run = subprocess.run(
        [sys.executable, "-c", code], env=clean | {variable: "1"}, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["1", "None"]


@rank_zero_only
def on_rank_zero():
    return "here"


def before_in_and_after_a_group():
    """As in a process whose rank no variable says."""
    rank_zero_only.rank = _rank_from({})
    rank = int(os.environ["RANK"])
    said = [on_rank_zero()]
    dist.init_process_group("gloo")
    said.append(on_rank_zero())
    rank_zero_only.rank = 1 - rank  # whoever sets it knows better than the group
    said.append(on_rank_zero())
    rank_zero_only.rank = _rank_from({})
    dist.destroy_process_group()
    return [*said, on_rank_zero()]


def test_a_group_knows_the_rank_as_long_as_nobody_has_set_it():
    zero, one = run_ranks(before_in_and_after_a_group, 2, backend=None)
    assert zero == ["here", "here", None, "here"]
    assert one == ["here", None, "here", "here"]


def talks():
    rank_zero_only.rank = _rank_from({})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rank_zero_warn("warned")
        rank_zero_deprecation("deprecated")
    records = []
    logging.getLogger("fulmen").setLevel(logging.INFO)
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("fulmen").addHandler(handler)
    rank_zero_info("informed")
    return [str(warning.message) for warning in caught] + records


def test_one_process_of_a_group_talks():
    assert run_ranks(talks, 2) == [["warned", "deprecated", "informed"], []]


def test_rank_zero_only_runs_on_rank_zero_only():
    @rank_zero_only
    def answer():
        """The answer."""
        return 42

    assert answer() == 42
    assert (answer.__name__, answer.__doc__) == ("answer", "The answer.")
    rank_zero_only.rank = 1
    assert answer() is None


def test_other_ranks_get_the_default():
    answer = rank_zero_only(lambda: 42, "nothing")
    assert answer() == 42
    rank_zero_only.rank = 1
    assert answer() == "nothing"


def test_methods_can_be_decorated():
    class Model:
        @rank_zero_only
        def name(self, suffix):
            return type(self).__name__ + suffix

    assert Model().name(suffix="!") == "Model!"


def test_nothing_is_said_on_other_ranks(caplog):
    rank_zero_only.rank = 1
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG, logger="fulmen"):
        warnings.simplefilter("always")
        rank_zero_warn("warn")
        rank_zero_deprecation("deprecation")
        rank_zero_info("info")
        rank_zero_debug("debug")
    assert caught == []
    assert caplog.records == []


def test_records_name_the_caller(caplog):
    with caplog.at_level(logging.DEBUG, logger="fulmen"):
        rank_zero_info("%d epochs", 3)
        rank_zero_debug("detail")
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("fulmen", "INFO", "3 epochs"),
        ("fulmen", "DEBUG", "detail"),
    ]
    assert {r.funcName for r in caplog.records} == {"test_records_name_the_caller"}


@pytest.mark.parametrize(
    ("say", "category"),
    [
        (rank_zero_warn, UserWarning),
        (rank_zero_deprecation, LightningDeprecationWarning),
        (WarningCache().warn, UserWarning),
        (WarningCache().deprecation, LightningDeprecationWarning),
    ],
)
def test_warnings_name_the_caller(say, category):
    line = inspect.currentframe().f_lineno + 2
    with pytest.warns(category, match="careful") as caught:
        say("careful")
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


def test_a_larger_stacklevel_names_the_callers_caller():
    def library_function():
        rank_zero_warn("careful", stacklevel=5, category=PossibleUserWarning)

    line = inspect.currentframe().f_lineno + 2
    with pytest.warns(PossibleUserWarning) as caught:
        library_function()
    assert caught[0].lineno == line


def test_warnings_of_a_run_name_the_users_line(tmp_path):
    trainer = fulmen.Trainer(default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    model = BoringModel()
    line = inspect.currentframe().f_lineno + 2
    with pytest.warns(PossibleUserWarning, match="log_every_n_steps") as caught:
        trainer.fit(model, DataLoader(RandomDataset(32, 8)))
    places = {(w.filename, w.lineno) for w in caught if "log_every_n_steps" in str(w.message)}
    assert places == {(__file__, line)}


def test_without_a_users_frame_the_level_asked_for_is_kept():
    code = "from fulmen.ranks import _outside_libraries; print(_outside_libraries(2), _outside_libraries(40))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["2", "40"]


@pytest.mark.parametrize(
    ("logging_of_the_program", "said"),
    [("pass", 1), ("logging.basicConfig(level=logging.INFO)", 1), ("logging.getLogger('fulmen').setLevel('ERROR')", 0)],
)
def test_information_is_seen_once_whoever_set_up_logging_and_when(logging_of_the_program, said):
    code = (
        "import logging; from fulmen import seed_everything; from fulmen.ranks import rank_zero_info;"
        f"seed_everything(7); {logging_of_the_program}; rank_zero_info('news')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.count("Seed set to 7") == 1
    assert run.stderr.count("news") == said


def test_the_cache_says_things_once(caplog):
    cache = WarningCache()
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.INFO, logger="fulmen"):
        warnings.simplefilter("always")
        for _ in range(3):
            cache.warn("one")
            cache.deprecation("two")
            cache.info("three")
    assert [str(w.message) for w in caught] == ["one", "two"]
    assert [r.getMessage() for r in caplog.records] == ["three"]
    assert cache == {"one", "two", "three"}


def test_rank_prefix():
    assert rank_prefixed_message("seed set", 3) == "[rank: 3] seed set"
    assert rank_prefixed_message("seed set", None) == "seed set"


def test_possible_user_warnings_can_be_switched_off():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        disable_possible_user_warnings()
        rank_zero_warn("advice", category=PossibleUserWarning)
        rank_zero_warn("warning")
    assert [str(w.message) for w in caught] == ["warning"]


def test_they_can_be_switched_off_for_some_modules():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        disable_possible_user_warnings(module="somebody_else")
        rank_zero_warn("advice", category=PossibleUserWarning)
    assert len(caught) == 1


@pytest.mark.parametrize(("value", "printed"), [("off", ""), ("OFF", ""), ("0", ""), ("on", "advice")])
def test_the_environment_switches_them_off(value, printed):
    code = (
        "from fulmen.ranks import rank_zero_warn; from fulmen.errors import PossibleUserWarning;"
        "rank_zero_warn('advice', category=PossibleUserWarning)"
    )
    environment = {**os.environ, "POSSIBLE_USER_WARNINGS": value}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed in run.stderr
    assert bool(run.stderr) == bool(printed)
