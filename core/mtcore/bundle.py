"""The bundle: the folder a method leaves. Weights or a reference to a base, a tokenizer, and `mtcore.json`, which knows all the files."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from mtcore import __version__
from mtcore.errors import ModelError
from mtcore.files import put_folder, write_text
from mtcore.types import Frozen, TaskData, TaskSpec

MANIFEST, CARD = "mtcore.json", "README.md"


class BundledTask(Frozen):
    """A task as it is served: pure data, unless its prompt is written by code."""

    spec: TaskSpec
    code: str = ""
    """Plugin and version whose code renders the prompt; empty where the spec does."""
    digest: str = ""
    """Names the spec and rows that it was learned from (`TaskData.digest`); empty where the method does not say."""


def bundled(task: TaskData) -> BundledTask:
    return BundledTask(spec=task.spec, code=task.plugin if task.render else "", digest=task.digest)


class BundleManifest(Frozen):
    """What a bundle is."""

    format: Literal[1] = 1
    mtcore: str = __version__
    method: str
    options: dict[str, Any]
    """The method's options, as its Config takes them."""
    tasks: dict[str, BundledTask]
    base: str
    base_digest: str
    settings: dict[str, Any] = {}
    """What the method must know to load it, beside its options."""
    files: dict[str, str] = {}
    """SHA-256 of every other file."""

    @property
    def version(self) -> str:
        """Names what the bundle answers with: twelve digits of a hash over all that the manifest says, but for the card."""
        files = {name: digest for name, digest in self.files.items() if name != CARD}
        return hashlib.sha256(self.model_copy(update={"files": files}).model_dump_json().encode()).hexdigest()[:12]


def write_bundle(folder: Path, manifest: BundleManifest, fill: Callable[[Path], None]) -> Path:
    """Let `fill` write the files into a folder beside `folder`, hash them, write the manifest last, and put the whole in place at once."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fill(temporary)
    files = {str(p.relative_to(temporary)): _sha256(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
    (temporary / MANIFEST).write_text(manifest.model_copy(update={"files": files}).model_dump_json(indent=2), encoding="utf-8")
    mode = (temporary / MANIFEST).stat().st_mode
    for name in files:
        (temporary / name).chmod(mode)  # safetensors lets nobody but the owner read weights, and a server is often another user
    put_folder(temporary, folder)
    return folder


def write_card(folder: Path, text: str) -> None:
    """Put a model card into a bundle, in the place of an earlier one; what the manifest says of every other file stays as it is."""
    put_text(folder, CARD, text)


def put_text(folder: Path, name: str, text: str) -> None:
    """Put a text file into a bundle that is already in place.

    While the file changes the manifest does not know it, so that a crash leaves a bundle that can be loaded.
    """
    manifest, digest = read_bundle(folder, verify=False), hashlib.sha256(text.encode()).hexdigest()
    if manifest.files.get(name) == digest and (folder / name).is_file() and _sha256(folder / name) == digest:
        return
    others = {other: known for other, known in manifest.files.items() if other != name}
    if name in manifest.files:
        write_text(folder / MANIFEST, manifest.model_copy(update={"files": others}).model_dump_json(indent=2))
    write_text(folder / name, text)
    write_text(folder / MANIFEST, manifest.model_copy(update={"files": others | {name: digest}}).model_dump_json(indent=2))


def read_bundle(folder: Path, *, verify: bool = True) -> BundleManifest:
    """Read a bundle's manifest and compare its files with it. Raises ModelError where it is no bundle, or not the one that was written."""
    try:
        manifest = BundleManifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        bundles = sorted(str(p.parent) for p in folder.glob(f"**/{MANIFEST}"))[:5] if folder.is_dir() else []
        raise ModelError(f"{folder} is no bundle: it has no {MANIFEST}. Bundles below it: {', '.join(bundles) or 'none'}.") from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / MANIFEST} is damaged or from another version of mtcore ({str(error).splitlines()[0]})") from None
    if verify:
        wrong = [name for name, digest in manifest.files.items() if not (folder / name).is_file() or _sha256(folder / name) != digest]
        if wrong:
            raise ModelError(f"{folder}: {', '.join(wrong)} missing or changed since the bundle was written; it is not loaded")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
