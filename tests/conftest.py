"""torch has one thread in every test, and in the processes that tests start."""

import os

# Nothing here is large enough for two threads to gain much, and on a busy machine they spin, waiting for each other: all the tests
# together then take several times as long.
os.environ["OMP_NUM_THREADS"] = "1"   # before torch is imported
