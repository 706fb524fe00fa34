"""Large tensors of integer networks in half the room, and the same numbers as ever."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from neurtransformer.integer import packed
from neurtransformer.integer.packed import Packed


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "KEPT", 0)


@given(arrays(np.int16, array_shapes(), elements=st.integers(-(2**15), 2**15 - 1)))
def test_what_is_put_in_comes_out(x: np.ndarray) -> None:
    tensors = Packed()
    tensors["x"] = x
    assert tensors["x"].dtype == np.int16 and np.array_equal(tensors["x"], x)


@given(arrays(np.int16, array_shapes(), elements=st.integers(-128, 127).map(lambda n: 2 * n)))
def test_weights_take_a_byte_each(x: np.ndarray) -> None:
    tensors = Packed()
    tensors["x"] = x
    assert tensors._held["x"].nbytes == x.size and np.array_equal(tensors["x"], x)


def test_other_integers_are_left_alone() -> None:
    tensors = Packed()
    tensors.update(bias=np.arange(3, dtype=np.int32))
    assert tensors["bias"].dtype == np.int32 and dict(tensors).keys() == {"bias"}
    del tensors["bias"]
    assert not tensors
