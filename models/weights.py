"""Safetensors, strictly: a checkpoint's tensors against the model's own parameters, one tensor at a time."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from models.errors import CheckpointError
from models.fuse import unfused
from models.json_file import read_json
from models.model import Model

Progress = Callable[[int, int], None]
_NUMBERED = re.compile(r"(layers|blocks|deepstack_merger_list)_(\d+)")
_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"
_CONVOLUTIONS = ("patch_embed.proj.weight", "patch_embedding.weight")


def checkpoint_name(path: tuple[str, ...]) -> str:
    """The tensor's name on disk for a parameter's path in the tree."""
    parts = [_NUMBERED.sub(r"\1.\2", p) for p in path[:-1]]
    prefix = [] if parts[0] == "lm_head" else ["model"]
    return ".".join([*prefix, *parts, _LEAVES[path[-1]]])


def load_params(directory: Path, model: Model, dtype: DTypeLike, progress: Progress | None = None) -> Any:
    """Read `model`'s parameters, each straight to `dtype` on the device.

    One tensor at a time is in host memory beyond the file's own pages.

    Args:
        directory: holds `model.safetensors`, or shards with `model.safetensors.index.json`.
        progress: called with (bytes read, bytes in all) after each tensor.

    Raises:
        CheckpointError: names every tensor that is missing, surplus or misshaped.
    """
    shapes: dict[tuple[str, ...], Any] = flatten_dict(jax.eval_shape(model.init_params, jax.random.key(0)))
    names = {checkpoint_name(path): path for path in shapes}
    files = {name: file for file in _files(directory) for name in _names(file)}
    _compare(directory, model, shapes, names, files)
    total = sum(math.prod(s.shape) for s in shapes.values()) * jnp.dtype(dtype).itemsize
    params, done = {}, 0
    for name, value in _tensors({n: f for n, f in files.items() if n in names}):
        path = names[name]
        params[path] = jax.device_put(_to_param(path, value).astype(dtype, order="C"))
        done += params[path].nbytes
        if progress is not None:
            progress(done, total)
    return unflatten_dict(params)


def save_checkpoint(directory: Path, config: Any, params: Any, dtype: DTypeLike = jnp.bfloat16) -> None:
    """Write `params`, fused or not, as one `model.safetensors` with the checkpoint's names and layouts.

    Args:
        config: the family's configuration.
    """
    from safetensors.flax import save_file  # noqa: PLC0415  (imports all of flax.serialization)

    tensors = {}
    leaves: dict[tuple[str, ...], Any] = flatten_dict(unfused(config.text, params))
    for path, value in leaves.items():
        name = checkpoint_name(path)
        stored = jnp.asarray(value.T if path[-1] == "kernel" else value, dtype)
        shape = (-1, *config.vision.patch_shape) if name.endswith(_CONVOLUTIONS) else stored.shape
        tensors[name] = stored.reshape(shape)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _to_param(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """Kernels lie as [out, ...in] on disk; here they are [in, out]."""
    return value.reshape(value.shape[0], -1).T if path[-1] == "kernel" else value


def _files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        files = [directory / "model.safetensors"]
    else:
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(f"{index}: not an index of shards; allowed: a weight_map of file names")
        files = sorted({directory / name for name in shards.values()})
    for file in files:
        if not file.is_file():
            raise CheckpointError(
                f"{file}: no such file; a checkpoint needs model.safetensors or all shards of its index"
            )
    return files


def _open(file: Path) -> Any:
    try:
        # numpy's, with ml_dtypes for bfloat16: flax's puts each tensor on the accelerator first.
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a safetensors file ({error})") from None


def _names(file: Path) -> list[str]:
    with _open(file) as f:
        return list(f.keys())


def _tensors(files: Mapping[str, Path]) -> Iterator[tuple[str, np.ndarray]]:
    for file in dict.fromkeys(files.values()):
        with _open(file) as f:
            for name in (n for n, where in files.items() if where == file):
                yield name, f.get_tensor(name)


def _compare(
    directory: Path, model: Model, shapes: Mapping, names: Mapping, files: Mapping[str, Path]
) -> None:
    surplus = sorted(files.keys() - names.keys())
    if model.config.tie_word_embeddings and _HEAD in surplus and _is_tied_copy(files):
        surplus.remove(_HEAD)
    faults = {
        "missing": sorted(names.keys() - files.keys()),
        "surplus": surplus,
        "misshaped": list(_misshaped(shapes, names, files)),
    }
    if any(faults.values()):
        listed = "; ".join(f"{kind}: {', '.join(found)}" for kind, found in faults.items() if found)
        raise CheckpointError(f"{directory}: tensors do not fit config.json; {listed}")


def _misshaped(shapes: Mapping, names: Mapping, files: Mapping[str, Path]) -> Iterator[str]:
    for file in dict.fromkeys(files.values()):
        with _open(file) as f:
            for name in (n for n, where in files.items() if where == file and n in names):
                path = names[name]
                found, wanted = tuple(f.get_slice(name).get_shape()), shapes[path].shape
                if path[-1] == "kernel":
                    ok = (math.prod(found[1:]), found[0]) == wanted and len(found) > 1
                    wanted = (wanted[1], wanted[0])
                else:
                    ok = found == wanted
                if not ok:
                    yield f"{name} {list(found)} instead of {list(wanted)}"


def _is_tied_copy(files: Mapping[str, Path]) -> bool:
    embedding = next((name for name in files if name.endswith(_EMBEDDING)), None)
    if embedding is None:
        return False
    pair = dict(_tensors({n: files[n] for n in (_HEAD, embedding)}))
    return np.array_equal(pair[_HEAD], pair[embedding])
