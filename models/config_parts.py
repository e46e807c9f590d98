"""What the families' configurations have in common: the decoder's sizes, and reading with one-line errors."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, get_type_hints

from models.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The decoder's sizes; `qk_norm` belongs to the family."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rope_theta: float
    head_dim: int
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    hidden_act: str = "silu"
    qk_norm: ClassVar[bool] = False  # an RMS norm per head on queries and keys

    def check(self) -> None:
        """Raises CheckpointError where the decoder cannot have such sizes."""
        require(self.hidden_act == "silu", f"hidden_act {self.hidden_act!r}", "'silu'")
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"{self.num_attention_heads} query heads over {self.num_key_value_heads} key heads",
            "a whole number of query heads per key head",
        )


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object inside of another."""
    found = config.get(name)
    require(isinstance(found, Mapping), f"no {name}", "an object")
    return found  # pyright: ignore[reportReturnType]


def given(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section without its nulls."""
    return {key: value for key, value in section.items() if value is not None}


def rope(section: Mapping[str, Any], key: str = "rope_parameters") -> Mapping[str, Any]:
    """What a section says of its rotary positions, empty where it says nothing."""
    found = section.get(key) or {}
    require(isinstance(found, Mapping), f"{key} {found!r}", "an object")
    return found


def decoder_rope(text: Mapping[str, Any], kinds: tuple[str, ...] = ("default",)) -> Mapping[str, Any]:
    """The decoder's, from either dialect: with `rope_theta`, and of one of these kinds."""
    found = {"rope_theta": text.get("rope_theta"), **rope(text, "rope_scaling"), **rope(text)}
    kind = found.get("rope_type", found.get("type", "default"))
    require(kind in kinds, f"rope_type {kind!r}", "'default'")
    require(found["rope_theta"] is not None, "no rope_theta", "one in rope_parameters or text_config")
    return found


def sizes(value: Any, name: str) -> tuple[int, ...]:
    """A list of whole numbers."""
    whole = isinstance(value, list | tuple) and all(type(v) is int and v >= 0 for v in value)
    require(whole, f"{name} {value!r}", "a list of whole numbers")
    return tuple(value)


def token_id(value: Any, name: str, vocab_size: int) -> int:
    """An id of the vocabulary."""
    fits = type(value) is int and 0 <= value < vocab_size
    require(fits, f"{name} {value!r}", f"a token id, 0 to {vocab_size - 1}")
    return value


def build(kind: type, section: Mapping[str, Any], **given: Any) -> Any:
    """A dataclass of the section's values and those given, each of the kind that its field says."""
    known = {f.name for f in fields(kind)}
    values = {k: v for k, v in section.items() if k in known} | given
    required = {f.name for f in fields(kind) if f.default is MISSING}
    missing = sorted(required - values.keys())
    require(not missing, f"{kind.__name__} without {', '.join(missing)}", "all of its sizes")
    made = kind(**values)
    _check_kinds(made)
    return made


def _check_kinds(made: Any) -> None:
    """Sizes are whole numbers from 1 up, other numbers above 0."""
    kinds = {int: "a whole number from 1 up", float: "a number above 0", bool: "true or false"}
    for name, kind in get_type_hints(type(made)).items():
        value = getattr(made, name)
        if kind not in kinds:
            continue
        fits = type(value) is kind or (kind is float and type(value) is int)
        require(fits and (kind is bool or value > 0), f"{name} {value!r}", kinds[kind])


def require(ok: bool, got: str, allowed: str) -> None:
    """Raises CheckpointError, in one line, unless `ok`."""
    if not ok:
        raise CheckpointError(f"config.json: {got}; allowed: {allowed}")
