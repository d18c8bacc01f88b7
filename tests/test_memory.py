"""Queue and centroids: files, precision, devices' habits, and two processes against one."""
import copy
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from arcbook.contrast import normalize
from arcbook.memory import ClassCentroids, MemoryQueue, ema_centroids, _later_in_class, mean_centroids


def oldest_first(queue, name):
    return queue[name].roll(-int(queue.pointer), 0) if len(queue) == queue.size else queue[name]


def one_by_one(centroids, embeddings, labels, momentum):
    "The definition: a loop over samples, then all rows that are not zero made unit."
    c = centroids.clone()
    for z, y in zip(normalize(embeddings), labels.tolist()): c[y] = momentum * c[y] + (1 - momentum) * z
    return torch.where(c.any(1, keepdim=True), normalize(c), c)


# MemoryQueue ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_any_sequence_of_batches_is_a_deque(size):
    g, line = torch.Generator().manual_seed(size), deque(maxlen=size)
    queue = MemoryQueue(size, key=(2, torch.float64), label=torch.int64, picture=((3, 2, 2), torch.uint8),
                        flag=torch.bool, grid=(2, 2))
    total = 0
    for n in torch.randint(0, 3 * size + 2, (60,), generator=g).tolist():
        label = torch.randint(0, 255, (n,), generator=g)
        line.extend(label.tolist())
        queue.update(key=torch.stack([label, -label], 1).double(), label=label, flag=label > 100,
                     grid=torch.zeros(n, 2, 2), picture=label.to(torch.uint8)[:, None, None, None].expand(n, 3, 2, 2))
        total += n
        rows = oldest_first(queue, "label")
        assert rows.tolist() == list(line) and queue.valid == len(queue) == len(line) and queue.pointer == total % size
        assert torch.equal(oldest_first(queue, "key")[:, 1], -rows.double())
        assert torch.equal(oldest_first(queue, "flag"), rows > 100)
        assert (oldest_first(queue, "picture") == rows[:, None, None, None]).all()


def test_full_cycle_overwrites_every_slot():
    queue = MemoryQueue(16, keys=3)
    for step in range(4): queue.update(keys=torch.full((4, 3), step + 1.0))
    assert queue.pointer == 0 and queue.valid == 16 and (queue["keys"] > 0).all()


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 5, 9])
def test_file_and_resume_bit_for_bit(stop, tmp_path):
    def batches(first, last):
        for step in range(first, last):
            g = torch.Generator().manual_seed(step)
            yield dict(keys=torch.randn(5, 4, generator=g), labels=torch.randint(0, 9, (5,), generator=g))
    def make(): return nn.ModuleDict({"queue": MemoryQueue(12, keys=4, labels=torch.int64)})
    whole, cut, resumed = make(), make(), make()
    for rows in batches(0, 10): whole["queue"].update(**rows)
    for rows in batches(0, stop): cut["queue"].update(**rows)
    torch.save(cut.state_dict(), tmp_path / "q.pt")
    resumed["queue"].update(**next(batches(50, 51)))           # something else is in it before
    resumed.load_state_dict(torch.load(tmp_path / "q.pt", weights_only=True))
    assert len(resumed["queue"]) == len(cut["queue"]) == min(5 * stop, 12)
    assert torch.equal(resumed["queue"]["keys"], cut["queue"]["keys"])
    for rows in batches(stop, 10): resumed["queue"].update(**rows)
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())


def test_stored_rows_are_constants_and_the_buffer_stays_put():
    queue = MemoryQueue(8, keys=2)
    x = torch.randn(3, 2, requires_grad=True)
    place = queue.stored_keys.data_ptr()
    queue.update(keys=x * 2)
    assert not queue["keys"].requires_grad and queue.stored_keys.data_ptr() == place == queue["keys"].data_ptr()
    (queue["keys"] * torch.randn(3, 2, requires_grad=True)).sum().backward()
    assert x.grad is None and not list(queue.parameters())
    kept = queue["keys"].clone()
    x.data.zero_()
    assert torch.equal(queue["keys"], kept)                    # a copy, not the batch itself


def test_writing_before_backward_is_an_error_not_a_wrong_gradient():
    queue, q = MemoryQueue(8, keys=2), torch.randn(3, 2, requires_grad=True)
    queue.update(keys=torch.randn(4, 2))
    loss = (q @ queue["keys"].T).logsumexp(1).sum()
    queue.update(keys=torch.randn(4, 2))
    with pytest.raises(RuntimeError, match="inplace"): loss.backward()


