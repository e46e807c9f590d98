"""What goes between host and device arrives as it was, in few transfers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sample import SamplingConfig
from sample.logits import sampling_params
from sample.transfer import to_device, to_host
from tests.profiles import dispatches, profiled


def bits(array) -> tuple:
    return np.shape(array), array.dtype, np.asarray(array).tobytes()


def test_arrays_of_all_kinds_are_the_same_on_the_device():
    given = {
        "floats": np.array([[0.1, -0.0, np.nan, 1e-45]], np.float32),
        "integers": np.array([-(2**31), 2**31 - 1], np.int32),
        "words": np.array([[0, 2**32 - 1]], np.uint32),
        "bools": np.array([True, False, True]),
        "none": np.zeros((2, 0), np.int32),
        "strided": np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2],
    }
    made = to_device(given)
    assert all(isinstance(array, jax.Array) for array in made.values())
    assert {name: bits(array) for name, array in made.items()} == {n: bits(a) for n, a in given.items()}


def test_what_a_request_asks_for_is_the_same_in_one_transfer(tmp_path):
    configs = [
        SamplingConfig(temperature=0.7, top_k=3, logit_bias={5: 1.5}, ignore_eos=True),
        SamplingConfig(),
    ]
    given = sampling_params(configs)
    to_device(given)  # compiles
    with profiled(tmp_path) as events:
        made = to_device(given)
    assert list(map(bits, jax.tree.leaves(made))) == list(map(bits, jax.tree.leaves(given)))
    assert made.wanted == given.wanted
    assert dispatches(events) == 1
    assert sum(event.startswith("DevicePut") for event in events) == 1


@pytest.mark.parametrize("behind_prompt", [True, False])
def test_what_is_on_its_way_to_the_host_is_the_same(monkeypatch, behind_prompt):
    """As on an NVIDIA GPU: a first token by a program that writes to the host's memory."""
    monkeypatch.setattr("sample.transfer.on_cpu", lambda: False)
    monkeypatch.setattr("sample.transfer.on_cuda", lambda: True)
    packed = jnp.arange(8, dtype=jnp.int32).reshape(2, 4)
    sent = to_host(packed, behind_prompt=behind_prompt)
    assert (sent.sharding.memory_kind == "pinned_host") == behind_prompt
    np.testing.assert_array_equal(np.asarray(sent), np.asarray(packed))
