"Downloads against a local server that fails in every way it can, hostile archives, and SIGKILL at every step."
import errno, gzip, hashlib, io, json, os, random, signal, stat, subprocess, sys, tarfile, tempfile, time, zipfile, zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from typer.testing import CliRunner

from arcbook import archives, download, store
from arcbook.archives import ArchiveError, unpack
from arcbook.download import command, fetch, obtain, obtain_all, plan, recipes
from arcbook.prepare import File, Recipe, write_arrays, write_classes, write_list
from arcbook.store import DownloadError, examine, state, verify
from server import Forks, Server, array_bytes, toy, toy_archive

DATA = random.Random(0).randbytes(300_000)
TOY = toy_archive()


def sha(data): return "sha256:" + hashlib.sha256(data).hexdigest()
def tree(folder): return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
def ranges(server): return [headers.get("Range") for _, headers in server.asked]


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setattr(os, "sync", lambda: None)


@pytest.fixture
def server():
    with Server({"a.bin": DATA, "toy.tar.gz": TOY}) as server: yield server


@pytest.fixture
def offered(server): return File("a.bin", server.url("a.bin"), len(DATA), sha(DATA))


def fails(error, call, *needles):
    "The sentence of a failure: one line, holding all `needles`"
    with pytest.raises(error) as caught: call()
    text = str(caught.value)
    assert "\n" not in text and all(str(needle) in text for needle in needles), text
    return text


# fetching ---------------------------------------------------------------------------------------

def test_fetch_writes_the_file_and_nothing_else(server, offered, tmp_path, capsys):
    path = fetch(offered, tmp_path / "new" / "folder")
    assert path.read_bytes() == DATA and os.listdir(path.parent) == ["a.bin"]
    assert fetch(offered, path.parent) == path and len(server.asked) == 1          # the second call only checks
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""                                      # no bar where nobody looks


def test_a_bar_where_somebody_looks(offered, tmp_path, capsys):
    fetch(offered, tmp_path, progress=True)
    unpack(pack(tmp_path / "x.tar", [("a", DATA)]), tmp_path / "out", progress=True)
    said = capsys.readouterr()
    assert "a.bin" in said.err and "x.tar" in said.err and said.out == ""


@pytest.mark.parametrize("fault", [dict(cut=100_000), dict(cut=100_000, length=False), dict(cut=100_000, etag=None)])
def test_broken_connections_are_continued(server, offered, tmp_path, fault):
    server.script["a.bin"] = [fault, fault]
    assert fetch(offered, tmp_path).read_bytes() == DATA
    starts = [int(r[6:-1]) for r in ranges(server)[1:]]
    assert len(starts) == 2 and 80_000 < starts[0] <= 100_000 and 160_000 < starts[1] <= starts[0] + 100_000
    tags = [headers.get("If-Range") for _, headers in server.asked]
    assert tags[0] is None and (tags[1] is None if "etag" in fault else tags[1] == f'"{hashlib.md5(DATA).hexdigest()}"')


def test_a_second_call_continues_the_first(server, offered, tmp_path):
    server.script["a.bin"] = [dict(cut=200_000), dict(status=404)]
    fails(DownloadError, lambda: fetch(offered, tmp_path), "404")
    kept = (tmp_path / "a.bin.part").stat().st_size
    assert kept > 180_000 and (tmp_path / "a.bin.part").read_bytes() == DATA[:kept]
    assert fetch(offered, tmp_path).read_bytes() == DATA and ranges(server)[-1] == f"bytes={kept}-"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_server_without_ranges_sends_all_of_it_again(server, offered, tmp_path):
    server.always["a.bin"] = dict(ranges=False)
    server.script["a.bin"] = [dict(cut=200_000, ranges=False)]
    assert fetch(offered, tmp_path).read_bytes() == DATA and ranges(server)[1] is not None


@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_changed_in_between_is_fetched_whole(server, tmp_path, known):
    server.script["a.bin"] = [dict(body=bytes(len(DATA)), cut=200_000), dict(status=404)]
    file = File("a.bin", server.url("a.bin"), len(DATA) if known else None, sha(DATA) if known else None)
    fails(DownloadError, lambda: fetch(file, tmp_path))
    assert fetch(file, tmp_path).read_bytes() == DATA and server.asked[-1][1]["If-Range"]


def test_without_hash_and_version_a_part_is_not_trusted(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"of whatever")
    assert fetch(File("a.bin", server.url("a.bin")), tmp_path).read_bytes() == DATA and ranges(server) == [None]


@pytest.mark.parametrize("size", [1000, len(DATA), len(DATA) + 50])
@pytest.mark.parametrize("tell", [True, False])
def test_a_stale_part_is_removed_and_the_second_call_repairs(server, offered, tmp_path, size, tell):
    file = offered if tell else File("a.bin", offered.url, None, offered.hash)
    (tmp_path / "a.bin.part").write_bytes(b"x" * size)
    try: fetch(file, tmp_path)
    except DownloadError as error: assert "is not the file that is expected and was removed" in str(error)
    assert not (tmp_path / "a.bin.part").exists()
    assert fetch(file, tmp_path).read_bytes() == DATA and os.listdir(tmp_path) == ["a.bin"]


