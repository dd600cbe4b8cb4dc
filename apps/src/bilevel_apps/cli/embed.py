"""`bilevel-embed`: look at what a run learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilevel_apps.cli.common import Data, Debug, Device, Json, Run, Track, make_app, run_app

if TYPE_CHECKING:
    from bilevel_apps.embed import Embedding

MOST_SEED = 2**32 - 1  # scikit-learn's
HELP = """Draw a run's representation, and say how far apart it puts the classes.

OUT gets

\b
pairs.png        the pairs of images, one of an episode of each split, that are nearest and farthest
                 in the representation, with bars of some components (Figure 5 of the paper)
neighbours.png   random images of the second split, each with its nearest others
map-pca.png      some classes of the second split in two dimensions (--tsne: map-tsne.png)
map.html         the same to zoom and point at, in one file that needs no network
embeddings.npz   the features, labels and class names

Look for images of one class, never seen in training, that stand together. The figures are

\b
silhouette           from -1 to 1; above 0 where images are nearer to their own class
nearest class mean   share of images nearest to the mean of the others of their class
nearest image        share of images whose nearest other image is of their class

Example: bilevel-embed runs/glyphs --out runs/glyphs/pictures --tsne
"""

app = make_app(HELP)


@app.command(help=HELP, no_args_is_help=True)
def embed(
    folder: Run,
    out: Annotated[Path, typer.Option(metavar="OUT", help="Where to write the pictures.")],
    data: Data = None,
    split_a: Annotated[str, typer.Option(help="Split of the pairs' blue images.")] = "train",
    split_b: Annotated[
        str, typer.Option(help="Split of the pairs' green images, and of everything else.")
    ] = "test",
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Which episodes, images and classes.")
    ] = 0,
    pairs: Annotated[int, typer.Option(min=1, max=10, help="How many pairs of each kind.")] = 5,
    queries: Annotated[int, typer.Option(min=1, max=20, help="Rows of neighbours.")] = 8,
    neighbours: Annotated[int, typer.Option(min=1, max=20, help="Neighbours a row.")] = 10,
    classes: Annotated[
        int, typer.Option(min=2, max=20, help="Classes on the map; colours repeat after 7.")
    ] = 7,
    images: Annotated[
        int, typer.Option(min=2, help="Images to encode, at most; equally many of each class.")
    ] = 10_000,
    tsne: Annotated[bool, typer.Option("--tsne", help="Also a map by t-SNE.")] = False,
    dpi: Annotated[int, typer.Option(min=50, max=600, help="Dots an inch; 200 is print.")] = 200,
    track: Track = False,
    as_json: Json = False,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Draw, print the figures, and say where the pictures are."""
    del debug
    from bilevel_apps.embed import EmbedRequest, embed_run

    request = EmbedRequest(
        data=data,
        split_a=split_a,
        split_b=split_b,
        seed=seed,
        pairs=pairs,
        queries=queries,
        neighbours=neighbours,
        classes=classes,
        images=images,
        tsne=tsne,
        dpi=dpi,
        device=device,
    )
    found = embed_run(folder, out, request)
    if track:
        _track(folder, found)
    if as_json:
        print(json.dumps(found.figures.as_dict() | {"files": [str(p) for p in found.files]}))
        return
    print(found.figures.heading())
    for name, features, pixels in found.figures.rows():
        print(f"  {name:20}{features:>11}{pixels:>11}")
    print(f"in {out}: {', '.join(path.name for path in found.files)}")


def _track(folder: Path, found: Embedding) -> None:
    from bilevel_apps.tracking.run import tracked_again

    with tracked_again(folder) as tracker:
        tracker.metrics(0, found.figures.metrics())
        for path in found.files:
            if path.suffix in (".png", ".html"):
                tracker.artifact(path, "pictures")


def main() -> None:
    """Run the command."""
    run_app(app)


if __name__ == "__main__":
    main()
