"""Keys and values kept between calls, so that a prefix is computed once."""

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one attention layer, in buffers that double when full.

    Without gradients new entries are written in place; with gradients they are concatenated, so that
    a cached and an uncached pass have the same derivative.
    """

    def __init__(self) -> None:
        self.length = 0
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add k and v, both (B, Hkv, T, head_dim); returns all keys and all values so far."""
        end = self.length + k.shape[-2]
        if self._k is None or self._v is None:
            self._k, self._v = k, v
        elif torch.is_grad_enabled() and (k.requires_grad or self._k.requires_grad):
            keys, values = self.view()
            self._k, self._v = torch.cat([keys, k], -2), torch.cat([values, v], -2)
        else:
            if k.shape[0] != self._k.shape[0]:
                raise ValueError(
                    f"the cache holds {self._k.shape[0]} rows, the new keys {k.shape[0]}: use KVCache.select first"
                )
            if end > self._k.shape[-2]:
                room = list(self._k.shape)
                room[-2] = 2 * end
                keys, values = self.view()
                self._k, self._v = self._k.new_empty(room), self._v.new_empty(room)
                self._k[..., : self.length, :], self._v[..., : self.length, :] = keys, values
            self._k[..., self.length : end, :], self._v[..., self.length : end, :] = k, v
        self.length = end
        return self.view()

    def view(self) -> tuple[Tensor, Tensor]:
        """All keys and values so far, (B, Hkv, length, head_dim)."""
        if self._k is None or self._v is None:
            raise ValueError("the cache is empty")
        return self._k[..., : self.length, :], self._v[..., : self.length, :]

    def select(self, rows: Tensor) -> "LayerCache":
        """A new cache with these rows, in this order; a row may come several times."""
        new = LayerCache()
        if self._k is not None:
            k, v = self.view()
            new._k, new._v, new.length = k.index_select(0, rows), v.index_select(0, rows), self.length
        return new

    @property
    def nbytes(self) -> int:
        """Bytes of the entries in use."""
        return 0 if self._k is None else sum(t.numel() * t.element_size() for t in self.view())


class KVCache:
    """One `LayerCache` a layer, by depth (a layer that is used twice has two).

    Examples
    --------
    >>> cache = KVCache(num_layers=2)
    >>> cache.length
    0
    """

    def __init__(self, num_layers: int) -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.layers = [LayerCache() for _ in range(num_layers)]
        self.mask: Tensor | None = None  # (B, length), True = real token; None: all are

    def __getitem__(self, layer: int) -> LayerCache:
        return self.layers[layer]

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.layers[0].length

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values in use."""
        return sum(layer.nbytes for layer in self.layers)

    def select(self, rows: Tensor) -> "KVCache":
        """A new cache whose row i is this one's ``rows[i]``: copies of a shared prefix, survivors of a beam."""
        new = KVCache(len(self.layers))
        new.layers = [layer.select(rows) for layer in self.layers]
        new.mask = None if self.mask is None else self.mask.index_select(0, rows)
        return new

    def reorder(self, index: Tensor) -> "KVCache":
        """`select`, under the name that `etude.layers.decode` asks for."""
        return self.select(index)
