"""Few-shot image data sets as verified HDF5 stores, and reproducible episodes."""

from bilevel_data.class_splits import PUBLISHED, PublishedSplits
from bilevel_data.dataset import SPLIT_NAMES, ImageSplit, Lazy, SourceData, SourceSplit
from bilevel_data.episodes.episode import EpisodeBatch, EpisodeIndices, EpisodeSpec
from bilevel_data.episodes.loader import EpisodeLoader
from bilevel_data.episodes.sampler import EpisodeSampler
from bilevel_data.episodes.varied import MixedSampler, VariedSampler, VariedSpec
from bilevel_data.errors import DataError, WriteError
from bilevel_data.features import Features
from bilevel_data.ink import Ink, common_ink, ink_of
from bilevel_data.preprocessing import Preprocessing
from bilevel_data.sources import SOURCES, Source, load_source
from bilevel_data.stores.manifest import Manifest, SplitInfo
from bilevel_data.stores.store import Store, open_store, read_manifest, verify_store
from bilevel_data.stores.writer import write_store

__all__ = [
    "PUBLISHED",
    "SOURCES",
    "SPLIT_NAMES",
    "DataError",
    "EpisodeBatch",
    "EpisodeIndices",
    "EpisodeLoader",
    "EpisodeSampler",
    "EpisodeSpec",
    "Features",
    "ImageSplit",
    "Ink",
    "Lazy",
    "Manifest",
    "MixedSampler",
    "Preprocessing",
    "PublishedSplits",
    "Source",
    "SourceData",
    "SourceSplit",
    "SplitInfo",
    "Store",
    "VariedSampler",
    "VariedSpec",
    "WriteError",
    "common_ink",
    "ink_of",
    "load_source",
    "open_store",
    "read_manifest",
    "verify_store",
    "write_store",
]
