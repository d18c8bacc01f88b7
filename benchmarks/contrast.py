"""Forward and backward of nt_xent and sup_con against a bare torch transcription and pytorch-metric-learning.

    python benchmarks/contrast.py [--sizes 1024 4096 16384] [--dim 128] [--repeats 9] [--threads N] [--device cpu]

Times are medians of alternating repeats in one process; memory is the peak that one forward and backward adds, each
case in a process of its own. What to read are the ratios: they come from one run on one machine. Above 8,192 rows
only arcbook's losses run, since the others need many gigabytes. A matrix is one N x N matrix of float32.
"""
import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from arcbook.contrast import nt_xent, sup_con

LIMIT = 8192                                          # rows above which only arcbook's losses run


def bare(z, target, temperature):
    "One matmul, one mask, F.cross_entropy: what one would write from the paper, with the division before the matmul"
    z = F.normalize(z)
    logits = (z / temperature) @ z.T
    logits.fill_diagonal_(torch.finfo(logits.dtype).min)
    return F.cross_entropy(logits, target())


def class_target(labels):
    same = (labels[:, None] == labels).float().fill_diagonal_(0)
    return same / same.sum(1, keepdim=True).clamp(min=1)


def cases(loss, n, dim, device):
    "Embeddings, and name -> function of them, for one loss at one size"
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, dim, generator=generator).to(device).requires_grad_()
    if loss == "nt_xent":
        labels, temperature = torch.arange(n // 2, device=device).repeat(2), 0.2
        ours = lambda: nt_xent(*z.chunk(2), temperature)
        target = lambda: torch.arange(n, device=device).roll(n // 2)
    else:
        labels, temperature = torch.randint(max(n // 16, 2), (n,), generator=generator).to(device), 0.1
        ours = lambda: sup_con(z, labels, temperature)
        target = lambda: class_target(labels)
    functions = {"arcbook": ours}
    if n <= LIMIT:
        functions["bare"] = lambda: bare(z, target, temperature)
        try:
            from pytorch_metric_learning.losses import SupConLoss
            oracle = SupConLoss(temperature)
            functions["pml"] = lambda: oracle(z, labels)
        except ImportError: pass
    return z, functions


def once(z, function):
    "Seconds of one forward and backward"
    wait = torch.cuda.synchronize if z.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    torch.autograd.grad(function(), z)
    wait()
    return time.perf_counter() - start


def measure_time(loss, n, dim, device, repeats):
    z, functions = cases(loss, n, dim, device)
    repeats = max(3, repeats if n <= 2048 else repeats // 2) if n <= LIMIT else 1
    times = {name: [] for name in functions}
    for i in range(repeats + (n <= LIMIT)):                               # the first round warms up
        for name, function in functions.items(): times[name].append(once(z, function))
    return {name: statistics.median(t[-repeats:]) for name, t in times.items()}


def peak_rss():
    "Bytes: the largest resident memory of this process so far"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_memory(loss, n, dim, device, name):
    "Bytes that one forward and backward adds at its peak: tensors alive (allocator), and resident memory of the process"
    small, warm = cases(loss, 256, dim, device)
    once(small, warm[name])
    z, functions = cases(loss, n, dim, device)
    if z.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(z, functions[name])
        return dict(tensors=torch.cuda.max_memory_allocated() - before, resident=0)
    before = peak_rss()
    once(z, functions[name])
    resident = peak_rss() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        once(z, functions[name])
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return dict(tensors=max(alive), resident=resident)


def in_subprocess(args, *case):
    "Run one case in a process of its own"
    command = [sys.executable, __file__, "--case", *map(str, case), "--dim", str(args.dim), "--device", args.device,
               "--repeats", str(args.repeats), "--threads", str(args.threads)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode: raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def report(args):
    print(f"torch {torch.__version__}, {args.threads} threads, {args.device}, dim {args.dim}; forward and backward")
    print("time of arcbook's loss, its ratio to the others, peak memory of each in N x N matrices, arcbook's in MiB")
    print(f"{'loss':8} {'N':>6} {'ms':>8} {'/ bare':>7} {'/ pml':>7}   {'arcbook':>7} {'bare':>6} {'pml':>6} "
          f"{'tensors':>9} {'resident':>9}")
    for loss in ("nt_xent", "sup_con"):
        for n in args.sizes:
            times = in_subprocess(args, "time", loss, n, "all")
            memory = {name: in_subprocess(args, "memory", loss, n, name) for name in times}
            ratio = lambda name: f"{times['arcbook'] / times[name]:6.2f}x" if name in times else f"{'-':>7}"
            matrices = lambda name: f"{memory[name]['tensors'] / (4 * n * n):.2f}" if name in memory else "-"
            size = lambda key: f"{memory['arcbook'][key] / 2**20:5.0f} MiB"
            print(f"{loss:8} {n:6} {1e3 * times['arcbook']:8.1f} {ratio('bare')} {ratio('pml')}   "
                  f"{matrices('arcbook'):>7} {matrices('bare'):>6} {matrices('pml'):>6} "
                  f"{size('tensors'):>9} {size('resident'):>9}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 16384], help="rows N")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9, help="alternating repeats, of which the median is taken")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.case: return report(args)
    kind, loss, n, name = args.case
    if kind == "time": print(json.dumps(measure_time(loss, int(n), args.dim, args.device, args.repeats)))
    else: print(json.dumps(measure_memory(loss, int(n), args.dim, args.device, name)))


if __name__ == "__main__": main()
