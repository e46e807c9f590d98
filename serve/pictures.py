"""Pictures that the tower has seen, by their content and owner, within a budget of bytes."""

from collections import OrderedDict
from typing import Any

import jax

from models.decoder import VisionEmbeddings
from models.model import Model
from models.vision import encode_vision
from serve.prompt import PreparedPicture


class PictureCache:
    """The latest used embeddings. Of one thread: the one that owns the device.

    `hits` and `misses` count pictures, `bytes` what is held now.
    """

    def __init__(self, model: Model, params: Any, budget: int) -> None:
        self.hits = self.misses = self.bytes = 0
        self._model, self._params, self._budget = model, params, budget
        self._held: OrderedDict[bytes, VisionEmbeddings] = OrderedDict()

    def __contains__(self, picture: PreparedPicture) -> bool:
        return picture.key in self._held

    def get(self, picture: PreparedPicture) -> VisionEmbeddings | None:
        """Its embeddings, if they are held."""
        found = self._held.get(picture.key)
        if found is not None:
            self.hits += 1
            self._held.move_to_end(picture.key)
        return found

    def encode(self, picture: PreparedPicture) -> VisionEmbeddings:
        """Its embeddings, made and kept; those that were not used for the longest time make room."""
        self.misses += 1
        made = encode_vision(self._model, self._params, picture.levels, picture.grid_thw)
        self._held[picture.key] = made
        self.bytes += _size(made)
        while self.bytes > self._budget:
            _, dropped = self._held.popitem(last=False)
            self.bytes -= _size(dropped)
        return made


def _size(vision: VisionEmbeddings) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(vision))
