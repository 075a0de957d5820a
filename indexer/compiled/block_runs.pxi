# Copies of a stream's lead group on the gpu, event by event. See indexer/core/block_runs.py, whose `BlockRunsInPython` has the same methods.


cdef class BlockRuns:
    """On the tables of one stream. What a method does not take is done block by block in Python."""

    goes_on = True

    cdef BlockMap held, removed
    cdef dict more, large
    cdef HeldKeys gpu
    cdef KeyClaims claims
    cdef uint32_t copies_max
    cdef size_t removed_max, spare
    cdef Buffer hashes, keys  # of the event at hand

    def __cinit__(
        self,
        BlockMap held not None,
        BlockMap removed not None,
        dict more not None,
        dict large not None,
        HeldKeys gpu not None,
        KeyClaims claims not None,
        uint32_t copies_max,
        size_t removed_max,
        size_t spare,
    ):
        self.held, self.removed, self.more, self.large, self.gpu, self.claims = held, removed, more, large, gpu, claims
        self.copies_max, self.removed_max, self.spare = min(copies_max, <uint32_t>COPIES_MASK), removed_max, spare
        self.hashes, self.keys = Buffer(), Buffer()

    def add(self, Py_ssize_t start, list hashes not None, list keys not None, parent, dict touched, dict records, list revived, bint is_claimed):
        cdef Py_ssize_t count = len(hashes), at, number
        cdef uint64_t key
        cdef PackedBlock block
        cdef PackedBlock *known
        if start == 0:
            if self.hashes.fill(hashes) != self.keys.fill(keys):
                raise ValueError("each block has one key")
        for at in range(start, min(start + AHEAD, count)):
            self.prefetch(at)
        for at in range(start, count):
            if at + AHEAD < count:
                self.prefetch(at + AHEAD)
            key, block.key, block.engine_hash = self.keys.values[at], self.keys.values[at], self.hashes.values[at]
            block.state, block.parent = IS_HELD | 1, 0
            if at or parent is not None:
                block.state |= HAS_PARENT
                block.parent = self.hashes.values[at - 1] if at else as_key(parent)
            engine_hash, number_of_key = <object>PyList_GetItem(hashes, at), <object>PyList_GetItem(keys, at)
            if self.claims.several and number_of_key in self.claims.several:
                return at
            if is_claimed and not self.is_claimable(block.engine_hash, key):
                return at
            number = self.held.find(block.engine_hash)
            if number >= 0:
                known = &self.held.blocks[number]
                if known.key != key or known.parent != block.parent or (known.state ^ block.state) & HAS_PARENT:
                    return at
            # What may fail comes first.
            if is_claimed:
                self.claims.reserve()
            if number < 0 or not self.held.blocks[number].state & COPIES_MASK:
                self.held.reserve(1)
                self.gpu.keys.reserve()
                touched[number_of_key] = True  # also where another hash holds it: see IndexedKeys.hold
                self.gpu.gain(key)
            if is_claimed and self.claims.claimant(key) == NULL:
                self.claims.add(key, block.engine_hash)
            if number < 0:
                self.held.append(&block)
                number = self.held.count - 1
                if self.removed.discard(block.engine_hash) and revived is not None:
                    revived.append(engine_hash)
                if self.large:
                    self.large.pop(engine_hash, None)
            else:
                number = self.held.find(block.engine_hash)  # room may have been made
                if self.held.blocks[number].state & COPIES_MASK < self.copies_max:
                    self.held.blocks[number].state += 1
            if records is not None:
                records[engine_hash] = self.held.made(number)
        return max(start, count)

    cdef inline void prefetch(self, Py_ssize_t at) noexcept:
        self.held.prefetch(self.hashes.values[at])
        self.gpu.keys.prefetch(self.keys.values[at])
        self.claims.prefetch(self.keys.values[at])

    cdef bint is_claimable(self, uint64_t engine_hash, uint64_t key) noexcept:
        """Whether no other hash claims the key."""
        cdef uint64_t *claimed_by = self.claims.claimant(key)
        return claimed_by == NULL or claimed_by[0] == engine_hash

    def remove(
        self, Py_ssize_t start, list hashes not None, list not_held, dict touched, dict records, list gone, bint is_plain, bint is_all
    ):
        cdef Py_ssize_t count = len(hashes), at, number
        cdef uint32_t copies
        cdef uint64_t *claimed_by
        cdef PackedBlock block
        if start == 0:
            self.hashes.fill(hashes)
        for at in range(start, min(start + AHEAD, count)):
            self.held.prefetch(self.hashes.values[at])
        for at in range(start, count):
            if at + AHEAD < count:
                self.held.prefetch(self.hashes.values[at + AHEAD])
            engine_hash = <object>PyList_GetItem(hashes, at)
            number = self.held.find(self.hashes.values[at])
            if number < 0:
                not_held.append(engine_hash)
                continue
            block = self.held.blocks[number]
            copies = block.state & COPIES_MASK
            if copies > 1 and not is_all:
                self.held.blocks[number].state -= 1
                if records is not None:
                    records[engine_hash] = self.held.made(number)
                continue
            if not copies and not is_all:
                continue  # held elsewhere
            number_of_key = PyLong_FromUnsignedLongLong(block.key)
            if self.claims.several and number_of_key in self.claims.several:
                return at
            if not is_plain and self.removed.live >= self.removed_max:
                return at
            self.removed.reserve(1)
            if copies and self.gpu.lose(block.key):
                touched[number_of_key] = False
            if copies and records is not None:
                records[engine_hash] = None
            self.held.blocks[number].state &= ~<uint32_t>COPIES_MASK
            if self.more and self.is_elsewhere(engine_hash):
                continue
            block.state &= ~<uint32_t>COPIES_MASK
            self.held.discard(block.engine_hash)
            self.removed.discard(block.engine_hash)
            self.removed.append(&block)
            claimed_by = self.claims.claimant(block.key)
            if claimed_by != NULL and claimed_by[0] == block.engine_hash:
                self.claims.discard(block.key)
            if gone is not None:
                gone.append(engine_hash)
            if self.removed.live > self.removed_max:
                self.removed.drop_oldest(self.removed.live - self.removed_max + self.spare, gone)
        return max(start, count)

    cdef bint is_elsewhere(self, engine_hash) except -1:
        """Whether another tier or group holds it."""
        for copies in self.more.values():
            if engine_hash in copies:
                return True
        return False
