"""From records to Markdown: the page of all results, and the short table of the README."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bilevel_apps.errors import InputError
from bilevel_apps.paper.harness.overview import total_seconds
from bilevel_apps.paper.harness.render import markdown_table
from tools.results.records import ItemRecord, ScoreRecord

__all__ = ["BEGIN", "END", "results_page", "with_table"]

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
# The records that the README shows, each task at its longest training and one short one.
SHOWN = (
    "omniglot-quick-5way-1shot.json",
    "omniglot-long-5way-1shot.json",
    "omniglot-long-5way-5shot.json",
    "omniglot-long-20way-1shot.json",
    "omniglot-long-20way-5shot.json",
    "mini-imagenet-c4l-5way-1shot.json",
    "mini-imagenet-c4l-5way-5shot.json",
)
HEAD = """# Results

Made from the records in `docs/{folder}` by `python -m tools.results write`; a test
fails where the two disagree. Beside each row are the commands that compute it.
"""
SCORES = """## Accuracy

Mean accuracy in % over episodes with its 95 % interval. Query images are never support images,
unless the row says so.
Where the row says `rotated and upright`, copies turned by 90°, 180° and 270° are classes too, as in
the paper's code; `upright` is without them. Inductive: each query image is classified as if it were
alone; transductive: with the help of the others. `paper` is the paper's figure on its test classes:
323 characters of Omniglot where ours are 423, and 1,200 for training where ours are 1,100; its code
can draw a support image as a query. Rows of `val` are on the classes that the checkpoint was chosen
on.
"""
ITEMS = """## The paper's tables and figures

`quick` is a small form of each, which shows the claims and not the accuracies of the presets;
`bilevel-paper all` computes all of them, in {minutes:.0f} minutes here. ± over seeds is Student's
95 % interval: with two seeds 12.7 standard errors of their mean.
"""


def results_page(records: Mapping[str, ScoreRecord | ItemRecord], folder: str = "records") -> str:
    """Return the page of all records.

    Args:
        records: by the names of their files.
        folder: where they are, from the page.
    """
    scores = {name: r for name, r in records.items() if isinstance(r, ScoreRecord)}
    items = {name: r for name, r in records.items() if isinstance(r, ItemRecord)}
    parts = [HEAD.format(folder=folder).strip()]
    if scores:
        parts += [SCORES.strip(), markdown_table([_score_row(r) for _, r in _by_task(scores)])]
        parts += [_provenance(name, r, folder) for name, r in _by_task(scores)]
    if items:
        quick = total_seconds(r.cost for r in items.values() if r.scale == "quick")
        parts.append(ITEMS.format(minutes=quick / 60).strip())
    parts += [_item(name, record, folder) for name, record in items.items()]
    return "\n\n".join(parts) + "\n"


def with_table(readme: str, records: Mapping[str, ScoreRecord | ItemRecord], source: Path) -> str:
    """Return a README whose text between the marks is the short table of some scores.

    Args:
        readme: the text.
        records: by the names of their files.
        source: where the text is from, for the message.

    Raises:
        InputError: it has not one of each mark, in order.
    """
    begin, end = readme.find(BEGIN), readme.find(END)
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or begin > end:
        raise InputError(f"{source}: expected the lines {BEGIN} and {END} once, in this order")
    shown = [r for name in SHOWN if isinstance(r := records.get(name), ScoreRecord)]
    table = markdown_table([_readme_row(record) for record in shown]) if shown else ""
    return f"{readme[:begin]}{BEGIN}\n{table}\n{readme[end:]}"


def _by_task(scores: Mapping[str, ScoreRecord]) -> list[tuple[str, ScoreRecord]]:
    """Return the records in the order of the paper's columns."""
    return sorted(
        scores.items(),
        key=lambda e: (e[1].data != "omniglot", e[1].data, e[1].way, e[1].shot, e[0]),
    )


def _score_row(record: ScoreRecord) -> dict[str, object]:
    return _short_row(record) | {
        "hyper-iterations": record.hyper_iterations,
        "checkpoint": f"`{record.checkpoint_sha256[:12]}`",
    }