def test_a_whole_part_is_checked_and_needs_no_request(server, offered, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(DATA)
    assert fetch(offered, tmp_path).read_bytes() == DATA and server.asked == []


def test_a_damaged_download_is_fetched_again(server, offered, tmp_path):
    (tmp_path / "a.bin").write_bytes(DATA[:-1] + b"?")
    assert fetch(offered, tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("fault,needles", [
    (dict(status=404), ("answers 404", "--from")),
    (dict(status=403), ("answers 403",)),
    (dict(body=bytes(len(DATA))), ("its sha256 is", "instead of")),
    (dict(body=DATA[:-1]), (f"offers {len(DATA) - 1} bytes",)),
    (dict(body=DATA + b"more", length=False), ("sends more than",)),
])
def test_what_cannot_pass_fails_at_once(server, offered, tmp_path, fault, needles):
    server.always["a.bin"] = fault
    fails(DownloadError, lambda: fetch(offered, tmp_path), offered.url, *needles)
    assert len(server.asked) == 1 and not (tmp_path / "a.bin").exists()
    server.always.clear()
    assert fetch(offered, tmp_path).read_bytes() == DATA


def test_a_page_instead_of_a_file_is_named(server, tmp_path):
    server.always["a.bin"] = dict(body=b"\n<!DOCTYPE html><html>Please log in")
    fails(DownloadError, lambda: fetch(File("a.bin", server.url("a.bin"), None, sha(DATA)), tmp_path), "it is a web page")


def test_faults_that_may_pass_are_tried_again(server, offered, tmp_path):
    server.script["a.bin"] = [dict(status=500), dict(status=503), dict(status=429)]
    assert fetch(offered, tmp_path).read_bytes() == DATA and len(server.asked) == 4


def test_patience_ends_and_starts_over_with_every_byte(server, offered, tmp_path):
    server.always["a.bin"] = dict(status=500)
    fails(DownloadError, lambda: fetch(offered, tmp_path), "answers 500", "4 times in a row")
    assert len(server.asked) == download.PATIENCE
    server.always["a.bin"] = dict(cut=20_000)                                      # fifteen times, always some progress
    assert fetch(offered, tmp_path).read_bytes() == DATA


def test_pauses_double(server, offered, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(download, "PAUSE", 1.0)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: pauses.append(seconds) if seconds >= 1 else None)
    server.always["a.bin"] = dict(status=502)
    fails(DownloadError, lambda: fetch(offered, tmp_path))
    assert pauses == [1, 2, 4]


def test_a_silent_server_and_no_server(server, offered, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    server.script["a.bin"] = [dict(pause=0.3)]
    assert fetch(offered, tmp_path).read_bytes() == DATA
    with Server() as gone: url = gone.url("a.bin")
    fails(DownloadError, lambda: fetch(File("b.bin", url), tmp_path), url, "the connection fails")
    fails(DownloadError, lambda: fetch(File("b.bin", "nonsense"), tmp_path), "this is no address")


def test_mirrors_in_order(server, tmp_path):
    server.files |= {"wrong.bin": bytes(len(DATA))}
    urls = [server.url(name) for name in ("missing.bin", "wrong.bin", "a.bin", "never.bin")]
    file = File("a.bin", tuple(urls), len(DATA), sha(DATA))
    assert fetch(file, tmp_path).read_bytes() == DATA
    assert [name for name, _ in server.asked] == ["missing.bin", "wrong.bin", "a.bin"]
    fails(DownloadError, lambda: fetch(File("b.bin", tuple(urls[:2]), len(DATA), sha(DATA)), tmp_path), *urls[:2])


def test_a_mirror_continues_what_another_began(server, tmp_path):
    server.files |= {"b.bin": DATA}
    server.script["a.bin"] = [dict(cut=200_000), dict(status=404)]
    file = File("a.bin", (server.url("a.bin"), server.url("b.bin")), len(DATA), sha(DATA))
    assert fetch(file, tmp_path).read_bytes() == DATA
    assert server.asked[-1][1]["Range"] and "If-Range" not in server.asked[-1][1]


def test_one_download_for_two_sets_at_once(server, offered, tmp_path):
    server.always["a.bin"] = dict(pause=0.005)
    with ThreadPoolExecutor(4) as pool: paths = list(pool.map(lambda i: fetch(offered, tmp_path), range(4)))
    assert paths[0].read_bytes() == DATA and len(server.asked) == 1 and os.listdir(tmp_path) == ["a.bin"]


def test_a_lock_lets_one_in_at_a_time(tmp_path):
    within, most = [], []
    def visit(i):
        for _ in range(15):
            with store.lock(tmp_path / "lock", report=lambda line: None):
                within.append(i), most.append(len(within)), time.sleep(0.0005), within.pop()
    with ThreadPoolExecutor(6) as pool: list(pool.map(visit, range(6)))
    assert most == [1] * 90 and os.listdir(tmp_path) == []


def test_work_of_the_living_is_left_alone_and_that_of_the_dead_removed(tmp_path):
    (tmp_path / ".toy-00000000.part" / "new").mkdir(parents=True)
    with store.workplace(tmp_path / "toy") as first, store.workplace(tmp_path / "toy") as second:
        assert {p.name for p in tmp_path.iterdir()} == {first.name, second.name}
    assert os.listdir(tmp_path) == []


def test_redirections_are_followed_and_continued(server, tmp_path):
    server.always["old.bin"] = dict(redirect=server.url("a.bin"))
    server.script["a.bin"] = [dict(cut=200_000)]
    assert fetch(File("a.bin", server.url("old.bin"), len(DATA), sha(DATA)), tmp_path).read_bytes() == DATA
    assert server.asked[-1][1]["Range"] and server.asked[-1][1]["If-Range"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([dict(status=500), dict(cut=0), dict(cut=70_000), dict(cut=150_000, ranges=False),
                                 dict(cut=90_000, length=False), dict(cut=50_000, body=bytes(len(DATA))),
                                 dict(status=416), dict(etag=None), dict(cut=1, etag='W/"weak"')]), max_size=6),
       st.integers(0, len(DATA)))
def test_whatever_happens_it_is_the_right_file_or_none(faults, part):
    with Server({"a.bin": DATA}) as server, tempfile.TemporaryDirectory() as folder:
        file, server.script["a.bin"] = File("a.bin", server.url("a.bin"), len(DATA), sha(DATA)), list(faults)
        (Path(folder) / "a.bin.part").write_bytes(DATA[:part])
        for attempt in range(3):
            try: fetch(file, folder)
            except DownloadError: assert not (Path(folder) / "a.bin").exists()
            else: break
        assert (Path(folder) / "a.bin").read_bytes() == DATA and os.listdir(folder) == ["a.bin"]


# disks ------------------------------------------------------------------------------------------

def test_space_is_checked_before_anything_is_fetched(server, tmp_path, monkeypatch):
    recipe = toy(server.url("toy.tar.gz"), len(TOY), sha(TOY))
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=10 ** 6 + len(TOY) - 1))
    fails(DownloadError, lambda: obtain(recipe, tmp_path / "root"), "are needed", "--root")
    assert server.asked == [] and list((tmp_path / "root").iterdir()) == []
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=10 ** 6 + len(TOY)))
    obtain(recipe, tmp_path / "root")


