"""Mutations that know the structure of a file: JSON, text, safetensors, PNG, archives, and bytes of anything."""

import io
import json
import re
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

WORDS = (
    "nan", "inf", "-inf", "1e999", "1e308", "-1e308", "1e-320", "-1", "0", "-0", "1", "255", "256", "65535", "65536",
    "2147483647", "4294967296", "-9223372036854775808", "9223372036854775808", "9" * 400, "", "x", "١", "½", "1_0",
    "0x10", "true", "null", "..", "../../etc/passwd", "/dev/zero", "a/b", "\\", "\x00", "\x1b[31m", "[/b]", "$\\frac$",
    "\u202e", "é", "#", "%s", "{}", '"', "'", ",", ";", "\t", "\r", "1 2", "A" * 5000,
)  # fmt: skip
"""Words that replace words of a text."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, -0.5, 1e308, -1e308, 1e-320, 10**30, -(10**30), 10**400, 2**31, 2**63, -(2**63),
    float("nan"), float("inf"), -float("inf"), "", "x", "0", "nan", "../x", "/dev/zero", "\x00", "\x1b[31m", "\ud800",
    "[/b]", "A" * 5000, [], {}, [[]], [None], {"": {}}, [0] * 1000, [[0.0] * 4] * 4, "config.json", "scannet20", "z",
)  # fmt: skip
"""Values that replace values of JSON."""

NUMBERS = (0, 1, -1, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, -(2**63))


_BROKEN = (struct.error, zipfile.BadZipFile, NotImplementedError, StopIteration)


def mutate(content: bytes, name: str, rng: np.random.Generator) -> bytes:
    """Return a changed copy of a file's content.

    Args:
        content: The content.
        name: Name of the file; its ending says what structure it has.
        rng: Source of all choices.
    """
    by_structure = {
        "json": _json, "jsonl": _text, "txt": _text, "csv": _text, "traj": _text, "pincam": _text, "conf": _text,
        "tsv": _text, "ply": _ply, "pcd": _ply, "safetensors": _safetensors, "png": _png, "npz": _archive,
        "pth": _archive,
        "pt": _archive,
        "npy": _npy, "las": _binary, "sens": _binary, "jpg": _binary,
    }.get(name.rpartition(".")[2], _binary)  # fmt: skip
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        change = _binary if rng.random() < 0.25 else by_structure
        try:
            content = change(content, rng)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, *_BROKEN):
            content = _binary(content, rng)  # it was changed beyond its structure already
    return content


def _json(content: bytes, rng: np.random.Generator) -> bytes:
    """Replace, remove, rename or double a value of a JSON file."""
    return json.dumps(_changed(json.loads(content), rng)).encode()


def _changed(tree: Any, rng: np.random.Generator) -> Any:
    places = list(_places(tree, ()))
    where = places[rng.integers(len(places))]
    if not where:
        return _value(rng)
    parent = tree
    for key in where[:-1]:
        parent = parent[key]
    key, kind = where[-1], rng.integers(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[str(rng.choice(["", "x", f"{key}x", "\x1b", "name"]))] = parent.pop(key)
    elif kind == 2 and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif kind == 3:
        parent[key] = [parent[key]]
    else:
        parent[key] = _value(rng)
    return tree


def _places(tree: Any, where: tuple[Any, ...]) -> Any:
    yield where
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items)[:50]:
        yield from _places(value, (*where, key))


def _value(rng: np.random.Generator) -> Any:
    if rng.random() < 0.03:
        nested: Any = []
        for _ in range(int(rng.choice([50, 900]))):
            nested = [nested]
        return nested
    return VALUES[rng.integers(len(VALUES))]


def _text(content: bytes, rng: np.random.Generator) -> bytes:
    """Replace, remove, double or swap words or lines of a text."""
    lines = content.decode("latin-1").split("\n")
    index, kind = int(rng.integers(len(lines))), rng.integers(7)
    if kind == 0:
        del lines[index]
    elif kind == 1:
        lines.insert(index, lines[int(rng.integers(len(lines)))])
    elif kind == 2:
        lines[index] = WORDS[rng.integers(len(WORDS))]
    else:
        parts = re.split(r"([\s,;=]+)", lines[index])
        place = int(rng.integers(len(parts)))
        parts[place] = WORDS[rng.integers(len(WORDS))] if kind < 6 else ""
        lines[index] = "".join(parts)
    return "\n".join(lines).encode("utf-8", errors="surrogatepass")


def _ply(content: bytes, rng: np.random.Generator) -> bytes:
    """Change the header of a PLY or PCD file as a text, or its body as bytes."""
    end = next(content.find(word) + len(word) for word in (b"end_header\n", b"DATA", b"") if content.find(word) >= 0)
    if rng.random() < 0.7:
        return _text(content[:end], rng) + content[end:]
    return content[:end] + _binary(content[end:], rng)


def _safetensors(content: bytes, rng: np.random.Generator) -> bytes:
    """Change the header of a safetensors file, JSON inside its metadata included, or its length, or its body."""
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    kind = rng.integers(6)
    if kind == 0:
        return content[: 8 + length] + _binary(body, rng)
    if kind == 1:
        return struct.pack("<Q", int(NUMBERS[rng.integers(len(NUMBERS))]) % 2**64) + content[8:]
    metadata = header.get("__metadata__", {})
    inner = [key for key, value in metadata.items() if value[:1] in "{["]
    if kind in (2, 3) and inner:
        key = inner[rng.integers(len(inner))]
        metadata[key] = json.dumps(_changed(json.loads(metadata[key]), rng))
    elif kind == 4:
        names = [name for name in header if name != "__metadata__"]
        entry = header[names[rng.integers(len(names))]]
        entry["shape"] = [int(rng.choice([0, 1, 2, 3, 2**20])) for _ in range(rng.integers(4))]
        if rng.random() < 0.5:
            entry["dtype"] = str(rng.choice(["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3"]))
    else:
        header = _changed(header, rng)
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + body


def _png(content: bytes, rng: np.random.Generator) -> bytes:
    """Change the size or the kind of a PNG, with a correct checksum; or its bytes."""
    if rng.random() < 0.3 or content[12:16] != b"IHDR":
        return _binary(content, rng)
    head = bytearray(content[16:29])
    if rng.random() < 0.6:
        size = int(rng.choice([0, 1, 2, 23, 4000, 100_000, 2**31 - 1]))
        struct.pack_into(">I", head, int(rng.choice([0, 4])), size)
    else:
        head[8 + rng.integers(5)] = rng.integers(17)
    return content[:16] + bytes(head) + struct.pack(">I", zlib.crc32(b"IHDR" + bytes(head))) + content[33:]


def _archive(content: bytes, rng: np.random.Generator) -> bytes:
    """Change, remove, rename or double a member of a zip archive, with correct checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    index, kind = int(rng.integers(len(members))), rng.integers(8)
    name, data = members[index]
    if kind == 0:
        del members[index]
    elif kind == 1:
        members.append((f"{name}x", data))
    elif kind == 2:
        members[index] = (f"{name}x", data)
    elif kind == 3:
        members[index] = (name, members[int(rng.integers(len(members)))][1])
    else:
        members[index] = (name, _npy(data, rng) if name.endswith(".npy") else _binary(data, rng))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return packed.getvalue()


