"""Texts to the 77 tokens that the text tower takes, as OpenCLIP makes them: cleaned, begun, ended, filled with id 0.

The filling is seen by the denoiser, so its id matters: tokenizers of the same vocabulary elsewhere fill with the end.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import ftfy
import regex  # type: ignore[import-untyped]
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from trainers.families.base import ModelError
from trainers.families.dynamicrafter.facts import TextFacts
from trainers.families.weights import FAILURES, unreadable

_MERGES = Path(__file__).with_name("clip_merges.txt.gz")
_START, _END = "<start_of_text>", "<end_of_text>"
_FILLING = 0
#: What is joined within itself only. Found by the library that OpenCLIP uses, for others see rare letters otherwise.
_WORDS = regex.compile(
    rf"{_START}|{_END}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)

#: Ids of a cleaned text, and those of the start and the end.
_Encoder = tuple[Callable[[str], list[int]], int, int]


def tokenize(texts: Sequence[str], folder: Path | None = None, facts: TextFacts | None = None) -> torch.Tensor:
    """Ids (b, 77) of texts. What is too long is cut, and still ends with the end.

    folder: a tokenizer of the base model's own, in transformers' form; None: CLIP's vocabulary. facts: the tower that
    takes them, 77 tokens of CLIP's vocabulary otherwise. ModelError where the two do not belong together.
    """
    facts = facts or TextFacts()
    encode, start, end = _own(folder) if folder is not None else _clip()
    rows = []
    for text in texts:
        ids = [start, *encode(cleaned(text)), end]
        if len(ids) > facts.context_length:
            ids = [*ids[: facts.context_length - 1], end]
        rows.append(ids + [_FILLING] * (facts.context_length - len(ids)))
    largest = max((max(row) for row in rows), default=0)
    if largest >= facts.vocab_size:
        raise ModelError(
            f"the text tower knows {facts.vocab_size} tokens, but {folder or 'CLIP'}'s tokenizer gives number "
            f"{largest}; put the tokenizer of this model into tokenizer/ beside its weights"
        )
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), facts.context_length)


def cleaned(text: str) -> str:
    """A text with broken characters mended, HTML's entities resolved, single spaces and small letters."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


@lru_cache(maxsize=1)
def _clip() -> _Encoder:
    """CLIP's own vocabulary: bytes, bytes that end a word, what pairs join to, start and end."""
    with gzip.open(_MERGES, "rt", encoding="utf-8") as lines:
        merges = [(left, right) for left, right in (line.split() for line in lines)]
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges)]
    vocabulary = {token: number for number, token in enumerate([*tokens, _START, _END])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens([_START, _END])

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(_WORDS.findall(text), is_pretokenized=True).ids)

    return encode, vocabulary[_START], vocabulary[_END]


@lru_cache(maxsize=8)
def _own(folder: Path) -> _Encoder:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        start, end = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)
    except FAILURES as error:
        raise unreadable(f"the tokenizer in {folder}", (), error) from error
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]), start, end
