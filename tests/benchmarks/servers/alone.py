"""The model without a server: seconds that encoding and answering take, one request at a time and in batches. Prints JSON."""

import json
import math
import statistics
import sys
import time
from itertools import islice
from pathlib import Path

import torch

from mtcore.cli.common import load_registry
from mtcore.opening import open_bundle
from mtcore.types import Request

TIMES = 24
"""Requests that are timed for each size of batch."""


def main() -> None:
    torch.set_num_threads(1)
    predictor = open_bundle(Path(sys.argv[1]), load_registry()).predictor
    fields = {field for spec in predictor.tasks.values() for field in spec.fields}
    asked = [Request(dict.fromkeys(fields, text), tuple(predictor.tasks)) for text in json.loads(Path(sys.argv[2]).read_text())]
    predictor.predict([predictor.prepare(asked[0])])
    predictor.warm_up()
    rows, fresh = {}, iter(asked)  # no document twice: the predictor remembers those that it has read
    for size in (1, 4, 16):
        prepares, predicts = [], []
        for _ in range(math.ceil(TIMES / size)):
            requests = list(islice(fresh, size))
            begun = time.perf_counter()
            prepared = [predictor.prepare(request) for request in requests]
            middle = time.perf_counter()
            predictor.predict(prepared)
            prepares.append((middle - begun) / len(prepared))
            predicts.append((time.perf_counter() - middle) / len(prepared))
        rows[size] = {"prepare": statistics.median(prepares), "predict": statistics.median(predicts)}
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
