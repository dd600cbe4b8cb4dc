"""What commands say of bad input: a line that names it, and no object's address in memory."""

import re

import pytest

ADDRESS = re.compile(r"0x[0-9a-f]{6,}|object at|<function|<class ")

# A command line; STORE, RUN and NONE stand for paths. What of it the line must name.
TABLE = [
    (("data", "info", "NONE"), "NONE"),
    (("data", "verify", "TEXT"), "TEXT"),
    (("data", "prepare", "folder", "--out", "OUT", "--source", "NONE"), "--source"),
    (("data", "prepare", "folder", "--out", "OUT", "--source", "TEXT"), "TEXT"),
    (("data", "prepare", "cub", "--out", "OUT", "--source", "NONE"), "--source"),
    (("data", "prepare", "omniglot", "--out", "OUT", "--source", "NONE"), "NONE"),
    (("data", "prepare", "mini-imagenet", "--out", "OUT", "--source", "TEXT"), "TEXT"),
    (("data", "prepare", "glyphs", "--out", "STORE"), "--overwrite"),
    (("data", "prepare", "glyphs", "--out", "OUT", "--option", "size"), "--option"),
    (("data", "features", "STORE", "NONE", "--out", "OUT"), "NONE"),
    (("data", "features", "STORE", "pretrained:omniglot-5way-1shot", "--out", "OUT"), "STORE"),
    (("data", "features", "STORE", "TEXT", "--model", "c4l", "--out", "OUT"), "TEXT"),
    (("train", "--preset", "none", "--out", "OUT"), "--preset"),
    (("train", "--preset", "folder-quick", "--data", "NONE", "--out", "OUT"), "NONE"),
    (("train", "--preset", "folder-quick", "--out", "OUT"), "--data"),
    (("train", "--preset", "folder-quick", "--data", "STORE", "--out", "RUN"), "--resume"),
    (("train", "--preset", "features", "--data", "STORE", "--out", "OUT"), "bilevel-data features"),
    (("eval", "NONE"), "NONE"),
    (("eval", "RUN", "--data", "TEXT"), "TEXT"),
    (("eval", "RUN", "--way", "99"), "--way"),
    (("eval", "RUN", "--split", "none"), "--split none: STORE has none of this name"),
    (("eval", "RUN", "--split", "none"), "choose one of train, val, test"),
    (("embed", "RUN", "--out", "OUT", "--split-a", "none"), "--split-a none: STORE"),
    (("eval", "RUN", "--norm", "none"), "--norm"),
    (("eval", "RUN", "--plot", "NONE"), "--plot"),
    (("eval", "RUN", "--shot", "99"), "--shot"),
    (("eval", "RUN", "--steps", "many"), "--steps many"),
    (("eval", "RUN", "--lr", "0"), "--lr 0"),
    (
        ("train", "--preset", "folder-quick", "--data", "STORE", "--data", "NONE", "--out", "OUT"),
        "NONE",
    ),
    (("train", "--preset", "folder-quick", "--data", "STORE=none", "--out", "OUT"), "STORE=none"),
    (("train", "--preset", "folder-quick", "--data", "STORE=0", "--out", "OUT"), "--data STORE=0"),
    (("train", "--set", "train.mix={STORE: -1}", "--out", "OUT"), "train.mix"),
    (("train", "--set", "train.steps=none", "--data", "STORE", "--out", "OUT"), "train.steps"),
    (("train", "--set", "train.step=3", "--data", "STORE", "--out", "OUT"), "train.steps"),
    (("train", "TEXT", "--data", "STORE", "--out", "OUT"), "TEXT"),
    (("data", "verify", "LONE"), "LONE.sha256: missing"),
    (("data", "prepare", "glyphs", "--out", "OUT", "--source", "NONE"), "(--source)"),
    (("data", "prepare", "glyphs", "--out", "OUT", "--download"), "(--download)"),
    (("data", "prepare", "folder", "--out", "OUT", "--source", "EMPTY"), "EMPTY"),
    (("data", "splits", "none"), "cub"),
    (("predict", "RUN", "--support", "NONE", "--query", "EMPTY"), "NONE"),
    (("predict", "RUN", "--support", "EMPTY", "--query", "EMPTY"), "EMPTY"),
    (("export", "RUN", "--out", "TEXT"), "TEXT"),
    (("tune", "none"), "MODULE:PROBLEM"),
    (("runs", "compare", "none", "--uri", "sqlite:///NONE"), "--uri"),
]


@pytest.mark.parametrize(("line", "named"), TABLE)
def test_a_line_names_what_is_wrong(line, named, store, trained, tmp_path, command):
    text = tmp_path / "text.h5"
    text.write_text("no store")
    lone = tmp_path / "lone.h5"
    lone.write_bytes(store.read_bytes())
    (tmp_path / "empty").mkdir()
    places = {
        "NONE": tmp_path / "none",
        "TEXT": text,
        "LONE": lone,
        "EMPTY": tmp_path / "empty",
        "OUT": tmp_path / "out",
        "STORE": store,
        "RUN": trained,
    }

    def filled(words):
        return re.sub("|".join(places), lambda found: str(places[found[0]]), words)

    done = command(*map(filled, line))
    assert done.status == 2
    assert filled(named) in done.error
    assert not ADDRESS.search(done.error)
    assert not (tmp_path / "out").exists()
