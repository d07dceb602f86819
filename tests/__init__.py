"""One thread in each process that runs a test or that a test starts, set before any library is loaded.

Two workers of two threads each would use most of two cores to wait for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
