"""Open a bundle to be asked: its manifest verified, its method found among the plugins, its model loaded."""

from dataclasses import dataclass
from pathlib import Path

from mtcore.bundle import BundleManifest, read_bundle
from mtcore.contracts import Predictor
from mtcore.registry import Registry
from mtcore.types import MethodUse


@dataclass(frozen=True)
class OpenBundle:
    """A bundle in memory."""

    folder: Path
    manifest: BundleManifest
    predictor: Predictor


def open_bundle(folder: Path, registry: Registry) -> OpenBundle:
    """Load the model of a bundle. Prompts that are written by code are written by the plugin of just that version.

    Raises ModelError where the folder is no bundle, was changed since it was written, or needs code that is not installed.
    """
    manifest = read_bundle(folder)
    coded = {name: task.code for name, task in manifest.tasks.items() if task.code}
    owners = {e.name: e for e in registry.entries("task") if coded.get(e.name) == f"{e.plugin.distribution} {e.plugin.version}"}
    renders = {name: render for name, entry in owners.items() if (render := registry.build_task(entry, None).render)}
    method = registry.method(MethodUse.model_validate({"use": manifest.method, **manifest.options}))
    return OpenBundle(folder, manifest, method.load(folder, renders))
