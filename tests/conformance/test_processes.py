"Two gloo processes: every method trains, and both end with the same state, that of one method and not of two."
import json, os, subprocess, sys

import pytest

from registry import LABS

WORKER = """
import hashlib, json, os, sys
from dataclasses import replace
import torch
from arcbook import experiments, probes
rank, found = int(os.environ["RANK"]), {}
for key in sys.argv[2:]:
    lab, images = probes.lab_of(key), probes.probe_images("digits")
    profile = replace(probes.profile_of(images), side=16)
    run = experiments.train_plan(lab, probes.small_plan(lab, lab.probes.full, profile), images, profile, seed=3)
    state = {k: v for k, v in run.method.state_dict().items() if not any(part in k for part in ("running_", "num_batches"))}   # BatchNorm keeps its own
    digest = hashlib.sha256(b"".join(v.contiguous().cpu().numpy().tobytes() for v in state.values())).hexdigest()
    found[key] = dict(digest=digest, images=[h.images for h in run.histories], finite=all(torch.tensor(h.values).isfinite().all().item() for h in run.histories))
json.dump(dict(world=torch.distributed.get_world_size(), found=found), open(f"{sys.argv[1]}/{rank}.json", "w"))
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    "What both processes found, for every paper: one launch for all."
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "worker.py").write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29613", str(folder / "worker.py"), str(folder), *LABS]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_there_are_two(ranks):
    assert [found["world"] for found in ranks] == [2, 2]


@pytest.mark.parametrize("key", LABS)
def test_both_processes_end_with_one_method(ranks, key):
    first, second = (found["found"][key] for found in ranks)
    assert first["finite"] and first["digest"] == second["digest"]


@pytest.mark.parametrize("key", LABS)
def test_a_batch_is_shared_not_doubled(ranks, key):
    "Images drawn by both processes together are those of the plan: nine steps of eight, once or twice by the method's streams."
    assert all(n % 72 == 0 for n in ranks[0]["found"][key]["images"]) and ranks[0]["found"][key]["images"] == ranks[1]["found"][key]["images"]