def test_a_disk_that_fills_up_while_fetching(offered, tmp_path):
    if not os.path.exists("/dev/full"): pytest.skip("needs /dev/full")
    (tmp_path / "a.bin.part").symlink_to("/dev/full")
    fails(DownloadError, lambda: fetch(offered, tmp_path), f"the disk of {tmp_path} is full", "run the same command again")


@pytest.mark.parametrize("largest", [50_000, 100_000])
def test_a_disk_that_fills_up_leaves_nothing_half(server, forks, tmp_path, largest):
    "A limit on file sizes is what a process can be given: 50 kB stop the download (compressed 100), 100 kB the unpacking"
    archive = toy_archive(20) if largest == 50_000 else zlib_heavy()
    server.files["toy.tar.gz"] = archive
    job = dict(root=tmp_path / "root", url=server.url("toy.tar.gz"), size=len(archive), hash=sha(archive), images=20 if largest == 50_000 else 40,
               log=tmp_path / "log")
    assert forks.run(**job, largest=largest) == 2
    assert "is full: make room" in (tmp_path / "log").read_text() and state("toy", tmp_path / "root") == "missing"
    assert {p.name for p in (tmp_path / "root").iterdir()} == {"downloads"}
    assert forks.run(**job) == 0 and verify("toy", tmp_path / "root") > 2


def zlib_heavy():
    "The toy archive with black images: small to fetch, large to unpack"
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w:gz") as tar:
        entries = {"toy/x": array_bytes(np.zeros((40, 32, 32, 3), np.uint8)), "toy/y": array_bytes(np.arange(40) % 5), "toy/photos/1": b"1"}
        for name, content in entries.items(): add(tar, name, content)
    return plain.getvalue()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_refuses(server, tmp_path, monkeypatch, code):
    def refuse(path, *args, **kwargs): raise OSError(code, os.strerror(code), str(path))
    monkeypatch.setattr(store.os, "open", refuse)
    fails(DownloadError, lambda: obtain(toy(server.url("toy.tar.gz")), tmp_path), "full" if code in store.FULL else "--root")


def test_a_file_where_a_folder_should_be(server, tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        assert obtain_all([toy(server.url("toy.tar.gz"))], root) == 2
    assert server.asked == []


# archives ---------------------------------------------------------------------------------------

FORMATS = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz", "zip": None}


def add(tar, name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items(): setattr(info, key, value)
    tar.addfile(info, io.BytesIO(content))


def pack(path, entries, kind="tar.gz"):
    "An archive of (name, content) pairs; a name with a slash at its end is a folder"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries:
                info = zipfile.ZipInfo("placeholder")
                info.filename, info.orig_filename, info.compress_type = name, name, zipfile.ZIP_DEFLATED
                archive.writestr(info, content)
    else:
        with tarfile.open(path, FORMATS[kind]) as tar:
            for name, content in entries:
                add(tar, name.rstrip("/") or name, content, type=tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE)
    return path


def refused(archive, *needles, limit=10 ** 6):
    "The archive is refused by name, and nothing is written anywhere"
    out = archive.parent / "out"
    before = tree(archive.parent)
    text = fails(ArchiveError, lambda: unpack(archive, out, limit), archive.name, *needles)
    assert tree(archive.parent) == before
    return text


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_unpacks_to_what_was_packed(tmp_path, kind):
    entries = {"a.txt": b"a", "b/c d/e.bin": DATA, "b/empty": b"", "ü/日本.txt": b"names"}
    path = pack(tmp_path / "archive", [("b/", b""), *entries.items()], kind)          # told by content, not by name
    out = unpack(path, tmp_path / "out")
    assert {n: c for n, c in tree(out).items() if c is not None} == entries
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert stat.S_IMODE((out / "a.txt").stat().st_mode) & 0o400 and stat.S_IMODE(out.stat().st_mode) & 0o500 == 0o500


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["../up.txt", "a/../../up.txt", "/absolute.txt", "a\\..\\..\\up.txt", "C:\\up.txt", "..", "//a"])
def test_paths_that_leave_are_refused(tmp_path, kind, name):
    refused(pack(tmp_path / f"bad.{kind}", [("good.txt", b"fine"), (name, b"evil")], kind), repr(name)[1:-1])


@pytest.mark.parametrize("kind,link", [(tarfile.SYMTYPE, "symbolic link"), (tarfile.LNKTYPE, "hard link"), (tarfile.CHRTYPE, "device"),
                                       (tarfile.BLKTYPE, "device"), (tarfile.FIFOTYPE, "special file")])
@pytest.mark.parametrize("target", ["/etc/passwd", "good.txt", "../outside"])
def test_links_and_devices_are_refused_in_tar(tmp_path, kind, link, target):
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        add(tar, "good.txt", b"fine")
        add(tar, "innocent", type=kind, linkname=target)
        add(tar, "innocent/file", b"through the link")
    refused(tmp_path / "bad.tar", "'innocent'", link)


@pytest.mark.parametrize("mode,text", [(stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "special file"), (stat.S_IFCHR, "device")])
def test_links_and_devices_are_refused_in_zip(tmp_path, mode, text):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        info = zipfile.ZipInfo("innocent")
        info.create_system, info.external_attr = 3, (mode | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refused(tmp_path / "bad.zip", "'innocent'", text)


@pytest.mark.parametrize("kind", FORMATS)
def test_bombs_are_refused_before_anything_is_written(tmp_path, kind):
    path = pack(tmp_path / f"bomb.{kind}", [("a", bytes(600_000)), ("b", bytes(400_001))], kind)
    refused(path, "unpacks to more than 1.0 MB")
    assert len((unpack(path, tmp_path / "out", 1_000_001) / "b").read_bytes()) == 400_001
    if kind not in ("tar", "tar.bz2"): fails(ArchiveError, lambda: unpack(pack(tmp_path / f"large.{kind}", [("a", bytes(10 ** 7))], kind), tmp_path / "no"))


def test_many_empty_entries_are_a_bomb_too(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MEMBERS", 10)
    refused(pack(tmp_path / "many.tar.gz", [(f"{i}", b"") for i in range(11)]), "more than 10 entries")


def test_a_sparse_file_of_a_terabyte(tmp_path):
    with tarfile.open(tmp_path / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "huge", b"0\n" + bytes(510), pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "huge",
                                                           "GNU.sparse.realsize": str(10 ** 12)})
    refused(tmp_path / "sparse.tar", "unpacks to more than 1.0 MB")


def test_a_header_of_a_hundred_megabytes(tmp_path):
    with tarfile.open(tmp_path / "header.tar.gz", "w:gz") as tar: add(tar, "a", b"", pax_headers={"comment": "x" * 10 ** 8})
    refused(tmp_path / "header.tar.gz", "a header of 100.0 MB", limit=10 ** 9)


def test_a_zip_that_lies_about_its_sizes(tmp_path):
    path = pack(tmp_path / "liar.zip", [("a", bytes(500_000))], "zip")
    path.write_bytes(path.read_bytes().replace((500_000).to_bytes(4, "little"), (5).to_bytes(4, "little")))
    refused(path)


def test_what_comes_out_is_counted(tmp_path):
    "No reader of archives gives more than was announced; if one did, it would be stopped"
    for content, left, text in ((bytes(6), 100, "larger"), (bytes(4), 100, "shorter"), (bytes(5), 4, "larger")):
        member = archives._Member("a", 5, False, lambda: io.BytesIO(content))
        fails(ArchiveError, lambda: archives._write(member, tmp_path, left, SimpleNamespace(update=str)), f"'a' is {text} than it says")
        (tmp_path / "a").unlink()


def test_a_zip_with_a_password(tmp_path):
    path = pack(tmp_path / "secret.zip", [("a", b"content")], "zip")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    refused(path, "'a' is a file with a password")


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("x" * 300,)])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_that_contradict_each_other(tmp_path, kind, names):
    refused(pack(tmp_path / f"odd.{kind}", [(name, b"1") for name in names], kind), repr(names[-1]))


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_archives_leave_nothing(tmp_path, kind):
    path = pack(tmp_path / f"whole.{kind}", [(f"f{i}", DATA[i * 999:i * 999 + 600]) for i in range(4)], kind)
    whole = path.read_bytes()
    used = len(whole.rstrip(b"\0")) if kind == "tar" else len(whole)             # a tar may be padded with zeros
    cuts = sorted({0, 1, 5, 511, 512, 513, 1024, 1536, 2048, used // 3, used // 2, used - 9, used - 1} & set(range(used)))
    for cut in cuts:
        path.write_bytes(whole[:cut])
        refused(path)


def test_what_is_no_archive(tmp_path):
    for content in (b"", b"<html>", DATA[:5000], gzip.compress(DATA[:5000]), b"PK\3\4" + DATA[:500], b"\x1f\x8b" + DATA[:99]):
        (tmp_path / "x").write_bytes(content)
        refused(tmp_path / "x")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.sampled_from(["a", "b", "..", ".", "", "c:", "~", "a\\..", "ü"]), min_size=1, max_size=4).map("/".join),
                          st.binary(max_size=20), st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]),
                          st.sampled_from(["", "..", "/", "a"])), max_size=5))