def test_precision_of_fields_and_casts():
    queue = MemoryQueue(4, keys=2, probs=(3, torch.float16), labels=torch.int64)
    queue.update(keys=torch.full((1, 2), 1 / 3, dtype=torch.bfloat16), probs=torch.full((1, 3), 1 / 3),
                 labels=torch.tensor([7], dtype=torch.int32))
    assert [queue[n].dtype for n in queue.fields] == [torch.float32, torch.float16, torch.int64]
    assert queue["probs"][0, 0] == torch.tensor(1 / 3).half() and queue["labels"].tolist() == [7]
    assert copy.deepcopy(queue)["labels"].tolist() == [7]
    queue.double()
    queue.update(keys=torch.zeros(1, 2), probs=torch.zeros(1, 3), labels=torch.tensor([8]))
    assert queue["keys"].dtype == torch.float64 and queue["labels"].tolist() == [7, 8]


@pytest.mark.parametrize("rows, word", [
    ({}, "fields"), ({"keys": torch.zeros(2, 3)}, "fields"),
    ({"keys": torch.zeros(2, 3), "labels": torch.zeros(2).long(), "more": torch.zeros(2)}, "fields"),
    ({"keys": torch.zeros(2, 3), "labels": torch.zeros(3).long()}, "labels"),
    ({"keys": torch.zeros(2, 3), "labels": torch.zeros(2)}, "labels"),
    ({"keys": torch.zeros(2, 4), "labels": torch.zeros(2).long()}, "keys"),
    ({"keys": torch.zeros(3), "labels": torch.zeros(3).long()}, "keys"),
    ({"keys": torch.zeros(()), "labels": torch.zeros(3).long()}, "keys"),
    ({"keys": [[0.0] * 3], "labels": torch.zeros(1).long()}, "keys"),
    ({"keys": torch.full((2, 3), torch.nan), "labels": torch.zeros(2).long()}, "keys")])
def test_bad_rows_are_named_and_change_nothing(rows, word):
    queue = MemoryQueue(8, keys=3, labels=torch.int64)
    with pytest.raises(ValueError, match=word): queue.update(**rows)
    assert queue.pointer == queue.valid == len(queue) == 0


@pytest.mark.parametrize("spec", [0, -3, 2.5, "keys", (3, 0), (3, "float32"), ((2, 0), torch.float32), True, None])
def test_bad_fields_are_named(spec):
    with pytest.raises(ValueError, match="keys must be a width"): MemoryQueue(8, keys=spec)


@pytest.mark.parametrize("size", [0, -1, 2.5, None, True])
def test_bad_sizes_are_named(size):
    with pytest.raises(ValueError, match="size must be"): MemoryQueue(size, keys=2)


def test_a_read_sees_whatever_was_written_into_the_buffers():
    queue, other = MemoryQueue(8, keys=2), MemoryQueue(8, keys=2)
    other.update(keys=torch.ones(5, 2))
    assert len(queue) == 0                                     # read once, so that a remembered number could be stale
    for mine, theirs in zip(queue.buffers(), other.buffers()): mine.copy_(theirs)
    assert len(queue) == 5
    queue.valid.fill_(2)
    assert len(queue) == 2 and len(copy.deepcopy(queue)) == 2
    queue.valid.data.fill_(3)
    assert len(queue) == 3                                     # on the CPU nothing is remembered
    queue.valid = torch.tensor(4)
    assert queue["keys"].shape == (4, 2)
    queue.update(keys=torch.ones(1, 2))
    assert len(queue) == queue.valid == 5


def test_a_read_elsewhere_asks_the_device_only_after_a_change(monkeypatch):
    "A stand-in for a GPU: the tensors pretend, and every look at a value is counted."
    class Remote(torch.Tensor):
        looks = 0
        @property
        def device(self): return torch.device("meta")
        def __int__(self):
            Remote.looks += 1
            return int(self.as_subclass(torch.Tensor))
    queue = MemoryQueue(8, keys=2)
    queue.valid = torch.tensor(3).as_subclass(Remote)
    for _ in range(4): assert len(queue) == 3
    assert Remote.looks == 1
    queue.valid.add_(2)
    for _ in range(4): assert len(queue) == 5
    assert Remote.looks == 2
    queue.update(keys=torch.ones(2, 2))
    for _ in range(4): assert len(queue) == 7
    assert Remote.looks == 2                                   # an update knows how many it adds
    queue.load_state_dict(MemoryQueue(8, keys=2).state_dict())
    assert len(queue) == 0 and Remote.looks == 3


