"""Callbacks: what listens to a run without being part of the model. Each is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import importing

if TYPE_CHECKING:
    from fulmen.callback import Callback
    from fulmen.callbacks.batch_size_finder import BatchSizeFinder
    from fulmen.callbacks.checkpoint import Checkpoint
    from fulmen.callbacks.device_stats_monitor import DeviceStatsMonitor
    from fulmen.callbacks.early_stopping import EarlyStopping, EarlyStoppingReason
    from fulmen.callbacks.finetuning import BackboneFinetuning, BaseFinetuning
    from fulmen.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
    from fulmen.callbacks.lambda_function import LambdaCallback
    from fulmen.callbacks.lr_finder import LearningRateFinder
    from fulmen.callbacks.lr_monitor import LearningRateMonitor
    from fulmen.callbacks.model_checkpoint import ModelCheckpoint
    from fulmen.callbacks.model_summary import ModelSummary
    from fulmen.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
    from fulmen.callbacks.prediction_writer import BasePredictionWriter
    from fulmen.callbacks.progress.progress_bar import ProgressBar
    from fulmen.callbacks.progress.rich_progress import RichProgressBar, RichProgressBarTheme
    from fulmen.callbacks.progress.tqdm_progress import TQDMProgressBar
    from fulmen.callbacks.pruning import ModelPruning
    from fulmen.callbacks.report import Report
    from fulmen.callbacks.rich_model_summary import RichModelSummary
    from fulmen.callbacks.spike import SpikeDetection
    from fulmen.callbacks.stochastic_weight_avg import StochasticWeightAveraging
    from fulmen.callbacks.throughput_monitor import ThroughputMonitor
    from fulmen.callbacks.timer import Timer
    from fulmen.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging

_MODULE_OF = {
    "BackboneFinetuning": "fulmen.callbacks.finetuning",
    "BaseFinetuning": "fulmen.callbacks.finetuning",
    "BasePredictionWriter": "fulmen.callbacks.prediction_writer",
    "BatchSizeFinder": "fulmen.callbacks.batch_size_finder",
    "Callback": "fulmen.callback",
    "Checkpoint": "fulmen.callbacks.checkpoint",
    "DeviceStatsMonitor": "fulmen.callbacks.device_stats_monitor",
    "EMAWeightAveraging": "fulmen.callbacks.weight_averaging",
    "EarlyStopping": "fulmen.callbacks.early_stopping",
    "EarlyStoppingReason": "fulmen.callbacks.early_stopping",
    "GradientAccumulationScheduler": "fulmen.callbacks.gradient_accumulation_scheduler",
    "LambdaCallback": "fulmen.callbacks.lambda_function",
    "LearningRateFinder": "fulmen.callbacks.lr_finder",
    "LearningRateMonitor": "fulmen.callbacks.lr_monitor",
    "ModelCheckpoint": "fulmen.callbacks.model_checkpoint",
    "ModelPruning": "fulmen.callbacks.pruning",
    "ModelSummary": "fulmen.callbacks.model_summary",
    "OnExceptionCheckpoint": "fulmen.callbacks.on_exception_checkpoint",
    "ProgressBar": "fulmen.callbacks.progress.progress_bar",
    "Report": "fulmen.callbacks.report",
    "RichModelSummary": "fulmen.callbacks.rich_model_summary",
    "RichProgressBar": "fulmen.callbacks.progress.rich_progress",
    "RichProgressBarTheme": "fulmen.callbacks.progress.rich_progress",
    "SpikeDetection": "fulmen.callbacks.spike",
    "StochasticWeightAveraging": "fulmen.callbacks.stochastic_weight_avg",
    "TQDMProgressBar": "fulmen.callbacks.progress.tqdm_progress",
    "ThroughputMonitor": "fulmen.callbacks.throughput_monitor",
    "Timer": "fulmen.callbacks.timer",
    "WeightAveraging": "fulmen.callbacks.weight_averaging",
}

__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "BasePredictionWriter",
    "BatchSizeFinder",
    "Callback",
    "Checkpoint",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "EarlyStoppingReason",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateFinder",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelPruning",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "ProgressBar",
    "Report",
    "RichModelSummary",
    "RichProgressBar",
    "RichProgressBarTheme",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
    "WeightAveraging",
]

__getattr__ = importing(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return sorted(__all__)
