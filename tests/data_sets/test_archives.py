"""Unpacking: only what is wanted, nothing outside, nothing half."""

from __future__ import annotations

import zipfile

import pytest

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
    "member", ["../evil.png", "top/../../evil.png", "/evil.png", "..\\evil.png", "C:/evil.png"]
)
def test_members_that_point_outside_are_refused(tmp_path, member):
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as stored:
        stored.writestr("good.png", b"")
        stored.writestr(member, b"")
    with pytest.raises(ValueError, match="points outside of the archive"):
        unpack_flat(path, tmp_path / "out", png)
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("evil.png"))


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
