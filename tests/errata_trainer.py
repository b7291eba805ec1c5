"""Experiments for the errata of the trainer's command line (notebook 05); their rows stand in ``errata.py``."""

from __future__ import annotations

import argparse
import getopt
import math
import re
import shlex

import torch
from torch import Tensor

from coursekit.data import registry
from coursekit.diffusion.settings import Settings, parse

Outcome = tuple[Tensor, Tensor, Tensor]

_TABLE_T = 300
_DOWNLOAD = r"""wget -N https://cmu.box.com/shared/static/5\
    iydd9zn3edn127rcq0qud2scq7839ym -0 ./data/afhq_v2.zip"""
_TRAIN = "--data_path ./data/train --time_steps 50 --train_steps 10000 --image_size 32 --batch_size 32 --learning_rate 1e-3 --unet_dim 16"
_MENDED = re.sub(r"\\\n\s*", "", _DOWNLOAD).replace("-0", "-O")


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class _Answers(argparse.ArgumentParser):
    def error(self, message: str) -> None:   # type: ignore[override]
        raise ValueError(message)


def flag_and_value() -> Outcome:
    """What --fid, --fid True and --fid False mean; the printed ways to declare it, store_true and type=bool."""

    def means(words: list[str], **declared: object) -> float:
        parser = _Answers()
        parser.add_argument("--fid", **declared)   # type: ignore[arg-type]
        try:
            return float(parser.parse_args(words).fid)
        except ValueError:
            return math.nan

    asked = [["--fid"], ["--fid", "True"], ["--fid", "False"]]
    right = numbers(*(parse(words).fid for words in asked))
    printed = [means(words, **declared) for declared in ({"action": "store_true"}, {"type": bool}) for words in asked]
    return numbers(1, 1, 0, 1, 1, 0), right.repeat(2), numbers(*printed)


def _read(download: str, table_T: int) -> Tensor:
    """Addresses of the data set among the words, options that wget has not, and how far the T of table and command are apart."""
    words = shlex.split(re.sub(r"\\\n", "", download))[1:]   # as a shell joins lines
    try:
        getopt.gnu_getopt(words, "NO:q")
        unknown = 0
    except getopt.GetoptError:
        unknown = 1
    return numbers(sum(word in registry()["afhq"].urls for word in words), unknown, table_T - parse(shlex.split(_TRAIN)).time_steps)


def command_that_does_not_run() -> Outcome:
    return numbers(1, 0, 0), _read(_MENDED, Settings().time_steps), _read(_DOWNLOAD, _TABLE_T)
