"""The pictures that the notebooks work on: data sets that are downloaded and verified, and photographs that need no network."""

from coursekit.data.photographs import CREDITS, photograph
from coursekit.data.sources import DataError, data_root, fetch, registry

__all__ = ["CREDITS", "DataError", "data_root", "fetch", "photograph", "registry"]
