"""A store that fails as told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec
from pcmoe_det.committee.store import ExpertReadError, ExpertStore, ReadMode, ReadResult, StoreCounters


class FaultyStore:
    """Passes reads on, but spoils the buffer and raises where ``fails(key, attempt)`` says so.

    ``attempt`` counts the reads of that expert from 1. ``before_read(key)`` runs first: block in it, or
    count.
    """

    def __init__(
        self,
        store: ExpertStore,
        *,
        fails: Callable[[ExpertKey, int], bool] = lambda _key, _attempt: False,
        before_read: Callable[[ExpertKey], object] = lambda _key: None,
    ) -> None:
        self._store = store
        self._fails = fails
        self._before_read = before_read
        self.attempts: dict[ExpertKey, int] = {}

    @property
    def layers(self) -> Sequence[MoELayerSpec]:
        return self._store.layers

    @property
    def read_mode(self) -> ReadMode:
        return self._store.read_mode

    @property
    def counters(self) -> StoreCounters:
        return self._store.counters

    def read_into(self, key: ExpertKey, buffer: Tensor) -> ReadResult:
        self.attempts[key] = self.attempts.get(key, 0) + 1
        self._before_read(key)
        if self._fails(key, self.attempts[key]):
            buffer.fill_(0xFF)  # NaN in every float format: use of it would show
            name = self.layers[key.layer].name
            raise ExpertReadError(
                f"cannot read expert {key.expert} of layer {name}: told to fail",
                key=key,
                layer_name=name,
                failure="io",
            )
        return self._store.read_into(key, buffer)

    def close(self) -> None:
        self._store.close()
