"""Digests: the same for the same data, whatever holds them, and others for anything else."""

import pytest
import torch

from fas.storage.digest import digest, digest_rows, digests, pieces


def of(*batches):
    return digest(pieces(batches))


def test_equal_contents_have_one_digest_in_every_container():
    x = torch.arange(12, dtype=torch.int64).view(3, 4)
    assert of({"x": x}) == of({"x": x.numpy()}) == of({"x": x.T.contiguous().T})
    # Rows of a list, and of a data set with indices, are those of the batch.
    assert digest_rows([{"x": row} for row in x]) == digest_rows([{"x": row.clone()} for row in x])
    assert digests([{"x": x}]) == digests([{"y": x[:2]}, {"y": x[2:]}])


@pytest.mark.parametrize(
    "other",
    [
        {"y": torch.zeros(2, 2)},
        {"x": torch.zeros(4)},
        {"x": torch.zeros(2, 2, dtype=torch.float64)},
        {"x": torch.tensor([[0.0, 0.0], [0.0, -0.0]])},
    ],
    ids=["name", "shape", "type", "bit"],
)
def test_what_differs_has_another_digest(other):
    assert of({"x": torch.zeros(2, 2)}) != of(other)


def test_a_data_set_may_name_itself():
    class Named(list):
        fingerprint = "mine"

    assert digest_rows(Named([{"x": torch.rand(3)}])) == "mine"
