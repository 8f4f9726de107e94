"""B3: training steps of 20 and 100 tasks beside HF Trainer (padded, grouped by length), TRL's packed SFTTrainer and a step without a head.

Every system trains the same model on the same pool of examples in a process of its own, with as many examples a step; they take turns, so
that a noisy machine disturbs all of them alike. Useful tokens are those of examples, padding left out.
"""

import argparse
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLES, STEP, ROWS_AT_ONCE, STEPS = 256, 32, 8, 2
"""Rows of the pool, rows of an optimizer step, of a padded micro-batch (HF Trainer's default), and the steps that a system takes at a time."""
MEDIAN, SIGMA, LEAST, MOST = 48, 0.8, 8, 512
"""Lengths are lognormal, and cut."""
RATE, DECAY, CLIP = 1e-4, 0.01, 1.0
EQUAL = 1e-5


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    tasks: int
    batch_tokens: int


SHAPES = {
    "wide head": Shape(32_768, 256, 768, 6, 4, 4, tasks=20, batch_tokens=2048),
    "small head": Shape(2048, 128, 384, 4, 4, 4, tasks=100, batch_tokens=2048),
}


@dataclass(frozen=True)
class Row:
    ids: list[int]
    start: int
    """Where its answer begins."""


def pool(shape: Shape, examples: int = EXAMPLES) -> list[Row]:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(MEDIAN), SIGMA, examples).round().astype(int), LEAST, MOST)
    return [Row(random.integers(2, shape.vocabulary, n).tolist(), int(n - random.integers(1, 4))) for n in lengths]


def build(shape: Shape) -> Any:
    """The model with random weights, always the same."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=MOST,
        tie_word_embeddings=True,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    return Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa")


# --- taking turns --------------------------------------------------------------------------------------------------------------------------


class Turns:
    """A system's side of taking turns: it waits to be told to take some steps, and tells what they took."""

    def __init__(self, parent: Connection) -> None:
        self.parent = parent
        self.tokens = 0
        """Useful ones since the turn began; systems count them here."""
        self.more: dict[str, float] = {}
        self.left = 0
        self.is_check = False

    def begin(self) -> bool:
        """Wait for the next turn; return whether there is one."""
        order, self.left = self.parent.recv()
        if order == "memory":
            self.parent.send({"at start": self.at_start, "peak": memory("VmHWM"), "threads": threads()})
            return self.begin()
        self.is_check = order == "check"
        self.tokens, self.more = 0, {}
        self.started, self.cpu = time.perf_counter(), time.process_time()
        return bool(order != "end")

    def ready(self) -> None:
        """All is built: memory is counted from here."""
        Path("/proc/self/clear_refs").write_text("5")  # peaks of importing do not count
        self.at_start = memory("VmRSS")
        self.parent.send("ready")

    def spent(self) -> dict[str, float]:
        return {"wall": time.perf_counter() - self.started, "cpu": time.process_time() - self.cpu}

    def step_done(self) -> bool:
        """Return False where that was the last step of all."""
        self.left -= 1
        if self.left:
            return True
        self.parent.send({**self.spent(), "tokens": self.tokens, **self.more})
        return self.begin()


