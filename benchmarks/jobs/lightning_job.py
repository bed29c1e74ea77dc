"""The digits job with Lightning."""

import lightning.pytorch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from trainer_job import run

if __name__ == "__main__":
    run(lightning.pytorch, ModelCheckpoint, CSVLogger)
