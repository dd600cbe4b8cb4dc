"""What operating systems and programs leave behind among a person's files."""

__all__ = ["is_litter"]

_DIRECTORIES = {"__macosx", "$recycle.bin", "system volume information", "@eadir", "lost+found"}
_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini"}


def is_litter(name: str) -> bool:
    """Whether a file is passed over: one that is hidden or left behind, or lies in such a folder.

    Hidden are names that begin with a dot, such as `.DS_Store`, `.ipynb_checkpoints` and the
    `._NAME` that a Mac puts beside each NAME.

    Args:
        name: of a file or directory; parts joined by `/`.
    """
    return any(
        part.startswith(".") or part.lower() in _DIRECTORIES or part.lower() in _FILES
        for part in name.split("/")
        if part
    )
