"""How many examples Hypothesis tries: 200, and 5,000 with `--hypothesis-profile nightly`."""

from hypothesis import settings

settings.register_profile("usual", max_examples=200, deadline=None)
settings.register_profile("nightly", max_examples=5_000, deadline=None)
settings.load_profile("usual")
