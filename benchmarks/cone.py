"""One step of CoNe's loss (both terms, forward, backward, queue update) against a direct transcription of the equations.

    python benchmarks/cone.py [--keys 4096 16384 65536] [--classes 100 1000] [--batch 256] [--dim 256] [--k 512] [--repeats 5]

The transcription copies its queue at every step, as the method's code does, and lets autograd keep what it likes.
Times are medians of alternating repeats in one process; memory is what one step adds at its peak, in tensors. Values and
gradients of both are compared in the same run; where two keys tie at rank k to the last digit of float32, either may be
taken, so the worst hundredth of the rows is left out. What to read are the ratios: they come from one run on one machine.
"""
import argparse
import itertools
import statistics
import time

import torch
import torch.nn.functional as F

from arcbook.papers.cone import CoNeLoss, make_queue


def direct(logits, labels, queries, momentum_queries, keys, key_labels, key_probs, k, tau_sup=0.1, tau_dc=0.07):
    "Equations as they stand, on copies of the queue"
    keys, key_labels, key_probs = keys.clone(), key_labels.clone(), key_probs.clone()
    q, mq = F.normalize(queries), F.normalize(momentum_queries)
    near = (q @ keys.T).topk(k, dim=1)
    mass = ((near.values / tau_sup).softmax(1) * (key_labels[near.indices] == labels[:, None])).sum(1)
    sup = -torch.where(mass > 1e-8, mass, 1).log().mean()
    with torch.no_grad(): target = (mq @ keys.T / tau_dc).softmax(1) @ key_probs
    dc = F.kl_div(logits.log_softmax(1), target, reduction="batchmean")
    return F.cross_entropy(logits, labels) + 0.7 * sup + 0.4 * dc


def problem(batch, dim, size, classes, device="cpu"):
    "Everything a step needs: a full queue and a batch, drawn around one direction per class so that neighbours mean something"
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, dim, generator=g)
    def rows(n):
        y = torch.randint(0, classes, (n,), generator=g)
        z = F.normalize(centres[y] + 1.5 * torch.randn(n, dim, generator=g))
        probs = torch.rand(n, classes, generator=g).square_()
        return dict(keys=z, labels=y, probs=probs / probs.sum(1, keepdim=True), images=torch.arange(n))
    queue = make_queue(size, dim, classes).to(device)
    for start in range(0, size, 4096): queue.update(**rows(min(4096, size - start)))
    new = {name: x.to(device) for name, x in rows(batch).items()}
    queries, logits = (torch.randn(batch, n, generator=g).to(device) for n in (dim, classes))
    queries = new["keys"] + 0.05 * queries
    return queue, new, queries.requires_grad_(), logits.requires_grad_()


def steps(batch, dim, size, classes, k, device="cpu"):
    "Name -> function that makes one whole step and returns the loss and both gradients"
    queue, new, queries, logits = problem(batch, dim, size, classes, device)
    ours = CoNeLoss(k=k)
    def step(loss):
        value = loss(logits, new["labels"], queries, new["keys"], queue["keys"], queue["labels"], queue["probs"])
        value = value.loss if hasattr(value, "loss") else value
        gradients = torch.autograd.grad(value, (queries, logits))
        queue.update(**new)
        return value.detach(), *gradients
    return {"arcbook": lambda: step(ours), "direct": lambda: step(lambda *inputs: direct(*inputs, k))}


def seconds(function):
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def peak(function, device):
    "Bytes of tensors that one call adds at its peak"
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record: function()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def difference(a, b):
    "Largest difference over the largest entry; of a gradient without the worst hundredth of its rows: ties at rank k"
    worst = torch.atleast_2d(a - b).abs().amax(1).sort().values
    return float(worst[:max(1, len(worst) * 99 // 100)].max() / b.abs().max())


def compare(batch, dim, size, classes, k, repeats=5, device="cpu"):
    "Seconds and bytes of both, and how far values and gradients are apart (relative to the largest entry)"
    results = {}
    for name in ("direct", "arcbook"):                          # from the same queue each: a step moves it on
        functions = steps(batch, dim, size, classes, k, device)
        results[name] = functions[name]()
    apart = max(map(difference, results["arcbook"], results["direct"]))
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items(): times[name].append(seconds(function))
    return {n: statistics.median(t) for n, t in times.items()}, {n: peak(f, device) for n, f in functions.items()}, apart


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keys", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 1000])
    for name, default in (("batch", 256), ("dim", 256), ("k", 512), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    print(f"torch {torch.__version__}, {a.threads} threads, {a.device}, B {a.batch}, D {a.dim}, k {a.k}; one whole step")
    print(f"{'K':>7} {'C':>5} {'ms':>8} {'direct':>8} {'ratio':>6}   {'MiB':>7} {'direct':>7} {'ratio':>6}   apart")
    for size, classes in itertools.product(a.keys, a.classes):
        times, memory, apart = compare(a.batch, a.dim, size, classes, a.k, a.repeats, a.device)
        t, m = times["arcbook"] / times["direct"], memory["arcbook"] / memory["direct"]
        print(f"{size:7} {classes:5} {1e3 * times['arcbook']:8.1f} {1e3 * times['direct']:8.1f} {t:6.2f}   "
              f"{memory['arcbook'] / 2**20:7.1f} {memory['direct'] / 2**20:7.1f} {m:6.2f}   {apart:.0e}", flush=True)


if __name__ == "__main__": main()
