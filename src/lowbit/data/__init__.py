"""Calibration and test data: what users hand over becomes a re-iterable, validated stream of feeds for a model.

Imports nothing of lowbit but `lowbit.exceptions`, and neither PyTorch nor an engine.
"""

from __future__ import annotations

from lowbit.data.cutting import Feed
from lowbit.data.dataset import Dataset
from lowbit.data.inputs import InputSpec, batched, input_specs
from lowbit.data.opening import RANDOM, open_data
from lowbit.data.preprocessing import Preprocessing, parse_preprocessing
from lowbit.data.splitting import split_calibration

__all__ = [
    "RANDOM",
    "Dataset",
    "Feed",
    "InputSpec",
    "Preprocessing",
    "batched",
    "input_specs",
    "open_data",
    "parse_preprocessing",
    "split_calibration",
]