def memory(what: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM the most that it was."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def threads() -> int:
    import torch

    return torch.get_num_threads()


def reference_losses(model: Any, shape: Shape, rows: Sequence[Row]) -> tuple[float, float]:
    """Mean over examples of their mean token loss, and mean over all target tokens, by plain forward passes one by one."""
    import torch
    from torch.nn import functional as F

    plain = build(shape)
    plain.load_state_dict(model.state_dict())
    sums, counts = [], []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor(row.ids)
            logits = plain(input_ids=ids[None]).logits[0, row.start - 1 : -1]
            sums.append(F.cross_entropy(logits, ids[row.start :], reduction="sum").item())
            counts.append(len(row.ids) - row.start)
    return float(np.mean(np.array(sums) / counts)), sum(sums) / sum(counts)


# --- ours ----------------------------------------------------------------------------------------------------------------------------------


def stage_of(shape: Shape, rows: Sequence[Row]) -> tuple[Any, dict[str, list[Any]]]:
    """One stage that mixes the tasks by their sizes, and the rows of each task; rows are dealt to tasks in turn."""
    from mtcore.data.mixture import MixturePlan, PlanTask
    from mtcore.data.stages import CompiledStage
    from mtcore.data.text import Encoded
    from mtcore.types import Mixture, SamplerUse, Stage

    encoded: dict[str, list[Encoded]] = {f"suite/task{number}": [] for number in range(shape.tasks)}
    for number, row in enumerate(rows):
        ids = np.array(row.ids, np.int32)
        encoded[f"suite/task{number % shape.tasks}"].append(Encoded(ids[: row.start], ids[row.start :]))
    shares = {name: len(own) / len(rows) for name, own in encoded.items()}
    tasks = tuple(PlanTask(name, len(own), shares[name]) for name, own in encoded.items())
    draws = 1000 * STEP
    stage = Stage(
        name="mixture",
        tasks=tuple(encoded),
        sampler=SamplerUse(use="class-balanced"),
        draws=draws,
        epoch_draws=len(rows),
        examples_per_step=STEP,
        learning_rate=RATE,
    )
    return CompiledStage(0, stage, Mixture(shares=shares), MixturePlan(1, 0, tasks, draws), draws // STEP), encoded


def trainee_and_steps(shape: Shape, rows: Sequence[Row], precision: str = "fp32") -> tuple[Any, Iterator[Any], Callable[[int], list[Row]]]:
    """The training engine as a run has it: the trainee, its steps, and which rows a step is made of."""
    from mtcore.defaults.text2text_fit import step_batches
    from mtcore.training.distributed import make_accelerator
    from mtcore.training.loop import Schedule
    from mtcore.training.state import Trainee

    compiled, encoded = stage_of(shape, rows)
    _, plan, steps = compiled.decided
    names = list(encoded)
    trainee = Trainee(build(shape), make_accelerator(precision), weight_decay=DECAY, betas=(0.9, 0.999), clip=CLIP)
    schedule = Schedule(step_batches(compiled, encoded, rank=0, processes=1), lambda step: RATE, names, shape.batch_tokens)

    def rows_of(step: int) -> list[Row]:
        window = plan.window(step * STEP, (step + 1) * STEP)
        drawn = [encoded[names[t]][r] for t, r in zip(window.task, window.row, strict=True)]
        return [Row([*e.prompt.tolist(), *e.answer.tolist()], len(e.prompt)) for e in drawn]

    return trainee, trainee.steps(schedule, 0, steps), rows_of


def ours(turns: Turns, shape: Shape) -> None:
    from mtcore.training.flops import peak

    trainee, steps, rows_of = trainee_and_steps(shape, pool(shape))
    turns.ready()
    is_going = turns.begin()
    while is_going:
        expected: tuple[float, float] = (0.0, 0.0)
        step = None
        if turns.is_check:
            before = {name: p.detach().clone() for name, p in trainee.model.state_dict().items()}
            step = next(steps)
            trainee.model.load_state_dict(before)
            expected = reference_losses(trainee.model, shape, rows_of(step.number - 1))
            turns.more = {"loss": step.loss, "example mean": expected[0], "token mean": expected[1]}
        else:
            step = next(steps)
        turns.tokens += step.example_tokens
        turns.more["flops"] = turns.more.get("flops", 0.0) + step.flops
        if turns.left == 1:
            # timing the machine's matrix product is no part of the turn
            turns.more |= turns.spent()
            turns.more["peak"] = peak(trainee.accelerator.device, "fp32", trainee.size).flops_per_second
        is_going = turns.step_done()


def without_head(turns: Turns, shape: Shape) -> None:
    """Forward and backward of the body on the packed tokens of the same steps, by the same attention, with a trivial loss; clip and AdamW."""
    import torch

    from mtcore.defaults.text2text_fit import step_batches
    from mtcore.modeling.attention import install
    from mtcore.modeling.head import as_tensors, body

    compiled, encoded = stage_of(shape, pool(shape))
    batches = step_batches(compiled, encoded, rank=0, processes=1)
    model = build(shape).train()
    install(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=DECAY)
    turns.ready()
    is_going, number = turns.begin(), 0
    while is_going:
        micro_batches = batches(number, shape.batch_tokens).micro_batches
        begun = turns.spent()
        for micro_batch in micro_batches:
            tensors = as_tensors(micro_batch, torch.device("cpu"))
            body(model, tensors.ids_T[None], tensors.positions_T[None], tensors.blocks).mean().backward()
            turns.tokens += micro_batch.example_tokens
        for clock, seconds in turns.spent().items():
            turns.more[f"passes {clock}"] = turns.more.get(f"passes {clock}", 0.0) + seconds - begun[clock]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        number += 1
        is_going = turns.step_done()


# --- peers ---------------------------------------------------------------------------------------------------------------------------------


def dataset_of(rows: Sequence[Row]) -> Any:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    labels = [[-100] * row.start + row.ids[row.start :] for row in rows]
    return Dataset.from_dict({"input_ids": [row.ids for row in rows], "labels": labels})


def tokenizer() -> Any:
    """Only to pad with."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<end>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def options(folder: str, **changes: Any) -> dict[str, Any]:
    """Trainer's own defaults, but for what makes the work the same, and for saving and reporting."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": ROWS_AT_ONCE,
        "gradient_accumulation_steps": STEP // ROWS_AT_ONCE,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": DECAY,
        "max_grad_norm": CLIP,
        "max_steps": 100_000,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **changes,
    }


def hf_trainer(turns: Turns, shape: Shape, sampling: str) -> None:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(**options(folder, train_sampling_strategy=sampling))
        words = tokenizer()
        trainer = Trainer(build(shape), arguments, DataCollatorForSeq2Seq(words), dataset_of(pool(shape)), processing_class=words)
        run_trainer(trainer, turns, shape)


def trl_packed(turns: Turns, shape: Shape) -> None:
    """Its loss takes no whole logits; on a CPU its head is computed at all positions, in tiles. One packed row at a time: all rows of a micro-batch
    would be one sequence under one dense mask, which costs the square of its length."""
    from trl import SFTConfig, SFTTrainer

    rows = pool(shape)
    packed = round(STEP * sum(len(row.ids) for row in rows) / len(rows) / MOST)
    changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": packed}
    # what SFTConfig turns on to save memory would make it slower here
    changes |= {"bf16": False, "gradient_checkpointing": False, "packing": True, "max_length": MOST}
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            build(shape), SFTConfig(**options(folder, **changes)), train_dataset=dataset_of(rows), processing_class=tokenizer()
        )
        run_trainer(trainer, turns, shape)


