"""`bilevel-data`: make, describe and verify stores of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bilevel_apps.cli.common import Debug, Device, Json, make_app, run_app
from bilevel_apps.errors import InputError

if TYPE_CHECKING:
    from bilevel_data import Manifest

HELP = """Few-shot data sets as verified HDF5 files.

A store is one file that holds the classes of a data set, split into train, val and test, with the
SHA-256 of its pixels inside and of the whole file beside it; or their features, by a frozen
backbone.
"""

USUAL_WAY = 5  # classes an episode, the default of a training

app = make_app(HELP)


@app.command()
def prepare(
    name: Annotated[
        str,
        typer.Argument(
            help="glyphs, omniglot, mini-imagenet, folder, torchvision:NAME, such as "
            "torchvision:CIFAR100, or a benchmark: cifar-fs, fc100, cub, aircraft, flowers, "
            "textures or tiered-imagenet."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.h5", help="The store to write.")],
    source: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where the raw files are.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the raw files (omniglot, torchvision).")
    ] = False,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option", metavar="KEY=VALUE", help="An option of the source, such as split=vinyals."
        ),
    ] = None,
    skip_unreadable: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable",
            help="Leave out files that cannot be read; the manifest counts them (folder).",
        ),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Refuse a picture or a class that is there twice, which is else said in a line.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a store that is there.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Build a store.

    glyphs needs no files: characters of many scripts, drawn from the fonts of matplotlib.

    omniglot reads images_background.zip and images_evaluation.zip, or their extracted folders.
    Option: split=santoro, vinyals or official.

    mini-imagenet reads a zip or a folder with the pictures and any of train.csv, val.csv and
    test.csv, or with directories of those names.

    folder reads your own pictures, a directory a class, or train, val and test with a directory a
    class each. Options: size and channels of the images (those of the pictures, at most 84×84);
    seed, which deals the classes out; ink=keep, bright or dark, of drawings; min_pictures, to leave
    out smaller classes; splits, as below; skip_unreadable.

    torchvision:NAME reads any labelled data set of torchvision; --source is torchvision's root.
    Options: size; channels; part, one value of torchvision's split; fractions=[0.64,0.16,0.2] and
    seed, which deal the classes out; splits=FILE.json, lists of class names by split, or a
    published split: cifar-fs, fc100, cub, aircraft, flowers or textures.

    cifar-fs, fc100, cub, aircraft, flowers, textures and tiered-imagenet read a folder with a
    directory a class, or torchvision's files (--source is its root, --download fetches them), and
    deal the classes out as they were published; see bilevel-data splits. Option: size.
    """
    del debug
    from bilevel_apps.system.terminal import progress_bar, say, warn
    from bilevel_data import load_source, write_store

    given = _options(options or [])
    if skip_unreadable:
        given["skip_unreadable"] = True
    loaded = load_source(name, source, download=download, **given)
    total = sum(sum(split.class_sizes) for split in loaded.splits)
    with progress_bar(f"writing {out.name}", total) as show:
        manifest = write_store(
            out,
            loaded,
            overwrite=overwrite,
            progress=lambda done, _total: show(done),
            strict=strict,
            tell=warn,
        )
    for remark in loaded.remarks:
        say(f"{out}: {remark}")
    small = _small_splits(manifest)
    if small:
        warn(
            f"{out}: fewer than {USUAL_WAY} classes in {small}: too few for the episodes that "
            "training and evaluation draw by default: add classes, or set a smaller episode.way"
        )
    _print_summary(out, manifest)


