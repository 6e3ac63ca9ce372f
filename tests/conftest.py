"""What holds for the whole suite."""

import os
import signal

from hypothesis import settings

# Each worker of the suite computes on one thread; with more they would only wait for each other.
# Read by torch and numpy when they are imported, hence before anything else.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell lets what it starts in the background ignore Ctrl-C, and processes pass that on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's affair, and no property.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