def run_trainer(trainer: Any, turns: Turns, shape: Shape) -> None:
    from transformers import PrinterCallback, TrainerCallback

    model = trainer.model
    seen: list[tuple[dict[str, Any], Any]] = []
    before: dict[str, Any] = {}

    def count(module: Any, positional: Any, named: dict[str, Any]) -> None:
        mask = named.get("attention_mask")
        turns.tokens += named["input_ids"].numel() if mask is None else int(mask.sum())

    def note(module: Any, positional: Any, named: dict[str, Any], output: Any) -> None:
        if turns.is_check:
            seen.append((named, output))

    class Turn(TrainerCallback):
        def begin(self, control: Any, is_going: bool) -> None:
            control.should_training_stop = not is_going
            if turns.is_check:
                before.update({name: p.detach().clone() for name, p in model.state_dict().items()})

        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self.begin(control, turns.begin())

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if turns.is_check:
                model.load_state_dict(before)
                example_mean, token_mean = reference_losses(model, shape, [row for named, _ in seen for row in rows_of(named)])
                turns.more = {"loss": loss_of(seen), "example mean": example_mean, "token mean": token_mean}
            self.begin(control, turns.step_done())

    model.register_forward_pre_hook(count, with_kwargs=True)
    model.register_forward_hook(note, with_kwargs=True)
    trainer.add_callback(Turn())
    trainer.remove_callback(PrinterCallback)
    turns.ready()
    trainer.train()


