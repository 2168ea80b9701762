"""How many examples a property test tries that is too slow, or too quick, for the profile's number."""

from hypothesis import settings

COMMON = 100
"""Examples of a test that says nothing, in the profile of `make test`."""


def examples(count: int) -> int:
    """``count`` in `make test`, and as many times more as the chosen profile asks for."""
    return max(1, count * settings.default.max_examples // COMMON)
