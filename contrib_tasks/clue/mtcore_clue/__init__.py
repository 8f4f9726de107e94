"""The six classification tasks of the CLUE benchmark: CWSC, TNEWS, IFLYTEK, CSL, AFQMC and OCNLI."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from mtcore.contracts import TaskAdapter
from mtcore.data.sources import HubSource, RawRow, task_rows
from mtcore.hookspecs import hookimpl
from mtcore.types import TaskSpec
from mtcore_clue.labels import IFLYTEK_WORDS, TNEWS_WORDS

NO_YES = {"0": "否", "1": "是"}
RESEARCH_USE = "none stated; released by CLUE for research use"


class ClueTask(TaskAdapter):
    """What the six tasks share: where rows are, and a label in the field `label`."""

    hub_config: ClassVar[str]

    def rows(self, split: str) -> Iterable[RawRow]:
        if split == "test" and self.data is None:
            return ()  # CLUE keeps the labels of its test rows: the Hub has only -1 there
        return task_rows(self.data, f"clue/{self.spec.name}", split, HubSource("clue/clue", self.hub_config))

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, str]:
        return {name: row[name] for name in self.spec.fields}

    def answer(self, row: Mapping[str, Any]) -> str:
        label = row["label"]
        if isinstance(label, str):
            return label
        if isinstance(label, int) and not isinstance(label, bool):
            return str(label)
        raise TypeError(f"label is {label!r}, neither text nor a whole number")


class Cwsc(ClueTask):
    hub_config = "cluewsc2020"
    spec = TaskSpec(
        name="cwsc",
        output="binary",
        input="single-sentence",
        fields=("text", "span1", "span2"),
        document_fields=("text",),
        instruction="判断句子中的代词是否指该名词。",
        template="句子：{text}\n名词：{span1}\n代词：{span2}\n答案：",
        words={"false": "否", "true": "是"},
        metric="accuracy",
        licence=RESEARCH_USE,
        source="CLUE, CLUEWSC2020 (Hub: clue/clue cluewsc2020; copy: github.com/taishan1994/pytorch_bert_coreference_resolution)",
    )

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, str]:
        return {"text": row["text"], "span1": row["target"]["span1_text"], "span2": row["target"]["span2_text"]}


class Tnews(ClueTask):
    hub_config = "tnews"
    spec = TaskSpec(
        name="tnews",
        output="multi-class",
        input="single-sentence",
        fields=("sentence",),
        instruction="判断新闻标题的类别。",
        template="标题：{sentence}\n答案：",
        words=TNEWS_WORDS,
        metric="accuracy",
        licence=RESEARCH_USE,
        source="CLUE, TNEWS: headlines (Hub: clue/clue tnews; copy: github.com/liaoyanqing666/TextCNN-Chinese-text-data-mining-)",
    )


class Iflytek(ClueTask):
    hub_config = "iflytek"
    spec = TaskSpec(
        name="iflytek",
        output="multi-class",
        input="single-sentence",
        fields=("sentence",),
        instruction="判断应用简介的类别。",
        template="简介：{sentence}\n答案：",
        words=IFLYTEK_WORDS,
        metric="accuracy",
        licence=RESEARCH_USE,
        source="CLUE, IFLYTEK: descriptions of apps (Hub: clue/clue iflytek; copies: github.com/CLUEbenchmark FewCLUE, DataCLUE)",
    )


class Csl(ClueTask):
    hub_config = "csl"
    spec = TaskSpec(
        name="csl",
        output="binary",
        input="sentence-pair",
        fields=("abst", "keyword"),
        document_fields=("abst",),
        instruction="判断这些词是否都是该摘要的关键词。",
        template="摘要：{abst}\n关键词：{keyword}\n答案：",
        words=NO_YES,
        metric="accuracy",
        licence=RESEARCH_USE,
        source="CLUE, CSL: abstracts of Chinese papers (Hub: clue/clue csl; copy: github.com/zst555157/zst-lib)",
    )

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, str]:
        keywords = row["keyword"]
        if not isinstance(keywords, list):
            raise TypeError(f"keyword is {keywords!r}, not a list")
        return {"abst": row["abst"], "keyword": "、".join(keywords)}


class Afqmc(ClueTask):
    hub_config = "afqmc"
    spec = TaskSpec(
        name="afqmc",
        output="binary",
        input="sentence-pair",
        fields=("sentence1", "sentence2"),
        instruction="判断两个句子的意思是否相同。",
        template="句子1：{sentence1}\n句子2：{sentence2}\n答案：",
        words=NO_YES,
        metric="accuracy",
        licence=RESEARCH_USE,
        source="CLUE, AFQMC: Ant Financial's question matching (Hub: clue/clue afqmc; copy: github.com/LeslieOverfitting/nlp_AFQMC)",
    )


class Ocnli(ClueTask):
    hub_config = "ocnli"
    spec = TaskSpec(
        name="ocnli",
        output="multi-class",
        input="sentence-pair",
        fields=("sentence1", "sentence2"),
        document_fields=("sentence1",),
        instruction="判断前提与假设的关系：蕴含、中立或矛盾。",
        template="前提：{sentence1}\n假设：{sentence2}\n答案：",
        words={"entailment": "蕴含", "neutral": "中立", "contradiction": "矛盾"},
        metric="accuracy",
        licence="CC BY-NC 2.0",
        source="CLUE, OCNLI: github.com/CLUEbenchmark/OCNLI (Hub: clue/clue ocnli; copy: github.com/shs910/Transfer-learning)",
    )


@hookimpl
def register_tasks() -> list[type[TaskAdapter]]:
    return [Cwsc, Tnews, Iflytek, Csl, Afqmc, Ocnli]
