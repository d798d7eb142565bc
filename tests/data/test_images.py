"""Images from folders and archives."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from fas.data.images import CIFAR10, AugmentedBatches, Images, image_batches, read_images
from fas.errors import DataError


def picture(seed: int, size: tuple[int, int] = (5, 4)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "train"
    for seed, name in enumerate(("dog/b.png", "dog/a.png", "cat/a.PNG", "dog/c.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(root / name)
    (root / "dog" / "notes.txt").write_text("no image")
    return root


def test_a_folder(folder):
    images = read_images(folder)
    assert images.label_names == ("cat", "dog") and images.labels.tolist() == [0, 1, 1, 1] and len(images) == 4
    assert images.pixels.dtype == torch.uint8 and images.pixels.shape == (4, 3, 5, 4)
    for image, seed in zip(images.pixels, (2, 1, 0, 3), strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), picture(seed))
    assert read_images(folder, per_class=1).labels.tolist() == [0, 1]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_is_the_same(folder, tmp_path, mode):
    archive = tmp_path / "train.tar"
    with tarfile.open(archive, mode) as tar:
        tar.add(folder, "train")
    images, same = read_images(folder), read_images(archive)
    assert torch.equal(images.pixels, same.pixels) and torch.equal(images.labels, same.labels)
    assert torch.equal(read_images(archive, per_class=2).pixels, read_images(folder, per_class=2).pixels)


def test_grey_and_transparent_become_colour_and_sizes_are_equal(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(picture(1)[..., 0]).save(tmp_path / "a" / "grey.png")
    Image.fromarray(picture(2, (8, 6))).convert("RGBA").save(tmp_path / "a" / "large.png")
    with pytest.raises(DataError, match=r"has images of 2 sizes, such as \(5, 4\) and \(8, 6\): resize them"):
        read_images(tmp_path)
    Image.fromarray(picture(2)).convert("RGBA").save(tmp_path / "a" / "large.png")
    assert read_images(tmp_path).pixels.shape == (2, 3, 5, 4)


def test_batches():
    images = Images(torch.arange(5 * 3 * 4, dtype=torch.uint8).view(5, 3, 2, 2), torch.arange(5), tuple("abcde"))
    batches = image_batches(images, 2, name="pixel_values")
    assert [len(batch["labels"]) for batch in batches] == [2, 2, 1]
    mean, deviation = CIFAR10
    value = (float(images.pixels[2, 1, 0, 1]) / 255 - mean[1]) / deviation[1]
    assert float(batches[1]["pixel_values"][0, 1, 0, 1]) == pytest.approx(value, rel=1e-5)
    shuffled = torch.cat([batch["labels"] for batch in image_batches(images, 2, seed=1)])
    assert shuffled.tolist() != list(range(5)) and sorted(shuffled.tolist()) == list(range(5))


def test_parts_are_taken_from_every_class():
    pixels = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    images = Images(pixels, torch.tensor([0, 1, 1, 1, 0]), ("cat", "dog"))
    assert images.part(0, 1).pixels[:, 0, 0, 0].tolist() == [0, 1]
    rest = images.part(1)
    assert rest.pixels[:, 0, 0, 0].tolist() == [4, 2, 3] and rest.labels.tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="no class has an image from number 3 to 4: it has 5 images in all"):
        images.part(3, 4)


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_augmented_images_are_mirrored_and_shifted_ones(shift):
    x = torch.arange(1.0, 1 + 40 * 3 * 4 * 5).view(40, 3, 4, 5)
    batches = AugmentedBatches([{"x": x, "labels": torch.arange(40)}], shift=shift)
    found = batches[0]["x"]
    seen = set()
    for image, made in zip(x, found, strict=True):
        matches = []
        for mirrored in (False, True):
            wide = torch.zeros(3, 4 + 2 * shift, 5 + 2 * shift)
            wide[:, shift : shift + 4, shift : shift + 5] = image.flip(-1) if mirrored else image
            for top in range(2 * shift + 1):
                for left in range(2 * shift + 1):
                    if torch.equal(made, wide[:, top : top + 4, left : left + 5]):
                        matches.append((mirrored, top, left))
        assert len(matches) == 1
        seen.add(matches[0])
    # Forty draws of 2, 18 or 50 cases: both mirrors and every row and column of shifts come up.
    assert {mirrored for mirrored, _, _ in seen} == {False, True}
    assert {top for _, top, _ in seen} == {left for _, _, left in seen} == set(range(2 * shift + 1))
    assert torch.equal(batches[0]["labels"], torch.arange(40)) and len(batches) == 1


def test_augmented_batches_differ_each_time_and_repeat_from_a_seed():
    images = [{"pixel_values": torch.randn(6, 3, 8, 8)} for _ in range(3)]
    first, again, other = (AugmentedBatches(images, name="pixel_values", seed=seed) for seed in (1, 1, 2))
    once, twice = (torch.stack([batch["pixel_values"] for batch in first]) for _ in range(2))
    assert not torch.equal(once, twice)
    assert torch.equal(once, torch.stack([batch["pixel_values"] for batch in again[:]]))
    assert not torch.equal(once, torch.stack([batch["pixel_values"] for batch in other]))


def test_what_cannot_be_read(folder, tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        read_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no images"):
        read_images(tmp_path / "empty")
    (tmp_path / "file.tar").write_bytes(b"no archive at all")
    with pytest.raises(DataError, match=r"file\.tar cannot be read as a tar archive"):
        read_images(tmp_path / "file.tar")
    content = io.BytesIO()
    Image.fromarray(picture(0, (64, 64))).save(content, "PNG")
    for damaged in (b"", content.getvalue()[:300]):
        (folder / "dog" / "d.png").write_bytes(damaged)
        with pytest.raises(DataError, match=r"dog/d\.png is not an image that can be read"):
            read_images(folder)
    with pytest.raises(ValueError, match="per_class is 0"):
        read_images(folder, per_class=0)
    with pytest.raises(ValueError, match="rows is 0"):
        image_batches(Images(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), torch.zeros(1), ("a",)), 0)


def test_cifar_photographs(shared_data):
    images = read_images(shared_data / "cifar10-jpg" / "test.tar.gz", per_class=2)
    assert images.pixels.shape == (20, 3, 32, 32) and len(images.label_names) == 10
