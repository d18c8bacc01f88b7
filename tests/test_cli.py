"The command as a newcomer meets it: separate processes, exit codes, files, and SIGKILL."
import json, os, random, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch

from arcbook import ledger
from arcbook.cli import PAPERS
from arcbook.labs.attract_repulse import ROWS, VARIANTS

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
COMMAND = [sys.executable, "-m", "arcbook"]
SMOKE = ["run", "attract-repulse", "--budget", "smoke", "--seeds", "1"]


def call(*arguments, cwd, check=None, **environment):
    done = subprocess.run([*COMMAND, *map(str, arguments)], cwd=cwd, env={**ENV, **environment}, capture_output=True, text=True, timeout=300)
    if check is not None: assert done.returncode == check, done.stdout + done.stderr
    return done


def measured(out: Path) -> dict:
    "What a run found, without what may differ between equal runs (seconds, memory)."
    return {r.id: (r.metrics, r.terms, r.split, r.method) for r in ledger.load_all("attract_repulse", out)}


def weights(out: Path) -> dict:
    "All tensors of the methods in the checkpoints of a run, by file."
    return {str(p.relative_to(out)): torch.load(p, weights_only=True)["method"] for p in sorted(out.rglob("checkpoint.pt"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "An uninterrupted run."
    folder = tmp_path_factory.mktemp("whole")
    return folder / "out", call(*SMOKE, "--out", folder / "out", cwd=folder, check=0)


def test_a_run_says_what_it_found_and_where_it_is(whole):
    out, done = whole
    for row in [r for r in ROWS if "ensemble" not in r]: assert row in done.stdout
    assert "±" in done.stdout and "arcbook open attract-repulse" in done.stdout and done.stderr == ""
    assert {r.variant for r in ledger.load_all("attract_repulse", out)} == set(VARIANTS) | {"SCE+CR+MT, TenCrop"}
    assert (out / "figures" / "attract_repulse" / "ladder.png").stat().st_size > 3000
    record = json.loads(next((out / "attract_repulse").glob("*.json")).read_text())
    assert {"data", "split", "seed", "metrics", "terms", "pins", "behaviour", "changes", "processes", "versions", "device", "seconds"} <= record.keys()
    assert {"threads", "instructions", "torch"} <= record["versions"].keys() and record["processes"] == 1
    assert record["data"] == "digits-few:10" and record["seconds"] > 0 and record["peak_memory"] > 0


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(whole, tmp_path):
    out, _ = whole
    call(*SMOKE, "--out", tmp_path / "out", "--data", "digits", cwd=tmp_path, check=0)     # the shorthand names the same data
    assert measured(tmp_path / "out") == measured(out)


@pytest.mark.slow
def test_killed_five_times_and_resumed(whole, tmp_path):
    "SIGKILL at random moments; the resumed run equals the uninterrupted one bit for bit."
    out, _ = whole
    here, chance, killed = tmp_path / "out", random.Random(0), 0
    log = tmp_path / "log"
    for attempt in range(20):
        if killed == 5: break
        with open(log, "a") as sink:
            process = subprocess.Popen([*COMMAND, *SMOKE, "--out", str(here), "--resume"], cwd=tmp_path, env=ENV, stdout=sink, stderr=sink)
            seen = len(list(here.rglob("*.json"))) + len(list(here.rglob("checkpoint.pt")))
            deadline = time.time() + 60
            while time.time() < deadline and process.poll() is None:      # wait until this attempt has left something new
                if len(list(here.rglob("*.json"))) + len(list(here.rglob("checkpoint.pt"))) > seen: break
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    assert killed == 5, log.read_text()
    call(*SMOKE, "--out", here, "--resume", cwd=tmp_path, check=0)
    assert measured(here) == measured(out)
    ours, theirs = weights(here), weights(out)
    assert ours.keys() == theirs.keys() and len(ours) == 11                  # eight variants, three of them in two stages
    for name in ours: assert all(torch.equal(ours[name][k], theirs[name][k]) for k in theirs[name]), name


def test_a_folder_with_results_is_not_overwritten(whole):
    out, _ = whole
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    done = call(*SMOKE, "--out", out, cwd=out.parent, check=2)
    assert "add --resume" in done.stderr and {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("arguments,sentence", [
    (["run", "resnet"], "paper must be one of attract-repulse"),
    (["run", "attract-repulse", "--budget", "huge"], "--budget must be one of smoke, cpu, gpu"),
    (["run", "attract-repulse", "--data", "imagenet-21k"], "imagenet-21k"),
    (["run", "attract-repulse", "--data", "cifar100"], "cifar100"),
    (["run", "attract-repulse", "--data", "digits-few:1000"], "class"),
    (["run", "attract-repulse", "--data", "digits-few:x"], "digits-few:x"),
    (["run", "attract-repulse", "--set", "cr_temperature=0"], "cr_temperature must be finite and > 0"),
    (["run", "attract-repulse", "--set", "cr_temprature=1"], "did you mean 'cr_temperature'?"),
    (["run", "attract-repulse", "--variants", "CE,SCCE"], "variants must be among"),
    (["run", "iccl", "--weights", "imagenet"], "no reading is called 'weights'"),
    (["records", "resnet"], "paper must be one of attract-repulse"),
    (["open", "nothing"], "paper must be one of attract-repulse"),
])
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, sentence, tmp_path):
    done = call(*arguments, cwd=tmp_path, check=2, ARCBOOK_DATA=str(tmp_path / "no-data"))
    assert sentence in done.stderr and "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("arguments", [["run"], ["run", "attract-repulse", "--seeds", "0"], ["run", "attract-repulse", "--seeds", "many"], ["walk"]])
def test_usage_errors_exit_with_2(arguments, tmp_path):
    done = call(*arguments, cwd=tmp_path, check=2)
    assert "Traceback" not in done.stderr


def test_damaged_checkpoint_is_named(tmp_path):
    name = "digits-few-10-smoke-CE-seed0"
    path = tmp_path / "out" / "checkpoints" / "attract_repulse" / name / "stage1" / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    done = call(*SMOKE, "--out", tmp_path / "out", "--resume", cwd=tmp_path, check=2)
    assert str(path) in done.stderr and "Traceback" not in done.stderr and path.read_bytes() == b"half a file"


def test_help_and_list(tmp_path):
    for arguments in (["--help"], ["run", "--help"]): assert "Traceback" not in call(*arguments, cwd=tmp_path, check=0).stdout
    listed = call("list", cwd=tmp_path, check=0, ARCBOOK_DATA=str(tmp_path)).stdout
    for paper in PAPERS: assert f"  {paper} " in listed
    assert "digits" in listed and "missing" in listed and "smoke" in listed


def test_open_copies_and_keeps_a_readers_notes(tmp_path):
    call("open", "attract-repulse", "--no-launch", cwd=tmp_path, check=0)
    copy = tmp_path / "arcbook-notebooks" / "01_attract_repulse.ipynb"
    copy.write_text(copy.read_text() + " ")
    call("open", "attract_repulse", "--no-launch", cwd=tmp_path, check=0)
    assert copy.read_text().endswith(" ")


def test_a_reading_is_set_for_one_run(whole, tmp_path):
    "The record holds the change, its name says so, and resuming with another recipe is refused by name."
    out = tmp_path / "out"
    one = ["run", "attract-repulse", "--budget", "smoke", "--seeds", "1", "--variants", "CE+CR", "--out", out]
    call(*one, "--set", "cr_temperature=0.3", cwd=tmp_path, check=0)
    record, = ledger.load_all("attract_repulse", out)
    assert record.changes == {"cr_temperature": 0.3} and record.method["cr_temperature"] == 0.3 and "cr_temperature_0.3" in record.id
    usual = next(r for r in ledger.load_all("attract_repulse", whole[0]) if r.variant == "CE+CR")
    assert record.metrics != usual.metrics and record.split == usual.split
    path = next((out / "attract_repulse").glob("*.json"))
    changed = json.loads(path.read_text())
    changed["budget"]["lr"] = 0.5                                                  # as if measured with another recipe
    path.write_text(json.dumps(changed))
    refused = call(*one, "--set", "cr_temperature=0.3", "--resume", cwd=tmp_path, check=2)
    assert "lr of stage 1 is 0.5 there and 0.1 here" in refused.stderr


def test_two_runs_at_once_get_two_folders(tmp_path, monkeypatch):
    from arcbook.cli import output_folder
    monkeypatch.chdir(tmp_path)
    assert output_folder(None, False, "iccl") != output_folder(None, False, "iccl")
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    assert output_folder(Path("~/runs"), False, "x") == home / "runs"


@pytest.mark.slow
def test_two_papers_in_one_folder(tmp_path):
    "Records, arrays, checkpoints and figures of two papers never meet."
    for paper, variant in (("attract-repulse", "CE"), ("cone", "CE")):
        call("run", paper, "--budget", "smoke", "--seeds", "1", "--variants", variant, "--data", "digits-few:10", "--out", tmp_path / "out", "--resume", cwd=tmp_path, check=0)
    both = [tmp_path / "out" / kind / key for kind in ("arrays", "checkpoints", "figures") for key in ("attract_repulse", "cone")]
    assert all(any(folder.iterdir()) for folder in both)


def test_ctrl_c_says_how_to_go_on(tmp_path):
    process = subprocess.Popen([*COMMAND, *SMOKE, "--out", str(tmp_path / "out")], cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while time.time() < deadline and not list(tmp_path.rglob("*.json")): time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped; add --resume to continue" in said and "Traceback" not in said


def test_records_lists_states_and_runs_nothing_that_a_record_names(tmp_path):
    "A record that names a module cannot make us import it."
    (tmp_path / "evil_mod.py").write_text("open('ran', 'w').write('x')")
    folder = tmp_path / "runs" / "iccl"
    folder.mkdir(parents=True)
    record = dict(paper="iccl", variant="CE", data="digits", split="0", budget={"name": "cpu"}, seed=0, metrics={"top1": 0.5},
                  source={"evil_mod.f": "1"}, pins=["rung:CE"], behaviour=1)
    (folder / "x.json").write_text(json.dumps(record))
    said = call("records", "iccl", "--root", tmp_path / "runs", cwd=tmp_path, check=0).stdout
    assert "1 unknown" in said and not (tmp_path / "ran").exists()


def test_records_check_names_what_changed(tmp_path):
    "Exit code 0 where the code behaves as pinned, 1 with the pin's name where it does not; another torch cannot tell, unless strict."
    import shutil
    from arcbook.ledger import runs_root
    shutil.copytree(runs_root() / "toolkit", tmp_path / "toolkit")
    file = tmp_path / "toolkit" / "behaviour.json"
    assert "0 changed" in call("records", "toolkit", "--check", "--root", tmp_path, cwd=tmp_path, check=0).stdout
    pinned = json.loads(file.read_text())
    pinned["pins"]["kernel:teacher"]["values"]["value"][0] += 1.0
    file.write_text(json.dumps(pinned))
    assert "changed: kernel:teacher" in call("records", "toolkit", "--check", "--root", tmp_path, cwd=tmp_path, check=1).stdout
    file.write_text(json.dumps({**pinned, "made": {"torch": "1.13.0"}}))
    assert "cannot tell" in call("records", "toolkit", "--check", "--root", tmp_path, cwd=tmp_path, check=0).stdout
    call("records", "toolkit", "--check", "--strict", "--root", tmp_path, cwd=tmp_path, check=1)
    refused = call("records", "toolkit", "--pin", " ", "--root", tmp_path, cwd=tmp_path, check=2)
    assert "reason must say why" in refused.stderr


def test_two_processes(tmp_path):
    "torchrun on two CPU processes: one set of records, and they say that there were two."
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611", "-m", "arcbook"]
    environment = {**ENV, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*launch, *SMOKE, "--variants", "CE,SCE+CR+MT", "--out", str(tmp_path / "out")], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("records  ") == 1
    records = ledger.load_all("attract_repulse", tmp_path / "out")
    assert {r.variant for r in records} == {"CE", "SCE+CR+MT", "SCE+CR+MT, TenCrop"} and {r.processes for r in records} == {2}