def rows_of(named: Mapping[str, Any]) -> list[Row]:
    """The examples of a micro-batch that a model was given, padded or packed."""
    ids, labels = named["input_ids"], named["labels"]
    if named.get("attention_mask") is not None:
        lengths = named["attention_mask"].sum(1).tolist()
        parts = [(i[:n], x[:n]) for i, x, n in zip(ids, labels, lengths, strict=True)]
    else:
        starts = [*(named["position_ids"][0] == 0).nonzero().flatten().tolist(), ids.shape[1]]
        parts = [(ids[0, a:b], labels[0, a:b]) for a, b in itertools.pairwise(starts)]
    return [Row(i.tolist(), int((x == -100).sum())) for i, x in parts]


def loss_of(seen: Sequence[tuple[Mapping[str, Any], Any]]) -> float:
    """What a trainer made of a step: its model's losses summed, or TRL's token losses over their number."""
    if not hasattr(seen[0][1], "log_probs"):
        return sum(output.loss.item() for _, output in seen)
    targets = sum(int(output.label_mask.sum()) for _, output in seen)
    return -sum(output.log_probs.sum().item() for _, output in seen) / targets


# --- the comparison ------------------------------------------------------------------------------------------------------------------------

SYSTEMS: dict[str, Callable[[Turns, Shape], None]] = {
    "mtcore": ours,
    "HF Trainer": lambda turns, shape: hf_trainer(turns, shape, "random"),
    "HF Trainer, group_by_length": lambda turns, shape: hf_trainer(turns, shape, "group_by_length"),
    "TRL SFTTrainer, packed": trl_packed,
    "body only": without_head,
}


def work(parent: Connection, system: str, shape: str) -> None:
    SYSTEMS[system](Turns(parent), SHAPES[shape])


def compare(name: str, repeats: int) -> dict[str, Any]:
    """Start all systems, let each take a step to warm up, then turns of some steps, one system after the other."""
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    processes = []
    for system in SYSTEMS:
        ends[system], child = context.Pipe()
        processes.append(context.Process(target=work, args=(child, system, name)))
        processes[-1].start()
        child.close()
    for end in ends.values():
        assert end.recv() == "ready"

    def turn(system: str, order: str, steps: int) -> Any:
        ends[system].send((order, steps))
        return ends[system].recv()

    for system in SYSTEMS:
        turn(system, "steps", 1)
    turns = [{system: turn(system, "steps", STEPS) for system in SYSTEMS} for _ in range(repeats)]
    memories = {system: turn(system, "memory", 0) for system in SYSTEMS}
    checks = {system: turn(system, "check", 1) for system in SYSTEMS if system != "body only"}
    for end in ends.values():
        end.send(("end", 0))
    for process in processes:
        process.join()
    return {"shape": name, "turns": turns, "memory": memories, "checks": checks}


