"""How many examples Hypothesis tries, and where processes leave what they do not remove."""

import tempfile

import pytest
from hypothesis import settings

settings.register_profile("usual", max_examples=200, deadline=None)
settings.register_profile("nightly", max_examples=5_000, deadline=None)
settings.load_profile("usual")


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """Let all temporary files, of killed processes too, lie in a folder that pytest removes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        patch.setattr(tempfile, "tempdir", None)  # what it found before
        yield
