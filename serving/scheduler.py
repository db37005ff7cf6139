"""vLLM's scheduler with a pool of pages for each data-parallel group, where there are several.

Page ids count through all groups: the pages of group g are g * n to g * n + n - 1. A request keeps
to one group from its first page until it ends or is preempted. Everything else is vLLM's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, KVCacheBlock
from vllm.v1.core.sched.scheduler import Scheduler

from serving.options import group_batch
from serving.platform import options_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm.v1.request import Request


class GroupedQueue:
    """Free pages by group, in the place of vLLM's one queue; page 0 of every group stays out."""

    def __init__(self, blocks: Sequence[KVCacheBlock], groups: int) -> None:
        self.size = len(blocks) // groups
        self.queues = [
            FreeKVCacheBlockQueue(list(blocks[g * self.size + 1 : (g + 1) * self.size]))
            for g in range(groups)
        ]
        self.group: int | None = None  # whose turn it is

    @contextmanager
    def of(self, group: int) -> Iterator[None]:
        """Pages come from this group meanwhile."""
        self.group = group
        try:
            yield
        finally:
            self.group = None

    @property
    def num_free_blocks(self) -> int:
        """Of the group whose turn it is, else of all."""
        if self.group is not None:
            return int(self.queues[self.group].num_free_blocks)
        return sum(queue.num_free_blocks for queue in self.queues)

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        assert self.group is not None or not n, "pages are given to requests of a group"
        return list(self.queues[self.group].popleft_n(n)) if self.group is not None else []

    def append_n(self, blocks: Iterable[KVCacheBlock]) -> None:
        for block in blocks:
            self.queues[block.block_id // self.size].append(block)

    def prepend_n(self, blocks: Iterable[KVCacheBlock]) -> None:
        by_group: dict[int, list[KVCacheBlock]] = {}
        for block in blocks:
            by_group.setdefault(block.block_id // self.size, []).append(block)
        for group, part in by_group.items():
            self.queues[group].prepend_n(part)


class GroupScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's, whose requests find their pages in one group each."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        groups = options_of(self.vllm_config).data_parallel
        self.slots = group_batch(self.max_num_running_reqs, groups)
        pool = self.kv_cache_manager.block_pool
        assert not pool.enable_caching, "a prefix would be found in another group"
        self.queue = GroupedQueue(pool.blocks, groups)
        pool.free_block_queue = self.queue
        pool.num_gpu_blocks -= groups - 1  # one of each group is nobody's, where vLLM knows of one
        self._allocate = self.kv_cache_manager.allocate_slots
        self.kv_cache_manager.allocate_slots = self._allocate_in_group

    def _allocate_in_group(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        group = self._group_of(request)
        with self.queue.of(self._emptiest() if group is None else group):
            return self._allocate(request, *args, **kwargs)

    def _group_of(self, request: Request) -> int | None:
        """Where its pages are, if it has any."""
        ids = self.kv_cache_manager.get_block_ids(request.request_id)[0]
        return ids[0] // self.queue.size if ids else None

    def _emptiest(self) -> int:
        """The group with most free pages, of those with a free slot."""
        users = [0] * len(self.queue.queues)
        for request in self.running:
            group = self._group_of(request)
            if group is not None:
                users[group] += 1
        open_groups = [g for g, count in enumerate(users) if count < self.slots]
        assert open_groups, "vLLM runs no more than max_num_seqs requests"
        return max(open_groups, key=lambda g: self.queue.queues[g].num_free_blocks)
