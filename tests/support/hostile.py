"""Files and rows that mean harm, or are broken in a way that harms: the same ones every time.

Every kind comes in numbers: what is refused by one reader may be taken by the next.
"""

import contextlib
import gzip
import io
import os
import random
import socket
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from user_rows import encoded, picture

from danceflow.pictures import FORMATS, MAX_BYTES

CANARY = "canary.png"
"""Lies outside of the root, and may be read by nobody."""

Fate = Literal["bad", "taken", "either"]


@dataclass(frozen=True)
class HostileFile:
    """A file that a row names as its picture.

    Attributes:
        name: what the row says.
        kind: what is wrong with it.
        fate: what has to become of the row; ``either``: it depends on who runs the test, or a
            damaged picture may still be a whole one.
    """

    name: str
    kind: str
    fate: Fate = "bad"


# Pictures ------------------------------------------------------------------------------------


def _truncated(folder: Path) -> Iterator[HostileFile]:
    for kind in FORMATS:
        whole = encoded(picture(1, (48, 48)), kind)
        for share in (0.02, 0.2, 0.5, 0.8):
            name = f"cut-{kind}-{share}.{kind.lower()}"
            (folder / name).write_bytes(whole[: int(len(whole) * share)])
            yield HostileFile(name, "truncated")
        name = f"last-{kind}.{kind.lower()}"
        (folder / name).write_bytes(whole[:-1])
        yield HostileFile(name, "truncated", "either")  # some formats end with nothing that matters
        name = f"head-{kind}.{kind.lower()}"
        (folder / name).write_bytes(whole[:8])
        yield HostileFile(name, "truncated")


