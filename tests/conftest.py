"""Hypothesis for every test: `make test` tries the same examples each time, so that it is green or red for a reason.

`pytest --hypothesis-profile nightly` (`nightly.yml`) tries other ones each time, ten times as many, and prints with a
failure what reproduces it.
"""

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("nightly", derandomize=False, deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("same")  # the option, where given, comes later and wins
