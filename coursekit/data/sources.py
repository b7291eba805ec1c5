"""Data sets from the network: found or downloaded, verified, and only then used.

Below the data root, ``.<archive>.part`` is a download under way and ``.<archive>.aside-*`` an extraction under way. Neither is ever
taken for the data set, which appears by one rename after it was verified.
"""

from __future__ import annotations

import errno
import json
import lzma
import os
import re
import shutil
import stat
import tempfile
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import aiohttp
import fsspec
import platformdirs
from filelock import FileLock
from fsspec.implementations.http import HTTPFileSystem
from tqdm.auto import tqdm

from coursekit.data.content import fault, is_metadata, machines_fault
from coursekit.runtime import progress_bar

_PACKAGE = Path(__file__).resolve().parents[1]
_IN_CHECKOUT = (_PACKAGE.parent / "pyproject.toml").exists() and (_PACKAGE.parent / "data").is_dir()
_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=30, sock_read=60)  # seconds: a download may be slow, a silent server may not
_BROKEN = (OSError, EOFError, NotImplementedError, ValueError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)  # what bad archives raise
_MOST_MEMBERS = 100_000
_KEPT = "It is left as it is: put a right copy in its place, or move it away to have one downloaded"


class DataError(RuntimeError):
    """A data set cannot be had. The message names the file or URL, what was found, and what to do."""


class _BadArchive(DataError):
    """This download is worthless, another one may be good."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The entry ``name`` of ``file``, a ``sources.toml``. Raises ``ValueError`` for a value of the wrong type or form.

    ``title``: what messages call it. ``urls``: of the archive, tried in this order. ``archive``, ``folder``: names below the data root.
    ``max_bytes``: limit of the extracted size. ``size_mb``: the download, about, in 10⁶ bytes. ``licence``, ``citation``: what its authors
    ask for. Content is verified by the ``sha256`` over the ``files`` files in ``digest_folders``, as the registry explains; where no
    digest is known, by ``counts`` (folder → number of JPEGs in it), names, and decoding, and ``digest_note`` says so.
    """

    file: str
    name: str
    title: str
    urls: Sequence[str]
    archive: str
    folder: str
    max_bytes: int
    size_mb: int
    licence: str
    citation: str
    digest_folders: Sequence[str] = ()
    sha256: str = ""
    files: int = 0
    counts: Mapping[str, int] | None = None
    digest_note: str = ""

    def __post_init__(self) -> None:
        text, name, positive = ("a text", r'".*\S.*"'), ("a plain file name", r'"[A-Za-z0-9][\w.-]*"'), ("a positive integer", r"[1-9]\d*")
        forms = {"title": text, "licence": text, "citation": text, "archive": name, "folder": name, "max_bytes": positive}
        forms |= {"size_mb": positive, "urls": ("a list of URLs", r'\[("\w+://[^"\s]+"(, )?)+\]')}
        if self.counts is None:
            folders = ("a list of folders", r'\[("\w[\w/.-]*"(, )?)+\]')
            forms |= {"sha256": ("64 hexadecimal digits", '"[0-9a-f]{64}"'), "digest_folders": folders, "files": positive}
        else:
            forms |= {"counts": ("a table of folder = count", r'\{("\w[\w/.-]*": [1-9]\d*(, )?)+\}'), "digest_note": text}
        for key, (wanted, pattern) in forms.items():
            value = json.dumps(getattr(self, key), ensure_ascii=False, default=repr)  # as JSON, one pattern tells type and form
            if not re.fullmatch(pattern, value):
                raise ValueError(f"{self.file}: [{self.name}] {key} must be {wanted}, found {value}")


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The absolute folder of all data: ``root``, else ``COURSEKIT_DATA``, else the checkout's ``data/``, else the user's cache."""
    if chosen := root or os.environ.get("COURSEKIT_DATA"):
        return Path(chosen).expanduser().absolute()
    return _PACKAGE.parent / "data" if _IN_CHECKOUT else platformdirs.user_cache_path("coursekit")


def shipped(name: str) -> Path:
    """A file or folder of the checkout's ``data/``, of which the wheel carries a copy beside this module."""
    return (_PACKAGE.parent if _IN_CHECKOUT else _PACKAGE) / "data" / name


