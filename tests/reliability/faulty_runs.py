"""A training that imports what later ones need, so that processes that are forked begin at once."""

from bilevel_apps.config import parse_config
from bilevel_apps.training.loop import train


def warmed_up(config, folder):
    """Import in this process what a tracked training imports on its way; returns its database."""
    folder.mkdir()
    settings = config.model_dump(mode="json")
    settings["tracking"] |= {"uri": f"sqlite:///{folder}/mlflow.db", "experiment": "warm"}
    train(parse_config(settings, "test"), folder / "run", resume=False)
    return (folder / "mlflow.db").read_bytes()
