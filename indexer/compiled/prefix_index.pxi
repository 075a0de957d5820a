# Which ranks hold which blocks. See scorer_api/index/prefix_index.py, whose `PrefixIndex` has the same methods.

cdef enum:
    TIERS = 5
    OWN_TIERS = 4


cdef class PrefixIndex:
    """Tier → block key → set of holders, and holder → tier → block keys."""

    cdef HolderSets sets
    cdef KeyTable gpu, cpu, disk, other, remote
    cdef dict key_sets  # holder → a KeySet for each tier
    cdef list free_holders
    cdef readonly size_t removed_holders
    cdef Buffer keys  # of the change or the run at hand

    def __cinit__(self):
        self.sets = HolderSets()
        self.gpu, self.cpu, self.disk, self.other, self.remote = KeyTable(), KeyTable(), KeyTable(), KeyTable(), KeyTable()
        self.key_sets, self.free_holders, self.keys = {}, [], Buffer()

    # Holders

    def add_holder(self):
        key_sets = tuple([KeySet() for _ in range(TIERS)])
        if self.free_holders:
            holder = self.free_holders.pop()
        else:
            holder = len(self.key_sets)
            self.sets.widen(holder + 1)
        self.key_sets[holder] = key_sets
        return holder

    def remove_holder(self, holder):
        for tier in range(TIERS):
            self.clear(holder, tier, -1)
        del self.key_sets[holder]
        self.free_holders.append(holder)
        self.removed_holders += 1

    def shrink(self, holder, blocks_max):
        cdef Py_ssize_t left = blocks_max
        for tier in range(TIERS):
            if left <= 0:
                break
            left -= self.clear(holder, tier, left)
        return any(self.key_sets[holder])

    @property
    def is_empty(self):
        return not self.key_sets

    @property
    def has_lower(self):
        return bool(self.cpu.used or self.disk.used or self.other.used)

    @property
    def mask(self):
        return sum([1 << holder for holder in self.key_sets])

    # What is held

    def holds(self, holder, tier, key):
        return key in self.key_sets[holder][tier]

    def held(self, holder, tier):
        return self.key_sets[holder][tier]

    @property
    def blocks(self):
        return self.gpu.used + self.cpu.used + self.disk.used + self.other.used + self.remote.used

    @property
    def holders(self):
        return sum([len(keys) for tiers in self.key_sets.values() for keys in tiers])

    def count_held(self, holder, keys):
        cdef tuple tiers = self.key_sets[holder]
        return sum([any([key in tiers[tier] for tier in range(OWN_TIERS)]) for key in set(keys)])

    # Changes

    def apply(self, holder, change, touched_by_tier):
        cdef int tier = 0
        if change.reload:
            for tier in range(TIERS):
                self.clear(holder, tier, -1)
        elif change.cleared:
            self.clear(holder, 0, -1)
        tier = 0
        for touched in touched_by_tier:
            if tier == TIERS:
                break
            if touched:
                self.touch(holder, tier, touched)
            tier += 1

    cdef KeyTable table(self, int tier):
        if tier == 0:
            return self.gpu
        if tier == 1:
            return self.cpu
        if tier == 2:
            return self.disk
        return self.other if tier == 3 else self.remote

    cdef int touch(self, holder, int tier, touched) except -1:
        """Apply what became of the blocks of one holder in one tier: a dict, or a KeyLog."""
        cdef KeySet held = (<tuple>self.key_sets[holder])[tier]
        cdef KeyTable table = self.table(tier)
        cdef KeyLog log
        cdef Py_ssize_t count
        if isinstance(touched, KeyLog):
            log = touched
            return self.touch_keys(holder, table, held, log.keys, log.held, log.count)
        count = self.unpack(touched)
        return self.touch_keys(holder, table, held, self.keys.values, self.keys.flags, count)

    cdef Py_ssize_t unpack(self, dict touched) except -1:
        """Take the keys and what became of them into the buffer. Returns how many."""
        cdef Py_ssize_t count = len(touched), at = 0
        self.keys.reserve(count)
        for each, is_held in touched.items():
            if at == count:
                raise RuntimeError("the change was changed")
            self.keys.values[at] = as_key(each)
            self.keys.flags[at] = is_held is True
            at += 1
        return at

    cdef int touch_keys(self, uint32_t holder, KeyTable table, KeySet held, const uint64_t *keys, const uint8_t *flags, Py_ssize_t count) except -1:
        cdef Py_ssize_t at
        for at in range(min(count, AHEAD)):
            table.prefetch(keys[at])
            held.prefetch(keys[at])
        for at in range(count):
            if at + AHEAD < count:
                table.prefetch(keys[at + AHEAD])
                held.prefetch(keys[at + AHEAD])
            if flags[at]:
                if not held.has(keys[at]):
                    self.hold(holder, table, held, keys[at])
            elif held.has(keys[at]):
                self.sets.reserve()
                held.discard(keys[at])
                self.drop(holder, table, keys[at])
        return 0

    cdef int hold(self, uint32_t holder, KeyTable table, KeySet held, uint64_t key) except -1:
        """A key that the holder does not have yet. What may fail comes first."""
        cdef size_t at
        cdef uint32_t before
        held.reserve()
        table.reserve()
        self.sets.reserve()
        at = table.place_of(key)
        before = table.slots[at].holders
        table.slots[at].holders = self.sets.changed(before, holder, True)
        if before:
            self.sets.unuse(before)
        else:
            table.slots[at].key = key
            table.used += 1
        held.add(key)
        return 0

    cdef void drop(self, uint32_t holder, KeyTable table, uint64_t key) noexcept:
        """A key that the holder had. Call `sets.reserve` before."""
        cdef size_t at = table.place_of(key)
        cdef uint32_t before = table.slots[at].holders, after = self.sets.changed(before, holder, False)
        self.sets.unuse(before)
        if after:
            table.slots[at].holders = after
        else:
            table.vacate(at)

    cdef Py_ssize_t clear(self, holder, int tier, Py_ssize_t keys_max) except -1:
        """Let a holder have none of the keys in a tier, or at most so many fewer; -1 is all of them. Returns how many."""
        cdef KeySet held = (<tuple>self.key_sets[holder])[tier]
        cdef KeyTable table = self.table(tier)
        cdef uint32_t number = holder
        cdef Py_ssize_t count = 0
        cdef uint64_t key
        while count != keys_max:
            self.sets.reserve()
            if not held.pop(&key):
                held.release()
                break
            self.drop(number, table, key)
            count += 1
        return count

    # Questions

    def begin_walk(self, alive, spans=None):
        return Walk(self, alive, spans)

    def walk(self, alive, runs, spans=None):
        cdef Walk walk = Walk(self, alive, spans)
        for keys in runs:
            if not walk.follow(keys):
                return walk.steps
        return walk.end()

    def spans(self, keys):
        cdef Walk walk = Walk(self, 0, [])
        walk.look(keys)
        return walk.found_spans