def test_a_read_inside_a_compiled_graph_follows_the_queue():
    torch._dynamo.reset()
    queue = MemoryQueue(8, keys=2)
    total = torch.compile(lambda q: (q @ queue["keys"].T).sum(), fullgraph=True, backend="aot_eager")
    for n in (1, 2, 3, 4, 4):
        queue.update(keys=torch.ones(n, 2))
        torch.testing.assert_close(total(torch.ones(1, 2)), torch.tensor(2.0 * len(queue)))


def test_unknown_field():
    with pytest.raises(KeyError, match="labels"): MemoryQueue(8, keys=2)["labels"]
    with pytest.raises(ValueError, match="fields must"): MemoryQueue(8)


# ClassCentroids ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_closed_form_equals_the_loop(momentum, dtype, tolerance):
    g, c = torch.Generator().manual_seed(0), torch.zeros(9, 5, dtype=dtype)
    for n in (1, 40, 3, 200, 0, 17):
        z, y = 3 * torch.randn(n, 5, generator=g, dtype=dtype), torch.randint(0, 8, (n,), generator=g)
        expected = one_by_one(c, z, y, momentum)
        got = ema_centroids(c, z, y, momentum)
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
        absent = torch.bincount(y, minlength=9) == 0
        assert torch.equal(got[absent], c[absent])
        c = got
    assert torch.equal(c[8], torch.zeros(5, dtype=dtype))


def test_later_in_class_equals_counting():
    y = torch.randint(0, 6, (100,), generator=torch.Generator().manual_seed(0))
    later, counts = _later_in_class(y, 7)
    assert later.tolist() == [(y[i + 1:] == y[i]).sum().item() for i in range(100)]
    assert torch.equal(counts, torch.bincount(y, minlength=7))


def test_module_follows_the_functions_and_counts():
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(50, 4, generator=g), torch.randint(0, 3, (50,), generator=g)
    memory = ClassCentroids(4, 4, momentum=0.9)
    assert not memory.seen.any()
    assert memory.from_dataset(z, y) is memory
    torch.testing.assert_close(memory.centroids, mean_centroids(z, y, 4))
    assert memory.seen.tolist() == [True, True, True, False]
    assert torch.equal(memory.counts, torch.bincount(y, minlength=4))
    expected = one_by_one(memory.centroids, z[:9], y[:9], 0.9)
    x = z[:9].clone().requires_grad_()
    memory.update(x, y[:9])
    torch.testing.assert_close(memory.centroids, expected)
    assert x.grad is None and not memory.centroids.requires_grad and memory.counts.sum() == 59
    torch.testing.assert_close(memory.centroids[memory.seen].norm(dim=1), torch.ones(3))
    memory.from_dataset(z[:5], torch.full((5,), 3))            # forgets what was there
    assert memory.seen.tolist() == [False, False, False, True] and memory.counts.tolist() == [0, 0, 0, 5]


def test_epoch_mean_ignores_order_and_class_size():
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(90, 6, generator=g, dtype=torch.float64), torch.arange(90) % 3
    c = mean_centroids(z, y, 3)
    one_class_ten_times = torch.cat([torch.arange(90), *[torch.arange(0, 90, 3)] * 9])
    for rows in (torch.randperm(90, generator=g), torch.arange(90).repeat(3), one_class_ten_times):
        torch.testing.assert_close(mean_centroids(z[rows], y[rows], 3), c, rtol=0, atol=1e-14)


def test_centroids_resume_bit_for_bit(tmp_path):
    def run(memory, first, last):
        for step in range(first, last):
            g = torch.Generator().manual_seed(step)
            memory.update(torch.randn(16, 4, generator=g), torch.randint(0, 5, (16,), generator=g))
        return memory.state_dict()
    whole, half = run(ClassCentroids(5, 4), 0, 8), run(ClassCentroids(5, 4), 0, 3)
    torch.save(half, tmp_path / "c.pt")
    later = ClassCentroids(5, 4)
    later.load_state_dict(torch.load(tmp_path / "c.pt", weights_only=True))
    assert all(torch.equal(v, whole[k]) for k, v in run(later, 3, 8).items())


