"""The trainer: ``python -m training_image.train --work-dir DIR``. It ends with a code of ``contract.TrainerExit``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
import transformers

from training_image.core.contract import TrainerExit, WorkDir
from training_image.core.errors import UserError
from training_image.train.evaluation import StopRequested
from training_image.train.sft import train

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and turn what went wrong into an exit code with a sentence in ``error.txt``; anything else is a crash."""
    parser = argparse.ArgumentParser(prog="training_image.train", description="Train one run from a work directory.")
    parser.add_argument("--work-dir", type=Path, required=True)
    work = WorkDir(parser.parse_args(arguments).work_dir)
    _quiet()
    try:
        train(work)
    except StopRequested:
        return TrainerExit.STOPPED
    except UserError as error:
        return _fail(work, TrainerExit.BAD_INPUT, str(error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _log.exception("Out of memory.")
        sentence = (
            "The run is out of memory. Lower LLM_TRAINING__PER_DEVICE_TRAIN_BATCH_SIZE or LLM_TRAINING__MAX_LENGTH, "
            "or take a larger instance type. The log has the details."
        )
        return _fail(work, TrainerExit.OUT_OF_MEMORY, sentence)
    return TrainerExit.DONE


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU PyTorch has a type for it, on a CPU only a sentence."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _fail(work: WorkDir, code: TrainerExit, sentence: str) -> int:
    _log.error("%s", sentence)
    work.error.write_text(sentence + "\n")
    return code


def _quiet() -> None:
    """One line an event, for a log file: no progress bars."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stdout)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


if __name__ == "__main__":
    sys.exit(main())
