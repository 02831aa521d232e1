"""Downloads from a server on this machine: interrupted and resumed, with wrong sums, without ranges; and what
``gmm-anomaly datasets --download`` makes of them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest

from gmm_anomaly import cli
from gmm_anomaly.data import downloads
from gmm_anomaly.data.downloads import ARCHIVES, Archive, archives_of, fetch
from gmm_anomaly.data.registration import registered_specs

CONTENT = np.random.default_rng(0).bytes(100_003)
SUM = f"md5 {hashlib.md5(CONTENT).hexdigest()}"
ROOT = Path(__file__).parents[2]


class Server(ThreadingHTTPServer):
    """Serves ``files``; every answer ends after ``most`` bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/a.bin": CONTENT}
        self.most, self.ranges, self.asked = len(CONTENT), True, []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        content, asked = self.server.files.get(self.path), self.headers.get("Range")
        self.server.asked.append(asked)
        if content is None:
            return self.send_error(404)
        start = int(asked[len("bytes=") : -1]) if asked and self.server.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + self.server.most])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as found:
        thread = Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_a_file_arrives_in_pieces_and_has_its_name_only_when_whole(server, tmp_path):
    target, part = tmp_path / "a.bin", tmp_path / "a.bin.part"
    server.most = 40_000
    assert fetch(server.url("a.bin"), target, SUM).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=40000-", "bytes=80000-"] and not part.exists()
    # There already: nobody is asked. Another file of that name is not taken for it.
    fetch(server.url("a.bin"), target, SUM)
    assert len(server.asked) == 3
    target.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=f"a.bin: expected {SUM}, found .*; remove it"):
        fetch(server.url("a.bin"), target, SUM)
    target.unlink()
    # What a process that was killed left; then one that had everything but the name.
    for left in (12_345, len(CONTENT)):
        part.write_bytes(CONTENT[:left])
        assert fetch(server.url("a.bin"), target, SUM).read_bytes() == CONTENT
        assert server.asked[3] == f"bytes={left}-"
        target.unlink()
        del server.asked[3:]


def test_a_server_without_ranges_begins_anew(server, tmp_path):
    server.ranges = False
    (tmp_path / "a.bin.part").write_bytes(b"begin")
    assert fetch(server.url("a.bin"), tmp_path / "a.bin", SUM).read_bytes() == CONTENT
    # It never gets further than this, and is not asked for ever.
    server.most = 1000
    server.asked.clear()
    with pytest.raises(ConnectionError, match="ended after 1000 of 100003 bytes"):
        fetch(server.url("a.bin"), tmp_path / "b.bin", SUM)
    assert len(server.asked) == 1 + downloads.TRIES


def test_wrong_sums_and_foreign_parts(server, tmp_path, capsys):
    with pytest.raises(ValueError, match="expected md5 0+, found "):
        fetch(server.url("a.bin"), tmp_path / "a.bin", f"md5 {'0' * 32}")
    assert not list(tmp_path.glob("a.bin*"))
    # A part longer than the file is not of it.
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"x")
    assert fetch(server.url("a.bin"), tmp_path / "a.bin").read_bytes() == CONTENT
    said = f"no checksum is publicly known; its sha256 is {hashlib.sha256(CONTENT).hexdigest()}"
    assert said in capsys.readouterr().err
    with pytest.raises(OSError, match="404"):
        fetch(server.url("none.bin"), tmp_path / "c.bin")


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((16, 17), value, np.uint8))[1].tobytes()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def offer(server: Server, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes) -> None:
    server.files[f"/{name}"], server.most = content, 1 << 20
    checksum = f"sha256 {hashlib.sha256(content).hexdigest()}"
    monkeypatch.setitem(ARCHIVES, name, Archive(server.url(name), "1 kB", checksum, "CC0"))


def test_download_makes_the_layout_of_the_data_set(server, datasets_root, monkeypatch, capsys):
    frames = {f"frames/{number}.jpg": png(9) for number in range(60)}
    frames |= {f"frames/{number}.labels/labels_semantic.png": png(2) for number in range(60)}
    top = {f"RoadAnomaly_jpg/{name}": content for name, content in frames.items()}
    offer(server, monkeypatch, "RoadAnomaly_jpg.zip", zipped(top | {"__MACOSX/a": b""}))
    assert cli.main(["datasets", "--download", "road_anomaly", "--json"]) == 0
    said = capsys.readouterr()
    (found,) = json.loads(said.out)
    assert (found["name"], found["state"], found["count"]) == ("road_anomaly", "present", 60)
    assert found["archives"]["RoadAnomaly_jpg.zip"]["licence"] == "CC0" and "licence: CC0" in said.err
    names = {path.name for path in datasets_root.iterdir()}
    assert names == {"RoadAnomaly_jpg", "RoadAnomaly_jpg.zip"}
    # There is nothing to do the second time.
    asked = len(server.asked)
    assert cli.main(["datasets", "--download", "road_anomaly"]) == 0
    assert len(server.asked) == asked


def test_archives_of_one_data_set_come_together(server, datasets_root, monkeypatch, capsys):
    for folder, inner in (("train", "training"), ("test", "test")):
        names = [f"{kind}/{inner}/t1/{n}.png" for kind in ("images", "annotations") for n in "ab"]
        parts = {f"{folder}/{name}": png(1) for name in names}
        offer(server, monkeypatch, f"streethazards_{folder}.tar", tarred(parts))
    # Fewer frames than the real set has.
    assert cli.main(["datasets", "--download", "street_hazards_t*"]) == 1
    text = capsys.readouterr().out
    assert "street_hazards_train            wrong count   2 of 5125 frames" in text
    assert "street_hazards_test             wrong count   2 of 1500 frames" in text


def test_what_cannot_be_had_says_how(server, datasets_root, monkeypatch, capsys):
    for name in ("cityscapes_val", "camvid_val", "fishyscapes_static", "synthetic_street_*"):
        status = cli.main(["datasets", "--download", name])
        error = capsys.readouterr().err
        if name.startswith("synthetic"):
            assert status == 0 and "synthetic_street_val is there" in error
        else:
            assert status == 1 and registered_specs()[name].hint() in error
    monkeypatch.setitem(ARCHIVES, "RoadAnomaly_jpg.zip", Archive(server.url("gone.zip"), "", "", ""))
    assert cli.main(["datasets", "--download", "road_anomaly"]) == 1
    assert "gone.zip could not be downloaded: HTTP Error 404: Not Found. Download" in capsys.readouterr().err
    offer(server, monkeypatch, "RoadAnomaly_jpg.zip", b"no archive")
    assert cli.main(["datasets", "--download", "road_anomaly"]) == 1
    assert "RoadAnomaly_jpg.zip cannot be unpacked: " in capsys.readouterr().err
    assert [path.name for path in datasets_root.iterdir()] == ["RoadAnomaly_jpg.zip"]


def test_every_public_data_set_says_what_it_comes_in():
    page = (ROOT / "datasets/README.md").read_text()
    for spec in registered_specs().values():
        if "Download" in spec.source:
            assert archives_of(spec), spec.name
    assert [*archives_of(registered_specs()["cityscapes_val"])] == [
        "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"
    ]  # fmt: skip
    sizes = {"md5": 32, "sha1": 40, "sha256": 64}
    for archive in ARCHIVES.values():
        algorithm, _, digits = archive.checksum.partition(" ")
        assert not digits or len(digits) == sizes[algorithm] and int(digits, 16)
        # Both say the same of a licence.
        assert archive.licence.split(";")[0] in page, archive
