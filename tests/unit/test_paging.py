"""No block is lost, doubled or written by two users, whatever users come, grow and go."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.paging import NO_BLOCK, BlockPool

BLOCK = 4


class World:
    """What a cache would hold: follows every write, so that a wrong share shows at once."""

    def __init__(self, num_blocks: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.pool = BlockPool(num_blocks, BLOCK, seed=seed, share_prefixes=True)
        self.cache: dict[tuple[int, int], int] = {}  # (block, offset) -> token
        self.users: dict[int, list[int]] = {}
        self.limits: dict[int, int] = {}
        self.next_user = 0
        self.num_shared = 0

    def write(self, user: int, position: int, token: int) -> None:
        self.cache[self.pool.table(user)[position // BLOCK], position % BLOCK] = token

    def arrive(self) -> None:
        # few different tokens: many users begin alike
        tokens = [self.rng.choice((1, 1, 1, 2)) for _ in range(self.rng.randint(1, 20))]
        limit = len(tokens) + self.rng.randint(0, 12)
        if not self.pool.can_allocate(tokens, limit=limit):
            with pytest.raises(ValueError, match="KV cache is full"):
                self.pool.allocate(self.next_user, tokens, limit=limit)
            return
        user, self.next_user = self.next_user, self.next_user + 1
        cached = self.pool.allocate(user, tokens, limit=limit)
        self.num_shared += cached
        assert cached < len(tokens)
        for position in range(cached, len(tokens)):
            self.write(user, position, tokens[position])
        self.pool.publish(user, tokens)
        self.users[user], self.limits[user] = tokens, limit

    def grow(self) -> None:
        growing = [u for u, tokens in self.users.items() if len(tokens) < self.limits[u]]
        if growing:
            user = self.rng.choice(growing)
            self.users[user].append(self.rng.randint(3, 9))
            self.pool.grow(user, len(self.users[user]))  # was promised: may never fail
            self.write(user, len(self.users[user]) - 1, self.users[user][-1])

    def leave(self) -> None:
        if self.users:
            user = self.rng.choice(list(self.users))
            self.pool.free(user)
            del self.users[user]

    def check(self) -> None:
        held: set[int] = set()
        for user, tokens in self.users.items():
            table = self.pool.table(user)
            held.update(table)
            assert len(set(table)) == len(table) == self.pool.blocks_for(len(tokens))
            for position, token in enumerate(tokens):
                assert self.cache[table[position // BLOCK], position % BLOCK] == token
        free = set(self.pool._free)
        assert not free & held
        assert free | held == set(range(self.pool.num_blocks))
        assert self.pool.num_free >= 0


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**32))
def test_ten_thousand_random_steps_lose_and_double_no_block(seed: int) -> None:
    world = World(num_blocks=40, seed=seed)
    steps = (world.arrive, world.arrive, world.grow, world.grow, world.leave)
    for step in range(10_000):
        world.rng.choice(steps)()
        if step % 20 == 0:
            world.check()
    world.check()
    assert world.num_shared > 0
    for user in list(world.users):
        world.pool.free(user)
    assert world.pool.num_free == 40


def test_a_user_reads_the_published_blocks_of_another_and_owns_the_block_it_writes() -> None:
    pool = BlockPool(8, BLOCK, share_prefixes=True)
    prompt = list(range(12))
    assert pool.allocate("a", prompt, limit=16) == 0
    assert pool.allocate("early", prompt, limit=12) == 0, "nothing is shared before it is written"
    pool.free("early")
    pool.publish("a", prompt)
    assert pool.allocate("b", prompt, limit=16) == 8, "the last token's block is always written"
    assert pool.table("a")[:2] == pool.table("b")[:2]
    assert pool.table("a")[2] != pool.table("b")[2]


def test_a_prefix_stays_findable_until_its_blocks_are_reused() -> None:
    pool = BlockPool(4, BLOCK, share_prefixes=True)
    pool.allocate("a", [1] * 9, limit=9)
    pool.publish("a", [1] * 9)
    pool.free("a")
    assert pool.allocate("b", [1] * 9, limit=9) == 8
    pool.free("b")
    pool.allocate("other", [2] * 16, limit=16)
    pool.free("other")
    assert pool.allocate("c", [1] * 9, limit=9) == 0


def test_what_was_promised_is_not_given_to_others() -> None:
    pool = BlockPool(4, BLOCK)
    pool.allocate("a", [1], limit=12)
    assert not pool.can_allocate([1], limit=5)
    assert pool.can_allocate([1], limit=4)
    with pytest.raises(ValueError, match="full: 2 blocks of 4 tokens asked for, 1 of 4"):
        pool.allocate("b", [1], limit=8)


def test_a_permuted_pool_hands_out_every_block_in_another_order() -> None:
    pool = BlockPool(32, BLOCK, seed=3)
    pool.allocate("a", [1] * 128, limit=128)
    assert pool.table("a") != sorted(pool.table("a"))
    assert sorted(pool.table("a")) == list(range(32))


def test_a_table_is_padded_with_no_block() -> None:
    pool = BlockPool(4, BLOCK)
    pool.allocate("a", [1] * 5, limit=5)
    assert pool.table("a", 4) == [0, 1, NO_BLOCK, NO_BLOCK]
