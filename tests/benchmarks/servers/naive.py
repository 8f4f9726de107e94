"""A peer: FastAPI and transformers as a team writes it in an afternoon: a request's prompts are one padded batch, and that is all."""

import json
import sys
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, port = Path(sys.argv[1]), int(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tasks = {name: task["spec"] for name, task in json.loads((folder / "mtcore.json").read_text())["tasks"].items()}
answers = {name: [tokenizer.encode(word)[0] for word in spec["words"].values()] for name, spec in tasks.items()}
app = FastAPI()


class Question(BaseModel):
    documents: list[str]
    tasks: list[str]


@app.get("/health")
def health() -> str:
    return "ok"


@app.post("/predict")
def predict(question: Question) -> dict[str, dict[str, float]]:
    (document,) = question.documents
    prompts = [f"{document}\n{tasks[name]['instruction']}\nAnswer: " for name in question.tasks]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=1).logits[:, -1]
    result = {}
    for name, row in zip(question.tasks, logits, strict=True):
        probabilities = row[answers[name]].softmax(-1).tolist()
        result[name] = dict(zip(tasks[name]["words"], probabilities, strict=True))
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
