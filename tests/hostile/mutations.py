"""Damaged copies of small files, the same ones in every run."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

HEADERS = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"RIFF\x40\x00\x00\x00WEBPVP8 ",
    b"BM",
    b"P6\n9 9\n65535\n",
    b"\x93NUMPY\x01\x00",
    b"PK\x03\x04",
    b"\x89HDF\r\n\x1a\n",
    b"\x80\x04",
    b"II*\x00",
    b"%!PS-Adobe-3.0 EPSF",
)


def _flip(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _flip_early(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(min(128, len(data)))] = rng.randrange(256)
    return bytes(data)


def _fill(data: bytearray, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 64))
    data[start : start + length] = bytes([rng.choice((0, 0x7F, 0xFF))]) * len(data[start : start + length])
    return bytes(data)


def _cut(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data))])


def _append(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data) + rng.randbytes(rng.choice((1, 16, 300)))


def _move(data: bytearray, rng: random.Random) -> bytes:
    start, length, target = rng.randrange(len(data)), rng.randint(1, 64), rng.randrange(len(data))
    return bytes(data[:target] + data[start : start + length] + data[target:])


def _swap_header(data: bytearray, rng: random.Random) -> bytes:
    header = rng.choice(HEADERS)
    return header + bytes(data[len(header) :])


KINDS: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    _flip, _flip_early, _fill, _cut, _append, _move, _swap_header,
)  # fmt: skip


def mutated(content: bytes, name: str, number: int) -> bytes:
    """The ``number``-th damaged copy of a file. Of PNGs every other one has right checksums again."""
    rng = random.Random(f"{name} {number}")
    kind = KINDS[number % len(KINDS)]
    data = kind(bytearray(content), rng)
    return with_checksums(data) if rng.random() < 0.5 else data


def with_checksums(data: bytes) -> bytes:
    """The chunks of a PNG with the checksums that they should have, as far as they can be told apart."""
    if not data.startswith(HEADERS[0]):
        return data
    made, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(data):
            break
        made += data[at:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(made + data[at:])
