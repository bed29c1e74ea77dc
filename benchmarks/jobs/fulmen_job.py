"""The digits job with fulmen."""

from trainer_job import run

import fulmen
from fulmen.callbacks import ModelCheckpoint
from fulmen.loggers import CSVLogger

if __name__ == "__main__":
    run(fulmen, ModelCheckpoint, CSVLogger)
