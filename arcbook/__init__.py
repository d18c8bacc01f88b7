__version__ = "0.2.0"

import os, sys

if os.environ.get("IN_TEST"):  # nbdev_test runs a notebook per core: one thread each, or they wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "torch" in sys.modules: sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
