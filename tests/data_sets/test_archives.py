"""Unpacking: only what is wanted, nothing outside, nothing half."""

from __future__ import annotations

import stat
import zipfile
from types import SimpleNamespace

import pytest

from gmm_anomaly.data import archives
from gmm_anomaly.data.archives import unpack_flat


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as stored:
        stored.writestr("top/", "")
        stored.writestr("top/a.png", b"A" * 1000)
        stored.writestr("top/deeper/b.png", b"B")
        stored.writestr("top/readme.txt", b"no")
        stored.writestr("__MACOSX/top/._a.png", b"no")
    return path


def png(name):
    return name.endswith(".png")


def test_wanted_files_land_flat(archive, tmp_path):
    files = unpack_flat(archive, tmp_path / "out", png)
    assert files == [tmp_path / "out/a.png", tmp_path / "out/b.png"]
    assert sorted((tmp_path / "out").iterdir()) == files
    assert files[0].read_bytes() == b"A" * 1000


def test_resuming_keeps_complete_files_and_mends_cut_ones(archive, tmp_path):
    first, second = unpack_flat(archive, tmp_path / "out", png)
    first.write_bytes(b"A" * 10)
    kept = second.stat().st_mtime_ns
    unpack_flat(archive, tmp_path / "out", png)
    assert first.stat().st_size == 1000 and second.stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    "member", ["../evil.png", "top/../../evil.png", "/evil.png", "..\\evil.png", "C:/evil.png", "./"]
)
def test_members_that_point_outside_are_refused(tmp_path, member):
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as stored:
        stored.writestr("good.png", b"")
        stored.writestr(member, b"")
    with pytest.raises(ValueError, match="points outside of the archive"):
        unpack_flat(path, tmp_path / "out", png)
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("evil.png"))


def test_links_are_refused(tmp_path):
    path = tmp_path / "evil.zip"
    link = zipfile.ZipInfo("evil.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as stored:
        stored.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match=r"evil.zip has the link 'evil.png'"):
        unpack_flat(path, tmp_path / "out", png)
    assert not (tmp_path / "out").exists()


def test_a_link_in_the_target_folder_is_replaced_not_written_through(archive, tmp_path):
    (tmp_path / "outside").write_bytes(b"mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").symlink_to(tmp_path / "outside")
    unpack_flat(archive, tmp_path / "out", png)
    assert (tmp_path / "outside").read_bytes() == b"mine"
    assert not (tmp_path / "out/a.png").is_symlink()


def test_bombs_are_refused_before_anything_is_unpacked(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE_SIZE", 999)
    with pytest.raises(ValueError, match="a.zip: 'top/a.png' would be .* GiB, expected at most"):
        unpack_flat(archive, tmp_path / "out", png)
    monkeypatch.setattr(archives, "MAX_FILE_SIZE", 1000)
    room = SimpleNamespace(free=1000)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: room)
    with pytest.raises(OSError, match="a.zip unpacks to .* GiB, .* left; make room"):
        unpack_flat(archive, tmp_path / "out", png)
    assert not (tmp_path / "out").exists()
    room.free = 1001
    assert len(unpack_flat(archive, tmp_path / "out", png)) == 2


def test_no_more_is_unpacked_than_a_member_states(tmp_path):
    path = tmp_path / "lying.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as stored:
        stored.writestr("a.png", bytes(1_000_000))
    # The size in the directory at the end, the one that counts: 16 bytes.
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 24
    assert content[place : place + 4] == (1_000_000).to_bytes(4, "little")
    content[place : place + 4] = (16).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="lying.zip is no complete zip archive"):
        unpack_flat(path, tmp_path / "out", png)
    assert not list((tmp_path / "out").iterdir())


def test_two_files_of_one_name(tmp_path):
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as stored:
        stored.writestr("x/a.png", b"")
        stored.writestr("y/a.png", b"")
    with pytest.raises(ValueError, match="two files named a.png"):
        unpack_flat(path, tmp_path / "out", png)


def test_damaged_member_leaves_no_file(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    place = content.index(b"A" * 1000)
    content[place : place + 5] = b"XXXXX"
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="a.zip is no complete zip archive"):
        unpack_flat(archive, tmp_path / "out", png)
    assert not list((tmp_path / "out").iterdir())


def test_cut_or_absent_archives(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(ValueError, match="download it again"):
        unpack_flat(archive, tmp_path / "out", png)
    with pytest.raises(FileNotFoundError, match="no archive .*b.zip"):
        unpack_flat(tmp_path / "b.zip", tmp_path / "out", png)
