"""Pictures with captions and questions: rows, what is refused, and the inputs that processors make of them."""

import json

import pytest
import torch
from tiny_pictures import git_processor, llava_processor, write_pictures
from tiny_vision_language import IMAGE, VISION_LANGUAGE

from fas.data.image_text import load_pictures, model_inputs, picture_batches
from fas.data.images import open_image
from fas.errors import DataError


def test_captions_and_questions(tmp_path):
    captions, questions = write_pictures(tmp_path)
    pictures = load_pictures(captions)
    assert [picture.references for picture in pictures] == [
        ("a red square",), ("a green square",), ("a blue square",),
    ]  # fmt: skip
    assert pictures[0].question is None and pictures[0].opened().size == (20, 16)
    assert pictures[2].opened().getpixel((3, 3)) == (10, 10, 250)
    asked = load_pictures(questions)
    assert [(picture.question, picture.references) for picture in asked][:1] == [("what is this ?", ("red",))]


def test_images_of_another_folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    captions, _ = write_pictures(tmp_path / "pictures")
    rows = captions.rename(tmp_path / "rows.jsonl")
    assert load_pictures(rows, images=tmp_path / "pictures")[0].opened().size == (20, 16)
    with pytest.raises(DataError, match=r"no image .*red\.png"):
        load_pictures(rows)[0].opened()


def test_columns_of_the_hub(tmp_path):
    file = tmp_path / "vqa.jsonl"
    answers = [{"answer": "yes", "answer_id": 1}, {"answer": "no", "answer_id": 2}]
    file.write_text(json.dumps({"image": "a.png", "question": "is it ?", "answers": answers}) + "\n")
    assert load_pictures(file)[0].references == ("yes", "no")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"captions": ["a"]}], r"row 1 has columns .*expected image, and captions"),
        ([{"image": "a.png"}], "expected image, and captions"),
        ([{"image": "a.png", "captions": []}], "expected image, and captions"),
        ([{"image": "a.png", "captions": ["a", 3]}], "a string, or a list of them"),
        ([{"image": "a.png", "question": "what ?", "captions": "a"}], "expected image, and answers"),
    ],
)
def test_rows_that_are_refused(tmp_path, rows, message):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        load_pictures(file)


def test_files_that_are_refused(tmp_path):
    with pytest.raises(DataError, match="is not a jsonl file"):
        load_pictures(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="is not a jsonl file"):
        load_pictures(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match="is not an image that can be read"):
        open_image(tmp_path / "text.png")


def ids(inputs):
    return inputs["input_ids"][0].tolist()


def test_inputs_of_a_processor_without_placeholders(tmp_path):
    image = load_pictures(write_pictures(tmp_path)[0])[0].opened()
    model, processor = VISION_LANGUAGE["git"].build(), git_processor()
    assert ids(model_inputs(model, processor, image, "")) == [1]
    assert ids(model_inputs(model, processor, image, "what is this ?")) == [1, 8, 9, 10, 11]
    assert ids(model_inputs(model, processor, image, "", "a red square")) == [1, 3, 4, 7]
    inputs = model_inputs(model, processor, image, "this", "a")
    assert ids(inputs) == [1, 10, 3] and inputs["pixel_values"].shape == (1, 3, 16, 16)


def test_placeholders_stand_in_front_of_the_prompt(tmp_path):
    image = load_pictures(write_pictures(tmp_path)[0])[0].opened()
    model, processor = VISION_LANGUAGE["llava"].build(), llava_processor()
    marks = [IMAGE] * 4
    assert ids(model_inputs(model, processor, image, " what")) == [1, *marks, 8]
    assert ids(model_inputs(model, processor, image, "what <image> is")) == [1, 8, *marks, 9]
    assert ids(model_inputs(model, processor, image, "", "a red")) == [1, *marks, 3, 4]
    # The very inputs that the model takes.
    with torch.no_grad():
        assert model(**model_inputs(model, processor, image, " what")).logits.shape == (1, 6, 100)


def test_a_chat_template_speaks_for_itself(tmp_path):
    image = load_pictures(write_pictures(tmp_path)[0])[0].opened()
    template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} SAYS: {% endif %}"
    )
    model, processor = VISION_LANGUAGE["llava"].build(), llava_processor(template)
    assert ids(model_inputs(model, processor, image, "what")) == [1, 12, *[IMAGE] * 4, 8, 13]
    assert ids(model_inputs(model, processor, image, "what", "a red")) == [1, 12, *[IMAGE] * 4, 8, 13, 3, 4]


def test_an_answer_for_a_decoder_of_its_own(tmp_path):
    image = load_pictures(write_pictures(tmp_path)[0])[0].opened()
    model, processor = VISION_LANGUAGE["blip_vqa"].build(), git_processor()
    inputs = model_inputs(model, processor, image, "what is this ?", "a red")
    assert ids(inputs) == [1, 8, 9, 10, 11] and inputs["decoder_input_ids"].tolist() == [[1, 3, 4]]


def test_batches_join_equal_shapes():
    rows = [{"input_ids": torch.full((1, n), i), "pixel_values": torch.zeros(4, 2)} for i, n in enumerate((2, 3, 2, 2))]
    found = [(places, batch["input_ids"].tolist()) for places, batch in picture_batches(rows, 2)]
    assert found == [([0, 2], [[0, 0], [2, 2]]), ([1], [[1, 1, 1]]), ([3], [[3, 3]])]
    # Patches of all images lie in one dimension.
    assert next(iter(picture_batches(rows, 2)))[1]["pixel_values"].shape == (8, 2)
    with pytest.raises(ValueError, match="batch_size is 0"):
        next(iter(picture_batches(rows, 0)))


def test_batches_hold_few_rows():
    taken = []

    def rows(shapes):
        for i, n in enumerate(shapes):
            taken.append(i)
            yield {"x": torch.full((1, n), i)}

    # A batch goes when it is full.
    for places, _ in picture_batches(rows([3] * 10), 4):
        assert len(taken) == places[-1] + 1
    taken.clear()
    # Shapes of which there are few wait, of eight batches in all, and the commonest go first.
    shapes = [5, 5, *range(10, 100)]
    batches = list(picture_batches(rows(shapes), 4))
    assert batches[0][0] == [0, 1]
    assert sorted(place for places, _ in batches for place in places) == list(range(len(shapes)))
    taken.clear()
    given = 0
    for places, inputs in picture_batches(rows(shapes), 4):
        assert len(taken) - given <= 32
        given += len(places)
        assert inputs["x"].tolist() == [[place] * shapes[place] for place in places]
