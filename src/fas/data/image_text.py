"""Pictures with captions or questions, as a processor of images and text makes them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fas.data.images import open_image
from fas.data.table import hub_rows, read_records
from fas.errors import DataError

# Names of columns here and in data sets of the hub (Flickr30k, COCO, VQAv2).
_CAPTIONS = ("captions", "caption", "sentences")
_ANSWERS = ("answers", "answer", "multiple_choice_answer")

# Batches of images that wait for others of their shape.
_WAITING = 8


@dataclass(frozen=True)
class Picture:
    """One image with what people say about it.

    Attributes:
        image: a file, or an image of Pillow.
        references: captions; answers where there is a question.
        question: None for a captioned image.
    """

    image: Any
    references: tuple[str, ...]
    question: str | None = None

    def opened(self) -> Any:
        """Return the image of Pillow, in red, green and blue.

        Raises:
            DataError: a file that is missing or no image.
        """
        return open_image(self.image) if isinstance(self.image, Path) else self.image.convert("RGB")


def load_pictures(source: str | Path, *, images: Path | None = None, split: str = "test") -> list[Picture]:
    """Load captioned pictures, or pictures with questions.

    - a .jsonl file: rows with ``image`` (a file name) and ``captions``, or ``question`` and ``answers``; one string
      or a list of them.
    - ``name`` or ``name:config``: a data set of the hub with these columns, its images among them.

    Args:
        source: what to load.
        images: folder that file names are relative to; that of the jsonl file if None.
        split: of a hub data set.

    Raises:
        DataError: nothing there, or a row without image or references.
        MissingExtraError: a hub data set without the datasets library.
    """
    path = Path(source)
    if path.is_file():
        folder = path.parent if images is None else images
        records = read_records(path)
        for record in records:
            name = record.get("image")
            record["image"] = folder / name if isinstance(name, str) else None
    elif path.is_dir() or path.suffix:
        raise DataError(f"{path} is not a jsonl file: expected rows with image and captions, or question and answers")
    else:
        records = hub_rows(str(source), split)
    return [_picture(f"{source}, row {i}", record) for i, record in enumerate(records, 1)]


def _picture(where: str, record: Mapping[str, Any]) -> Picture:
    question = record.get("question")
    columns = _CAPTIONS if question is None else _ANSWERS
    found = next((record[name] for name in columns if record.get(name) is not None), None)
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not texts or record.get("image") is None:
        raise DataError(
            f"{where} has columns {list(record)}: expected image, and {columns[0]} (a string, or a list of them)"
            + ("; with question it takes answers" if question is None else "")
        )
    # VQAv2 lists answers with who gave them.
    plain = [text.get("answer") if isinstance(text, Mapping) else text for text in texts]
    references = tuple(text for text in plain if isinstance(text, str))
    if len(references) < len(plain):
        raise DataError(f"{where} has {columns[0]} {found!r}: expected a string, or a list of them")
    return Picture(record["image"], references, question)


def model_inputs(model: Any, processor: Any, image: Any, prompt: str, answer: str | None = None) -> dict[str, Tensor]:
    """Return the inputs of a model for one image, as they are in the midst of an answer or in front of it.

    A chat model gets one turn of its template. Otherwise the processor's placeholder of an image stands in front of
    the prompt, unless it is there already or the model needs none.

    Args:
        model: reads images and text.
        processor: its processor.
        image: of Pillow.
        prompt: what is said to the model; may be empty.
        answer: what it says, for calibration; None where it is to be generated.
    """
    mark = getattr(processor, "image_token", None)
    if getattr(processor, "chat_template", None):
        turn = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)
        between = ""
    else:
        text = f"{mark}{prompt}" if mark is not None and mark not in prompt else prompt
        between = " " if text else ""
    named: dict[str, Tensor] = {}
    if answer is not None:
        if "decoder_input_ids" in inspect.signature(model.forward).parameters:
            named["decoder_input_ids"] = processor.tokenizer(answer, return_tensors="pt")["input_ids"]
        else:
            text = f"{text}{between}{answer}"
    made = processor(images=[image], text=[text], return_tensors="pt")
    return {**made, **named}


def picture_batches(
    rows: Iterable[Mapping[str, Tensor]], batch_size: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Join inputs of equal shapes into batches: nothing is padded.

    Rows are taken as needed, and at most eight batches of them wait; then the commonest shape goes as a smaller batch.

    Yields:
        The places of the rows, and their joint inputs.

    Raises:
        ValueError: ``batch_size`` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; a batch has at least 1 image")
    waiting: dict[Any, list[tuple[int, Mapping[str, Tensor]]]] = {}
    for i, row in enumerate(rows):
        shape = tuple((name, tuple(x.shape)) for name, x in row.items())
        waiting.setdefault(shape, []).append((i, row))
        if len(waiting[shape]) == batch_size:
            yield _joined(waiting.pop(shape))
        elif sum(map(len, waiting.values())) >= _WAITING * batch_size:
            yield _joined(waiting.pop(max(waiting, key=lambda known: len(waiting[known]))))
    for alike in waiting.values():
        yield _joined(alike)


def _joined(rows: Sequence[tuple[int, Mapping[str, Tensor]]]) -> tuple[list[int], dict[str, Tensor]]:
    inputs = {name: torch.cat([row[name] for _, row in rows]) for name in rows[0][1]}
    return [place for place, _ in rows], inputs