def registry() -> dict[str, Source]:
    """The known data sets by name, from ``data/sources.toml``. Raises ``ValueError`` for a malformed entry."""
    file = shipped("sources.toml")
    sources = {}
    for name, table in tomllib.loads(file.read_text("utf-8")).items():
        try:
            sources[name] = Source(file=str(file), name=name, **table)
        except TypeError as error:  # an unknown or a missing key, or no table: the text names it
            raise ValueError(f"{file}: [{name}] {error}") from error
    return sources


def fetch(source: str | Source, root: str | os.PathLike[str] | None = None, *, urls: Sequence[str] | None = None) -> Path:
    """The folder of a data set (a registered name, or an entry of one's own) with verified content.

    In this order: the folder below the data root; an archive that was put there; the ``urls``, by default the registered ones. An
    interrupted download goes on where it stopped. What was put there is never changed, and a folder that verifies may be read-only.
    Verifying takes about half a second for Kvasir-SEG, ten for AFHQ, at each call. ``root``: see ``data_root``.
    Raises ``DataError`` where none of these gives the data set, ``TypeError`` for a source or ``urls`` of another kind.
    """
    if isinstance(source, str):
        known = registry()
        if source not in known:
            raise DataError(f"there is no data set {source!r}; there are {', '.join(known)}")
        source = known[source]
    elif not isinstance(source, Source):
        raise TypeError(f"name a data set, one of {', '.join(registry())}, or give a Source; got {source!r}")
    if isinstance(urls, str):
        raise TypeError(f"urls must be a list of URLs, got the text {urls!r}; write [{urls!r}]")
    root = data_root(root)
    folder = root / source.folder
    if not os.path.lexists(folder):
        try:
            root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(root / f".{source.archive}.lock").acquire()
        except OSError as error:
            raise DataError(f"the data root {root} cannot be written: {error}. Set COURSEKIT_DATA to a folder that can") from error
        with lock:
            for stale in root.glob(f".{source.archive}.aside-*"):  # whoever holds the lock is alone: their maker is dead
                shutil.rmtree(stale)
            if not os.path.lexists(folder):  # another process may have put it there while this one waited
                return _install(source, root, source.urls if urls is None else urls)
    if wrong := fault(folder, source):
        raise DataError(f"{folder} is not {source.title}: {wrong}. {_KEPT}")
    return folder


def _install(source: Source, root: Path, urls: Sequence[str]) -> Path:
    archive, reasons = root / source.archive, []
    if archive.exists():
        try:
            return _unpack(archive, source, root)
        except _BadArchive as error:
            raise DataError(f"{archive} cannot be used: {error}. {_KEPT}") from error
    for url in urls:
        try:
            return _from_url(url, root / f".{source.archive}.part", source, root)
        except (_BadArchive, OSError, aiohttp.ClientError, ValueError) as error:  # ValueError: no URL that fsspec knows
            reasons.append(f"  {url}: {type(error).__name__.lstrip('_')}: {str(error) or 'no answer in time'}")
    by_hand = f"get the archive (about {source.size_mb} MB) elsewhere and put it at {archive}, or its content at {root / source.folder}"
    raise DataError("\n".join([f"{source.title} could not be downloaded:", *reasons, f"Try again later (it resumes), or {by_hand}"]))


def _from_url(url: str, part: Path, source: Source, root: Path) -> Path:
    resumed = part.exists()
    try:
        if not zipfile.is_zipfile(part):  # else it is whole, and its unpacking was interrupted
            _download(url, part, source)
        installed = _unpack(part, source, root)
    except _BadArchive:
        part.unlink()
        if not resumed:
            raise
        return _from_url(url, part, source, root)  # afresh: the fault may lie in the part that was there
    part.unlink()
    return installed


def _download(url: str, part: Path, source: Source) -> None:
    """Append to ``part`` what it lacks, or write it anew where the server cannot start in the middle."""
    remote, start, total = _open_at(url, part.stat().st_size if part.exists() else 0)
    space = _enough_space(part.parent, total or source.size_mb * 10**6, f"downloading {url} (what has arrived is kept)")
    with space, remote, open(part, "ab") as file, progress_bar(total, f"{source.title} download", unit="B") as bar:
        file.truncate(start)
        bar.update(start)
        _copy(remote, file, bar)