cdef class Buffer:
    """Room for the keys at hand, and a flag for each."""

    cdef uint64_t *values
    cdef uint8_t *flags
    cdef Py_ssize_t room

    def __dealloc__(self):
        free(self.values)
        free(self.flags)

    cdef int reserve(self, Py_ssize_t count) except -1:
        if count > self.room:
            count = max(count, 2 * self.room, 256)
            self.values = <uint64_t *>grown(self.values, count * sizeof(uint64_t))
            self.flags = <uint8_t *>grown(self.flags, count)
            self.room = count
        return 0

    cdef int take(self, const uint64_t *values, Py_ssize_t count) except -1:
        self.reserve(count)
        if count:
            memcpy(self.values, values, count * sizeof(uint64_t))
        return 0

    cdef Py_ssize_t fill(self, keys) except -1:
        """Take these keys: a sequence of integers, fastest as an array of type Q. Returns how many."""
        cdef Py_ssize_t count, at
        cdef list items
        if isinstance(keys, array) and keys.typecode == "Q":
            return self.fill_packed(keys)
        items = keys if isinstance(keys, list) else list(keys)
        count = len(items)
        self.reserve(count)
        for at in range(count):
            self.values[at] = as_key(<object>PyList_GetItem(items, at))
        return count

    cdef Py_ssize_t fill_packed(self, keys) except -1:
        cdef Py_buffer buffer
        cdef Py_ssize_t count
        PyObject_GetBuffer(keys, &buffer, PyBUF_SIMPLE)
        try:
            count = buffer.len // KEY_BYTES
            self.reserve(count)
            if count:
                memcpy(self.values, buffer.buf, count * KEY_BYTES)
            return count
        finally:
            PyBuffer_Release(&buffer)
