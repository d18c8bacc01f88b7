"""CLIM's table of positives (k-means, neighbours, selection), and its parts: seconds and memory above the inputs.

    python benchmarks/clim.py [--images 50000] [--dim 128] [--clusters 50] [--neighbours 40] [--iters 30] [--device cpu]

Unit rows around as many directions as there are clusters. Memory is the largest amount of tensors that exists at one
time beyond the features. The neighbours of some rows are compared with float64 distances in the same run. At most 20 s
on two cores and 1 GiB are wanted for the defaults (k-means, neighbours and selection together).
"""
import argparse
import itertools
import time

import torch

from arcbook.contrast import normalize
from arcbook.papers.clim import select_centerwise
from arcbook.selection import kmeans, nearest_neighbours


def features(images, dim, clusters, device="cpu"):
    "Unit rows [N, D] around random directions"
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(clusters, dim, generator=g)
    z = centres[torch.randint(clusters, (images,), generator=g)] + 1.5 * torch.randn(images, dim, generator=g)
    return normalize(z).to(device)


def measured(function, device, memory=True):
    "Result, seconds, and bytes of tensors that one more call adds at its peak (None if not asked)"
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    wait()
    start = time.perf_counter()
    result = function()
    wait()
    seconds = time.perf_counter() - start
    if not memory: return result, seconds, None
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return result, seconds, torch.cuda.max_memory_allocated() - before
    watched = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=watched, profile_memory=True) as record: function()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    return result, seconds, max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def wrong_neighbours(z, table, rows=64):
    "Share of the neighbours of some rows that are farther, by more than rounding, than float64's k-th nearest"
    some = torch.linspace(0, len(z) - 1, rows).long().to(z.device)
    exact = torch.cdist(z[some].double(), z.double())
    exact[torch.arange(rows, device=z.device), some] = float("inf")
    limit = exact.topk(table.shape[1], largest=False).values[:, -1:]
    return float((exact.gather(1, table[some]) > limit + 1e-5).float().mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("images", 50_000), ("dim", 128), ("clusters", 50), ("neighbours", 40), ("iters", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true", help="time only: half the work")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    z = features(a.images, a.dim, a.clusters, a.device)
    print(f"torch {torch.__version__}, {a.threads} threads, {a.device}, "
          f"N {a.images}, D {a.dim}, m {a.clusters}, k {a.neighbours}")
    def show(name, function):
        result, seconds, peak = measured(function, a.device, not a.no_memory)
        print(f"{name:12} {seconds:8.2f} s" + ("" if peak is None else f" {peak / 2**20:9.1f} MiB"), flush=True)
        return result, seconds
    (labels, centres), first = show("k-means", lambda: kmeans(z, a.clusters, a.iters, torch.Generator().manual_seed(0)))
    near, second = show("neighbours", lambda: nearest_neighbours(z, a.neighbours))
    (_, counts), third = show("selection", lambda: select_centerwise(z, labels, centres, a.neighbours, neighbours=near))
    print(f"{'together':12} {first + second + third:8.2f} s; {counts.float().mean():.1f} positives an image, "
          f"{(counts == 0).float().mean():.1%} without; wrong neighbours {wrong_neighbours(z, near):.0%}")


if __name__ == "__main__": main()