def test_no_tar_writes_outside(entries):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        with tarfile.open(folder / "x.tar", "w") as tar:
            for name, content, kind, link in entries: add(tar, name, content if kind == tarfile.REGTYPE else b"", type=kind, linkname=link)
        try: unpack(folder / "x.tar", folder / "deep" / "out")
        except ArchiveError: assert not (folder / "deep" / "out").exists()
        else: assert not any(p.is_symlink() for p in (folder / "deep" / "out").rglob("*"))
        assert {p.name for p in folder.iterdir()} <= {"x.tar", "deep"} and {p.name for p in (folder / "deep").glob("*")} <= {"out"}


@settings(max_examples=60, deadline=None)
@example("zip", 2631, 0)    # the last entry's name begins with a zero byte: Python 3.11 reads a name of no letters
@given(st.sampled_from(sorted(FORMATS)), st.integers(0, 10 ** 6), st.integers(0, 255))
def test_a_flipped_byte_never_crashes(kind, where, value):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        path = pack(folder / "x", [("a/b", b"content" * 50), ("c", DATA[:700])], kind)
        content = bytearray(path.read_bytes())
        content[where % len(content)] = value
        path.write_bytes(content)
        try: unpack(path, folder / "out", 10 ** 6)
        except ArchiveError: assert os.listdir(folder) == ["x"]
        else: assert (folder / "out").is_dir()


# whole sets -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def forks():
    with Forks() as forks: yield forks


@pytest.fixture
def recipe(server): return toy(server.url("toy.tar.gz"), len(TOY), sha(TOY))


def job_of(server, tmp_path, **more):
    return dict(root=tmp_path / "root", url=server.url("toy.tar.gz"), size=len(TOY), hash=sha(TOY), log=tmp_path / "log", **more)


def flip(path):
    "Change a byte without changing the size"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def settled(root):
    "The set is whole and nothing else lies around"
    return state("toy", root) == "found" and verify("toy", root) == 8 and {p.name for p in root.iterdir()} == {"downloads", "toy"} \
        and os.listdir(root / "downloads") == ["toy.tar.gz"]


def test_a_set_is_prepared_and_says_what_it_is(server, recipe, tmp_path, capsys):
    assert state("toy", tmp_path) == "missing"
    assert obtain(recipe, tmp_path) == tmp_path / "toy" and settled(tmp_path)
    said = capsys.readouterr()
    assert "CC0 1.0" in said.out and "Nobody (2026). Toys." in said.out and "checked  toy.tar.gz (sha256)" in said.out and said.err == ""
    manifest = json.loads((tmp_path / "toy" / "prepared.json").read_text())
    assert manifest["files"]["train/labels.npy"] == {"size": (tmp_path / "toy/train/labels.npy").stat().st_size,
                                                     "sha256": hashlib.sha256((tmp_path / "toy/train/labels.npy").read_bytes()).hexdigest()}
    assert manifest["splits"] == {"train": 40} and manifest["sources"]["toy.tar.gz"]["hash"] == sha(TOY)
    before = tree(tmp_path)
    obtain(recipe, tmp_path)
    assert tree(tmp_path) == before and len(server.asked) == 1 and "toy is there" in capsys.readouterr().out


