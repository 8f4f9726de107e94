"""Build a base model once from a named corpus: tokenizer, random decoder, causal-language-model training; resumable."""

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mtcore import __version__
from mtcore.data.packing import Sample, micro_batches
from mtcore.errors import MissingData, ResumeMismatch
from mtcore.files import locked, write_text
from mtcore.interrupts import Stop

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from mtcore.training.loop import StepBatch

IdArray = NDArray[np.int32]

TEXT_SUFFIXES = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz")


@dataclass(frozen=True)
class BaseRecipe:
    """What decides every byte of a built base, beside the corpus."""

    vocabulary: int = 8192
    width: int = 128
    layers: int = 4
    heads: int = 4
    context: int = 2048
    sequence: int = 512
    step_tokens: int = 8192
    learning_rate: float = 3e-3
    warm_up: float = 0.05
    passes: int = 1
    seed: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True)
class BaseProgress:
    step: int
    steps: int
    loss: float
    tokens_per_second: float


def build_base(
    corpus: Path,
    folder: Path,
    recipe: BaseRecipe,
    progress: Callable[[BaseProgress], None],
    *,
    stop: Stop | None = None,
    save_every: int = 100,
) -> Path:
    """Train a tokenizer and a decoder on the corpus and leave them in `folder` as any other base.

    The same call resumes an interrupted build; one that is asked to stop saves first. `base.json` beside the weights says from what and how
    the base was made. Raises MissingData without text, ResumeMismatch when `folder` holds work from another recipe or corpus.
    """
    with locked(folder / "work"):  # which goes away with the work
        return _build(corpus, folder, recipe, progress, stop or Stop(), save_every)


def _build(corpus: Path, folder: Path, recipe: BaseRecipe, progress: Callable[[BaseProgress], None], stop: Stop, save_every: int) -> Path:
    from tokenizers import Tokenizer

    from mtcore.modeling.tiny import END, new_decoder, train_tokenizer
    from mtcore.training.checkpoint import newest_checkpoint, prune
    from mtcore.training.distributed import make_accelerator
    from mtcore.training.loop import Schedule, warm_up_then_decay
    from mtcore.training.state import Trainee

    work = folder / "work"
    provenance: dict[str, object] = {
        "corpus": [[p.name, p.stat().st_size] for p in corpus_files(corpus)],
        "recipe": asdict(recipe),
        "mtcore": __version__,
    }
    if (folder / "base.json").is_file():  # written last
        _keep_or_refuse(folder / "base.json", provenance, folder)
        shutil.rmtree(work, ignore_errors=True)
        return folder
    work.mkdir(parents=True, exist_ok=True)
    _keep_or_refuse(work / "base.json", provenance, folder)
    if not (work / "tokenizer.json").exists():
        train_tokenizer(corpus_texts(corpus), recipe.vocabulary, work)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    eos_id = int(tokenizer.token_to_id(END) or 0)
    steps = _plan_steps(_encode_corpus(corpus, tokenizer, eos_id, recipe.sequence), recipe)

    model = new_decoder(
        vocabulary=tokenizer.get_vocab_size(),
        width=recipe.width,
        layers=recipe.layers,
        heads=recipe.heads,
        context=recipe.context,
        eos_id=eos_id,
        seed=recipe.seed,
    )
    trainee = Trainee(model, make_accelerator(recipe.precision), weight_decay=0.1, betas=(0.9, 0.98), clip=1.0)
    done = 0
    if checkpoint := newest_checkpoint(work, "step", team=trainee.team):
        done = int(trainee.load(checkpoint)["step"])
    schedule = Schedule(
        batch=lambda number, tokens: _step_batch(steps[number], tokens),
        learning_rate=warm_up_then_decay(recipe.learning_rate, len(steps), recipe.warm_up, "cosine"),
        tasks=("text",),
        batch_tokens=recipe.step_tokens,
        asks=lambda: (stop.requested is not None,),
    )
    with stop.deferred():
        for step in trainee.steps(schedule, done, len(steps)):
            progress(BaseProgress(step.number, len(steps), step.loss, step.tokens / step.seconds))
            if step.number % save_every == 0 or step.number == len(steps) or any(step.asked):
                trainee.save(work, f"step-{step.number}", {"step": step.number})
                prune(work, "step", keep={f"step-{step.number}"})
            if any(step.asked):
                break
    stop.obey()
    trainee.export(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "base.json"):
        write_text(folder / name, (work / name).read_text(encoding="utf-8"))
    shutil.rmtree(work)
    return folder


def corpus_files(corpus: Path) -> list[Path]:
    """The text files of a corpus: `train*` files where there are any, else all of them."""
    files = sorted(p for p in ([corpus] if corpus.is_file() else corpus.rglob("*")) if p.name.endswith(TEXT_SUFFIXES))
    files = [p for p in files if p.name.startswith("train")] or files
    if not files:
        raise MissingData(
            f"--corpus {corpus}: no text there. It takes a file or folder of {', '.join(TEXT_SUFFIXES)} (JSON lines with a field 'text')."
        )
    return files


def corpus_texts(corpus: Path) -> Iterator[str]:
    for path in corpus_files(corpus):
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line)["text"] if ".jsonl" in path.name else line
                if text.strip():
                    yield text.strip()


def _keep_or_refuse(path: Path, provenance: dict[str, object], folder: Path) -> None:
    """Write the provenance, or compare it with what is written; the version of mtcore is told, not compared."""
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        recipe = {**asdict(BaseRecipe()), **known.get("recipe", {})}  # a base that is older than an option was built with its default
        if (known.get("corpus"), recipe) != (provenance["corpus"], provenance["recipe"]):
            raise ResumeMismatch(
                f"{folder} is, or is becoming, a base from another corpus or recipe. Choose another name, or delete that folder."
            )
        return
    write_text(path, json.dumps(provenance, indent=2, ensure_ascii=False))


def _encode_corpus(corpus: Path, tokenizer: "Tokenizer", eos_id: int, sequence: int) -> list[IdArray]:
    """Every document with its end token, cut into pieces of at most `sequence` tokens."""
    pieces: list[IdArray] = []
    for encoding in tokenizer.encode_batch(list(corpus_texts(corpus)), add_special_tokens=False):
        ids = np.array([*encoding.ids, eos_id], np.int32)
        pieces.extend(ids[start : start + sequence] for start in range(0, len(ids), sequence) if len(ids) - start > 1)
    return pieces


def _plan_steps(pieces: list[IdArray], recipe: BaseRecipe) -> list[list[IdArray]]:
    """Shuffle the pieces of every pass and cut them into steps of about `step_tokens`."""
    steps: list[list[IdArray]] = []
    for number in range(recipe.passes):
        order = np.argsort(np.random.Philox(key=[recipe.seed, number]).random_raw(len(pieces)), kind="stable")
        step: list[IdArray] = []
        for index in order:
            step.append(pieces[index])
            if sum(map(len, step)) >= recipe.step_tokens:
                steps.append(step)
                step = []
        if step:
            steps.append(step)
    return steps


def _step_batch(pieces: list[IdArray], batch_tokens: int) -> "StepBatch":
    """All tokens of a step weigh the same: an example's weight is its share of the targets."""
    from mtcore.training.loop import StepBatch

    samples = [Sample(ids=ids, target_start=1, example=index) for index, ids in enumerate(pieces)]
    targets = sum(len(ids) - 1 for ids in pieces)
    return StepBatch(micro_batches(samples, batch_tokens), [(len(ids) - 1) / targets for ids in pieces], [0] * len(pieces))
