"""Arrays become the files that Pillow and safetensors read, without either."""

import io

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from farm.errors import InvalidInput
from farm_client.inputs import read_input

RANDOM = np.random.default_rng(7)


@pytest.mark.parametrize(
    "array",
    [
        RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8),
        RANDOM.integers(0, 256, (1, 1, 4), dtype=np.uint8),
        RANDOM.integers(0, 256, (9, 2), dtype=np.uint8),
        RANDOM.integers(0, 256, (40, 30, 3), dtype=np.uint8)[::-2, 3:11],
        np.asfortranarray(RANDOM.integers(0, 256, (6, 4, 3), dtype=np.uint8)),
    ],
    ids=["colours", "with alpha", "grey", "a view", "columns first"],
)
def test_an_array_is_the_picture_that_it_shows(array: np.ndarray) -> None:
    with Image.open(io.BytesIO(read_input(array, "image"))) as picture:
        picture.load()
        assert np.array_equal(np.asarray(picture), array)


def test_a_mask_may_be_of_truth_values() -> None:
    mask = RANDOM.integers(0, 2, (6, 5)).astype(bool)
    with Image.open(io.BytesIO(read_input(mask, "mask_image"))) as picture:
        assert np.array_equal(np.asarray(picture), mask * np.uint8(255))


@pytest.mark.parametrize("kind", [np.int64, np.uint16, np.int32])
def test_token_ids_are_an_array_too(kind: type) -> None:
    ids = RANDOM.integers(0, 1000, (3, 4)).astype(kind)
    found = safetensors.numpy.load(read_input(ids, "latents"))
    assert found["latents"].dtype == np.int64
    assert np.array_equal(found["latents"], ids)


@pytest.mark.parametrize("kind", ["<i8", ">i8", ">u2", "<i4"])
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "within a file"])
def test_token_ids_are_read_in_any_order_of_bytes_and_place_in_memory(
    kind: str, offset: int
) -> None:
    ids = RANDOM.integers(0, 1000, (3, 4)).astype(kind)
    held = np.frombuffer(bytes(offset) + ids.tobytes(), kind, offset=offset).reshape(3, 4)
    for array in (held, held.T):
        found = safetensors.numpy.load(read_input(array, "latents"))
        assert np.array_equal(found["latents"], array)


@pytest.mark.parametrize(
    ("array", "field", "words"),
    [
        (np.zeros((4, 4, 3)), "image", "astype"),
        (np.zeros((4, 4, 2), np.uint8), "image", "(4, 4, 2) is not a picture"),
        (np.zeros((2, 4, 4, 3), np.uint8), "image", "not a picture"),
        (np.zeros((0, 4), np.uint8), "image", "not a picture"),
        (np.zeros((3, 4)), "latents", "whole numbers"),
        (np.zeros(4, np.int64), "latents", "whole numbers"),
        (np.full((1, 1), 2**64 - 1, np.uint64), "latents", "63 bits"),
        (np.array([object()]), "image", "array"),
    ],
)
def test_an_array_of_another_kind_is_refused_with_a_hint(
    array: np.ndarray, field: str, words: str
) -> None:
    with pytest.raises(InvalidInput) as error:
        read_input(array, field)
    assert error.value.field == field
    assert words in str(error.value)
