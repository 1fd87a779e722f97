"""Semantic search over a file of vectors: the texts whose vectors point where the words' vector points.

    python examples/search.py "send http requests" "plot charts"

The words are embedded by the running server (EMBEDMILL_URL and EMBEDMILL_API_KEY, else what `embedmill up` left in
.embedmill), which must be the one that made the vectors: vectors of two models have nothing to do with each other.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from openai import OpenAI
from rich.console import Console
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).resolve().parent
MODEL = "local/wordllama-256"


@dataclass(frozen=True)
class Found:
    """A text, and how near it is: the cosine, 1.0 for the same direction."""

    score: float
    name: str
    text: str


class TextIndex:
    """Texts and their vectors, held in memory: row i of the one belongs to line i of the other."""

    def __init__(self, texts_file: Path, vectors_file: Path) -> None:
        with gzip.open(texts_file, "rt", encoding="utf-8", newline="\n") as file:
            self.rows = [json.loads(line) for line in file]
        vectors: npt.NDArray[np.float32] = np.load(vectors_file)
        if len(vectors) != len(self.rows):
            raise ValueError(f"{vectors_file} has {len(vectors)} rows for the {len(self.rows)} texts in {texts_file}")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors = np.nan_to_num(vectors / lengths)  # a text that failed is a row of NaN: it is near to nothing

    def search(self, vector: npt.NDArray[np.float32], count: int = 5) -> list[Found]:
        """The nearest texts, best first."""
        scores = self.vectors @ (vector / np.linalg.norm(vector))
        best = np.argsort(scores)[::-1][:count]
        return [Found(float(scores[i]), self.rows[i].get("id", ""), self.rows[i]["text"]) for i in best]


def embed_words(client: OpenAI, words: list[str], model: str = MODEL) -> npt.NDArray[np.float32]:
    """One vector per query, by one sync call through the official client."""
    reply = client.embeddings.create(model=model, input=words)
    return np.array([item.embedding for item in reply.data], dtype=np.float32)


def print_found(console: Console, words: str, found: list[Found]) -> None:
    table = Table(title=f"“{words}”", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("near", justify="right", no_wrap=True, width=4)
    table.add_column("package", style="cyan", no_wrap=True, min_width=20)
    table.add_column("summary", overflow="ellipsis", no_wrap=True, max_width=50)
    for each in found:
        table.add_row(f"{each.score:.2f}", Text(each.name), Text(each.text))
    console.print(table)
    console.print()


def main() -> None:
    parser = argparse.ArgumentParser(description="Search a file of vectors by meaning.")
    parser.add_argument("words", nargs="+", help="one query each; quote them")
    parser.add_argument("--texts", type=Path, default=HERE / "texts.jsonl.gz")
    parser.add_argument("--vectors", type=Path, default=HERE / "out" / "vectors.npy")
    parser.add_argument("--model", default=MODEL, help=f"the model that made the vectors (default: {MODEL})")
    parser.add_argument("--count", type=int, default=5)
    given = parser.parse_args()

    data_dir = Path(os.environ.get("EMBEDMILL_DATA_DIR", ".embedmill"))
    try:
        url = os.environ.get("EMBEDMILL_URL") or (data_dir / "url").read_text().strip()
        key = os.environ.get("EMBEDMILL_API_KEY") or (data_dir / "key").read_text().strip()
        index = TextIndex(given.texts, given.vectors)
    except FileNotFoundError as missing:
        parser.error(f"{missing.filename} is not there: `make up` starts a server, `make demo` makes the vectors")
    vectors = embed_words(OpenAI(base_url=f"{url}/v1", api_key=key), given.words, given.model)
    for words, vector in zip(given.words, vectors, strict=True):
        print_found(Console(), words, index.search(vector, given.count))


if __name__ == "__main__":
    main()