def _short_row(record: ScoreRecord) -> dict[str, object]:
    kind = "transductive" if record.transductive else "inductive"
    classes = "rotated and upright" if record.rotations else "upright"
    shifts = f", features over shifts of {record.shifts} px" * bool(record.shifts)
    overlap = ", queries may be support images" * record.overlap
    return {
        "task": f"{record.data}, {record.way}-way {record.shot}-shot{overlap}",
        "preset": _preset(record.train),
        "accuracy": _percent(record.accuracy, record.ci95),
        "upright": None if record.upright is None else _percent(**record.upright.model_dump()),
        "paper": None if record.paper is None else f"{record.paper:g}",
        "normalisation": f"{record.norm}, {kind}{shifts}",
        "episodes": f"{record.episodes} of {record.split}, {classes}",
        "seed": record.training_seed,
        "training": _training(record),
        "T": _inner(record),
    }


def _readme_row(record: ScoreRecord) -> dict[str, object]:
    row = _short_row(record)
    split = "" if record.split == "test" else f" ({record.split})"
    return {
        "task": f"{row['task']}{split}",
        "`--preset`": f"`{str(row['preset']).removesuffix(', changed')}`"
        + f", `--shifts {record.shifts}`" * bool(record.shifts),
        "accuracy, %": row["accuracy"],
        "paper, %": row["paper"],
        "minutes": None if record.seconds is None else f"{record.seconds / 60:.0f}",
    }


def _provenance(name: str, record: ScoreRecord, folder: str) -> str:
    """Return where a row comes from."""
    length = "" if record.hyper_iterations is None else f" of {record.hyper_iterations}"
    return "\n".join(
        [
            f"**{record.data}, {record.way}-way {record.shot}-shot, {_preset(record.train)}** "
            f"([record]({folder}/{name})): trained with seed {record.training_seed} on "
            f"{record.machine}{_within(record.seconds)}; {record.versions}; the checkpoint of "
            f"hyper-iteration {record.chosen_at}{length} has SHA-256 "
            f"`{record.checkpoint_sha256}`.",
            "",
            "```",
            record.train,
            _evaluation(record),
            "```",
        ]
    )


def _evaluation(record: ScoreRecord) -> str:
    """Return the command of the score, of the folder that the command of the training makes."""
    words = record.train.split()
    folder = words[words.index("--out") + 1] if "--out" in words[:-1] else "DIR"
    return record.evaluate.replace("bilevel-eval DIR", f"bilevel-eval {folder}")


def _item(name: str, record: ItemRecord, folder: str) -> str:
    """Return the section of a table or figure of the paper."""
    threads = f"{record.run.threads} thread{'s' * (record.run.threads != 1)}"
    cost = ", ".join(f"{key}: {_joined(value)}" for key, value in record.cost.items())
    claims = [
        f"- {'holds' if claim.holds else 'FAILS'}: {claim.text} ({claim.found})"
        for claim in record.claims
    ]
    return "\n".join(
        [
            f"### {record.item}, {record.scale}: {record.title}",
            "",
            markdown_table(record.rows),
            "",
            *claims,
            "",
            "<details><summary>Settings, and what differs from the paper</summary>",
            "",
            *(f"- {key}: {_joined(value)}" for key, value in record.settings.items()),
            "",
            *(f"- {line}" for line in record.differs),
            "",
            "</details>",
            "",
            f"On {record.run.machine}, {threads}; {record.run.versions}; {cost} "
            f"([record]({folder}/{name})).",
            "",
            "```",
            record.run.command,
            "```",
        ]
    )


def _joined(value: object) -> str:
    if isinstance(value, list):
        return " + ".join(map(_joined, value))
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _percent(accuracy: float, ci95: float) -> str:
    return f"{100 * accuracy:.2f} ± {100 * ci95:.2f}"


def _inner(record: ScoreRecord) -> int | str:
    """Return T, and η where it is not the learned one."""
    steps = "∞" if record.steps is None else record.steps
    return f"{steps}, η = {record.lr:.4g}" if " --lr " in record.evaluate else steps


def _training(record: ScoreRecord) -> str:
    time = "" if record.seconds is None else f"{record.seconds / 60:.0f} min on "
    return f"{time}{record.machine}"


def _preset(command: str) -> str:
    """Return the preset of a command, and whether it is changed."""
    _, _, after = command.partition("--preset ")
    name = after.split()[0] if after else "none"
    return f"{name}, changed" if " --set " in command else name


def _within(seconds: float | None) -> str:
    return "" if seconds is None else f" in {seconds / 60:.1f} minutes"