@app.command()
def features(
    file: Annotated[Path, typer.Argument(metavar="FILE.h5", help="A store of pictures.")],
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS",
            help="A folder of bilevel-train, a checkpoint, or pretrained:TAG; with --model also a "
            "safetensors file.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FEATURES.h5", help="The store to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The network of the weights, such as timm:resnet18; left out, the run's.",
        ),
    ] = None,
    device: Device = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a store that is there.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Compute the features of a store's pictures by a frozen backbone, once.

    FEATURES.h5 is a store whose images are vectors; its manifest names the backbone, the SHA-256 of
    its weights, and how the pictures were made. Training and evaluation then take thousands of
    episodes a second:

      bilevel-data features mini.h5 pretrained:mini-imagenet-c4l-5way-1shot --out features.h5

      bilevel-eval pretrained:mini-imagenet-c4l-5way-1shot --data features.h5 --baselines

      bilevel-train --preset features --data features.h5 --out runs/head

    Rotated copies are left out.
    """
    del debug
    from bilevel_apps.features import FeaturesRequest, write_features
    from bilevel_apps.system.terminal import progress_bar
    from bilevel_data import read_manifest

    total = sum(split.images for split in read_manifest(file).splits.values())
    request = FeaturesRequest(
        store=file, weights=weights, out=out, model=model, device=device, overwrite=overwrite
    )
    with progress_bar(f"encoding {file.name}", total) as show:
        manifest = write_features(request, lambda done, _total: show(done))
    _print_summary(out, manifest)


@app.command()
def splits(
    name: Annotated[
        str, typer.Argument(help="cifar-fs, fc100, cub, aircraft, flowers or textures.")
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say which classes of a benchmark are in which split, and who published that.

    tieredImageNet's are those of its own directories, and are listed nowhere here.
    """
    del debug
    from bilevel_data.class_splits import published

    found = published(name)
    sizes = dict(zip(("train", "val", "test"), found.sizes, strict=True))
    if as_json:
        classes = {split: list(members) for split, members in found.classes.items()}
        about = {"name": found.name, "of": found.title, "source": found.source}
        print(json.dumps({**about, "sizes": sizes, "classes": classes}))
        return
    print(f"{found.name}: classes of {found.title}")
    print(f"  from: {found.source}")
    for split, size in sizes.items():
        listed = ", ".join(found.classes.get(split, ())) or "by the rule above"
        print(f"  {split:5} {size:4} classes: {listed}")


@app.command()
def info(
    file: Annotated[Path, typer.Argument(metavar="FILE.h5", help="A store.")],
    as_json: Json = False,
    classes: Annotated[bool, typer.Option("--classes", help="Name every class too.")] = False,
    debug: Debug = False,
) -> None:
    """Say what a store holds."""
    del debug
    from bilevel_data import read_manifest

    manifest = read_manifest(file)
    if as_json:
        print(json.dumps(_as_json(manifest, named=classes)))
        return
    _print_summary(file, manifest)
    if classes:
        for name, split in manifest.splits.items():
            for class_name in split.class_names:
                print(f"  {name:5} {class_name}")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE.h5", help="A store.")],
    debug: Debug = False,
) -> None:
    """Read a whole store and check every hash."""
    del debug
    from bilevel_data import verify_store

    manifest = verify_store(file)
    images = sum(split.images for split in manifest.splits.values())
    print(f"{file}: good ({images:,} images, every hash matches)")


def _options(assignments: list[str]) -> dict[str, Any]:
    from bilevel_apps.config import parse_yaml

    options = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"--option {assignment}: expected KEY=VALUE, such as split=vinyals")
        if key in ("name", "path", "download"):
            raise InputError(f"--option {assignment}: use --source PATH or --download instead")
        options[key] = parse_yaml(text, f"--option {assignment}")
    return options


def _small_splits(manifest: Manifest) -> str:
    """Return the splits with too few classes for the usual episodes, and how many they have."""
    sizes = {name: len(split.class_names) for name, split in manifest.splits.items()}
    return ", ".join(f"{name} ({size})" for name, size in sizes.items() if size < USUAL_WAY)


def _as_json(manifest: Manifest, *, named: bool) -> dict[str, Any]:
    """Return a manifest as JSON, with each split's number of classes, and their names if wanted."""
    record: dict[str, Any] = json.loads(manifest.to_json())
    for split in record["splits"].values():
        names = split.pop("class_names")
        split["classes"] = len(names)
        if named:
            split["class_names"] = names
    return record


def _print_summary(path: Path, manifest: Manifest) -> None:
    height, width, channels = next(iter(manifest.splits.values())).image_shape
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    kind = f"{height}×{width} {colours}"
    if manifest.features is not None:
        kind = f"features of {channels} numbers"
    print(f"{path}: {manifest.name}, {kind}; licence: {manifest.licence}")
    classes = images = 0
    for name, split in manifest.splits.items():
        print(f"  {name:5} {len(split.class_names):6,} classes {split.images:8,} images")
        classes += len(split.class_names)
        images += split.images
    print(f"  total {classes:6,} classes {images:8,} images")
    absent = [name for name in ("train", "val", "test") if name not in manifest.splits]
    if absent:
        print(f"  absent: {', '.join(absent)}")
    print(f"  from: {manifest.source}")
    if manifest.features is not None:
        print(f"  features of: {manifest.features}")
    print(f"  preprocessing: {manifest.preprocessing}")
    for reason, count in manifest.left_out.items():
        print(f"  left out: {count:,} ({reason})")


def main() -> None:
    """Run the command."""
    run_app(app)


if __name__ == "__main__":
    main()
