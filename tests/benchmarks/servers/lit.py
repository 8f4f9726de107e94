"""A peer: LitServe over the function that our server calls, which answers many requests in one forward pass."""

import sys
from pathlib import Path
from typing import Any

import litserve


class Tasks(litserve.LitAPI):
    """Requests are encoded and answered by the bundle's own predictor; LitServe gathers them into batches."""

    def __init__(self, folder: Path, max_batch_size: int, batch_timeout: float) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_timeout)
        self.folder = folder

    def setup(self, device: str) -> None:
        import torch

        from mtcore.cli.common import load_registry
        from mtcore.opening import open_bundle

        torch.set_num_threads(1)
        self.predictor = open_bundle(self.folder, load_registry()).predictor
        self.predictor.warm_up()

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # an annotation would be what LitServe reads from the query
        from mtcore.types import Request

        (text,) = request["documents"]
        fields = {field: text for name in request["tasks"] for field in self.predictor.tasks[name].fields}
        return self.predictor.prepare(Request(fields, tuple(request["tasks"])))

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, x: Any) -> Any:
        return self.predictor.predict(x) if isinstance(x, list) else self.predictor.predict([x])[0]

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> Any:
        return {name: dict(prediction.probabilities) for name, prediction in output.items()}


if __name__ == "__main__":
    size, timeout = int(sys.argv[3]), float(sys.argv[4])
    server = litserve.LitServer(Tasks(Path(sys.argv[1]), size, timeout), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False, log_level="warning")
