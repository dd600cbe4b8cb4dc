"""How many examples and cases are tried, and where processes leave what they do not remove."""

import tempfile

import pytest
from hypothesis import settings

settings.register_profile("usual", max_examples=200, deadline=None)
settings.register_profile("nightly", max_examples=5_000, deadline=None)
settings.register_profile("few", max_examples=10, deadline=None)
settings.load_profile("usual")


def pytest_addoption(parser):
    text = "run the first case alone of each test function"
    parser.addoption("--first-cases", action="store_true", help=text)


@pytest.hookimpl(trylast=True)  # after -m and -k have chosen
def pytest_collection_modifyitems(config, items):
    if not config.getoption("--first-cases"):
        return
    seen, kept, others = set(), [], []
    for item in items:
        function = item.nodeid.partition("[")[0]
        (others if function in seen else kept).append(item)
        seen.add(function)
    config.hook.pytest_deselected(items=others)
    items[:] = kept


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """Let all temporary files, of killed processes too, lie in a folder that pytest removes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        patch.setattr(tempfile, "tempdir", None)  # what it found before
        yield
