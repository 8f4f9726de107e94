"""On a GPU, many tasks of one document are scored in one pass as each by itself, and as much faster as the document is shared."""

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mtcore.inference.cache import PrefixCache
from mtcore.inference.costs import measured
from mtcore.inference.scoring import Query, score_labels
from mtcore.inference.trie import build_trie
from mtcore.modeling.flops import model_size
from mtcore.training.flops import peak

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)), reason="needs a GPU with bf16 units"
)
BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "bench_tasks.py"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.15}
"""Of log-probabilities: bf16 keeps 8 bits, and sums in another order round otherwise."""
WARM_UP, TURNS = 3, 10


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_tasks", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_tasks"] = module
    spec.loader.exec_module(module)
    return module


def device():
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_tasks_of_one_document_score_as_each_by_itself(bench, dtype):
    ours, peer = bench.build(device(), dtype)
    asked = bench.queries(256, 20)
    for one, other in zip(score_labels(ours, asked, 8192, measured(ours, model_size(ours))), bench.batched(peer, asked), strict=True):
        assert np.abs(one - other).max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_tries_and_documents_that_were_read_before_score_as_labels_alone(bench, dtype):
    ours, peer = bench.build(device(), dtype, hidden=256, layers=2)
    random, texts = np.random.default_rng(0), PrefixCache(1000)
    document = random.integers(1, 1000, 100)
    paths = {"a": (3, 4), "b": (3, 5, 6), "c": (7,), "d": (8, 9, 10, 11)}
    asked = [Query(np.concatenate([document, random.integers(1, 1000, 9)]).astype(np.int32), build_trie(paths, 0), 100) for _ in range(4)]
    expected = [[alone(peer, query.prompt, path) for path in paths.values()] for query in asked]
    for _ in range(2):  # the second time over the document that the first has read
        found = score_labels(ours, asked, 8192, texts=texts)
        assert np.abs(np.array(found) - np.array(expected)).max() <= TOLERANCE[dtype]
        assert texts.held == 100


@torch.no_grad()
def alone(model, prompt, path):
    ids = torch.tensor([[*prompt.tolist(), *path]], device=model.device)
    logs = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    return sum(logs[len(prompt) + k - 1, token].item() for k, token in enumerate(path))


def test_fifty_tasks_of_a_document_take_an_eighth_of_scoring_each_and_half_of_what_the_gpu_can_do(bench):
    ours, peer = bench.build(device(), torch.bfloat16, hidden=2048, layers=16)
    asked, size = bench.queries(512, 50), model_size(ours)
    tree, batched = (best(work) for work in (lambda: score_labels(ours, asked, 8192), lambda: bench.batched(peer, asked)))
    assert batched / tree >= 8, f"{batched / tree:.1f} times"
    utilisation = sum(bench.flops_of(asked, size)) / tree / peak(device(), "bf16", size).flops_per_second
    assert utilisation >= 0.5, f"{utilisation:.2f}"


def best(work):
    times = []
    for _ in range(WARM_UP + TURNS):
        begun = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times[WARM_UP:])
