"""Where fulmen differs from Lightning on purpose. ``make compatibility`` writes them to docs/compatibility.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """One deliberate difference.

    Attributes:
        area: The part of the framework.
        lightning: What Lightning does.
        fulmen: What fulmen does.
        why: The reason.
        test: The test that holds it, as pytest names it from the root of the repository.
    """

    area: str
    lightning: str
    fulmen: str
    why: str
    test: str


DIFFERENCES = [
    Difference(
        area="accelerators",
        lightning=(
            "`get_nvidia_gpu_stats` says 0.0 for what a GPU does not measure; without CUDA_VISIBLE_DEVICES it asks "
            "for all GPUs and gives the numbers of the first"
        ),
        fulmen="NaN; the GPU that was asked for",
        why="a zero that was not measured is none",
        test="tests/fabric/test_accelerators.py::test_gpu_stats",
    ),
    Difference(
        area="accelerators",
        lightning="`MPSAccelerator.get_device_stats` tells percentages of CPU and memory only, and needs psutil",
        fulmen="memory of the GPU, and the percentages if psutil is there",
        why="the device is the GPU",
        test="tests/fabric/test_accelerators.py::test_stats_of_apple_silicon",
    ),
    Difference(
        area="callbacks",
        lightning="the bar is drawn, and its metrics are read, every `refresh_rate` batches",
        fulmen="by the clock, ten times a second at most",
        why="reading a metric waits for the device, and a fast loop need not be drawn at each batch",
        test="tests/callbacks/progress/test_rich_progress.py::test_metrics_are_read_rarely",
    ),
    Difference(
        area="callbacks",
        lightning='rich tasks: `total=float("inf")` needs a task of its own class by hand',
        fulmen='`add_task(total=inf)` makes it; count "7/--", a pulsing bar',
        why="nothing to do by hand",
        test="tests/callbacks/progress/test_rich_display.py::test_a_task_without_an_end",
    ),
    Difference(
        area="callbacks",
        lightning=(
            "`StochasticWeightAveraging`: the extra epoch for batch norm counts one more global_step, logs a training "
            "step and moves the x axis of the loggers on; max_epochs stays raised by 1"
        ),
        fulmen=(
            "it counts and logs no step; its epoch metrics and validation are logged at the last step; max_epochs is "
            "set back"
        ),
        why="nothing is trained in it",
        test="tests/callbacks/test_stochastic_weight_avg.py::test_the_extra_epoch_neither_logs_nor_counts_steps",
    ),
    Difference(
        area="callbacks",
        lightning=(
            "`StochasticWeightAveraging`: any swa_epoch_start given as int works with max_epochs=-1 (and never starts)"
        ),
        fulmen="max_epochs must be known, else MisconfigurationException",
        why="the last epochs of an endless run do not exist",
        test="tests/callbacks/test_stochastic_weight_avg.py::test_the_last_epochs_must_be_known",
    ),
    Difference(
        area="callbacks",
        lightning='`ModelSummary`: columns and total "FLOPs" are printed as 0 without example_input_array',
        fulmen="they are left out; `summarize` still gets total_flops=0",
        why="a zero that was not measured",
        test="tests/test_summary.py::test_a_zero_that_was_not_measured_is_not_shown",
    ),
    Difference(
        area="callbacks",
        lightning='`Trainer(callbacks=["x"])`: AttributeError inside fit ("x" alone: AttributeError at construction)',
        fulmen=(
            "MisconfigurationException at construction that names what was given; also for configure_callbacks; an "
            "object with any hook of a callback is one"
        ),
        why="errors as early as possible",
        test="tests/test_assemble.py::test_what_is_no_callback_is_refused_at_once",
    ),
    Difference(
        area="callbacks",
        lightning=(
            "progress bars: total is the loader's length (or unknown) when both max_epochs and max_steps are given"
        ),
        fulmen="total is never more than the batches up to max_steps",
        why="the bar ends full, and an endless stream has a total",
        test="tests/callbacks/progress/test_progress_bar.py::test_the_total_of_an_epoch_is_what_will_be_run",
    ),
    Difference(
        area="callbacks",
        lightning="`ServableModuleValidator`: serves in a child process",
        fulmen=(
            "serves in a thread of this process; port in use is an error of its own; imports do not count against the "
            "timeout"
        ),
        why="nothing has to be pickled or forked",
        test="tests/serve/test_servable_module_validator.py::test_no_thread_stays_behind",
    ),
    Difference(
        area="callbacks",
        lightning=(
            "`ModelCheckpoint`: with validation inside epochs, a save by steps that is due with a validation inside "
            "the epoch is made before it (stale metrics)"
        ),
        fulmen="made after that validation, with its metrics",
        why="the score belongs to the weights saved",
        test="tests/callbacks/test_model_checkpoint.py::test_a_checkpoint_due_with_a_validation_sees_its_metrics",
    ),
    Difference(
        area="callbacks",
        lightning="`ModelCheckpoint`: a save by steps before the monitor is logged for the first time is dropped",
        fulmen="put off until it is logged (validation or epoch end)",
        why="no checkpoint is lost",
        test="tests/callbacks/test_model_checkpoint.py::test_before_the_first_validation_a_step_is_put_off",
    ),
    Difference(
        area="callbacks",
        lightning="`ModelCheckpoint`: check_val_every_n_epoch > 1 and no validation batches: nothing is ever saved",
        fulmen="saved at each epoch's end",
        why="the run would leave nothing",
        test="tests/callbacks/test_model_checkpoint.py::test_files[validation every other epoch, but none]",
    ),
    Difference(
        area="callbacks",
        lightning="`ModelCheckpoint`: a fixed filename with save_top_k=-1 and no monitor overwrites one file",
        fulmen="-v1, -v2, ... as with a monitor",
        why='"keep all" keeps all',
        test="tests/callbacks/test_model_checkpoint.py::test_files[a fixed name, all without monitor]",
    ),
    Difference(
        area="callbacks",
        lightning="`ModelCheckpoint`: save_last writes last.ckpt in a fast_dev_run",
        fulmen="writes nothing",
        why="a trial run leaves no files",
        test="tests/callbacks/test_model_checkpoint.py::test_files[a fast dev run]",
    ),
    Difference(
        area="callbacks",
        lightning="`ModelCheckpoint`: attributes name a file before it is written; a failed write leaves them so",
        fulmen="they change when the file is complete",
        why="best_model_path always exists",
        test="tests/callbacks/test_model_checkpoint.py::test_a_failed_write_changes_nothing",
    ),
    Difference(
        area="callbacks",
        lightning="`ModelCheckpoint`: a directory that cannot be written to fails at the first save",
        fulmen="MisconfigurationException before training",
        why="no epoch is lost",
        test="tests/callbacks/test_model_checkpoint.py::test_a_directory_that_cannot_be_written_to_is_found_before_training",
    ),
    Difference(
        area="callbacks",
        lightning="`ModelCheckpoint`: the callback in a second run does not save at the step of its last save",
        fulmen="each run saves",
        why="the step counts anew",
        test="tests/callbacks/test_model_checkpoint.py::test_the_same_callback_in_another_run_saves_at_the_same_step",
    ),
    Difference(
        area="callbacks",
        lightning=(
            "`ModelCheckpoint`: in manual optimisation every_n_train_steps warns that the state is that after the "
            "step, unless the module has `saved_models` and `layer`"
        ),
        fulmen="no warning; saved is what the step left, as in automatic optimisation",
        why="nothing to warn of",
        test="tests/callbacks/test_model_checkpoint.py::test_in_manual_optimisation_a_checkpoint_has_the_weights_after_the_step",
    ),
    Difference(
        area="callbacks",
        lightning=(
            "`OnExceptionCheckpoint`: also saves before training began and in fast_dev_run, over the checkpoint of "
            "the run before; teardown of any run removes it"
        ),
        fulmen="saves only once training has begun; only a fit that ended well removes it",
        why="what can be resumed is kept",
        test="tests/callbacks/test_on_exception_checkpoint.py::test_a_run_that_fails_before_training_leaves_the_file_alone",
    ),
    Difference(
        area="callbacks",
        lightning="`EarlyStopping`: AttributeError at setup with a time as val_check_interval",
        fulmen="works",
        why="bug",
        test="tests/callbacks/test_early_stopping.py::test_validation_by_time",
    ),
    Difference(
        area="callbacks",
        lightning="`EarlyStopping`: with check_val_every_n_epoch > 1 and no validation it never checks",
        fulmen="checks at the end of training epochs",
        why="a training metric can be monitored",
        test="tests/callbacks/test_early_stopping.py::test_a_training_metric_without_validation",
    ),
    Difference(
        area="callbacks",
        lightning="`Timer`: reports at every check once the time is over (min_epochs not reached)",
        fulmen="reports once",
        why="one line",
        test="tests/callbacks/test_timer.py::test_it_reports_once_even_if_training_has_to_go_on",
    ),
    Difference(
        area="callbacks",
        lightning=(
            "`GradientAccumulationScheduler`: leaves its last factor in trainer.accumulate_grad_batches, so that a "
            "further fit is refused"
        ),
        fulmen="sets it back to 1; a resumed epoch has its own factor",
        why="the trainer can train again",
        test="tests/callbacks/test_gradient_accumulation_scheduler.py::test_a_further_fit_goes_on_with_the_schedule",
    ),
    Difference(
        area="callbacks",
        lightning=(
            "`BaseFinetuning`: a resumed run has the parameter groups, not which parameters are frozen; freezes in "
            "validate/test, too"
        ),
        fulmen="restores both; freezes in fit only",
        why="resuming is exact",
        test="tests/callbacks/test_finetuning.py::test_a_resumed_run_is_the_run_that_was_not_interrupted",
    ),
    Difference(
        area="callbacks",
        lightning="`BackboneFinetuning`: without `backbone`: AttributeError at setup",
        fulmen="MisconfigurationException that says what to write",
        why="errors teach",
        test="tests/callbacks/test_finetuning.py::test_there_must_be_a_backbone",
    ),
    Difference(
        area="callbacks",
        lightning="`ModelPruning`: masks and first values are not saved: a resumed run prunes from other values",
        fulmen="in the callback's state: resuming is exact",
        why="resuming is exact",
        test="tests/callbacks/test_pruning.py::test_a_resumed_run_is_exact",
    ),
    Difference(
        area="callbacks",
        lightning=(
            "`WeightAveraging`: configure_model overridden: warns and calls it early; the average exists from the "
            "start and may be used before any update"
        ),
        fulmen="made when the module is complete; used only once something was averaged",
        why="no untrained weights are ever validated or saved",
        test="tests/callbacks/test_weight_averaging.py::test_nothing_ever_uses_an_average_that_was_never_updated",
    ),
    Difference(
        area="callbacks",
        lightning="`SpikeDetection`: load_state_dict raises AttributeError",
        fulmen="a resumed run remembers its mean",
        why="bug",
        test="tests/callbacks/test_spike_callback.py::test_a_resumed_run_remembers",
    ),
    Difference(
        area="callbacks",
        lightning="`ThroughputMonitor`: the x of validation starts from 0 in each validation",
        fulmen="goes on over the validations of a fit",
        why="curves do not lie over each other",
        test="tests/callbacks/test_throughput_monitor.py::test_evaluation_is_logged_by_its_own_batches",
    ),
    Difference(
        area="callbacks",
        lightning=(
            "`DeviceStatsMonitor`, `LearningRateMonitor(log_key_prefix)`, `LearningRateFinder`: `filter_keys`, "
            "`log_key_prefix` come after 2.6.6"
        ),
        fulmen="there",
        why="as on Lightning's master",
        test="tests/callbacks/test_device_stats_monitor.py::test_only_what_was_asked_for",
    ),
    Difference(
        area="callbacks",
        lightning=(
            "`BasePredictionWriter`: batch_indices of the epoch form are [] for some loaders (batches of a dataset, "
            "several workers)"
        ),
        fulmen="known for every DataLoader over a map-style dataset",
        why="a prediction is of use with its sample",
        test="tests/callbacks/test_prediction_writer.py::test_the_indices_are_those_of_the_samples",
    ),
    Difference(
        area="checkpoints",
        lightning=(
            "random states and the order of the data are not in a checkpoint; a run resumed in the middle of an epoch "
            "reads a `DataLoader` from its start"
        ),
        fulmen="both are in it, under the key `fulmen`; the run goes on with the next batch",
        why="a resumed run is the run that was not interrupted, bit for bit on the same machine",
        test="tests/test_resume_exact.py::test_a_resumed_run_is_the_rest_of_the_whole_one",
    ),
    Difference(
        area="checkpoints",
        lightning=(
            "a checkpoint saved before a validation that is due (`on_train_batch_end`, `on_validation_start`) is "
            "resumed without that validation; one saved in `on_train_epoch_start` resumes with an epoch that is "
            "skipped or begins in its middle"
        ),
        fulmen="what was still to come is made up for, the epoch is trained",
        why="a resumed run is the rest of the whole one",
        test="tests/test_resume_exact.py::test_a_resumed_run_is_the_rest_of_the_whole_one[validation inside]",
    ),
    Difference(
        area="checkpoints",
        lightning='`ckpt_path="hpc"` fails if a file `hpc_ckpt_x.ckpt` without a number lies there',
        fulmen="it is passed over",
        why="a stray file is no reason",
        test="tests/test_resume.py::test_hpc_is_the_highest_number",
    ),
    Difference(
        area="checkpoints",
        lightning='`trainer.ckpt_path = "best"` (also "last", "hpc") is taken for a file of that name',
        fulmen="it means what the argument means",
        why="one vocabulary",
        test="tests/test_resume.py::test_a_path_set_beforehand_may_be_a_word",
    ),
    Difference(
        area="checkpoints",
        lightning="another number of schedulers than in the checkpoint is passed over",
        fulmen="CheckpointError with both numbers",
        why="a scheduler would silently start anew",
        test="tests/test_resume.py::test_another_number_of_optimizers",
    ),
    Difference(
        area="checkpoints",
        lightning='`ckpt_path=5` is "file not found: 5"',
        fulmen="TypeError",
        why="the message",
        test="tests/test_resume.py::test_what_is_no_path",
    ),
    Difference(
        area="data",
        lightning=(
            "after a resume the train loader is asked for while `current_epoch` is still the one before; train and "
            "val loaders are renewed in different epochs"
        ),
        fulmen="both are asked for in the epoch that will use them, and renewed together",
        why="the number is the epoch the data are for",
        test="tests/loops/test_reloading.py::test_a_resumed_fit_counts_from_its_first_epoch",
    ),
    Difference(
        area="data",
        lightning='`CombinedLoader.limits` only change `len`, except in "sequential"; a fraction is a TypeError later',
        fulmen="they limit in every mode; a fraction is a ValueError at once",
        why="a limit that does not limit",
        test="tests/data/test_combined.py::test_setting_limits",
    ),
    Difference(
        area="data",
        lightning="`num_val_batches` of a CombinedLoader that draws at once lists the lengths of its loaders",
        fulmen="the number of batches that are run",
        why="it is what bars and users count",
        test="tests/loops/test_combined_loaders.py::test_the_validation_of_a_fit",
    ),
    Difference(
        area="data",
        lightning="predict rebuilds a BatchSampler subclass from its constructor; another signature is a TypeError",
        fulmen="it is copied with `drop_last=False`, whatever its constructor takes",
        why="the user's sampler keeps its own attributes",
        test="tests/data/test_feed_indices.py::test_a_batch_sampler_of_the_users_own_gives_its_last_batch",
    ),
    Difference(
        area="data",
        lightning="predict warns about every batch sampler it does not know",
        fulmen="only about one that has `drop_last=True`",
        why="the others leave nothing out as far as can be known",
        test="tests/data/test_feed_indices.py::test_a_foreign_batch_sampler_that_drops_something_is_kept_and_said",
    ),
    Difference(
        area="data",
        lightning="`overfit_batches` warns about shuffling for any sampler that is not sequential, streams included",
        fulmen="only where a sampler is replaced",
        why="no advice without a cause",
        test="tests/data/test_feed.py::test_without_shuffle_keeps_what_is_in_order",
    ),
    Difference(
        area="data",
        lightning="`LightningDataModule.from_datasets` drops arguments that nobody takes",
        fulmen="TypeError",
        why="a misspelt argument is not lost",
        test="tests/test_datamodule.py::test_arguments_that_nobody_takes_are_an_error",
    ),
    Difference(
        area="data",
        lightning="`datamodule=` of another type is an AttributeError later",
        fulmen="TypeError that names it",
        why="the message",
        test="tests/test_unpack.py::test_what_is_no_datamodule",
    ),
    Difference(
        area="fabric",
        lightning="`CSVLogger.log_hyperparams` of `lightning.fabric.loggers` is a NotImplementedError",
        fulmen="writes `hparams.yaml`",
        why="one logger for both",
        test="tests/fabric/loggers/test_fabric_loggers.py::test_a_loop_of_ones_own_logs",
    ),
    Difference(
        area="fabric",
        lightning="modules inside a LightningModule have no `fabric`",
        fulmen="they have that of the whole",
        why="`self.log` works in parts",
        test="tests/test_standin.py::test_modules_inside_have_the_same_fabric",
    ),
    Difference(
        area="fabric",
        lightning=(
            "under Fabric `self.print`, `toggle_optimizer` and `optimizers(use_pl_optimizer=False)` are AttributeErrors"
        ),
        fulmen="they work",
        why="the optimizers are known",
        test="tests/test_standin.py::test_toggling_works_on_the_optimizers_of_fabric",
    ),
    Difference(
        area="fabric",
        lightning="`logger` of a LightningModule under a Fabric without loggers is an IndexError",
        fulmen="None",
        why="as without a trainer",
        test="tests/test_standin.py::test_ranks_counters_and_loggers",
    ),
    Difference(
        area="fabric",
        lightning=(
            'step methods and marked methods run in the precision only where the strategy wraps; in "bf16-true" their '
            "inputs do not fit the weights"
        ),
        fulmen="in the precision on one device, too",
        why="the same code on one device and on several",
        test="tests/fabric/test_wrappers.py::test_step_methods_and_marked_methods_run_in_the_precision",
    ),
    Difference(
        area="fabric",
        lightning="`setup_module` does not call `on_after_setup`",
        fulmen="it does",
        why="a callback hears of every module",
        test="tests/fabric/test_fabric.py::test_setup_module_is_heard_of_too",
    ),
    Difference(
        area="fabric",
        lightning="one optimizer or loader given twice in a call is wrapped twice",
        fulmen="ValueError",
        why="it would step twice",
        test="tests/fabric/test_fabric.py::test_nothing_is_set_up_twice",
    ),
    Difference(
        area="fabric",
        lightning="an attribute set on a wrapped module cannot be deleted through the wrapper",
        fulmen="it can",
        why="reads, writes and deletes reach the original",
        test="tests/fabric/test_wrappers.py::test_attributes_are_the_originals",
    ),
    Difference(
        area="hyperparameters",
        lightning=(
            '`save_hyperparameters("nope")` is a KeyError; two objects save nothing; a falsy object leaves '
            "`_hparams_name` unset"
        ),
        fulmen="ValueError that lists the arguments; ValueError; empty hyperparameters",
        why="nothing is lost in silence",
        test="tests/test_hparams.py::test_an_unknown_name_is_an_error_that_lists_the_arguments",
    ),
    Difference(
        area="hyperparameters",
        lightning="arguments are found only if `__init__` mentions `super()` or `__class__`",
        fulmen="the `__init__` of the object is found in any case",
        why="an ordinary call is enough",
        test="tests/loggers/test_hparams_file.py::test_one_name_with_two_values",
    ),
    Difference(
        area="hyperparameters",
        lightning=(
            "`hparams.yaml` may hold Python tags (numpy, paths, OrderedDict, classes, functions) which cannot be "
            "loaded back or run code"
        ),
        fulmen="plain YAML: numpy scalars and paths as values, other objects skipped with a warning",
        why="a file that can be read anywhere, and never runs code",
        test="tests/checkpoint/test_hyperparameters.py::test_yaml_of_types_that_are_nearly_plain",
    ),
    Difference(
        area="hyperparameters",
        lightning="one packed argument comes back as a plain dict, also if a Namespace was saved",
        fulmen="as a dict whose entries are attributes too",
        why='`conf.lr` and `conf["lr"]` both work',
        test="tests/checkpoint/test_load.py::test_one_packed_argument",
    ),
    Difference(
        area="hyperparameters",
        lightning="an empty `hparams_file` is an AttributeError",
        fulmen="no hyperparameters",
        why="an empty file is empty",
        test="tests/checkpoint/test_hyperparameters.py::test_empty_yaml_is_an_empty_dict",
    ),
    Difference(
        area="loggers",
        lightning="`CSVLogger`: the file is rewritten in place for new keys",
        fulmen="through a temporary file and a rename; numbers read back exactly",
        why="nothing of the user's is lost",
        test="tests/loggers/test_csv_logs.py::test_no_row_and_no_value_is_ever_lost",
    ),
    Difference(
        area="logging",
        lightning=(
            "a step that is due sends the last value of every metric again, also of those not logged in this batch"
        ),
        fulmen="it sends what was logged in this batch",
        why="a row holds what belongs to its step",
        test="tests/test_book.py::test_a_value_that_was_not_logged_in_this_batch_is_not_repeated",
    ),
    Difference(
        area="logging",
        lightning="with several evaluation loaders the epoch's row at the loggers has the last loader's keys first",
        fulmen="keys in the order of the loaders",
        why="a stable order of columns",
        test="tests/self_log/test_one_process.py::test_names_over_two_loaders",
    ),
    Difference(
        area="logging",
        lightning="a complex number is a TypeError of `float()`",
        fulmen="ValueError that says what can be logged",
        why="the message",
        test="tests/test_book.py::test_other_values_are_refused",
    ),
    Difference(
        area="loops",
        lightning=(
            "a run resumed from a checkpoint of a whole epoch runs the sanity check again (from one inside an epoch "
            "it does not)"
        ),
        fulmen="no resumed run checks again",
        why="the validation has run before, and resuming goes on where the run was",
        test="tests/test_resume.py::test_no_sanity_check_is_run_again",
    ),
    Difference(
        area="loops",
        lightning=(
            "a stream that ends before `limit_train_batches` ends its epoch unnoticed: no validation, a last partial "
            "window that never steps, `is_last_batch` False"
        ),
        fulmen="the last batch is known when it comes: it closes its window, validation follows",
        why="nothing is lost because a limit was generous",
        test="tests/loops/test_fit.py::test_when_validation_runs_without_a_length",
    ),
    Difference(
        area="loops",
        lightning="`fit_loop.batch_idx` in `on_train_epoch_start` is still the last one of the epoch before",
        fulmen="it is -1",
        why="no batch of this epoch is under way",
        test="tests/loops/test_exit_rules.py::test_the_index_of_the_batch_begins_anew_before_the_hooks_of_the_epoch",
    ),
    Difference(
        area="loops",
        lightning=(
            "`fit_loop._combined_loader = None; fit_loop.setup_data()` inside an epoch loads new loaders at once, "
            "while the epoch goes on with the old ones and their limits are those of the new"
        ),
        fulmen="the epoch under way keeps its loaders, the next asks for new ones",
        why="lengths, limits and validation of an epoch belong to the loaders it draws from",
        test="tests/loops/test_names.py::test_an_epoch_under_way_keeps_its_loaders",
    ),
    Difference(
        area="loops",
        lightning="a batch without a loss sends the metrics of the batch before to the loggers again",
        fulmen="nothing is sent",
        why="nothing was logged",
        test="tests/loops/test_hook_order.py::test_order_is_the_one_of_the_reference[none_loss]",
    ),
    Difference(
        area="loops",
        lightning='`outputs` of `training_step` that are `{"loss": 3.0}` are an AttributeError',
        fulmen="`LossError` (a MisconfigurationException) that says what was returned",
        why="an error should say what to write",
        test="tests/loops/test_step.py::test_what_is_no_loss_is_refused",
    ),
    Difference(
        area="loops",
        lightning="a loss without gradient is autograd's RuntimeError",
        fulmen="`LossError`, a RuntimeError and a MisconfigurationException, that names batch, shape and reason",
        why="the cause is named",
        test="tests/loops/test_step.py::test_a_loss_without_gradient_says_why",
    ),
    Difference(
        area="optimisation",
        lightning=(
            "a loss is divided by `accumulate_grad_batches`, in the last, shorter window of an epoch as well, and "
            "batches of all sizes weigh the same"
        ),
        fulmen="the same for a tensor; a `Loss(sum, weight)` gives the exact mean over the window",
        why="short windows and batches are weighted right",
        test="tests/test_loss.py::test_a_window_steps_as_one_big_batch",
    ),
    Difference(
        area="optimisation",
        lightning=(
            "`configure_optimizers` returning `[]` is an IndexError, `[opts], None` or a scheduler without "
            "`state_dict` an AttributeError, `frequency=0` a ZeroDivisionError in mid-run"
        ),
        fulmen="Misconfiguration or TypeError before training, saying what was returned and what is accepted",
        why="errors teach",
        test="tests/test_optim.py::test_what_fit_refuses",
    ),
    Difference(
        area="optimisation",
        lightning='`"lr_scheduler": None` in the dictionary is an AttributeError; a list under "lr_scheduler" too',
        fulmen="no scheduler; several schedulers",
        why="the meaning is plain",
        test="tests/test_optim.py::test_what_configure_optimizers_may_return",
    ),
    Difference(
        area="profilers",
        lightning="`AdvancedProfiler`: calls of overlapping actions are lost",
        fulmen="calls count in the action begun last",
        why="no call is lost",
        test="tests/profilers/test_advanced.py::test_actions_may_overlap",
    ),
    Difference(
        area="profilers",
        lightning="after an exception nothing is described",
        fulmen="describe and teardown run also then; a profiler that fails is a note on the user's error",
        why="the profile of a run that fails is wanted",
        test="tests/profilers/test_profiler.py::test_a_run_that_fails_is_described_too",
    ),
    Difference(
        area="profilers",
        lightning="`Trainer(profiler=3)`: accepted, fails later",
        fulmen="MisconfigurationException at construction",
        why="early errors",
        test="tests/profilers/test_profiler.py::test_anything_else_is_refused",
    ),
    Difference(
        area="run",
        lightning="`deterministic` and `benchmark` stay switched on in the process after a run",
        fulmen="they are put back",
        why="one run must not change the next",
        test="tests/test_failures.py::test_the_process_is_as_it_was",
    ),
    Difference(
        area="run",
        lightning="a method with the misspelt name of a hook is never called, and nothing is said",
        fulmen="a warning names the hook that was probably meant",
        why="hours of training without it",
        test="tests/test_hooks.py::test_misspelt_hooks_are_pointed_out",
    ),
    Difference(
        area="run",
        lightning="Ctrl-C ends a run where it is",
        fulmen="it ends it after the batch under way; a second one at once",
        why="what is saved then is whole: a batch is trained on or not",
        test="tests/test_signals.py::test_the_run_ends_after_the_batch",
    ),
    Difference(
        area="run",
        lightning="a traceback goes through the frames of the framework",
        fulmen="they are taken out of an exception of the user's code; the last line says where the run was",
        why="the user's line is what is looked for",
        test="tests/test_traceback.py::test_the_frames_of_the_user_are_all_there",
    ),
    Difference(
        area="run",
        lightning=(
            "`validate`, `test` and `predict` after a fit with a datamodule set up the former datamodule, though its "
            "loaders are not used"
        ),
        fulmen="a run without a datamodule leaves the former alone (`trainer.datamodule` still gives it)",
        why="a run uses what it was given",
        test="tests/test_sources.py::test_a_datamodule_lives_as_long_as_a_run",
    ),
    Difference(
        area="run",
        lightning="`fit` of a module with a leftover `test_epoch_end` trains; the error comes with `test`",
        fulmen="`fit` refuses it",
        why="the error comes before the epochs are spent",
        test="tests/test_verify.py::test_hooks_of_an_older_api_are_refused",
    ),
    Difference(
        area="run",
        lightning=(
            "which of several parent classes among the Trainer's callbacks gives way to a callback of "
            "`configure_callbacks` depends on the order of a set"
        ),
        fulmen="all of them do",
        why="a run should not depend on the order of a set",
        test="tests/test_assemble.py::test_callbacks_of_the_module_take_the_place_of_their_kind",
    ),
    Difference(
        area="settings",
        lightning='`logger="x"` is accepted and fails in fit',
        fulmen="refused at construction",
        why="early errors",
        test="tests/test_trainer_arguments.py::test_what_is_no_logger",
    ),
    Difference(
        area="settings",
        lightning=(
            "`Trainer(accumulate_grad_batches=0 or {...}, check_val_every_n_epoch=0, max_epochs=1.5, max_steps=2.5, "
            "val_check_interval=0, limit_train_batches=True, gradient_clip_val=True)` are accepted and fail, or mean "
            "something else, later"
        ),
        fulmen="refused at construction",
        why="as early as possible",
        test="tests/test_settings.py::test_counts_that_are_refused",
    ),
    Difference(
        area="settings",
        lightning="an explicit `limit_*_batches=1.0` is told to mean all batches",
        fulmen="only 1 is told to mean one batch",
        why="1.0 is the default and means what it says",
        test="tests/test_settings.py::test_one_batch_is_not_the_whole",
    ),
    Difference(
        area="settings",
        lightning="with `limit_train_batches=0`, `num_training_batches` is inf",
        fulmen="0",
        why="it is the number",
        test="tests/test_trainer_arguments.py::test_batches_of_a_fit",
    ),
    Difference(
        area="tuner",
        lightning=(
            "`lr_find`, `scale_batch_size`: run in the user's trainer; save `.lr_find_<uuid>.ckpt` / "
            "`.scale_batch_size_<uuid>.ckpt` and restore; an exception leaves the finder among the callbacks"
        ),
        fulmen="run in a trainer of its own; no file; all is put back also after an exception",
        why="the user's trainer cannot be left half changed",
        test="tests/tuner/test_probe.py::test_after_a_fit_everything_is_as_it_was",
    ),
    Difference(
        area="tuner",
        lightning="`lr_find`: stop if smoothed > threshold * best, also for a negative loss",
        fulmen="best + (threshold - 1) * abs(best)",
        why="below 0 the product is a limit under the best loss",
        test="tests/tuner/test_lr_finder.py::test_early_stop",
    ),
    Difference(
        area="tuner",
        lightning="`scale_batch_size`: the size returned (doubled, or with the margin off) need not have been run",
        fulmen="every size returned was run",
        why="it fits for certain",
        test="tests/tuner/test_batch_size_scaling.py::test_the_size_found_is_the_largest_and_was_run",
    ),
    Difference(
        area="utilities",
        lightning='`str(trainer.state.fn)` is "TrainerFn.FITTING"; `TrainerFn("FIT")` is a ValueError',
        fulmen='"fit"; `TrainerFn.FITTING`',
        why="what is compared with a string prints as one, in any case",
        test="tests/test_types.py::test_members_print_as_their_string_and_survive_pickling",
    ),
    Difference(
        area="utilities",
        lightning='`ckpt_path="registry:NAME"` takes any file of the folder',
        fulmen="the newest .ckpt, .pt or .pth in it",
        why="a readme is no checkpoint",
        test="tests/utilities/test_model_registry.py::test_the_newest_of_several_files",
    ),
    Difference(
        area="several processes",
        lightning="evaluation data are padded, so that every rank has as many batches: some samples count twice",
        fulmen="shards are unpadded; each sample counts once",
        why="a metric is that of the data",
        test="tests/distributed/test_data.py::test_evaluation_and_prediction_see_each_sample_once",
    ),
    Difference(
        area="several processes",
        lightning="each rank shuffles by the number of the epoch, in another order than one process",
        fulmen="the order of one process for the same seed, dealt out",
        why="the same run for any number of ranks",
        test="tests/distributed/test_data.py::test_the_order_is_that_of_rank_0_alone",
    ),
    Difference(
        area="several processes",
        lightning="a custom batch sampler is a TypeError",
        fulmen="its batches are shared out",
        why="nothing has to be rewritten",
        test="tests/data/test_shard.py::test_batch_samplers_of_the_users_keep_their_batches",
    ),
    Difference(
        area="several processes",
        lightning="a checkpoint goes on with the number of ranks it was taken with, from the start of the epoch's data",
        fulmen="at the same sample, on any number of ranks",
        why="position is counted in samples of all ranks",
        test="tests/distributed/test_data.py::test_a_run_goes_on_with_another_number_of_ranks",
    ),
    Difference(
        area="several processes",
        lightning="ranks that wait in different places wait for the timeout of 30 minutes",
        fulmen="they end within ten seconds, with one report",
        why="no hangs",
        test="tests/distributed/test_faults.py::test_a_rank_exchanges_something_else",
    ),
    Difference(
        area="several processes",
        lightning="the traceback of every rank is printed, that of the cause among them",
        fulmen="one report on rank 0: who failed first, its traceback, where the others stood",
        why="what to look at first",
        test="tests/distributed/test_faults.py::test_a_rank_raises",
    ),
    Difference(
        area="several processes",
        lightning="SIGTERM on one rank ends that rank after its batch",
        fulmen="all ranks end after the same batch, one to three later",
        why="a checkpoint of all",
        test="tests/distributed/test_leaving.py::test_sigterm_on_any_rank_ends_all_after_the_same_batch",
    ),
    Difference(
        area="strategies",
        lightning="`FSDPStrategy` wraps in FSDP1 and needs a GPU; clipping by norm raises",
        fulmen="FSDP2 (`fully_shard`), on GPUs and CPUs; clips by norm and by value",
        why="torch has one engine for it now",
        test="tests/distributed/test_fsdp.py::test_windows_and_clipping",
    ),
    Difference(
        area="strategies",
        lightning="a module without a parameter to train is refused in `Fabric.setup`",
        fulmen="it stays unwrapped",
        why="nothing is to be exchanged",
        test="tests/distributed/test_fabric.py::test_what_trains_nothing_is_not_wrapped",
    ),
]
