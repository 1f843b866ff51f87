"""For all tests."""

import signal

from hypothesis import settings

# How long an example takes is the machine's affair: a busy one must not fail a test.
settings.register_profile("casa_hub", deadline=None)
settings.load_profile("casa_hub")

# Whoever runs the tests in the background of a shell has Ctrl-C ignored, and so has every program they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
