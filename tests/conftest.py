"""What every test gets: no hub, one seed, the same hypothesis examples each time."""

import gc
import os

# Before transformers and tokenizers are imported, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest
import torch
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]

# FAS_HYPOTHESIS=thorough looks for new counterexamples; the usual run is the same on every machine.
settings.register_profile("usual", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("thorough", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("FAS_HYPOTHESIS", "usual"))


def pytest_collection_finish() -> None:
    # What has been imported stays: collections need not look through its half a million objects each time.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the data sets that are too large for the repository; the test is skipped without it."""
    folder = Path(os.environ.get("FAS_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; FAS_SHARED_DATA names another folder")
    return folder
