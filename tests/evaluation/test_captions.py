"""Scores of captions and answers against plain statements of their papers, and texts from a tiny model."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pictures import git_processor, write_pictures
from tiny_vision_language import VISION_LANGUAGE

import fas
from fas.data.image_text import load_pictures
from fas.errors import DataError
from fas.evaluation.captions import answer_scores, asked, caption_scores, describe, prompt_length, score_pictures, words

TEXTS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=7).map(" ".join)
CORPUS = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=2, max_size=6)


def grams(text, n):
    tokens = text.split()
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def cider_d(said, references):
    """CIDEr-D as Vedantam et al. write it: tf-idf vectors of n-grams, clipped, with a penalty of length."""
    total = 0.0
    for text, texts in zip(said, references, strict=True):
        for n in range(1, 5):
            seen = Counter()
            for others in references:
                seen.update(set().union(*(grams(other, n) for other in others)))

            def vector(of, n=n, seen=seen):
                return {g: c * (math.log(len(said)) - math.log(max(1, seen[g]))) for g, c in grams(of, n).items()}

            ours = vector(text)
            for reference in texts:
                theirs = vector(reference)
                product = sum(min(x, theirs.get(g, 0.0)) * theirs.get(g, 0.0) for g, x in ours.items())
                norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
                # The code of the authors counts pairs of words for the length.
                gap = max(len(text.split()) - 1, 0) - max(len(reference.split()) - 1, 0)
                similarity = product / norms if norms else product
                total += 10 * similarity * math.exp(-(gap**2) / (2 * 6.0**2)) / (4 * len(texts))
    return total / len(said)


def bleu(said, references):
    """BLEU as Papineni et al. write it, where every precision is positive."""
    logs, ours, theirs = [], 0, 0
    for text, texts in zip(said, references, strict=True):
        ours += len(text.split())
        theirs += min((abs(len(t.split()) - len(text.split())), len(t.split())) for t in texts)[1]
    for n in range(1, 5):
        hits = total = 0
        for text, texts in zip(said, references, strict=True):
            most = Counter()
            for other in texts:
                most |= grams(other, n)
            hits += sum((grams(text, n) & most).values())
            total += sum(grams(text, n).values())
        if not hits:
            return None
        logs.append(math.log(hits / total))
    return 100 * min(1.0, math.exp(1 - theirs / ours)) * math.exp(sum(logs) / 4)


@settings(max_examples=60)
@given(CORPUS)
def test_cider_and_bleu_are_those_of_the_papers(corpus):
    said, references = [text for text, _ in corpus], [texts for _, texts in corpus]
    scores = caption_scores(said, references)
    # Float64 on both sides, other orders of sums.
    assert scores["cider"] == pytest.approx(cider_d(said, references), abs=1e-9)
    expected = bleu(said, references)
    # Without a match of some length sacrebleu smooths, which the paper does not.
    if expected is not None:
        assert scores["bleu"] == pytest.approx(expected, rel=1e-9)
    assert scores["exact_match"] == sum(text in texts for text, texts in corpus) / len(corpus)


def test_a_caption_that_is_right_scores_most():
    references = [["a dog on the left side"], ["a cat on the right side"]]
    scores = caption_scores(["A dog, on the left side.", "a cat on the right side"], references)
    assert scores["cider"] == pytest.approx(10) and scores["bleu"] == pytest.approx(100)
    assert scores["exact_match"] == 1


def test_words():
    assert words("A man's “well-known” dog; two.") == "a man's well-known dog two"


def test_answers():
    assert answer_scores(["the Dog.", "cat", ""], [["a dog"], ["dog", "cat"], ["no"]]) == {"exact_match": 2 / 3}


def test_the_accuracy_of_vqa():
    # Antol et al.: leaving one of ten people out, three of the nine must agree.
    for agree, expected in ((10, 1.0), (4, 1.0), (3, (7 * 1 + 3 * 2 / 3) / 10), (1, (9 / 3 + 0) / 10), (0, 0.0)):
        people = ["yes"] * agree + [f"other {i}" for i in range(10 - agree)]
        assert answer_scores(["yes"], [people])["vqa_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("score", [caption_scores, answer_scores])
def test_what_cannot_be_scored(score):
    with pytest.raises(DataError, match="at least one"):
        score([], [])
    with pytest.raises(DataError, match="image 0 has no references"):
        score(["a"], [[]])


def test_what_is_said_to_the_model():
    assert asked("describe", None) == "describe"
    assert asked("", "what ?") == "what ?"
    assert asked("Answer:", "what ?") == "Answer: what ?"
    assert asked("Q: {} A:", "what ?") == "Q: what ? A:"


def test_the_prompt_in_what_is_generated():
    ids = torch.tensor([1, 5, 6, 7])
    assert prompt_length(ids, torch.tensor([1, 5])) == 2
    assert prompt_length(ids, torch.tensor([1, 5, 2])) == 2
    assert prompt_length(ids, torch.tensor([9])) == 0
    assert prompt_length(ids, torch.tensor([1, 9, 9])) == 1


@pytest.fixture(scope="module")
def git():
    return VISION_LANGUAGE["git"].build()


def test_texts_do_not_depend_on_the_batch(tmp_path, git):
    git.train()
    pictures = load_pictures(write_pictures(tmp_path)[1])
    processor, seen = git_processor(), []
    options = {"max_new_tokens": 5, "prompt": "a {}"}
    together = describe(git, processor, pictures, batch_size=3, progress=lambda *x: seen.append(x), **options)
    assert together == describe(git, processor, pictures, batch_size=1, **options)
    assert seen == [("describing images", 3, 3)] and git.training
    assert not any("what is this" in text for text in together)
    git.eval()


def test_images_are_opened_as_they_are_needed(tmp_path, git):
    opened, largest = [], []

    class Counting:
        def __init__(self, picture):
            self.picture, self.question = picture, picture.question

        def opened(self):
            opened.append(self)
            return self.picture.opened()

    pictures = [Counting(picture) for picture in load_pictures(write_pictures(tmp_path)[0]) * 3]
    describe(
        git, git_processor(), pictures, max_new_tokens=1, batch_size=2,
        progress=lambda _, done, total: largest.append((len(opened) - done, done, total)),
    )  # fmt: skip
    assert largest == [(0, 2, 9), (0, 4, 9), (0, 6, 9), (0, 8, 9), (0, 9, 9)]


def test_scores_of_a_converted_model(tmp_path):
    captions, questions = (load_pictures(file) for file in write_pictures(tmp_path))
    family = VISION_LANGUAGE["git"]
    model = fas.convert(family.build(), fas.FAS(timesteps=4), calibration=[family.batch()])
    options = {"max_new_tokens": 3}
    assert set(score_pictures(model, git_processor(), captions, **options)) == {"cider", "bleu", "exact_match"}
    assert set(score_pictures(model, git_processor(), questions, **options)) == {"exact_match"}
    with pytest.raises(DataError, match="some pictures have a question"):
        score_pictures(model, git_processor(), captions + questions)
    with pytest.raises(DataError, match="no pictures"):
        describe(model, git_processor(), [])


def test_a_model_that_writes_nothing(tmp_path):
    pictures = load_pictures(write_pictures(tmp_path)[0])
    with pytest.raises(ValueError, match="CLIPModel does not generate text"):
        describe(VISION_LANGUAGE["clip"].build(), git_processor(), pictures)
