"""A small HTTP server on this machine that serves bytes from memory and fails on demand, and processes to be killed.

    with Server({"a.tar": data}) as server:
        server.script["a.tar"] = [dict(status=500), dict(cut=1000)]    # the first two requests; then all goes well
        server.always["a.tar"] = dict(pause=0.01)                      # every request without a script
        fetch(File("a.tar", server.url("a.tar")), folder)
        server.asked                                                   # [("a.tar", headers), ...]

Faults: status=CODE; redirect=URL; cut=N bytes sent, then the connection is closed; pause=SECONDS before every block of
16 kB; ranges=False ignores Range; length=False sends no Content-Length; body=OTHER bytes; etag=None sends no ETag.

    with Forks() as forks:                                             # a process that has everything imported, and forks
        pid = forks.start(root=..., url=..., size=..., hash=...)       # obtains the toy set, see `toy`
        code = forks.wait(pid)
"""
import hashlib, io, json, os, re, signal, subprocess, sys, tarfile, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np


class Server:
    def __init__(self, files=()):
        self.files, self.script, self.always, self.asked = dict(files), {}, {}, []
        handler = type("Handler", (_Handler,), {"owner": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def url(self, name): return f"http://127.0.0.1:{self.http.server_port}/{name}"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner = None

    def log_message(self, *args): pass

    def do_GET(self):
        name = self.path.lstrip("/")
        self.owner.asked.append((name, dict(self.headers)))
        script = self.owner.script.get(name)
        fault = script.pop(0) if script else self.owner.always.get(name, {})
        data = fault.get("body", self.owner.files.get(name))
        try:
            if "redirect" in fault:
                self.send_response(302)
                self.send_header("Location", fault["redirect"])
                self.end_headers()
            elif "status" in fault or data is None: self.send_error(fault.get("status", 404))
            else: self.send_bytes(data, fault)
        except OSError: pass                                   # the client is gone

    def send_bytes(self, data, fault):
        tag = fault.get("etag", f'"{hashlib.md5(data).hexdigest()}"')
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if fault.get("ranges", True) else None
        if wanted and self.headers.get("If-Range", tag) != tag: wanted = None
        start = int(wanted[1]) if wanted else 0
        if start and start >= len(data): return self.send_error(416)
        self.send_response(206 if wanted else 200)
        if wanted: self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if fault.get("length", True): self.send_header("Content-Length", str(len(data) - start))
        if tag: self.send_header("ETag", tag)
        self.end_headers()
        stop = min(len(data), start + fault["cut"]) if "cut" in fault else len(data)
        for at in range(start, stop, 1 << 14):
            time.sleep(fault.get("pause", 0))
            self.wfile.write(data[at:min(at + (1 << 14), stop)])


# a data set of noise: one archive, eleven small photographs, one split of arrays ----------------

def array_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def toy_archive(images=40):
    "A tar.gz of about 130 kB, the same bytes each time"
    import gzip
    draw, plain = np.random.default_rng(0), io.BytesIO()
    entries = {"toy/x": array_bytes(draw.integers(0, 256, (images, 32, 32, 3)).astype(np.uint8)),
               "toy/y": array_bytes(np.arange(images) % 5)}
    entries |= {f"toy/photos/{i}/p{i}.jpg": draw.bytes(500) for i in range(5)}
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), mtime=0)


def toy(url, size=None, hash=None, images=40, pause=0.0):
    "The recipe of the toy set"
    from arcbook.archives import unpack
    from arcbook.prepare import File, Recipe

    def prepare(files, staging):
        raw = unpack(files["toy.tar.gz"], staging.parent / "raw", 10 ** 8) / "toy"
        (staging / "train").mkdir()
        for old, new in (("x", "images"), ("y", "labels")):
            (raw / old).rename(staging / "train" / f"{new}.npy")
            time.sleep(pause)
        (raw / "photos").rename(staging / "photos")
        (staging / "classes.json").write_text(json.dumps(list("abcde")))

    return Recipe("toy", "A toy", "https://example.org/toy", "CC0 1.0", "Nobody (2026). Toys.",
                  (File("toy.tar.gz", url, size, hash),), prepare, 10 ** 6, {"train": images})


# processes that die -----------------------------------------------------------------------------

class Forks:
    "Starts processes quickly: one that has imported everything forks them"
    def __enter__(self):
        self.mother = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                       env={**os.environ, "OMP_NUM_THREADS": "1"})
        return self

    def __exit__(self, *error):
        self.mother.stdin.close()
        self.mother.wait(30)

    def _ask(self, **order):
        print(json.dumps(order), file=self.mother.stdin, flush=True)
        return int(self.mother.stdout.readline())

    def start(self, **job): return self._ask(job={k: str(v) if isinstance(v, Path) else v for k, v in job.items()})
    def wait(self, pid): return self._ask(wait=pid)

    def run(self, **job): return self.wait(self.start(**job))


def mother():
    import arcbook.datasets, arcbook.download, pooch, requests, tqdm    # noqa: so that children need not
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order: print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        elif (pid := os.fork()): print(pid, flush=True)
        else: child(**order["job"])


def child(root, url, size, hash, log, die_at=0, largest=0, images=40, pause=0.0, verify=False):
    "Obtain the toy set; killed before the `die_at`th operation on files, or without room for more than `largest` bytes"
    import resource
    from arcbook import download
    code = 99
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1), os.dup2(1, 2)
        if largest: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        os.sync, download.PAUSE, count = (lambda: None), 0.01, 0

        def hook(event, arguments):
            nonlocal count
            changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
            if not changes and not (event == "open" and str(arguments[0]).startswith(root)): return
            count += 1
            if count == die_at: os.kill(os.getpid(), signal.SIGKILL)

        if die_at: sys.addaudithook(hook)
        code = download.obtain_all([toy(url, size, hash, images, pause)], root, verify=verify)
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__": mother()
