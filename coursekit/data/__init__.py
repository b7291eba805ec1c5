"""The pictures that the notebooks work on: data sets that are downloaded and verified, and photographs that need no network."""

from coursekit.data.augment import Augment
from coursekit.data.cats import AFHQ
from coursekit.data.digits import digits, mnist
from coursekit.data.pairs import Batches, Pairs, near_duplicates, split
from coursekit.data.photographs import CREDITS, photograph
from coursekit.data.polyps import KvasirSEG
from coursekit.data.records import results
from coursekit.data.sources import DataError, data_root, fetch, registry
from coursekit.data.synthetic import SyntheticPolyps

__all__ = [
    "AFHQ", "CREDITS", "Augment", "Batches", "DataError", "KvasirSEG", "Pairs", "SyntheticPolyps", "data_root", "digits", "fetch",
    "mnist", "near_duplicates", "photograph", "registry", "results", "split",
]  # fmt: skip