def _npy(content: bytes, rng: np.random.Generator) -> bytes:
    """Change the header of an array, or its bytes."""
    length = struct.unpack("<H", content[8:10])[0]
    if rng.random() < 0.4:
        return _binary(content, rng)
    header = content[10 : 10 + length].decode("latin-1")
    if rng.random() < 0.6:
        shape = rng.choice(["(0,)", "()", "(1,)", "(-1, 3)", "(1000000000000, 3)", "(3,)", "(2, 2, 2)", "(1e9,)", "x"])
        header = re.sub(r"\([^)]*\)", lambda _: str(shape), header)
    else:
        kind = rng.choice(["<f8", "<f2", "<c16", "|O", "|b1", "<i8", "<U4", "|V12", "|S3", "x"])
        header = re.sub(r"'descr': '[^']*'", lambda _: f"'descr': '{kind}'", header)
    packed = header.encode("latin-1")
    return content[:8] + struct.pack("<H", len(packed)) + packed + content[10 + length :]


def _binary(content: bytes, rng: np.random.Generator) -> bytes:
    """Change some bytes, cut, double, remove or fill a piece, write a number, or end early."""
    if not content:
        return b"x"
    data, start = bytearray(content), int(rng.integers(len(content)))
    if rng.random() < 0.5:
        start = int(rng.integers(min(len(content), 256)))  # headers are where structure is
    end, kind = start + int(rng.integers(1, 64)), rng.integers(8)
    if kind == 0:
        for place in rng.integers(len(data), size=rng.integers(1, 5)):
            data[place] = rng.integers(256)
    elif kind == 1:
        data[start] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        del data[start:end]
    elif kind == 3:
        data[start:start] = data[start:end]
    elif kind == 4:
        data[start:end] = bytes([int(rng.choice([0, 255, 0x80, 0x41]))]) * (end - start)
    elif kind == 5:
        size = int(rng.choice([1, 2, 4, 8]))
        number = int(NUMBERS[rng.integers(len(NUMBERS))]) % 256**size
        data[start : start + size] = number.to_bytes(size, "little" if rng.random() < 0.7 else "big")
    elif kind == 6:
        del data[start:]
    else:
        data += data[start:end]
    return bytes(data)