def _open_at(url: str, offset: int) -> tuple[IO[bytes], int, int | None]:
    """The remote file, the position from which it is read (``offset``, or 0 where that cannot be had), and its whole size."""
    if not url.startswith(("http://", "https://")):
        system, path = fsspec.url_to_fs(url)
        file, size = system.open(path, "rb"), system.size(path)
        return file, file.seek(offset if offset <= size else 0), size
    # One stream: fsspec's seekable files fail on servers without ranges. Naming any size spares a HEAD that hides why a URL fails.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        stream = HTTPFileSystem(client_kwargs={"timeout": _TIMEOUT}).open(url, block_size=0, size=1, headers=headers)
    except aiohttp.ClientResponseError as error:
        if error.status != 416:  # Range Not Satisfiable
            raise
        raise _BadArchive(f"nothing follows the {offset} bytes that have arrived, and they are no whole archive") from error
    start = offset if stream.r.status == 206 else 0  # Partial Content
    return stream, start, start + int(length) if (length := stream.r.headers.get("Content-Length")) else None


def _copy(source: IO[bytes], target: IO[bytes], bar: tqdm) -> None:
    while chunk := source.read(1 << 18):
        target.write(chunk)
        bar.update(len(chunk))


@contextmanager
def _enough_space(folder: Path, needed: int, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sizes = f"{needed / 1e6:.1f} MB are needed in all, {shutil.disk_usage(folder).free / 1e6:.1f} MB are free"
        raise DataError(f"{folder} is full while {doing}: {sizes}. Make room, or set COURSEKIT_DATA, and start again") from error


def _unpack(archive: Path, source: Source, root: Path) -> Path:
    """Extract aside, verify, and only then move into place."""
    try:
        if not zipfile.is_zipfile(archive):
            with open(archive, "rb") as file:
                head = file.read(40)
            guess = "it is cut short" if head.startswith(b"PK") else "the link may have moved, or lead to a page and not to the file"
            raise _BadArchive(f"not a whole zip archive: its {archive.stat().st_size} bytes begin with {head!r}; {guess}")
        with zipfile.ZipFile(archive) as packed:
            members = _members(packed, source)
            size = sum(member.file_size for member in members)
            with (
                _enough_space(root, size, f"unpacking {archive}"),
                tempfile.TemporaryDirectory(prefix=f".{source.archive}.aside-", dir=root) as aside,
                progress_bar(size, f"{source.title} unpack", unit="B") as bar,
            ):
                for member in members:
                    target = Path(aside, member.filename)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with packed.open(member) as content, open(target, "wb") as file:
                        _copy(content, file, bar)
                if wrong := fault(Path(aside, source.folder), source):
                    raise _BadArchive(f"its content is not {source.title}: {wrong}")
                return Path(aside, source.folder).rename(root / source.folder)
    except _BROKEN as error:
        if machines_fault(error):
            raise DataError(f"{archive} could not be unpacked into {root}: {error}. What has arrived is kept") from error
        raise _BadArchive(f"the archive cannot be unpacked: {type(error).__name__}: {error}") from error


def _members(packed: zipfile.ZipFile, source: Source) -> list[zipfile.ZipInfo]:
    """The files to extract, once no member of the archive has been found harmful."""
    members = []
    if len(packed.infolist()) > _MOST_MEMBERS:
        raise _BadArchive(f"refused: it holds {len(packed.infolist())} members, more than {_MOST_MEMBERS}")
    for member in packed.infolist():
        name = member.orig_filename  # as it stands in the archive: zipfile cuts it at a NUL, and turns backslashes on Windows
        path, kind = PurePosixPath(name), stat.S_IFMT(member.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or set(name) & set("\\:\0"):
            raise _BadArchive(f"refused: the member {name[:200]!r} could be written outside of the folder")
        if not name.isprintable() or len(name) > 200:
            raise _BadArchive(f"refused: the member {name[:200]!r} has a name that no data set needs")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or member.flag_bits & 1:
            raise _BadArchive(f"refused: the member {name!r} is {'encrypted' if member.flag_bits & 1 else 'a link or a device'}")
        if not member.is_dir() and not is_metadata(path):
            if path.parts[:1] != (source.folder,):
                raise _BadArchive(f"refused: the member {name!r} lies outside of {source.folder}/, so this is another archive")
            members.append(member)
    if (size := sum(member.file_size for member in members)) > source.max_bytes:
        largest = max(members, key=lambda member: member.file_size).filename
        raise _BadArchive(f"refused: it would extract to {size} bytes, more than {source.max_bytes}; the largest member is {largest!r}")
    return members
