"""`bilevel-embed`: look at what a run learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilevel_apps.cli.common import Debug, Device, Track, make_app, run_app

HELP = """Draw a run's representation (Figure 5 of the paper).

Takes an episode of two splits and finds, by exact search, the pairs of images whose features are
nearest and farthest. Writes OUT/pairs.png: the pairs, with bars of some components of both
features. Look for classes that were never seen in training among the nearest.

Example: bilevel-embed runs/glyphs --out runs/glyphs/pictures
"""

app = make_app(HELP)


@app.command(help=HELP, no_args_is_help=True)
def embed(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of bilevel-train.")],
    out: Annotated[Path, typer.Option(metavar="OUT", help="Where to write the picture.")],
    data: Annotated[
        Path | None, typer.Option(metavar="FILE.h5", help="Another store than the run's.")
    ] = None,
    split_a: Annotated[str, typer.Option(help="Split of the blue images.")] = "train",
    split_b: Annotated[str, typer.Option(help="Split of the green images.")] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Which episodes.")] = 0,
    pairs: Annotated[int, typer.Option(min=1, max=10, help="How many pairs of each kind.")] = 5,
    track: Track = False,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Draw and say where the picture is."""
    del debug
    from bilevel_apps.embed import EmbedRequest, embed_run

    request = EmbedRequest(
        data=data, split_a=split_a, split_b=split_b, seed=seed, pairs=pairs, device=device
    )
    picture = embed_run(folder, out, request)
    if track:
        from bilevel_apps.tracking import tracked_again

        with tracked_again(folder) as tracker:
            tracker.artifact(picture, "pictures")
    print(f"wrote {picture}")


def main() -> None:
    """Run the command."""
    run_app(app)


if __name__ == "__main__":
    main()
