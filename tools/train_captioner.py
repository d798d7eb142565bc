"""Train a small GIT (a vision transformer and a text decoder) that says what is where in scenes, on a CPU.

    python tools/train_captioner.py --data DIR --out build/models/captioner

`--data` holds train.tar.gz and test.tar.gz (or folders train and test) with one folder of 32x32 jpeg or png per class,
such as CIFAR-10. A scene is a plain canvas of two by two places, of which one to three hold a photograph; its caption
is "a frog at the top left and a ship at the bottom right", and a question asks what is at one place. `--scenes` names
the folder for scenes of the test photographs, which training never sees, as png with captions.jsonl and
questions.jsonl for `fas evaluate`, and for calibration.jsonl with captions and questions of training photographs.
"""

import argparse
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional
from transformers import GitConfig, GitForCausalLM, GitProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fas.data.images import Images, read_images

SIDE = 32
PLACES = ("top left", "top right", "bottom left", "bottom right")
QUESTION = "what is at the {} ?"
PAD, BEGIN, END = "<pad>", "<s>", "</s>"
MEAN, DEVIATION = 0.5, 0.25
LONGEST = 40


@dataclass(frozen=True)
class Scene:
    """Canvas [3, 64, 64], uint8, and the class name at each of the four places, None where it is empty."""

    canvas: Tensor
    names: tuple[str | None, ...]

    @property
    def caption(self) -> str:
        """What is where, in the order of reading."""
        said = [f"{_article(n)} at the {place}" for n, place in zip(self.names, PLACES, strict=True) if n is not None]
        return " and ".join([" , ".join(said[:-1]), said[-1]] if said[:-1] else said)

    def answer(self, place: int) -> str:
        """What is at one place."""
        name = self.names[place]
        return "nothing" if name is None else _article(name)


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def compose(images: Images, draw: random.Random) -> Scene:
    """Put one to three photographs on a canvas of a random grey."""
    canvas = torch.full((3, 2 * SIDE, 2 * SIDE), draw.randrange(256), dtype=torch.uint8)
    names: list[str | None] = [None] * len(PLACES)
    for place in draw.sample(range(len(PLACES)), draw.randint(1, 3)):
        i = draw.randrange(len(images))
        top, left = SIDE * (place // 2), SIDE * (place % 2)
        canvas[:, top : top + SIDE, left : left + SIDE] = images.pixels[i]
        names[place] = images.label_names[int(images.labels[i])]
    return Scene(canvas, tuple(names))


def build_processor(classes: Sequence[str]) -> GitProcessor:
    """Return the processor: a tokenizer of whole words, and images scaled but not resized."""
    sentences = [QUESTION.format(place) for place in PLACES]
    sentences += [f"{_article(name)} at the , and nothing" for name in classes]
    words = sorted({word for sentence in sentences for word in sentence.split()})
    vocabulary = {word: i for i, word in enumerate((PAD, BEGIN, END, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # The end is no part of a prompt, which the model goes on from.
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 1)])
    return GitProcessor(
        CLIPImageProcessorPil(
            size={"height": 2 * SIDE, "width": 2 * SIDE},
            do_center_crop=False,
            image_mean=[MEAN] * 3,
            image_std=[DEVIATION] * 3,
        ),
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=BEGIN,
            eos_token=END,
            pad_token=PAD,
            model_max_length=LONGEST,
            model_input_names=["input_ids", "attention_mask"],
            clean_up_tokenization_spaces=False,
        ),
    )


def build_model(vocabulary: int, width: int, layers: int) -> GitForCausalLM:
    """Return an untrained model of patches of 8 pixels."""
    config = GitConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "image_size": 2 * SIDE,
            "patch_size": 8,
        },
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = GitForCausalLM(config)
    model.generation_config.max_length = None
    return model


def normalised(pixels: Tensor) -> Tensor:
    """Return uint8 images as the processor makes them."""
    return (pixels.float() / 255 - MEAN) / DEVIATION


def varied(pixels: Tensor) -> Tensor:
    """Return photographs [n, 3, 32, 32] mirrored and shifted by up to three pixels at random."""
    mirrored = torch.where(torch.rand(len(pixels), 1, 1, 1) < 0.5, pixels, pixels.flip(-1))
    padded = functional.pad(mirrored, (3, 3, 3, 3))
    top, left = torch.randint(7, (2, len(pixels), 1))
    rows, columns = top + torch.arange(SIDE), left + torch.arange(SIDE)
    every = torch.arange(len(pixels))
    return padded.permute(0, 2, 3, 1)[every[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Training:
    """One optimiser over a number of steps: the rate rises over the first and falls along a cosine."""

    def __init__(self, parts: Sequence[tuple[nn.Module, float]], steps: int) -> None:
        self.optimiser = torch.optim.AdamW(
            [{"params": list(part.parameters()), "rate": rate} for part, rate in parts], weight_decay=0.05
        )
        self.steps, self.done = steps, 0

    def step(self, loss: Tensor) -> None:
        """Take one step."""
        share = (self.done + 1) / self.steps
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * min(20 * share, 0.5 * (1 + math.cos(math.pi * share)))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in self.optimiser.param_groups for p in group["params"]], 1.0)
        self.optimiser.step()
        self.done += 1


