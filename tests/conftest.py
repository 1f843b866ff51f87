"""For all tests."""

from hypothesis import settings

# How long an example takes is the machine's affair: a busy one must not fail a test.
settings.register_profile("casa_hub", deadline=None)
settings.load_profile("casa_hub")