def test_killed_before_every_operation_on_files(server, forks, tmp_path):
    "SIGKILL before the 1st, 2nd, 3rd ... file is opened, made, renamed or removed: whole or absent, and a second call repairs"
    job, root, seen, n = job_of(server, tmp_path), tmp_path / "root", set(), 0
    while True:
        n += 1
        code = forks.run(**job, die_at=n)
        if code == 0: break
        assert code == -signal.SIGKILL, (tmp_path / "log").read_text()
        condition = state("toy", root)
        seen.add(condition)
        if condition == "found": assert verify("toy", root) == 8
        else: assert condition == "missing" and not (root / "toy").exists()
        if n % 3 == 0 or condition == "found":
            obtain(toy(job["url"], job["size"], job["hash"]), root, report=lambda line: None)
            assert settled(root), (n, list(root.rglob("*")))
            for path in sorted(root.rglob("*"), reverse=True): path.rmdir() if path.is_dir() else path.unlink()
    assert n > 40 and seen == {"missing", "found"} and settled(root)


def test_killed_while_a_damaged_set_is_replaced(server, forks, tmp_path):
    job, root, seen = job_of(server, tmp_path), tmp_path / "root", set()
    obtain(toy(job["url"], job["size"], job["hash"]), root)
    for n in range(1, 200):
        if state("toy", root) == "found":
            flip(root / "toy" / "train" / "images.npy")
            fails(DownloadError, lambda: verify("toy", root), "images.npy is damaged", "arcbook data toy")
        code = forks.run(**job, die_at=n)
        seen.add(state("toy", root))
        if state("toy", root) == "found": assert verify("toy", root) == 8
        if code == 0: break
    assert code == 0 and n > 40 and seen == {"damaged", "missing", "found"} and settled(root)


@pytest.mark.parametrize("stage", ["download", "prepare"])
def test_killed_at_any_time(server, forks, tmp_path, stage):
    if stage == "download": server.always["toy.tar.gz"] = dict(pause=0.02)
    job, chance, killed = job_of(server, tmp_path, pause=0.05 if stage == "prepare" else 0.0), random.Random(1), 0
    for attempt in range(40):
        pid = forks.start(**job)
        time.sleep(chance.uniform(0.005, 0.12))
        try: os.kill(pid, signal.SIGKILL)
        except ProcessLookupError: pass
        killed += forks.wait(pid) == -signal.SIGKILL
        condition = state("toy", tmp_path / "root")
        assert condition == "missing" or condition == "found" and verify("toy", tmp_path / "root") == 8
        if killed >= 6 or condition == "found": break
    server.always.clear()
    assert forks.run(**job) == 0 and settled(tmp_path / "root") and killed


def test_ctrl_c_leaves_a_part_that_is_continued(server, forks, tmp_path):
    server.always["toy.tar.gz"], job = dict(pause=0.05), job_of(server, tmp_path)
    pid = forks.start(**job)
    part = tmp_path / "root" / "downloads" / "toy.tar.gz.part"
    while not part.exists() or part.stat().st_size < 20_000: time.sleep(0.01)
    os.kill(pid, signal.SIGINT)
    assert forks.wait(pid) == 130 and "the same command goes on from here" in (tmp_path / "log").read_text()
    assert part.stat().st_size >= 20_000 and {p.name for p in (tmp_path / "root").iterdir()} == {"downloads"}
    server.always.clear()
    assert forks.run(**job) == 0 and settled(tmp_path / "root") and server.asked[-1][1]["Range"]


def test_four_processes_at_once(server, forks, tmp_path):
    server.always["toy.tar.gz"] = dict(pause=0.01)
    job = job_of(server, tmp_path)
    pids = [forks.start(**job) for _ in range(4)]
    assert [forks.wait(pid) for pid in pids] == [0] * 4 and settled(tmp_path / "root")
    log = (tmp_path / "log").read_text()
    assert len(server.asked) == 1 and log.count("preparing toy") == 1 and "another process works on toy: waiting" in log


@pytest.mark.parametrize("harm", ["truncate", "remove", "flip", "manifest"])
def test_damage_is_seen_named_and_repaired_without_network(server, recipe, tmp_path, harm, capsys):
    obtain(recipe, tmp_path)
    file = tmp_path / "toy" / ("prepared.json" if harm == "manifest" else "train/images.npy")
    if harm == "truncate": os.truncate(file, 1000)
    if harm == "remove": file.unlink()
    if harm == "flip": flip(file)
    if harm == "manifest": file.write_text('{"files": {')
    assert state("toy", tmp_path) == ("found" if harm == "flip" else "damaged")
    assert obtain_all([recipe], tmp_path, verify=True) == 2
    said = capsys.readouterr().err
    assert str(file) in said and f"arcbook data toy --root {tmp_path}" in said and said.count("\n") == 1
    assert state("toy", tmp_path) == "damaged"
    from arcbook.datasets import load
    fails((ValueError, OSError), lambda: load("toy", "train", tmp_path), file)      # known damage is not trained on
    obtain(recipe, tmp_path)
    assert len(load("toy", "train", tmp_path)) == 40
    assert settled(tmp_path) and len(server.asked) == 1                            # out of the archive that was kept


def test_verify_needs_no_network_and_no_right_to_write(recipe, tmp_path, monkeypatch):
    obtain(recipe, tmp_path)
    flip(tmp_path / "toy" / "classes.json")
    def refuse(*args): raise OSError(errno.EROFS, "read-only")
    monkeypatch.setattr(store, "write_json", refuse)
    fails(DownloadError, lambda: verify("toy", tmp_path), "classes.json is damaged")
    flip(tmp_path / "toy" / "classes.json")
    assert verify("toy", tmp_path) == 8
    fails(DownloadError, lambda: verify("other", tmp_path), "missing", "arcbook data other")


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {}}}', "\xff",
                                     '{"files": {"a": {"size": 1}}}', '{"files": {}, "damaged": 3}', '{"files": {}, "folders": []}',
                                     '{"files": {}, "folders": {"a": "1"}}', '{"files": {}, "folders": {"a": 1}}', "[" * 100_000, '{"files": {"a": {"size": "1", "sha256": ""}}}'])
def test_a_damaged_manifest_is_damage(tmp_path, content):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "prepared.json").write_text(content, encoding="latin-1")
    assert state("toy", tmp_path) == "damaged" and str(tmp_path) in examine("toy", tmp_path)[1]