def train_vision(model: GitForCausalLM, images: Images, steps: int, rows: int) -> None:
    """Teach the vision tower classes: full scenes, and a linear head on the mean of each place's patches."""
    tower = model.git.image_encoder
    head = nn.Linear(model.config.vision_config.hidden_size, len(images.label_names))
    training = Training([(tower, 1e-3), (head, 1e-3)], steps)
    right, seen = 0.0, 0
    while training.done < steps:
        chosen = torch.randint(len(images), (4 * rows,))
        photographs = varied(images.pixels[chosen]).view(rows, 2, 2, 3, SIDE, SIDE)
        canvas = photographs.permute(0, 3, 1, 4, 2, 5).reshape(rows, 3, 2 * SIDE, 2 * SIDE)
        with torch.autocast("cpu", torch.bfloat16):
            patches = tower(normalised(canvas)).last_hidden_state[:, 1:]
            # [rows, place down, patch down, place across, patch across, width]
            places = patches.view(rows, 2, 4, 2, 4, -1).mean((2, 4)).reshape(4 * rows, -1)
            logits = head(places).float()
        training.step(functional.cross_entropy(logits, images.labels[chosen], label_smoothing=0.05))
        right += float((logits.argmax(-1) == images.labels[chosen]).sum())
        seen += 4 * rows
        if training.done % 100 == 0:
            print(f"vision step {training.done} of {steps}: accuracy {right / seen:.3f}", flush=True)
            right, seen = 0.0, 0


def encode(processor: GitProcessor, scenes: Sequence[Scene], draw: random.Random) -> dict[str, Tensor]:
    """Return a training batch: two captions in three, else a question, of which only the answer is scored."""
    tokenizer, texts = processor.tokenizer, []
    for scene in scenes:
        place = draw.randrange(len(PLACES))
        asks = draw.random() < 1 / 3
        prompt = tokenizer(QUESTION.format(PLACES[place]) if asks else "")["input_ids"]
        answer = tokenizer(scene.answer(place) if asks else scene.caption, add_special_tokens=False)["input_ids"]
        texts.append((prompt, [*answer, tokenizer.eos_token_id]))
    longest = max(len(prompt) + len(answer) for prompt, answer in texts)
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(texts):
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    pixels = normalised(torch.stack([scene.canvas for scene in scenes]))
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def train_text(
    model: GitForCausalLM, processor: GitProcessor, images: Images, steps: int, rows: int, draw: random.Random
) -> None:
    """Teach the whole model captions and answers."""
    # The tower knows the classes; the rest begins from nothing.
    rest = nn.ModuleList([model.git.embeddings, model.git.visual_projection, model.git.encoder, model.output])
    training = Training([(model.git.image_encoder, 2e-4), (rest, 1e-3)], steps)
    total = 0.0
    while training.done < steps:
        batch = encode(processor, [compose(images, draw) for _ in range(rows)], draw)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch, use_cache=False).loss
        training.step(loss)
        total += float(loss.detach())
        if training.done % 50 == 0:
            print(f"text step {training.done} of {steps}: loss {total / 50:.3f}", flush=True)
            total = 0.0


def write_scenes(folder: Path, name: str, images: Images, count: int, seed: int) -> dict[str, list[dict[str, object]]]:
    """Write scenes as png into a folder of this name; return a row of a caption and one of a question per scene."""
    draw = random.Random(f"{seed} {name}")
    scenes = [compose(images, draw) for _ in range(count)]
    (folder / name).mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, object]]] = {"captions": [], "questions": []}
    for i, scene in enumerate(scenes):
        file = f"{name}/{i:04d}.png"
        Image.fromarray(scene.canvas.permute(1, 2, 0).contiguous().numpy()).save(folder / file)
        place = draw.randrange(len(PLACES))
        rows["captions"].append({"image": file, "captions": [scene.caption]})
        rows["questions"].append(
            {"image": file, "question": QUESTION.format(PLACES[place]), "answers": [scene.answer(place)]}
        )
    return rows


def write_rows(file: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write rows as jsonl."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _part(data: Path, name: str) -> Images:
    folder = data / name
    return read_images(folder if folder.is_dir() else data / f"{name}.tar.gz")


def main() -> None:
    """Train, save the model with its processor, and write the scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and test photographs")
    parser.add_argument("--out", type=Path, default=Path("build/models/captioner"), help="where to save the model")
    parser.add_argument("--scenes", type=Path, default=Path("build/data/scenes"), help="where to write the scenes")
    parser.add_argument("--vision-steps", type=int, default=1800, help="for the vision tower on classes")
    parser.add_argument("--text-steps", type=int, default=2500, help="for the whole model on captions and answers")
    parser.add_argument("--rows", type=int, default=64, help="scenes per step")
    parser.add_argument("--width", type=int, default=128, help="of both halves")
    parser.add_argument("--layers", type=int, default=4, help="of the vision tower")
    parser.add_argument("--test", type=int, default=500, help="scenes of test photographs")
    parser.add_argument("--calibration", type=int, default=512, help="scenes of training photographs to calibrate on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    images, test = _part(options.data, "train"), _part(options.data, "test")
    processor = build_processor(images.label_names)
    held_out = write_scenes(options.scenes, "test", test, options.test, options.seed)
    known = write_scenes(options.scenes, "calibration", images, options.calibration, options.seed)
    for name, rows in held_out.items():
        write_rows(options.scenes / f"{name}.jsonl", rows)
    write_rows(options.scenes / "calibration.jsonl", [*known["captions"], *known["questions"]])

    model = build_model(len(processor.tokenizer), options.width, options.layers)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    train_vision(model, images, options.vision_steps, options.rows)
    train_text(model, processor, images, options.text_steps, options.rows, random.Random(options.seed))
    model.eval().save_pretrained(options.out)
    processor.save_pretrained(options.out)
    print(f"written to {options.out}; scenes in {options.scenes}")


if __name__ == "__main__":
    main()
