"""A published model: a folder `<store>/<name>/<version>/` with a signed manifest that digests every file.

    manifest.json   this module's ModelManifest
    manifest.sig    the publisher's signature of manifest.json, and so of every file it digests (core/signing.py)
    model.onnx      hrm, hrm_book: one segment; ppo: the whole policy (docs/architecture.md, "Model files")
    golden.npz      inputs and the outputs the exporting framework computed for them
    portable.onnx   hrm, if asked for: the whole decision in one file, for other runtimes

The folder appears in one rename: readers see a whole version or none.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from core.errors import ModelError
from core.files import sha256_hex
from core.halting import HaltingRule
from core.observation import BookSchema, ObservationSchema
from core.signing import keys_beside, sign

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
Storage = Literal["fp32", "fp16", "int8", "static_int8", "half"]
IMPORTED = "imported:"  # before the SHA-256 of the archive, in the dataset_digest of a model that was trained elsewhere
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class FileDigest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class ModelManifest(BaseModel):
    """What a model is, what it was trained on and what its files must hash to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=NAME_PATTERN)
    algorithm: Literal["hrm", "ppo", "hrm_book"]
    preset: str | None = Field(default=None, description="the HRM preset; None for a PPO")
    storage: Storage = Field(
        default="fp32", description="of the weights; static_int8 also computes in integers, half in 16 bits"
    )
    parameters: int = Field(ge=0)
    observation: ObservationSchema | BookSchema
    halting: HaltingRule | None = Field(default=None, description="None: one pass decides")
    carry: dict[str, tuple[int, int]] = Field(
        default_factory=dict, description="z_H and z_L: (tokens, width) of one row; empty for one pass"
    )
    quantity_max: float = Field(gt=0, description="largest quantity the model may answer, units")
    files: dict[Annotated[str, Field(pattern=NAME_PATTERN)], FileDigest]
    metrics: dict[str, float] = Field(default_factory=dict)
    dataset_digest: str
    git_commit: str | None = None
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def market(self) -> ObservationSchema:
        """The observation of one instrument. Raises ModelError for the model of a book: it decides no single one."""
        if isinstance(self.observation, BookSchema):
            raise ModelError(
                f"{self.name}/{self.version}: decides books; ask it over /v1/books/decisions, name another model here",
                code="model_of_a_book",
            )
        return self.observation

    @property
    def imported(self) -> bool:
        """Trained elsewhere, on data that is not known here."""
        return self.dataset_digest.startswith(IMPORTED)


def require_free(target: Path) -> None:
    """Raises ModelError if the version's folder `<store>/<name>/<version>` exists already."""
    if target.exists():
        raise ModelError(
            f"{target} exists already; a published version never changes, choose another version",
            code="version_exists",
        )


def publish(store: Path, files: Mapping[str, bytes], **fields: object) -> ModelManifest:
    """Write a new version, signed with the key beside the store, in one rename and return its manifest.

    `fields` are ModelManifest's, without `files`. Raises ModelError if the version exists already, ConfigError if the
    signing key cannot be used, and OSError (no version left behind) if the disk refuses.
    """
    digests = {name: FileDigest(sha256=sha256_hex(data), bytes=len(data)) for name, data in files.items()}
    manifest = ModelManifest.model_validate({**fields, "files": digests})
    target = store / manifest.name / manifest.version
    require_free(target)
    described = manifest.model_dump_json(indent=2).encode()
    written = {**files, MANIFEST: described, SIGNATURE: sign(described, keys_beside(store))}
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".publishing-"))
    try:
        for name, data in written.items():
            (temporary / name).write_bytes(data)
        temporary.chmod(0o755)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest
