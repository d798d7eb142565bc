"""What a model says about pictures, scored against what people say: captions and answers to questions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fas.data.image_text import Picture, model_inputs, picture_batches
from fas.errors import DataError, MissingExtraError
from fas.types import Progress

_ARTICLES = frozenset(("a", "an", "the"))
# Answers of as many people make VQA's accuracy: three of the others agree, or fewer in proportion.
_AGREEING = 3


def score_pictures(model: Any, processor: Any, pictures: Sequence[Picture], **options: Any) -> dict[str, float]:
    """Let a model describe pictures, or answer the questions that come with them, and score what it says.

    Returns:
        See ``caption_scores`` and ``answer_scores``.

    Raises:
        DataError: no pictures, some with a question and some without, or images that cannot be read.
        MissingExtraError: a library of the scores is not installed.
        ValueError: a model that generates no text.
    """
    if len({picture.question is None for picture in pictures}) > 1:
        raise DataError("some pictures have a question and some have none: score captions and answers one by one")
    said = describe(model, processor, pictures, **options)
    references = [picture.references for picture in pictures]
    return caption_scores(said, references) if pictures[0].question is None else answer_scores(said, references)


@torch.no_grad()
def describe(
    model: Any,
    processor: Any,
    pictures: Sequence[Picture],
    *,
    prompt: str = "",
    max_new_tokens: int = 32,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[str]:
    """Return what a model says about each picture, by the likeliest token at every place.

    Raises:
        DataError: no pictures, or images that cannot be read.
        ValueError: a model that generates no text.
    """
    if not pictures:
        raise DataError("no pictures: expected at least one")
    if not hasattr(model, "generate"):
        raise ValueError(f"{type(model).__name__} does not generate text: take a model that writes about images")
    # One by one, as batches ask for them: a few hundred images are as large as a model.
    rows = (model_inputs(model, processor, picture.opened(), asked(prompt, picture.question)) for picture in pictures)
    said, done, training = [""] * len(pictures), 0, model.training
    model.eval()
    try:
        for places, inputs in picture_batches(rows, batch_size):
            inputs = {name: x.to(model.device) for name, x in inputs.items()}
            # BLIP writes into the ids that it is given.
            before = inputs["input_ids"].clone()
            ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            new = [row[prompt_length(row, start) :] for row, start in zip(ids, before, strict=True)]
            for place, text in zip(places, processor.batch_decode(new, skip_special_tokens=True), strict=True):
                said[place] = text.strip()
            done += len(places)
            if progress is not None:
                progress("describing images", done, len(pictures))
    finally:
        model.train(training)
    return said


def asked(prompt: str, question: str | None) -> str:
    """Return what is said to the model: the prompt with the question in the place of ``{}``, or alone."""
    if question is None:
        return prompt
    return prompt.replace("{}", question) if "{}" in prompt else f"{prompt} {question}".strip()


def prompt_length(ids: Tensor, prompt: Tensor) -> int:
    """Return how many of the generated ids [n] repeat the prompt [m]; BLIP leaves out its end, others give none."""
    shared = min(len(ids), len(prompt))
    different = (ids[:shared] != prompt[:shared]).nonzero()
    return int(different[0]) if len(different) else shared


def words(text: str) -> str:
    """Return lower-case words without punctuation, parted by single spaces.

    Deviation: the COCO caption evaluation splits words by Stanford CoreNLP (Java), which differs on words like "don't".
    """
    return " ".join(re.findall(r"\w+(?:['’-]\w+)*", text.lower()))


def caption_scores(said: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score captions.

    Returns:
        ``cider`` (Vedantam et al. 2015, arXiv 1411.5726: the variant CIDEr-D of the COCO evaluation, pycocoevalcap;
        0 to 10), ``bleu`` (Papineni et al. 2002, up to four words; sacrebleu, 0 to 100) and ``exact_match``, the share
        of captions whose words are those of a reference (0 to 1). CIDEr weighs words by how few images they belong
        to, so that it is meaningful for many images only; of one image it is 0.

    Raises:
        DataError: no captions, or an image without references.
        MissingExtraError: sacrebleu or pycocoevalcap is not installed.
    """
    _check(said, references)
    try:
        from pycocoevalcap.cider.cider import Cider  # type: ignore[import-not-found,import-untyped,unused-ignore]
        from sacrebleu import corpus_bleu
    except ImportError as error:
        raise MissingExtraError(f"scores of captions need {error.name}: pip install 'fas[vision]'") from error
    ours = [words(text) for text in said]
    theirs = [[words(text) for text in texts] for texts in references]
    cider, _ = Cider().compute_score(dict(enumerate(theirs)), {i: [text] for i, text in enumerate(ours)})
    # Where an image has fewer captions than others, sacrebleu takes None.
    streams: Any = [
        [texts[k] if k < len(texts) else None for texts in theirs] for k in range(max(len(texts) for texts in theirs))
    ]
    return {
        "cider": float(cider),
        "bleu": float(corpus_bleu(ours, streams, tokenize="none", force=True).score),
        "exact_match": sum(text in texts for text, texts in zip(ours, theirs, strict=True)) / len(ours),
    }


def answer_scores(said: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score answers to questions.

    Returns:
        ``exact_match``, the share of answers whose words, articles apart, are those of a reference; where every
        question has answers of more than three people, ``vqa_accuracy`` as well (Antol et al. 2015, arXiv 1505.00468:
        an answer counts in full if three of the others gave it, averaged over whom one leaves out), in [0, 1].

    Raises:
        DataError: no answers, or a question without references.
    """
    _check(said, references)
    ours = [_answer(text) for text in said]
    theirs = [[_answer(text) for text in texts] for texts in references]
    scores = {"exact_match": sum(text in texts for text, texts in zip(ours, theirs, strict=True)) / len(ours)}
    if all(len(texts) > _AGREEING for texts in theirs):
        shares = [_accuracy(text, texts) for text, texts in zip(ours, theirs, strict=True)]
        scores["vqa_accuracy"] = sum(shares) / len(shares)
    return scores


def _answer(text: str) -> str:
    return " ".join(word for word in words(text).split() if word not in _ARTICLES)


def _accuracy(said: str, answers: Sequence[str]) -> float:
    same = answers.count(said)
    # One of those who agree, or one of the others, is left out.
    shares = [min(1.0, (same - (answer == said)) / _AGREEING) for answer in answers]
    return sum(shares) / len(shares)


def _check(said: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not said or len(said) != len(references):
        raise DataError(f"{len(said)} texts and references for {len(references)}: expected as many, at least one")
    empty = next((i for i, texts in enumerate(references) if not texts), None)
    if empty is not None:
        raise DataError(f"image {empty} has no references: expected at least one")
