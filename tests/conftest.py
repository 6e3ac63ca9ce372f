"""What holds for the whole suite."""

import os

# Each worker of the suite computes on one thread; with more they would only wait for each other.
# Read by torch and numpy when they are imported, hence before anything else.
os.environ.setdefault("OMP_NUM_THREADS", "1")