def _damaged(folder: Path) -> Iterator[HostileFile]:
    for number in range(60):
        draw = random.Random(number)
        kind = FORMATS[number % len(FORMATS)]
        data = bytearray(encoded(picture(2, (24, 24)), kind))
        for _ in range(1 + number // 12):
            data[draw.randrange(len(data))] = draw.randrange(256)
        name = f"bits-{number}.{kind.lower()}"
        (folder / name).write_bytes(bytes(data))
        yield HostileFile(name, "flipped bits", "either")
    for number in range(12):
        name = f"noise-{number}.png"
        (folder / name).write_bytes(random.Random(number).randbytes(7**number % 5000))
        yield HostileFile(name, "random bytes")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, data: bytes = b"") -> bytes:
    """A PNG file of RGB whose head says what one likes."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"".join((_chunk(b"IHDR", head), *chunks, _chunk(b"IDAT", data), _chunk(b"IEND", b"")))
    return b"\x89PNG\r\n\x1a\n" + body


def _bombs(folder: Path) -> Iterator[HostileFile]:
    zeros = zlib.compress(bytes(20_000_000), 9)
    sizes = [(2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (1, 2**31 - 1), (100_000, 100_000)]
    sizes += [(40_000, 40_000), (33_000, 1), (1, 33_000), (0, 0), (0, 8), (2**32 - 1, 8)]
    files = {f"huge-{w}x{h}.png": png(w, h, data=zeros[:2000]) for w, h in sizes}
    files |= {
        "bomb-text.png": png(8, 8, _chunk(b"zTXt", b"a\0\0" + zeros * 8), data=zeros),
        "bomb-profile.png": png(8, 8, _chunk(b"iCCP", b"a\0\0" + zeros * 8), data=zeros),
        "bomb-data.png": png(8, 8, data=zeros[: len(zeros) // 2]),
        "many-chunks.png": png(8, 8, *[_chunk(b"tEXt", b"a\0b")] * 20_000),
        "huge.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 2**30, 2**30, 1, 24,
                                        0, 0, 0, 0, 0, 0),
        "huge.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c"
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x08\x01\x00\x00\x3b",
        "loop.tif": b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0) + struct.pack("<I", 8),
        "huge.tif": _tiff(2**31 - 1, 2**31 - 1),
        "wide.tif": _tiff(100_000, 100_000),
        "huge.webp": b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10)
        + b"\0\0\0\0" + b"\xff\xff\xff" * 2,
        "huge.jpg": b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03"
         b"\x01\x22\0\x02\x11\1\x03\x11\1",
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_bytes(data)
        # 20 MB of pixels behind a head of 8 x 8: what is needed is read, and no more.
        yield HostileFile(name, "huge or a bomb", "taken" if name == "bomb-data.png" else "bad")
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    yield HostileFile("sparse.png", "huge or a bomb")


def _tiff(width: int, height: int) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 9)]
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + struct.pack("<I", 0)


_OTHERS: dict[str, bytes] = {
    "page.png": b"<!DOCTYPE html><script>document.title='pwned'</script>",
    "picture.svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script/></svg>",
    "svg.png": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
    "xxe.png": b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><svg>&x;</svg>",
    "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch x) (w) file\n",
    "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n",
    "paper.pdf": b"%PDF-1.7\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n%%EOF",
    "archive.png": b"PK\x03\x04" + bytes(26) + b"../../x",
    "program.png": b"\x7fELF\x02\x01\x01" + bytes(50),
    "shell.jpg": b"#!/bin/sh\ntouch pwned\n",
    "pickle.png": b"\x80\x04\x95\x1d" + bytes(7) + b"\x8c\x05posix\x94\x8c\x06system\x94\x93",
    "text.gif": b"GIF89a but not really",
    "empty.png": b"",
    "one.png": b"\x89",
    "zeros.png": bytes(5000),
    "mvg.png": b"push graphic-context\nfill 'url(https://127.0.0.1/\"|touch \"x)'\npop",
    "fits.png": b"SIMPLE  =                    T" + b" " * 2850,
    "psd.png": b"8BPS\0\1" + bytes(60),
    "ico.png": b"\0\0\1\0\1\0" + bytes(40),
    "ppm.png": b"P6 99999 99999 255\n",
    "qoi.png": b"qoif\xff\xff\xff\xff\xff\xff\xff\xff\3\0",
    "gzip.png": gzip.compress(b"\x89PNG\r\n\x1a\n", mtime=0),
}  # fmt: skip


def _of_another_kind(folder: Path) -> Iterator[HostileFile]:
    for name, data in _OTHERS.items():
        (folder / name).write_bytes(data)
        yield HostileFile(name, "of another kind")
    for number, (kind, ending) in enumerate(
        (kind, ending) for kind in FORMATS for ending in ("png", "txt", "html")
    ):
        name = f"named-otherwise-{kind}.{ending}"
        (folder / name).write_bytes(encoded(picture(100 + number, (24, 24)), kind))
        yield HostileFile(name, "wrong extension", "taken")


def _animated(folder: Path) -> Iterator[HostileFile]:
    for number, kind in enumerate(("GIF", "WEBP", "PNG", "TIFF")):
        frames = [picture(200 + 50 * number + index, (24, 24)) for index in range(40)]
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        name = f"animated.{kind.lower()}"
        (folder / name).write_bytes(data)
        yield HostileFile(name, "animated", "taken")
        (folder / f"cut-{name}").write_bytes(data[: len(data) // 60])
        yield HostileFile(f"cut-{name}", "animated")


# Names and places ----------------------------------------------------------------------------


def _places(folder: Path) -> Iterator[HostileFile]:
    outside = folder.parent / CANARY
    picture(999, (24, 24)).save(outside)
    links = {
        "link.png": f"../{CANARY}", "absolute-link.png": str(outside), "loop.png": "loop.png",
        "dangling.png": "nowhere.png", "zero.png": "/dev/zero", "passwd.png": "/etc/passwd",
        "memory.png": "/proc/self/mem", "folder.png": ".", "up": "..", "root": "/",
        "chain-1.png": "chain-2.png", "chain-2.png": "link.png",
    }  # fmt: skip
    for name, target in links.items():
        (folder / name).symlink_to(target)
    names = [name for name in links if name.endswith(".png")]
    names += [f"up/{CANARY}", f"root/{str(outside).lstrip('/')}", "up", "root"]
    (folder / "a-folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
        place = os.open(folder, os.O_RDONLY)
        end.bind(f"/proc/self/fd/{place}/socket.png")  # a path of a test may be too long for one
        os.close(place)
    names += ["a-folder.png", "pipe.png", "socket.png"]
    with contextlib.suppress(PermissionError):  # who may make none has none to fear
        os.mknod(folder / "device.png", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        names.append("device.png")
    yield from (HostileFile(name, "link or special file") for name in names)
    picture(998, (24, 24)).save(folder / "closed.png")
    (folder / "closed.png").chmod(0)
    yield HostileFile("closed.png", "unreadable", "either")  # root reads it

    up = [f"../{CANARY}", f"./../{CANARY}", f"a-folder.png/../../{CANARY}", f"....//{CANARY}"]
    up += [f"%2e%2e/{CANARY}", f"..%2f{CANARY}", f"..\\{CANARY}", f"../raw/../{CANARY}", ".."]
    yield from (HostileFile(name, "traversal") for name in (*up, "../" * 40 + "etc/passwd"))
    whole = [str(outside), f"file://{outside}", f"//{outside}", f"~/{CANARY}", f"$HOME/{CANARY}"]
    whole += ["/etc/passwd", "/dev/stdin", "/dev/zero", "/proc/self/environ", "C:\\x.png"]
    whole += ["\\\\server\\share\\x.png", "http://127.0.0.1:9/x.png", "ftp://127.0.0.1/x.png"]
    yield from (HostileFile(name, "absolute path") for name in whole)
    odd = ["a\0b.png", "\0", "\ud800.png", "a" * 300, "a/" * 3000, "b" * 100_000, " ", "."]
    odd += ["\udcff.png", "\n.png", "x\r\ny.png", "nul", "-rf", "*.png", "$(touch pwned)"]
    odd += ["`touch pwned`", "|touch pwned", ";touch pwned", "\u202egnp.exe", "/" * 5000]
    yield from (HostileFile(name, "odd name") for name in odd)


def hostile_files(folder: Path) -> list[HostileFile]:
    """Write hostile files to ``folder``, whose parent gets the canary, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    makers = (_truncated, _damaged, _bombs, _of_another_kind, _animated, _places)
    return [file for maker in makers for file in maker(folder)]