def test_dry_run_tells_everything_and_writes_nothing(server, recipe, tmp_path, capsys):
    obtain(recipe, tmp_path / "root", dry_run=True)
    said = capsys.readouterr().out
    for text in (server.url("toy.tar.gz"), "CC0 1.0", "Nobody (2026). Toys.", sha(TOY), str(tmp_path / "root" / "toy"), "are free", "train 40",
                 "https://example.org/toy", store.size_text(len(TOY)), "(missing)"): assert text in said, text
    assert list(tmp_path.iterdir()) == [] and server.asked == []


def by_hand(recipe): return Recipe(**{**vars(recipe), "files": (File("toy.tar.gz", "", len(TOY), sha(TOY)),), "manual": "sign the form at https://example.org"})


def test_where_a_person_must_act_it_says_how(recipe, tmp_path):
    fails(DownloadError, lambda: obtain(by_hand(recipe), tmp_path), "toy.tar.gz cannot be fetched", "sign the form", "--from", tmp_path / "downloads")
    assert "sign the form" in plan(by_hand(recipe), tmp_path) and "your own copy" in plan(by_hand(recipe), tmp_path)


@pytest.mark.parametrize("how", ["file", "other name", "folder", "list", "downloads"])
def test_the_users_own_archive(server, recipe, tmp_path, how):
    own = tmp_path / "mine"
    own.mkdir()
    path = own / ("renamed.tgz" if how == "other name" else "toy.tar.gz")
    path.write_bytes(TOY)
    source = dict(folder=own, list=[path], downloads=None).get(how, str(path))
    if how == "downloads": (tmp_path / "root" / "downloads").mkdir(parents=True), os.rename(path, tmp_path / "root" / "downloads" / path.name)
    obtain(by_hand(recipe), tmp_path / "root", source)
    assert state("toy", tmp_path / "root") == "found" and server.asked == [] and (how == "downloads" or path.read_bytes() == TOY)


@pytest.mark.parametrize("content,needle", [(TOY[:-1], "bytes instead of"), (TOY[:-1] + b"?", "sha256")])
@pytest.mark.parametrize("place", ["own", "downloads"])
def test_a_wrong_archive_of_the_users_is_named_and_kept(recipe, tmp_path, content, needle, place):
    path = (tmp_path if place == "own" else tmp_path / "root" / "downloads") / "toy.tar.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    fails(DownloadError, lambda: obtain(by_hand(recipe), tmp_path / "root", path if place == "own" else None), path, needle)
    assert path.read_bytes() == content and state("toy", tmp_path / "root") == "missing"


def test_a_from_that_does_not_fit(recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    two = Recipe(**{**vars(recipe), "files": (File("a.zip"), File("b.zip"))})
    fails(DownloadError, lambda: obtain(recipe, tmp_path, tmp_path / "none"), "there is no such file")
    fails(DownloadError, lambda: obtain(recipe, tmp_path, tmp_path / "empty"), "toy.tar.gz")
    (tmp_path / "c.zip").write_bytes(b"c")
    fails(DownloadError, lambda: obtain(two, tmp_path, tmp_path / "c.zip"), "a.zip, b.zip")


def test_a_folder_of_the_users(tmp_path):
    "An unpacked ImageNet is a folder, not a file; the set may point to it"
    (tmp_path / "mine" / "photos" / "n01").mkdir(parents=True)
    (tmp_path / "mine" / "photos" / "n01" / "a b.jpg").write_bytes(b"jpg")
    def prepare(files, staging):
        (staging / "images").symlink_to(files["photos"].resolve())
        (staging / "train.txt").write_bytes(b"n01/a b.jpg 0\r\n")
    own = Recipe("own", "Own", "", "", "", (File("photos"),), prepare, 100, {"train": 1})
    obtain(own, tmp_path / "root", tmp_path / "mine")
    assert state("own", tmp_path / "root") == "found" and verify("own", tmp_path / "root") == 2
    os.rename(tmp_path / "mine", tmp_path / "moved")
    assert examine("own", tmp_path / "root") == ("damaged", f"{tmp_path / 'root' / 'own' / 'images'} leads nowhere")
    obtain(own, tmp_path / "root", tmp_path / "moved" / "photos")
    assert state("own", tmp_path / "root") == "found"
    fails(DownloadError, lambda: obtain(Recipe(**{**vars(own), "files": (File("photos", "", 5),), "name": "other"}), tmp_path / "root",
                                        tmp_path / "moved"), "it is a folder")


def test_a_file_that_is_not_always_needed(recipe, tmp_path):
    files = (*by_hand(recipe).files, File("extra.txt", optional=True))
    got = []
    def prepare(files, staging): got.append(sorted(files)), recipe.prepare(files, staging)
    either = Recipe(**{**vars(recipe), "files": files, "prepare": prepare})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "toy.tar.gz").write_bytes(TOY)
    obtain(either, tmp_path / "root", tmp_path / "mine")
    (tmp_path / "mine" / "extra.txt").write_text("more")
    obtain(either, tmp_path / "other", tmp_path / "mine")
    assert got == [["toy.tar.gz"], ["extra.txt", "toy.tar.gz"]]
    sources = json.loads((tmp_path / "root" / "toy" / "prepared.json").read_text())["sources"]
    assert list(sources) == ["toy.tar.gz"] and "extra.txt, unknown size, no published hash, not always needed" in plan(either)


def test_files_of_others_are_not_removed(recipe, tmp_path):
    (tmp_path / "toy" / "train").mkdir(parents=True)
    (tmp_path / "toy" / "train" / "images.npy").write_bytes(b"half")
    before = tree(tmp_path)
    fails(DownloadError, lambda: obtain(recipe, tmp_path), "move it away")
    fails(DownloadError, lambda: verify("toy", tmp_path), "move", "arcbook data toy")
    assert tree(tmp_path) == before


