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
    cdef Py_ssize_t held_max
    cdef Buffer hashes, keys  # of the event at hand
    cdef KeyLog log
    cdef dict touched, records
    cdef list revived, gone

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
        Py_ssize_t held_max,
    ):
        self.held, self.removed, self.more, self.large, self.gpu, self.claims = held, removed, more, large, gpu, claims
        self.copies_max, self.removed_max, self.spare = min(copies_max, <uint32_t>COPIES_MASK), removed_max, spare
        self.held_max = held_max
        self.hashes, self.keys = Buffer(), Buffer()

    def add(self, Py_ssize_t start, list hashes not None, list keys not None, parent, dict touched not None, dict records, list revived, bint is_claimed):
        if start == 0:
            if self.hashes.fill(hashes) != self.keys.fill(keys):
                raise ValueError("each block has one key")
        self.note_in(None, touched, records, revived, None)
        done = self.store(start, len(hashes), parent is not None, 0 if parent is None else as_key(parent), is_claimed)
        self.note_in(None, None, None, None, None)
        return done

    def remove(
        self, Py_ssize_t start, list hashes not None, list not_held, dict touched not None, dict records, list gone, bint is_plain, bint is_all
    ):
        if start == 0:
            self.hashes.fill(hashes)
        self.note_in(None, touched, records, None, gone)
        done = self.release(start, len(hashes), not_held, is_plain, is_all)
        self.note_in(None, None, None, None, None)
        return done

    def play(
        self,
        PlainEvents events not None,
        Py_ssize_t first,
        uint64_t leads,
        uint64_t root,
        Py_ssize_t stored_max,
        bint announces,
        KeyLog log,
        dict touched,
        dict records,
        list moved,
        bint is_plain,
        parked,
        awaited,
    ):
        cdef uint64_t parent_key
        cdef Py_ssize_t position = first, done = 0, stored = 0, added = 0, removed = 0
        cdef PlainEvent *event
        if log is None and touched is None:
            raise TypeError("a log or a dict is needed")
        self.note_in(log, touched, records, moved, moved)
        while position < events.count:
            event = &events.events[position]
            if event.kind == CLEARED_EVENT or not leads >> event.said & 1:
                break
            self.hashes.take(&events.hashes[event.first_hash], event.count)
            if parked and (event.kind == REMOVED_EVENT or self.is_waited_for(event.count, parked, awaited)):
                break
            if event.kind == REMOVED_EVENT:
                if records is not None:
                    for done in range(event.count):
                        records[PyLong_FromUnsignedLongLong(self.hashes.values[done])] = None
                done = self.release(0, event.count, None, is_plain, False)
                if done < event.count:
                    break
                removed += event.count
            else:
                if stored == stored_max or <Py_ssize_t>self.held.live + event.count > self.held_max or event.announces_extra_keys > announces or event.adapter:
                    break
                parent_key = root
                if event.has_parent and not self.key_before(event.parent, &parent_key):
                    break
                self.chain(events, event, parent_key)
                done = self.store(0, event.count, event.has_parent, event.parent, not announces)
                if done < event.count:
                    break
                stored += 1
                added += event.count
            position += 1
            done = 0
        self.note_in(None, None, None, None, None)
        return position, done, stored, added, removed

    cdef bint is_waited_for(self, Py_ssize_t count, parked, awaited) except -1:
        """Whether any of the hashes at hand waits for its key, or others wait for it."""
        cdef Py_ssize_t at
        for at in range(count):
            engine_hash = PyLong_FromUnsignedLongLong(self.hashes.values[at])
            if engine_hash in parked or engine_hash in awaited:
                return True
        return False

    cdef bint key_before(self, uint64_t parent, uint64_t *key) noexcept:
        """See `BlockTable.key_before`. Returns whether it is known."""
        cdef BlockMap blocks = self.held
        cdef Py_ssize_t number = blocks.find(parent)
        if number < 0:
            blocks = self.removed
            number = blocks.find(parent)
        if number < 0 or (blocks.blocks[number].state & HAS_PARENT and blocks.blocks[number].parent == parent):
            return False
        key[0] = blocks.blocks[number].key
        return True

    cdef int chain(self, PlainEvents events, const PlainEvent *event, uint64_t key) except -1:
        """Make the keys of an event's blocks."""
        cdef size_t width = <size_t>event.block_size * TOKEN_BYTES, at
        cdef const uint8_t *tokens = <const uint8_t *>&events.tokens[event.first_token]
        self.keys.reserve(event.count)
        if event.extra_keys:
            block_tokens = PyBytes_FromStringAndSize(<const char *>tokens, <Py_ssize_t>(event.count * width))
            chained = chain_packed(key, block_tokens, event.block_size, events.extra_keys[event.extra_keys - 1])
            memcpy(self.keys.values, PyBytes_AsString(chained), event.count * sizeof(uint64_t))
            return 0
        for at in range(event.count):
            key = xxh3_64(tokens + at * width, width, key)
            self.keys.values[at] = key
        return 0

    cdef void note_in(self, KeyLog log, dict touched, dict records, list revived, list gone) noexcept:
        """Where to note what becomes of keys and hashes. `log`: in place of `touched`, where there is one."""
        self.log, self.touched, self.records, self.revived, self.gone = log, touched, records, revived, gone

    cdef inline int note(self, uint64_t key, bint is_held) except -1:
        if self.log is not None:
            self.log.add(key, is_held)
        else:
            self.touched[PyLong_FromUnsignedLongLong(key)] = bool(is_held)
        return 0

    cdef Py_ssize_t store(self, Py_ssize_t start, Py_ssize_t count, bint has_parent, uint64_t parent, bint is_claimed) except -1:
        """One more copy of each block at hand. Returns the position of the first one that is not taken."""
        cdef Py_ssize_t at, number
        cdef uint64_t key
        cdef PackedBlock block
        cdef PackedBlock *known
        if count > self.hashes.room or count > self.keys.room:
            raise ValueError("there are not so many")
        if self.log is not None:
            self.log.reserve(count)
        for at in range(start, min(start + AHEAD, count)):
            self.prefetch(at)
        for at in range(start, count):
            if at + AHEAD < count:
                self.prefetch(at + AHEAD)
            key, block.key, block.engine_hash = self.keys.values[at], self.keys.values[at], self.hashes.values[at]
            block.state, block.parent = IS_HELD | 1, 0
            if at or has_parent:
                block.state |= HAS_PARENT
                block.parent = self.hashes.values[at - 1] if at else parent
            if self.claims.several and PyLong_FromUnsignedLongLong(key) in self.claims.several:
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
                self.note(key, True)  # also where another hash holds it: see IndexedKeys.hold
                self.gpu.gain(key)
            if is_claimed and self.claims.claimant(key) == NULL:
                self.claims.add(key, block.engine_hash)
            if number < 0:
                self.held.append(&block)
                number = self.held.count - 1
                if self.removed.discard(block.engine_hash) and self.revived is not None:
                    self.revived.append(PyLong_FromUnsignedLongLong(block.engine_hash))
                if self.large:
                    self.large.pop(PyLong_FromUnsignedLongLong(block.engine_hash), None)
            else:
                number = self.held.find(block.engine_hash)  # room may have been made
                if self.held.blocks[number].state & COPIES_MASK < self.copies_max:
                    self.held.blocks[number].state += 1
            if self.records is not None:
                self.records[PyLong_FromUnsignedLongLong(block.engine_hash)] = self.held.made(number)
        return max(start, count)

    cdef inline void prefetch(self, Py_ssize_t at) noexcept:
        self.held.prefetch(self.hashes.values[at])
        self.removed.prefetch(self.hashes.values[at])
        self.gpu.keys.prefetch(self.keys.values[at])
        self.claims.prefetch(self.keys.values[at])

    cdef bint is_claimable(self, uint64_t engine_hash, uint64_t key) noexcept:
        """Whether no other hash claims the key."""
        cdef uint64_t *claimed_by = self.claims.claimant(key)
        return claimed_by == NULL or claimed_by[0] == engine_hash

    cdef Py_ssize_t release(self, Py_ssize_t start, Py_ssize_t count, list not_held, bint is_plain, bint is_all) except -1:
        """One copy less of each block at hand, or none of any. `not_held`: None where nobody asks. Returns as `store` does."""
        cdef Py_ssize_t at, number
        cdef uint32_t copies
        cdef uint64_t *claimed_by
        cdef PackedBlock block
        if count > self.hashes.room:
            raise ValueError("there are not so many")
        if self.log is not None:
            self.log.reserve(count)
        for at in range(start, min(start + AHEAD, count)):
            self.held.prefetch(self.hashes.values[at])
        for at in range(start, count):
            if at + AHEAD < count:
                self.held.prefetch(self.hashes.values[at + AHEAD])
            number = self.held.find(self.hashes.values[at])
            if number < 0:
                if not_held is not None:
                    not_held.append(PyLong_FromUnsignedLongLong(self.hashes.values[at]))
                continue
            block = self.held.blocks[number]
            copies = block.state & COPIES_MASK
            if copies > 1 and not is_all:
                self.held.blocks[number].state -= 1
                if self.records is not None:
                    self.records[PyLong_FromUnsignedLongLong(block.engine_hash)] = self.held.made(number)
                continue
            if not copies and not is_all:
                continue  # held elsewhere
            if self.claims.several and PyLong_FromUnsignedLongLong(block.key) in self.claims.several:
                return at
            if not is_plain and self.removed.live >= self.removed_max:
                return at
            self.removed.reserve(1)
            if copies and self.gpu.lose(block.key):
                self.note(block.key, False)
            if copies and self.records is not None:
                self.records[PyLong_FromUnsignedLongLong(block.engine_hash)] = None
            self.held.blocks[number].state &= ~<uint32_t>COPIES_MASK
            if self.more and self.is_elsewhere(PyLong_FromUnsignedLongLong(block.engine_hash)):
                continue
            block.state &= ~<uint32_t>COPIES_MASK
            self.held.discard(block.engine_hash)
            self.removed.discard(block.engine_hash)
            self.removed.append(&block)
            claimed_by = self.claims.claimant(block.key)
            if claimed_by != NULL and claimed_by[0] == block.engine_hash:
                self.claims.discard(block.key)
            if self.gone is not None:
                self.gone.append(PyLong_FromUnsignedLongLong(block.engine_hash))
            if self.removed.live > self.removed_max:
                self.removed.drop_oldest(self.removed.live - self.removed_max + self.spare, self.gone)
        return max(start, count)

    cdef bint is_elsewhere(self, engine_hash) except -1:
        """Whether another tier or group holds it."""
        for copies in self.more.values():
            if engine_hash in copies:
                return True
        return False
