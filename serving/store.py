"""Reads published models: every byte that is loaded is a byte that was hashed, by a manifest that was signed.

Each file is read once, into memory. The signature is checked on the very bytes of the manifest that are parsed, size
and SHA-256 on the very bytes that are loaded, so nothing can change between the check and the use. Layout of a version:
core/manifest.py; whose signature counts: core/signing.py.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from core.errors import ModelError
from core.files import sha256_hex, write_atomically
from core.manifest import MANIFEST, NAME_PATTERN, SIGNATURE, ModelManifest
from core.signing import TrustedKeys, keys_beside, sign, trusted_keys, verify
from serving.graph_file import require_self_contained

ONNX = "model.onnx"
GOLDEN = "golden.npz"
MANIFEST_LIMIT_MB = 1.0
SIGNATURE_BYTES = 1024  # more than any has; what is longer is none
MB = 1_000_000


@dataclass(frozen=True)
class StoredModel:
    """A verified version in memory. `golden` holds `in_<name>` and `out_<name>` arrays."""

    manifest: ModelManifest
    manifest_sha256: str  # of manifest.json
    onnx: bytes
    golden: Mapping[str, NDArray[np.generic]]

    @property
    def id(self) -> str:
        return f"{self.manifest.name}/{self.manifest.version}"


def load_version(store: Path, model_id: str, *, size_limit_mb: float) -> StoredModel:
    """Read and verify `<store>/<name>/<version>/`. Raises ModelError naming the file and the remedy."""
    folder = _folder(store, model_id)
    described = _signed(folder, trusted_keys(keys_beside(store)))
    manifest = _manifest(described, folder, model_id)
    missing = {ONNX, GOLDEN} - manifest.files.keys()
    if missing:
        raise ModelError(
            f"{folder / MANIFEST}: lists no {', '.join(sorted(missing))}; export the model again",
            code="manifest_invalid",
        )
    onnx = _read_verified(folder, ONNX, manifest, size_limit_mb)
    golden = _read_verified(folder, GOLDEN, manifest, size_limit_mb)
    require_self_contained(onnx, str(folder / ONNX))
    return StoredModel(manifest, sha256_hex(described), onnx, _arrays(folder / GOLDEN, golden))


def sign_version(store: Path, model_id: str, *, size_limit_mb: float) -> ModelManifest:
    """Sign a version with this machine's key if its files are what its manifest says. Raises ModelError, ConfigError.

    For versions that were published before there were signatures, or by somebody whose key is not trusted here: whoever
    calls this vouches for them.
    """
    folder = _folder(store, model_id)
    data = _read_bounded(folder / MANIFEST, MANIFEST_LIMIT_MB)
    manifest = _manifest(data, folder, model_id)
    for name in manifest.files:
        _read_verified(folder, name, manifest, size_limit_mb)
    write_atomically(folder / SIGNATURE, sign(data, keys_beside(store)))
    return manifest


def list_versions(store: Path) -> list[dict[str, object]]:
    """What the store holds: one row per version, with `problem` set where its manifest may not be read."""
    rows: list[dict[str, object]] = []
    trusted = trusted_keys(keys_beside(store))
    for file in sorted(store.glob(f"*/*/{MANIFEST}")):
        model_id = f"{file.parent.parent.name}/{file.parent.name}"
        if file.parent.name.startswith("."):
            continue  # a publication in progress
        try:
            folder = _folder(store, model_id)
            manifest = _manifest(_signed(folder, trusted), folder, model_id)
        except ModelError as error:
            rows.append({"id": model_id, "problem": str(error)})
            continue
        rows.append(
            {
                "id": model_id,
                "algorithm": manifest.algorithm,
                "preset": manifest.preset,
                "parameters": manifest.parameters,
                "size_mb": sum(digest.bytes for digest in manifest.files.values()) / MB,
                "schema": manifest.observation.digest,
                "metrics": manifest.metrics,
                "created_at": manifest.created_at.isoformat(),
                "problem": None,
            }
        )
    return rows


def _folder(store: Path, model_id: str) -> Path:
    """The version's folder. An id is two plain names, so it cannot point outside the store."""
    parts = model_id.split("/")
    if len(parts) != 2 or not all(re.fullmatch(NAME_PATTERN.strip("^$"), part) for part in parts):
        raise ModelError(
            f"'{model_id}' is no model id; write name/version, for example ppo/v1", code="model_id_invalid"
        )
    return store / parts[0] / parts[1]


def _signed(folder: Path, trusted: TrustedKeys) -> bytes:
    """The bytes of the manifest, which a trusted key has signed."""
    file = folder / MANIFEST
    data = _read_bounded(file, MANIFEST_LIMIT_MB)
    if not (folder / SIGNATURE).exists():
        raise ModelError(
            f"{file}: has no signature ({SIGNATURE}); if you know where it comes from: "
            f"`hrm models sign {folder.parent.name}/{folder.name}`",
            code="signature_missing",
        )
    verify(data, _read(folder / SIGNATURE, SIGNATURE_BYTES), trusted, str(file))
    return data


def _manifest(data: bytes, folder: Path, model_id: str) -> ModelManifest:
    file = folder / MANIFEST
    try:
        manifest = ModelManifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        raise ModelError(
            f"{file}: not a valid manifest ({place}: {first['msg']}); publish the model again",
            code="manifest_invalid",
        ) from None
    if f"{manifest.name}/{manifest.version}" != model_id:
        raise ModelError(
            f"{file}: is the manifest of {manifest.name}/{manifest.version}, not of {model_id}; restore it",
            code="manifest_invalid",
        )
    return manifest


def _read_verified(folder: Path, name: str, manifest: ModelManifest, size_limit_mb: float) -> bytes:
    file, digest = folder / name, manifest.files[name]
    data = _read_bounded(file, size_limit_mb)
    if len(data) != digest.bytes or sha256_hex(data) != digest.sha256:
        raise ModelError(
            f"{file}: content differs from its manifest ({len(data)} bytes, expected {digest.bytes}); "
            f"it was damaged or altered: publish the model again under a new version",
            code="digest_mismatch",
        )
    return data


def _read_bounded(file: Path, limit_mb: float) -> bytes:
    limit_bytes = int(limit_mb * MB)
    data = _read(file, limit_bytes + 1)
    if len(data) > limit_bytes:
        raise ModelError(
            f"{file}: larger than {limit_mb:g} MB; export a smaller or 16-bit model, or raise "
            f"performance.model_size_limit_mb",
            code="model_too_large",
        )
    return data


def _read(file: Path, at_most: int) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(at_most)
    except FileNotFoundError:
        raise ModelError(
            f"{file}: no such file; `hrm export` or a migration publishes models", code="model_not_found"
        ) from None
    except OSError as error:
        raise ModelError(f"{file}: not readable: {error}; check its permissions", code="model_unreadable") from None


def _arrays(file: Path, data: bytes) -> dict[str, NDArray[np.generic]]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{file}: not an array archive: {error}; export again", code="golden_invalid") from None