def test_sets_prepared_by_hand(recipe, tmp_path, capsys):
    folder = tmp_path / "toy" / "train"
    folder.mkdir(parents=True)
    assert state("toy", tmp_path) == "missing"
    (folder / "images.npy").write_bytes(array_bytes(np.zeros((4, 8, 8, 3), np.uint8)))
    assert state("toy", tmp_path) == "damaged"
    (folder / "labels.npy").write_bytes(array_bytes(np.arange(4)))
    assert examine("toy", tmp_path) == ("damaged", f"{tmp_path / 'toy' / 'classes.json'} is missing")
    (tmp_path / "toy" / "classes.json").write_text('["a"]')
    assert state("toy", tmp_path) == "found" and verify("toy", tmp_path) == 0
    obtain(recipe, tmp_path, verify=True)
    assert "no hashes to compare" in capsys.readouterr().out
    for harm in (lambda data: data[:-1], lambda data: data + b"?", lambda data: data[:20], lambda data: b""):
        (folder / "labels.npy").write_bytes(harm(array_bytes(np.arange(4))))
        assert examine("toy", tmp_path) == ("damaged", f"{folder / 'labels.npy'} is damaged")
    (folder / "labels.npy").write_bytes(array_bytes(np.arange(3)))
    assert examine("toy", tmp_path) == ("damaged", f"{folder} holds 4 images and 3 labels")
    (tmp_path / "birds" / "images").mkdir(parents=True)
    assert state("birds", tmp_path) == "missing"
    (tmp_path / "birds" / "train.txt").write_text("a.jpg 0\n")
    assert state("birds", tmp_path) == "found"


@pytest.mark.parametrize("odd", [np.zeros(4, np.float32), np.zeros(4, np.int32), np.zeros((4, 1), np.int64), "npz", "text"])
def test_what_cannot_be_loaded_is_not_found(tmp_path, odd):
    folder = tmp_path / "toy" / "train"
    folder.mkdir(parents=True)
    (tmp_path / "toy" / "classes.json").write_text('["a"]')
    (folder / "images.npy").write_bytes(array_bytes(np.zeros((4, 8, 8, 3), np.uint8)))
    with open(folder / "labels.npy", "wb") as file:
        if isinstance(odd, np.ndarray): np.save(file, odd)
        else: np.savez(file, a=np.zeros(3)) if odd == "npz" else file.write(b"404: Not Found")
    assert examine("toy", tmp_path) == ("damaged", f"{folder / 'labels.npy'} is damaged")


def aviary(files=7):
    "A set of photographs in two folders, without a download"
    def prepare(_, staging):
        for i in range(files):
            (staging / "images" / f"kind {i % 2}").mkdir(parents=True, exist_ok=True)
            (staging / "images" / f"kind {i % 2}" / f"{i}.jpg").write_bytes(b"a photograph")
        (staging / "train.txt").write_text("".join(f"kind {i % 2}/{i}.jpg {i % 2}\n" for i in range(files)))
    return Recipe("aviary", "Aviary", "", "", "", (), prepare, 100, {"train": files})


def test_photographs_are_counted_in_passing_and_compared_before_a_repair(tmp_path, monkeypatch):
    obtain(aviary(), tmp_path)
    folder = tmp_path / "aviary"
    manifest = json.loads((folder / "prepared.json").read_text())
    assert set(manifest["files"]) == {"train.txt", "photographs.json"} and manifest["folders"] == {"images/kind 0": 4, "images/kind 1": 3}
    assert len(json.loads((folder / "photographs.json").read_text())) == 7 and verify("aviary", tmp_path) == 9
    photo = folder / "images" / "kind 1" / "3.jpg"
    with monkeypatch.context() as patch:                                            # a look opens no list and asks for no size
        patch.setattr(store, "_read_photographs", None)
        assert state("aviary", tmp_path) == "found"
    os.truncate(photo, 5)
    assert state("aviary", tmp_path) == "found" and examine("aviary", tmp_path, each=True) == ("damaged", f"{photo} has 5 bytes instead of 12")
    obtain(aviary(), tmp_path)
    assert photo.read_bytes() == b"a photograph"
    photo.unlink()
    assert examine("aviary", tmp_path) == ("damaged", f"{photo.parent} holds 2 files instead of 3")
    obtain(aviary(), tmp_path)
    flip(photo)
    fails(DownloadError, lambda: verify("aviary", tmp_path), f"{photo} is damaged")
    assert state("aviary", tmp_path) == "damaged"
    obtain(aviary(), tmp_path)
    (folder / "photographs.json").write_text("[" * (folder / "photographs.json").stat().st_size)
    assert state("aviary", tmp_path) == "found" and examine("aviary", tmp_path, each=True)[1] == f"{folder / 'photographs.json'} is damaged"
    fails(DownloadError, lambda: verify("aviary", tmp_path), "photographs.json is damaged")
    obtain(aviary(), tmp_path)
    assert verify("aviary", tmp_path) == 9


def test_the_repairing_command_can_be_pasted(tmp_path):
    root = tmp_path / "my data; ü"
    obtain(aviary(), root)
    flip(root / "aviary" / "train.txt")
    assert f"`arcbook data aviary --root '{root}'`" in fails(DownloadError, lambda: verify("aviary", root))


@pytest.mark.parametrize("entries,needle", [
    ([("toy/x", array_bytes(np.zeros((39, 4, 4, 3), np.uint8))), ("toy/y", array_bytes(np.arange(40))), ("toy/photos/a", b"")], "39 images instead of 40"),
    ([("toy/x", array_bytes(np.zeros((40, 4, 4, 3), np.uint8))), ("toy/y", array_bytes(np.arange(7))), ("toy/photos/a", b"")], "7 images instead of 40"),
    ([("toy/x", b"no array"), ("toy/y", array_bytes(np.arange(40))), ("toy/photos/a", b"")], "0 images"),
    ([("elsewhere/x", b"")], "could not be prepared"),
    ([("../x", b"")], "leaves the folder"),
])
def test_an_archive_of_another_content_leaves_nothing(server, tmp_path, entries, needle):
    server.files["odd.tar.gz"] = pack(tmp_path / "odd", entries).read_bytes()
    odd = toy(server.url("odd.tar.gz"))
    fails((DownloadError, ArchiveError), lambda: obtain(odd, tmp_path / "root"), needle)
    assert state("toy", tmp_path / "root") == "missing" and {p.name for p in (tmp_path / "root").iterdir()} == {"downloads"}


def test_a_truncated_archive_without_a_hash_is_fetched_anew(server, tmp_path):
    server.always["toy.tar.gz"] = dict(body=TOY[:-1000])
    fails(ArchiveError, lambda: obtain(toy(server.url("toy.tar.gz")), tmp_path), "toy.tar.gz is damaged")
    server.always.clear()
    obtain(toy(server.url("toy.tar.gz")), tmp_path)
    assert settled(tmp_path)


