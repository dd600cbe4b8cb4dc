"""Fetching a published file, whole and unaltered or not at all."""

import urllib.error
import urllib.request  # noqa: TID251  (asked for with --download)
from hashlib import md5 as new_md5
from http.client import HTTPException  # noqa: TID251
from pathlib import Path

from bilevel_data.errors import DataError
from bilevel_data.files.atomic import commit, temporary

__all__ = ["fetch"]


def fetch(
    url: str, path: Path, *, md5: str, timeout: float = 30.0, max_bytes: int = 64 << 20
) -> None:
    """Download `url` to `path` if it is the file with that MD5.

    Args:
        url: what to fetch.
        path: the file to write; its folder is made if it is missing.
        md5: published checksum. It guards against damage; https guards against forgery.
        timeout: seconds to wait for the server at each step.
        max_bytes: most bytes to accept.

    Raises:
        DataError: no connection, an answer that is too long, or another file than the published
            one. Nothing is left behind.
    """
    digest, size = new_md5(usedforsecurity=False), 0
    with temporary(path) as scratch:
        try:
            with (
                urllib.request.urlopen(url, timeout=timeout) as answer,  # noqa: S310, TID251
                scratch.open("wb") as file,
            ):
                while block := answer.read(1 << 16):
                    size += len(block)
                    if size > max_bytes:
                        raise DataError(
                            f"{url}: more than {max_bytes} bytes, which it should not have: put "
                            f"what you trust at {path}"
                        )
                    digest.update(block)
                    file.write(block)
        except (OSError, HTTPException) as err:  # URLError and timeouts are OSErrors
            msg = f"{url}: cannot fetch it ({err}): check the connection, or put it at {path}"
            raise DataError(msg) from None
        if digest.hexdigest() != md5:
            msg = f"{url}: expected MD5 {md5}, found {digest.hexdigest()}: damaged or replaced: "
            msg += f"try again, or put it at {path}"
            raise DataError(msg)
        commit(scratch, path)