def test_half_precision_input_zero_embeddings_and_cancellation():
    memory = ClassCentroids(2, 2, momentum=0.5)
    memory.update(torch.zeros(3, 2), torch.tensor([0, 0, 0]))                 # no direction: still not seen
    assert not memory.seen.any() and memory.centroids.isfinite().all()
    memory.update(torch.tensor([[1.0, 0.0]], dtype=torch.float16), torch.tensor([0], dtype=torch.int32))
    assert torch.equal(memory.centroids[0], torch.tensor([1.0, 0.0])) and memory.centroids.dtype == torch.float32
    memory.update(torch.tensor([[-1.0, 0.0]]), torch.tensor([0]))             # cancels exactly: the old direction stays
    assert torch.equal(memory.centroids[0], torch.tensor([1.0, 0.0]))
    with torch.autocast("cpu", dtype=torch.bfloat16): memory.update(torch.randn(4, 2), torch.tensor([1, 1, 0, 1]))
    torch.testing.assert_close(memory.centroids.norm(dim=1), torch.ones(2))
    memory.update(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))        # an empty batch


@pytest.mark.parametrize("z, y, word", [
    (torch.zeros(2, 5), torch.tensor([0, 1]), "embeddings"), (torch.zeros(2, 4), torch.tensor([0, 3]), "labels"),
    (torch.zeros(2, 4), torch.tensor([0, -1]), "labels"), (torch.zeros(2, 4), torch.tensor([0.0, 1.0]), "labels"),
    (torch.zeros(2, 4), torch.tensor([0]), "labels"), (torch.full((1, 4), torch.inf), torch.tensor([0]), "embeddings")])
def test_bad_samples_are_named(z, y, word):
    for call in (ClassCentroids(3, 4).update, ClassCentroids(3, 4).from_dataset):
        with pytest.raises(ValueError, match=word): call(z, y)


# two processes -------------------------------------------------------------------------------------------------------

def step_rows(step, rank=None):
    "Rows of both processes, or the half of one."
    g = torch.Generator().manual_seed(step)
    z, y = torch.randn(10, 4, generator=g), torch.randint(0, 3, (10,), generator=g)
    half = slice(None) if rank is None else slice(5 * rank, 5 * rank + 5)
    return z[half], y[half]


def fill(distributed, rank=None):
    queue = MemoryQueue(23, keys=4, labels=torch.int64, gather_distributed=distributed)
    centroids = ClassCentroids(3, 4, momentum=0.9, gather_distributed=distributed)
    centroids.from_dataset(*step_rows(99, rank))
    for step in range(7):
        z, y = step_rows(step, rank)
        z = z.requires_grad_()
        queue.update(keys=z * 1.0, labels=y)
        centroids.update(z, y)
    return {**queue.state_dict(), **centroids.state_dict()}


def worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save([fill(True, rank), fill(False, rank)], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_hold_what_one_would(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    (gathered0, own0), (gathered1, own1) = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2))
    single = fill(False)
    for name, value in single.items():
        assert torch.equal(gathered0[name], gathered1[name]), name          # the same on every rank, bit for bit
        assert torch.equal(gathered0[name], value), name                     # as one process with both halves
    assert not torch.equal(own0["stored_keys"], own1["stored_keys"])         # without the option, each keeps its own


def test_gather_without_a_process_group_is_nothing_special():
    assert all(torch.equal(v, fill(False)[k]) for k, v in fill(True).items())


def test_fill_starts_with_content_in_every_slot():
    queue = MemoryQueue(5, keys=2, labels=torch.long, images=torch.long)
    queue.update(keys=torch.ones(3, 2), labels=torch.arange(3), images=torch.arange(3))
    keys = torch.randn(5, 2)
    queue.fill(keys=keys, images=-1)
    assert len(queue) == 5 and queue.valid == 5 and torch.equal(queue["keys"], keys) and queue["images"].tolist() == [-1] * 5
    assert queue["labels"].tolist() == [0, 1, 2, 0, 0]                        # what is not named stays
    again = MemoryQueue(5, keys=2, labels=torch.long, images=torch.long)
    again.load_state_dict(queue.state_dict())
    assert len(again) == 5 and torch.equal(again["keys"], keys)
    with pytest.raises(KeyError, match="values"): queue.fill(values=0)


def test_memories_name_their_settings_and_take_numpy_numbers():
    assert "(8, keys=((2,), torch.float32))" in repr(MemoryQueue(np.int64(8), keys=np.int64(2)))
    memory = ClassCentroids(3, 4, np.float32(0.5))
    assert "[3, 4], momentum=0.5" in repr(memory) and type(memory.momentum) is float
    assert ClassCentroids(3, 4, torch.tensor(0.25)).momentum == 0.25
