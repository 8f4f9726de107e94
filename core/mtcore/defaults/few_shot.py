"""The few-shot method: trains nothing; a handful of training rows stand in the prompt of an untouched base (paper, appendix F)."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from pydantic import Field

from mtcore.bundle import BundleManifest, bundled, read_bundle, write_bundle
from mtcore.contracts import Method, Options, Predictor, Stages, Workspace
from mtcore.data.mixture import row_order
from mtcore.data.text import TextEncoder, answer_texts, render
from mtcore.errors import ConfigError, ModelError
from mtcore.types import Base, Fitted, Group, MethodUse, Piece, Preview, Render, TaskData, TaskSpec, TextPair

Shot = tuple[dict[str, str], tuple[str, ...]]
SAMPLE = 64


class FewShot(Method):
    """Scores the base as it is; its bar is the reference of the method that would otherwise train the task."""

    name = "few-shot"
    uses_stages = False

    class Config(Options):
        shots: int = Field(default=5, gt=0)
        """Training rows in the prompt, fixed by the seed."""
        example: str = "示例{number}："
        """Structure before each example; {number} counts from 1."""
        question: str = "以下为输入："
        """Structure before the request."""
        max_length: int = Field(default=2048, gt=8)
        """Tokens of prompt and answer together."""
        batch_tokens: int = Field(default=8192, gt=0)
        """Tokens, padding included, that go through the model at once: bounds memory, changes no result."""
        bar: MethodUse = MethodUse(use="text2text")
        """The method whose single-task models are the references."""

    config: Config

    @property
    def reference(self) -> MethodUse | None:
        return self.config.bar

    def preview(self, tasks: Mapping[str, TaskData], base: Base) -> Mapping[str, Preview]:
        return {name: self._preview(task, base) for name, task in tasks.items()}

    def fit(self, group: Group, stages: Stages, workspace: Workspace, update: Path | None = None) -> Fitted:
        tasks = {name: workspace.tasks[name] for name in group.tasks}
        manifest = BundleManifest(
            method=self.name,
            options=json.loads(self.config.model_dump_json()),
            tasks={name: bundled(task) for name, task in tasks.items()},
            base=str(workspace.base.folder.resolve()),
            base_digest=workspace.base.digest,
            settings={"shots": {name: choose_shots(task, self.config.shots, workspace.seed) for name, task in tasks.items()}},
        )
        if workspace.is_main:
            write_bundle(workspace.bundle, manifest, lambda folder: None)
        return Fitted(bundle=str(workspace.bundle), done=(), chosen=None)

    def load(self, bundle: Path, renders: Mapping[str, Render]) -> Predictor:
        from mtcore.inference.predictor import TextPredictor, served_task
        from mtcore.modeling.load import find_base, load_model

        manifest = read_bundle(bundle)
        base = find_base(manifest.base, bundle.parent)
        if base.digest != manifest.base_digest:
            raise ModelError(f"{bundle} was made on another base than the one now in {base.folder}; restore it or make the bundle anew")
        encoder = self._encoder(base)
        served = {}
        for name, task in manifest.tasks.items():
            shots = [(dict(fields), tuple(answer)) for fields, answer in manifest.settings["shots"][name]]
            served[name] = served_task(task.spec, self._prompt(task.spec, shots), encoder)
        model = load_model(base.folder, to_device=True)
        return TextPredictor(model, encoder, served, batch_tokens=self.config.batch_tokens, is_final=True)

    def _encoder(self, base: Base) -> TextEncoder:
        return TextEncoder(base.folder / "tokenizer.json", base.eos_id, min(self.config.max_length, base.context))

    def _prompt(self, spec: TaskSpec, shots: list[Shot]) -> Callable[[Mapping[str, str]], tuple[Piece, ...]]:
        """Instruction, then each example with its answer, then the request; example texts are user text like any other."""
        bare = spec.model_copy(update={"instruction": ""})
        pieces = [Piece(spec.instruction)]
        for number, (fields, answer) in enumerate(shots, 1):
            pieces += [Piece("\n" + self.config.example.format(number=number)), *render(bare, fields, "task-first")]
            pieces += [Piece(text, is_user=True) for text in answer]
        head = (*pieces, Piece("\n" + self.config.question))
        return lambda fields: (*head, *render(bare, fields, "task-first"))

    def _preview(self, task: TaskData, base: Base) -> Preview:
        if task.render:
            raise ConfigError(f"few-shot prompts are written by specs, and {task.name} writes its own; take it out of this variant")
        encoder = self._encoder(base)
        prompt = self._prompt(task.spec, choose_shots(task, self.config.shots, 1))
        try:
            encoded = encoder.encode(
                [TextPair(prompt(e.fields), ()) for e in task.validation[:SAMPLE]], encoder.room_for_answers(task.spec)
            )
        except ConfigError as error:
            return Preview(mean_tokens=0.0, truncated=1.0, warnings=(f"{self.config.shots} examples cannot fit: {error}",))
        cut = sum(bool(e.cut) for e in encoded) / len(encoded)
        warning = f"{cut:.0%} of the prompts with {self.config.shots} examples do not fit into {encoder.max_length} tokens and are cut"
        return Preview(sum(len(e.prompt) for e in encoded) / len(encoded), cut, (warning,) if cut else ())


def choose_shots(task: TaskData, count: int, seed: int) -> list[Shot]:
    """The first rows of the task's own order under the seed."""
    rows = row_order(seed, f"{task.name} shots", len(task.train), np.arange(min(count, len(task.train)), dtype=np.int64))
    return [(dict(task.train[r].fields), answer_texts(task.spec, task.train[r].answer)) for r in rows]
