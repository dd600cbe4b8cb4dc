"""What a source hands to a store, and what a store hands to a sampler."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast, final

import numpy as np
from numpy.typing import NDArray

from bilevel_data.errors import DataError
from bilevel_data.features import Features
from bilevel_data.preprocessing import Preprocessing

__all__ = [
    "SPLIT_NAMES",
    "ImageSplit",
    "Images",
    "Lazy",
    "Pixels",
    "SourceData",
    "SourceSplit",
    "pixels_of",
]

SPLIT_NAMES = ("train", "val", "test")

Pixels = NDArray[np.uint8]
# Pixels; or features, each vector an image of 1×1.
Images = NDArray[np.uint8 | np.float32]


def pixels_of(images: Images) -> Pixels:
    """The images, if they are pictures.

    Raises:
        DataError: they are features.
    """
    if images.dtype != np.uint8:
        raise DataError(
            f"expected pictures (uint8), found {images.dtype}: features cannot be changed as "
            "pictures can: leave that out, or give the store of the pictures"
        )
    return cast("Pixels", images)


@final
@dataclass(frozen=True, kw_only=True)
class Lazy:
    """Arrays made one after the other, afresh each time that they are iterated over."""

    make: Callable[[], Iterator[Images]]

    def __iter__(self) -> Iterator[Images]:
        return self.make()


@final
@dataclass(frozen=True, kw_only=True)
class SourceSplit:
    """The classes of one split, with pictures that may be made as they are asked for.

    Attributes:
        name: `"train"`, `"val"` or `"test"`.
        class_names: one name a class, different from one another.
        class_sizes: number of images of each class, each ≥ 1.
        image_shape: `(H, W, C)` of every image.
        images: one `(class_sizes[c], H, W, C)` uint8 array a class, in order of class; of features
            `(class_sizes[c], 1, 1, dim)` float32. Only one of them needs to be in memory at a time.
    """

    name: str
    class_names: tuple[str, ...]
    class_sizes: tuple[int, ...]
    image_shape: tuple[int, int, int]
    images: Iterable[Images]


@final
@dataclass(frozen=True, kw_only=True)
class SourceData:
    """A data set on its way into a store.

    Attributes:
        name: short name, such as `"omniglot"`.
        licence: licence of the pictures.
        source: where the pictures came from.
        preprocessing: what was done to them; or, in words, that nothing can do it again.
        rotations_are_classes: whether copies rotated by 90°, 180° and 270° may count as classes
            of their own.
        splits: at most one of each split name.
        left_out: how many files or classes were passed over, by the reason.
        remarks: what the user should know, a line each.
        features: what made them, where the images are features.
    """

    name: str
    licence: str
    source: str
    preprocessing: Preprocessing | str
    rotations_are_classes: bool
    splits: tuple[SourceSplit, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    features: Features | None = None


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSplit:
    """One split in memory, images sorted by class.

    Attributes:
        name: `"train"`, `"val"` or `"test"`.
        images: `(N, H, W, C)` uint8, or features `(N, 1, 1, dim)` float32; read-only.
        offsets: `(C + 1,)` int64; class c is `images[offsets[c]:offsets[c + 1]]`.
        class_names: one name a class.
        sha256: SHA-256 of the pixels in C order, in hexadecimal.
    """

    name: str
    images: Images
    offsets: NDArray[np.int64]
    class_names: tuple[str, ...]
    sha256: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def class_sizes(self) -> NDArray[np.int64]:
        """Number of images of each class, `(C,)` int64."""
        return np.diff(self.offsets)
