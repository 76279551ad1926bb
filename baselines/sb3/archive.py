"""A stable-baselines3 archive, read as data.

`data` is JSON in which whatever is not JSON is a base64 pickle beside some plain text about it; only the text is
ever looked at. `policy.pth` is torch's format, read with `weights_only=True`. Nothing is extracted to disk, every
size is bounded before anything of that size is made, and other members are not opened.
"""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from core.errors import ModelError
from core.files import sha256_hex

MB = 1_000_000
ARCHIVE_LIMIT_MB = 400  # the optimizer's state is twice the weights
MEMBER_LIMIT_MB = {"data": 32, "policy.pth": 120}
DIRECTORY_BYTES = 100_000
PARAMETERS = 28_000_000
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what bounds the memory it unpacks with
ENCRYPTED = 0x1
END = struct.Struct("<4s4H2LH")  # of a zip: signature, disks and counts, size and offset of the directory, comment
OPCODES = 20_000  # of a pickle of weights: some 40 for a tensor
STORED_NAMES = {f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16")} | {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
}
TRUST = "; if you made it yourself, --trust lets stable-baselines3 load it, which executes what it contains"


@dataclass(frozen=True, eq=False)
class Archive:
    data: Mapping[str, Any]
    weights: Mapping[str, Tensor]  # float32, finite
    sha256: str  # of the whole file


def refused(why: str) -> ModelError:
    return ModelError(f"{why}; nothing was published", code="archive_refused")


def read_bounded(file: Path, limit_mb: int) -> bytes:
    """A whole file. Raises ModelError if it is absent, not a plain file, or larger than the limit."""
    if not file.is_file():
        raise refused(f"{file}: no such file")
    with file.open("rb") as stream:
        content = stream.read(limit_mb * MB + 1)
    if len(content) > limit_mb * MB:
        raise refused(f"{file}: larger than {limit_mb} MB")
    return content


def read_archive(file: Path) -> Archive:
    """Raises ModelError, naming what is wrong, for anything but a whole archive of finite weights."""
    content = read_bounded(file, ARCHIVE_LIMIT_MB)
    members = _members(content, file)
    return Archive(_json(members["data"], file), _weights(members["policy.pth"], file), sha256_hex(content))


def _members(content: bytes, file: Path) -> dict[str, bytes]:
    _require_small_directory(content, file)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _require_plain(archive, file)
            return {name: _member(archive, name, limit_mb, file) for name, limit_mb in MEMBER_LIMIT_MB.items()}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, ValueError) as error:
        raise refused(f"{file}: is no whole zip archive ({error})") from None


def _require_small_directory(content: bytes, file: Path) -> None:
    """By the record at the end: a directory of millions of members would be read before it could be counted."""
    end = content[-END.size :]
    if len(end) < END.size or not end.startswith(b"PK\5\6"):
        raise refused(f"{file}: is no whole zip archive, or has a comment, which PPO.save never writes")
    *_, size, offset, _ = END.unpack(end)
    if size > DIRECTORY_BYTES or offset + size != len(content) - END.size:
        raise refused(f"{file}: has a directory of {size:,} bytes, or something behind it; an archive has six members")


def _require_plain(archive: zipfile.ZipFile, file: Path) -> None:
    names = archive.namelist()
    if len(set(names)) < len(names):
        raise refused(f"{file}: has a member twice")
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise refused(f"{file}: has a member that points outside of it ({name!r})")


def _member(archive: zipfile.ZipFile, name: str, limit_mb: int, file: Path) -> bytes:
    if name not in archive.namelist():
        raise refused(f"{file}: has no member {name!r}; is it an archive that PPO.save wrote?")
    info = archive.getinfo(name)
    if info.flag_bits & ENCRYPTED or info.compress_type not in COMPRESSIONS:
        raise refused(f"{file}: {name} is encrypted, or compressed as PPO.save never does")
    with archive.open(info) as stream:
        content = stream.read(limit_mb * MB + 1)  # what the directory says of the size is not believed
    if len(content) > limit_mb * MB or len(content) != info.file_size:
        raise refused(f"{file}: {name} is larger than {limit_mb} MB, or not as long as the archive says")
    return content


def _json(content: bytes, file: Path) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise refused(f"{file}: its data is no JSON ({error})") from None
    if not isinstance(data, dict):
        raise refused(f"{file}: its data is no JSON object")
    return data


def _weights(content: bytes, file: Path) -> dict[str, Tensor]:
    records = _plain_records(content, file)
    try:
        loaded = torch.load(records, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes torch's reader raise
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise refused(f"{file}: policy.pth holds something else than weights ({first[:200]})") from None
    return checked_weights(loaded, str(file))


def _plain_records(content: bytes, file: Path) -> io.BytesIO:
    """The records of policy.pth, checked, in an archive of our own: torch's reader then sees what was checked.

    torch writes its records uncompressed, so that what they unpack to is no more than what was read.
    """
    plain = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(plain, "w") as target:
            _require_stored(source, len(content), file)
            _require_plain(source, file)
            for name in source.namelist():
                record = source.read(name)
                if name.endswith(".pkl"):
                    _require_tensors(record, file)
                target.writestr(name, record)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise refused(f"{file}: policy.pth is not in torch's format of today ({error})") from None
    plain.seek(0)
    return plain


def _require_stored(records: zipfile.ZipFile, size: int, file: Path) -> None:
    plain = all(record.compress_type == zipfile.ZIP_STORED for record in records.infolist())
    if not plain or sum(record.file_size for record in records.infolist()) > size:
        raise refused(f"{file}: policy.pth is compressed or overlaps itself, which torch never writes")


def _require_tensors(content: bytes, file: Path) -> None:
    """Tensors and nothing else: what weights_only lets a pickle call can still take all memory, or hours."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if count > OPCODES or (opcode.name == "GLOBAL" and argument not in STORED_NAMES):
            what = f"more than {OPCODES:,} opcodes" if count > OPCODES else f"{argument!r:.100}"
            raise refused(f"{file}: policy.pth holds something else than weights ({what})")


def checked_weights(loaded: Any, where: str) -> dict[str, Tensor]:
    """Named dense float tensors as float32. Raises ModelError for anything else, or numbers that are not finite."""
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise refused(f"{where}: policy.pth is no table of weights by name")
    for name, tensor in loaded.items():
        if not (isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.device.type == "cpu"):
            raise refused(f"{where}: {name} is no tensor of floats")
        if tensor.layout != torch.strided:
            raise refused(f"{where}: {name} is no dense tensor")
    if sum(tensor.numel() for tensor in loaded.values()) > PARAMETERS:
        raise refused(f"{where}: more than {PARAMETERS:,} parameters")
    weights = {name: tensor.detach().to(torch.float32) for name, tensor in loaded.items()}
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise refused(f"{where}: {name} holds numbers that are not finite; the training had diverged")
    return weights
