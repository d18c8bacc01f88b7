"What all tests share."
import os, signal

from hypothesis import settings

# one tree gives one verdict: HYPOTHESIS_PROFILE=search draws new examples on every run
settings.register_profile("same", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# a shell's background job starts with Ctrl-C ignored, and its children would inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)

# side by side, every worker takes one thread: two of one thread do more than one of two, and nobody waits for a spinning other
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    "The longest files first, so that no worker sits idle at the end."
    long = ("test_cli.py", "test_behaviour.py", "test_methods.py", "test_site.py")
    items.sort(key=lambda item: long.index(item.path.name) if item.path.name in long else len(long))