# Texts ---------------------------------------------------------------------------------------

SCRIPTS = (
    "<script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "<svg onload=\"document.title='pwned'\">",
    "</style><script>document.title='pwned'</script>",
    "</title><script>document.title='pwned'</script>",
    "</pre></table></body><script>document.title='pwned'</script>",
    '" onmouseover="document.title=\'pwned\'" x="',
    "' autofocus onfocus='document.title=1",
    "<iframe srcdoc=\"<script>parent.document.title='pwned'</script>\"></iframe>",
    "<a href=\"javascript:document.title='pwned'\">here</a>",
    "<base href=//127.0.0.1/><link rel=stylesheet href=x>",
    "<meta http-equiv=refresh content=0;url=//127.0.0.1>",
    "<object data=//127.0.0.1></object><embed src=x>",
    "<form action=//127.0.0.1><input autofocus></form>",
    "--><script>document.title='pwned'</script><!--",
    "]]><script>document.title='pwned'</script>",
    "{{ 7 * 7 }}{% for a in [1] %}x{% endfor %}",
    "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "${7*7} #{7*7} <%= 7*7 %>",
    "&lt;script&gt;document.title='pwned'&lt;/script&gt;",
    "<scr<script>ipt>document.title='pwned'</scr</script>ipt>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "[link](javascript:document.title='pwned') ![x](//127.0.0.1/x.png)",
    "a | b | c\n|---|\n| x |",
)
FORMULAS = (
    "=1+1",
    "=cmd|'/C calc'!A0",
    "+1+1",
    "-1+1",
    "@SUM(1;1)",
    "\t=1+1",
    '=HYPERLINK("http://127.0.0.1";"x")',
    "\n=1+1",
    "|=1",
    "=WEBSERVICE(A1)",
)
ODD_TEXTS = (
    "\u202eevil\u202c",
    "a\u200bb\ufeffc",
    "\x1b[2J\x1b]0;pwned\x07",
    "\x07\x08\x7f\x01",
    "line\u2028line\u2029line",
    "e" + "\u0301" * 500,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 40,
    "%s%s%n%x {0} {x} %(a)s",
    "'; DROP TABLE runs; --",
    "$(touch pwned) `touch pwned` ; touch pwned",
    "../../../etc/passwd",
    "long " * 4000,
    "x" * 60_000,
    "NaN",
    "null",
    "None",
    "true",
    "0x41",
    "1e999",
    "\ufffe\uffff",
)


def hostile_texts() -> list[str]:
    """Return texts that would be run, reckoned or misread somewhere, each a row's content."""
    return [*SCRIPTS, *FORMULAS, *ODD_TEXTS]


# Tables --------------------------------------------------------------------------------------

HEADER = b"id,kind,text,before,after\n"


def hostile_tables() -> dict[str, bytes]:
    """Return whole tables that cannot be read, by their name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": ["a"] * 500, "text": ["b"] * 500}), buffer)
    parquet = buffer.getvalue()
    row = b"1,make,a pet,,0.png\n"
    return {
        "empty.csv": b"",
        "empty.jsonl": b"",
        "empty.parquet": b"",
        "latin.csv": HEADER + "1,make,caf\u00e9,,0.png\n".encode("latin-1"),
        "latin.jsonl": '{"id": "1", "text": "caf\u00e9"}\n'.encode("latin-1"),
        "utf16.csv": (HEADER + row).decode().encode("utf-16"),
        "utf16.jsonl": '{"id": "1"}\n'.encode("utf-16"),
        "twice.csv": b"id,id,kind\n1,2,3\n",
        "other-columns.csv": b"a,b\n1,2\n",
        "header-alone.csv": HEADER,
        "zero-bytes.csv": bytes(1000),
        "binary.csv": bytes(range(256)) * 10,
        "binary.jsonl": bytes(range(256)) * 10,
        "list.jsonl": b"[1, 2]\n[3]\n",
        "deep.jsonl": b"[" * 100_000 + b"]" * 100_000 + b"\n",
        "cut.parquet": parquet[: len(parquet) // 2],
        "head.parquet": parquet[:4],
        "text.parquet": HEADER + row,
        "footer.parquet": parquet[:-8] + b"\xff\xff\xff\x7fPAR1",
        "other-columns.parquet": parquet,
        "gzip.csv": gzip.compress(HEADER + row, mtime=0),
        "wide.csv": b"," * 100_000 + b"\n",
        "quote.csv": HEADER + b'1,make,"' + b"x" * 100_000,
        "pickle.jsonl": b"\x80\x04cposix\nsystem\n",
        "table.xlsx": b"PK\x03\x04",
        "table.html": b"<table></table>",
    }


def row(uid: str, text: str, after: str, **cells: Any) -> dict[str, Any]:
    """A row of a picture to make, of the columns of ``user_rows.INPUT`` and a category."""
    return {"id": uid, "kind": "make", "sort": "plain", "text": text, "after": after, **cells}