def test_recipes_with_bad_names():
    for name in ("../a", "a/b", "", ".hidden", "a\nb", None):
        with pytest.raises(ValueError, match="plain file name"): File(name)


# images of one's own ----------------------------------------------------------------------------

def test_own_images_become_a_set(tmp_path):
    from arcbook.datasets import load
    pixels, labels = np.random.RandomState(0).randint(0, 256, (12, 5, 7, 3)), [0, 1, 2] * 4
    write_arrays(tmp_path / "own", "train", pixels, labels)
    write_classes(tmp_path / "own", ["ä", "b", "c"])
    data = load("own", "train", tmp_path)
    assert np.array_equal(data.images.permute(0, 2, 3, 1), pixels) and data.labels.tolist() == labels and data.classes == ["ä", "b", "c"]
    assert state("own", tmp_path) == "found" and load("own-few:1", "train", tmp_path).counts().tolist() == [1, 1, 1]
    fails(ValueError, lambda: write_arrays(tmp_path / "own", "test", pixels / 255, labels), "images must be whole numbers in 0..255, got float64")
    assert not (tmp_path / "own" / "test").exists()
    with pytest.raises(FileExistsError): write_arrays(tmp_path / "own", "train", pixels, labels)     # nothing is overwritten


def test_own_lists_are_checked(tmp_path):
    from arcbook.photographs import read_list
    (tmp_path / "images" / "a b").mkdir(parents=True)
    for name in ("1 x.jpg", "2.jpg"): (tmp_path / "images" / "a b" / name).write_bytes(b"jpg")
    rows = [("a b/1 x.jpg", 0), ("a b/2.jpg", 1)]
    write_list(tmp_path, "train", iter(rows), 2)
    paths, labels = read_list(tmp_path / "train.txt", 2)
    assert list(zip(paths, labels.tolist())) == rows
    for wrong, needle in ((rows + rows[:1], "twice"), ([("a b/3.jpg", 0)], "not among"), ([("a b/2.jpg", 2)], "label 2 of 2"), ([("a b/2.jpg", -1)], "label -1")):
        fails(ValueError, lambda: write_list(tmp_path, "test", wrong, 2), needle)
    assert not (tmp_path / "test.txt").exists()
    write_list(tmp_path, "test", [("elsewhere/1.jpg", 0)], 1, present=lambda path: True)


def test_downloading_needs_no_torch():
    code = "import sys, arcbook.download, arcbook.archives; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


# commands ---------------------------------------------------------------------------------------

def ends(code, *recipes, argv):
    with pytest.raises(SystemExit) as end: command(*recipes, argv=list(map(str, argv)))
    assert end.value.code == code


def test_the_command_of_a_script(server, recipe, tmp_path, capsys):
    other = Recipe(**{**vars(recipe), "name": "other", "files": (File("other.zip", server.url("other.zip")),)})
    root = ["--root", tmp_path]
    ends(2, recipe, other, argv=[*root])                                           # one succeeds, one fails: both are tried
    said = capsys.readouterr()
    assert state("toy", tmp_path) == "found" and "404" in said.err and said.err.startswith("other: ") and said.err.count("\n") == 1
    ends(0, recipe, other, argv=["toy", *root, "--verify"])
    ends(2, recipe, other, argv=["--verify", *root])
    ends(0, recipe, other, argv=["--dry-run", *root])
    ends(2, recipe, other, argv=["third", *root])
    assert "NAME must be one of toy, other" in capsys.readouterr().err
    ends(2, recipe, argv=["--from"])


def test_arcbook_data_calls_the_same_code(server, recipe, tmp_path, monkeypatch, capsys):
    from arcbook import cli
    monkeypatch.setattr(download, "recipes", lambda: {"toy": recipe})
    call = lambda *arguments: CliRunner().invoke(cli.app, ["data", *map(str, arguments)])
    done = call("toy-few:5", "--root", tmp_path, "--dry-run")                      # a form of the set names the set
    assert done.exit_code == 0 and "CC0 1.0" in done.output and list(tmp_path.iterdir()) == []
    assert call("toy", "--root", tmp_path).exit_code == 0 and settled(tmp_path)
    os.truncate(tmp_path / "toy" / "train" / "labels.npy", 50)
    listed = CliRunner().invoke(cli.app, ["list"], env={"ARCBOOK_DATA": str(tmp_path)}).output
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("  toy ")] == ["damaged"]
    assert CliRunner().invoke(cli.app, ["list", "--root", str(tmp_path)]).output == listed
    assert call("toy", "--root", tmp_path, "--verify").exit_code == 2
    (tmp_path / "own.tgz").write_bytes(TOY)
    assert call("toy", "--root", tmp_path, "--from", tmp_path / "own.tgz").exit_code == 0 and len(server.asked) == 1
    assert "NAME must be one of toy" in str(call("nothing").exception) and "needs no download" in str(call("digits").exception)
    assert call("--verify").exit_code == 2
    assert "(did you mean 'toy'?)" in str(call("tow").exception)


def test_a_list_of_a_set_names_the_set():
    from arcbook.cli import chosen_recipes
    assert [r.name for r in chosen_recipes(["cub200-10", "cars-1i", "cub200", "imagenet-lt"])] == ["cub200", "cars", "imagenet-lt"]
    fails(ValueError, lambda: chosen_recipes(["cub200-11"]), "got 'cub200-11' (did you mean 'cub200'?)")


def test_the_recipes_of_the_book():
    found, files = recipes(), {}
    assert {"cifar10", "cifar100"} <= set(found)
    for recipe in found.values():
        assert recipe.licence and recipe.citation and recipe.homepage.startswith("http") and recipe.disk > 0 and recipe.splits
        assert all("\n" not in text for text in (recipe.title, recipe.licence, recipe.citation, recipe.manual))
        for file in recipe.files:
            assert file.urls or recipe.manual, f"{recipe.name}: nobody says how {file.name} is got"
            assert files.setdefault(file.name, (file.url, file.size, file.hash)) == (file.url, file.size, file.hash), "downloads are shared by name"
            if file.hash: assert file.hash.split(":")[0] in ("md5", "sha256") and len(file.hash.split(":")[1]) in (32, 64)
