"""A generator whose requests may bring images: who brings some waits for pages for them, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.generator import Generator
from runtime.images import ImageRequest, check_images
from runtime.requests import Request


class ImageGenerator(Generator):
    """Runs requests with and without images side by side; shares images if it shares prefixes."""

    def __init__(self, engines: Sequence[Any], **options: Any) -> None:
        super().__init__(engines, **options)
        for engine in engines:
            engine.shares_images = self.share_prefixes

    def check(self, request: Request, number: int = 0) -> None:
        """Raise one clear line for a request that could never be answered."""
        engine: Any = self.engines[0]
        check_images(request, engine.vision, engine.max_images, engine.config.name)
        super().check(request, number)

    def _free_slot(self, request: Request) -> int | None:
        slot = super()._free_slot(request)
        if slot is None or not isinstance(request, ImageRequest) or not request.images:
            return slot
        return slot if self._eyes_of(slot).has_room(request.images) else None

    def _seat(self, slot: int, user: Any) -> None:
        super()._seat(slot, user)
        request = user.request
        if isinstance(request, ImageRequest) and request.images:
            own = slot % self.slots_per_engine
            self._eyes_of(slot).attach(own, request.prompt, request.images)

    def _release(self, slot: int) -> None:
        super()._release(slot)
        self._eyes_of(slot).detach(slot % self.slots_per_engine)

    def _eyes_of(self, slot: int) -> Any:
        """The engine of a slot."""
        return self.engines[self._engine_of(slot)]