def judged(found: dict[str, Any], clock: str) -> dict[str, Any]:
    """Rates and ratios: medians over turns, ratios within a turn."""
    turns = found["turns"]

    def median(of: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(of(turn) for turn in turns)

    def rate(turn: dict[str, Any], system: str) -> float:
        return float(turn[system]["tokens"] / turn[system][clock])

    peers = [system for system in SYSTEMS if system not in ("mtcore", "body only")]
    taken = {system: m["peak"] - m["at start"] for system, m in found["memory"].items()}
    best = max(peers, key=lambda system: median(lambda turn: rate(turn, system)))
    checks = found["checks"]
    return {
        "rates": {system: median(lambda turn, s=system: rate(turn, s)) for system in SYSTEMS},
        "× each": {system: median(lambda turn, s=system: rate(turn, "mtcore") / rate(turn, s)) for system in SYSTEMS},
        "best peer": best,
        "of the passes": median(lambda t: rate(t, "mtcore") * t["body only"][f"passes {clock}"] / t["body only"]["tokens"]),
        "of the floor": median(lambda t: t["mtcore"]["flops"] / t["mtcore"]["peak"] / t["mtcore"][clock]),
        "GFLOP/s": median(lambda t: t["mtcore"]["peak"]) / 1e9,
        "memory": taken,
        "memory of HF": taken["mtcore"] / taken["HF Trainer"],
        "differences": {
            system: abs(check["loss"] - check["example mean" if system == "mtcore" else "token mean"]) for system, check in checks.items()
        },
        "means differ": abs(checks["mtcore"]["example mean"] - checks["mtcore"]["token mean"]),
    }


def table(shape: Shape, name: str, found: dict[str, Any], verdict: dict[str, Any]) -> str:
    mib = {system: (verdict["memory"][system] / 2**20, m["peak"] / 2**20) for system, m in found["memory"].items()}
    rows = pool(shape)
    padded = float(np.mean([len(r.ids) for r in rows]))
    lines = [
        f"**{name}**: {shape.hidden} wide × {shape.layers}, vocabulary {shape.vocabulary:,}, {shape.tasks} tasks, examples of "
        f"{padded:.0f} tokens on average (at most {max(len(r.ids) for r in rows)}), micro-batches of {shape.batch_tokens} tokens at most",
        "",
        "| system | useful tokens/s | ours is × | memory taken in training (whole process) | loss against one by one |",
        "|---|---|---|---|---|",
    ]
    for system in SYSTEMS:
        check = f"{verdict['differences'][system]:.1e}" if system in verdict["differences"] else "–"
        lines.append(
            f"| {system} | {verdict['rates'][system]:,.0f} | {verdict['× each'][system]:.2f} "
            f"| {mib[system][0]:,.0f} MiB ({mib[system][1]:,.0f}) | {check} |"
        )
    ratios = verdict["× each"]
    goals = [
        ("HF Trainer's default", f"× {ratios['HF Trainer']:.1f}", "× 5", ratios["HF Trainer"] >= 5),
        (f"the best peer ({verdict['best peer']})", f"× {ratios[verdict['best peer']]:.2f}", "× 1.5", ratios[verdict["best peer"]] >= 1.5),
        ("memory of HF Trainer's default", f"{verdict['memory of HF']:.2f}", "0.33 at most", verdict["memory of HF"] <= 1 / 3),
        ("a body-only step", f"{ratios['body only']:.2f}", "0.85", ratios["body only"] >= 0.85),
        ("the body's passes alone, no optimizer", f"{verdict['of the passes']:.2f}", "0.85", verdict["of the passes"] >= 0.85),
        (f"the floor of FLOPs ({verdict['GFLOP/s']:.0f} GFLOP/s)", f"{verdict['of the floor']:.2f}", "–", True),
    ]
    lines += ["", "| ours against | measured | target |", "|---|---|---|"]
    lines += [f"| {what} | {measured} | {target}{'' if is_met else ': missed'} |" for what, measured, target, is_met in goals]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), action="append", help="only this one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: the processor's time, for a busy machine and one thread (OMP_NUM_THREADS=1)",
    )
    asked = parser.parse_args()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "accelerate")}
    rows = []
    for name in asked.shape or SHAPES:
        load, begun = os.getloadavg()[0], time.perf_counter()
        found = compare(name, asked.repeats)
        verdict = judged(found, asked.clock)
        rows.append({**found, "verdict": verdict, "load": [load, os.getloadavg()[0]], "seconds": time.perf_counter() - begun})
        print(table(SHAPES[name], name, found, verdict), flush=True)
        worst = max(verdict["differences"].values())
        print(f"\nLosses are equal to {worst:.1e}; the two means that trainers minimise differ by {verdict['means differ']:.1e} here.")
        print(
            f"{found['memory']['mtcore']['threads']} threads of {os.cpu_count()} cores, load {load:.1f} before and {os.getloadavg()[0]:.1f} "
            f"after, {asked.clock} time, medians of {asked.repeats} turns of {STEPS} steps of {STEP} examples, {rows[-1]['seconds']:.0f} s; "
            + ", ".join(f"{package} {version}" for package, version in versions.items())
            + "\n"
        )
        assert worst <= EQUAL, verdict["differences"]
    path = Path("runs/benchmarks/training.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
