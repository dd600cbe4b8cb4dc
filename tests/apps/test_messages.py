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
    (("eval", "RUN", "--split", "none"), "STORE"),
    (("eval", "RUN", "--norm", "none"), "--norm"),
    (("eval", "RUN", "--plot", "NONE"), "--plot"),
]


@pytest.mark.parametrize(("line", "named"), TABLE)
def test_a_line_names_what_is_wrong(line, named, store, trained, tmp_path, command):
    text = tmp_path / "text.h5"
    text.write_text("no store")
    places = {
        "NONE": tmp_path / "none",
        "TEXT": text,
        "OUT": tmp_path / "out",
        "STORE": store,
        "RUN": trained,
    }
    done = command(*(str(places.get(word, word)) for word in line))
    assert done.status == 2
    assert str(places.get(named, named)) in done.error
    assert not ADDRESS.search(done.error)
    assert not (tmp_path / "out").exists()
