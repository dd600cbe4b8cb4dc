"""Where pictures come from: one file a source, and the table of all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import final

from bilevel_data.class_splits import PUBLISHED
from bilevel_data.dataset import SourceData
from bilevel_data.errors import DataError
from bilevel_data.files.archives import from_archive
from bilevel_data.sources.benchmarks import TIERED, benchmark
from bilevel_data.sources.folder import folder
from bilevel_data.sources.glyphs.source import glyphs
from bilevel_data.sources.mini_imagenet import mini_imagenet
from bilevel_data.sources.omniglot import omniglot
from bilevel_data.sources.torchvision.source import torchvision

__all__ = ["SOURCES", "Source", "load_source"]


@final
@dataclass(frozen=True, kw_only=True)
class Source:
    """An entry of the table of sources.

    Attributes:
        summary: what it is, in a line.
        load: called with `path` and `download` where it takes them, and with its options.
        takes_path: whether it reads files of the user.
        takes_download: whether it can fetch its files.
        options: its options by name, each with a line that explains it.
    """

    summary: str
    load: Callable[..., SourceData]
    takes_path: bool = False
    takes_download: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "glyphs": Source(
            summary="characters of many scripts drawn from matplotlib's fonts; needs no files",
            load=glyphs,
        ),
        "omniglot": Source(
            summary="1,623 handwritten characters of 50 alphabets, from the two original zips",
            load=omniglot,
            takes_path=True,
            takes_download=True,
            options={"split": "santoro (default), vinyals or official"},
        ),
        "mini-imagenet": Source(
            summary="100 classes of 600 photographs, from a zip or folder with its csv files",
            load=mini_imagenet,
            takes_path=True,
        ),
        "folder": Source(
            summary="your own pictures, a directory a class, or an archive of them",
            load=from_archive(folder),
            takes_path=True,
            options={
                "size": "height and width in pixels (default: the largest picture's, at most 84)",
                "channels": "1 for grey (default, where every picture is), 3 for colour",
                "seed": "deals the classes out otherwise, where no split is given (default 0)",
                "ink": "of drawings: keep (default), bright (as Omniglot's) or dark",
                "skip_unreadable": "true leaves out what cannot be read (default false)",
                "splits": "a published split, such as cub, or a JSON file, lists of class names",
                "min_pictures": "leave out classes with fewer pictures (default: refuse below 2)",
            },
        ),
        "torchvision:NAME": Source(
            summary="any labelled data set of torchvision, such as torchvision:CIFAR100",
            load=torchvision,
            takes_path=True,
            takes_download=True,
            options={
                "size": "height and width in pixels (default: the first picture's, at most 84)",
                "channels": "1 for grey, 3 for colour (default: the first picture's)",
                "part": "one value of torchvision's split (default: all pictures)",
                "fractions": "shares of train, val and test (default [0.64, 0.16, 0.2])",
                "seed": "deals the classes out otherwise (default 0)",
                "splits": "a published split, such as cifar-fs, or a JSON file, lists of class "
                "names by split, in place of fractions",
            },
        ),
        **{
            name: Source(
                summary=f"{title}, its classes as they were published",
                load=from_archive(partial(benchmark, name=name)),
                takes_path=True,
                takes_download=True,
                options={"size": "height and width in pixels (default 32 for CIFAR, else 84)"},
            )
            for name, title in (
                *((name, splits.title) for name, splits in PUBLISHED.items()),
                (TIERED, "tieredImageNet"),
            )
        },
    }
)


def load_source(
    name: str, path: str | Path | None = None, *, download: bool = False, **options: object
) -> SourceData:
    """Open a source by name.

    Args:
        name: a key of `SOURCES`; for one that ends in `:NAME`, with a name in its place.
        path: the user's files, or the folder to download to.
        download: fetch the files that are missing.
        options: what `SOURCES[name].options` lists.

    Raises:
        DataError: an unknown name or option, or the source refuses its files.
    """
    family, colon, member = name.partition(":")
    source = SOURCES.get(f"{family}:NAME" if colon else name)
    if source is None:
        raise DataError(f"source: expected one of {', '.join(SOURCES)}, found {name!r}")
    unknown = sorted(set(options) - set(source.options))
    if unknown:
        have = ", ".join(source.options) or "none"
        raise DataError(f"source {name}: unknown option {unknown[0]!r}; its options: {have}")
    arguments: dict[str, object] = {**options, **({"name": member} if colon else {})}
    if source.takes_path:
        arguments["path"] = None if path is None else Path(path)
    elif path is not None:
        raise DataError(
            f"source {name}: it reads no files: leave out the path {str(path)!r} (--source)"
        )
    if source.takes_download:
        arguments["download"] = download
    elif download:
        raise DataError(
            f"source {name}: it has nothing to download: leave download out (--download)"
        )
    return source.load(**arguments)
