# Block key → number of the set of its holders, in one tier.

cdef extern from *:
    """
    /* Twelve bytes: a third more slots fit into a cache than of sixteen. */
    typedef struct __attribute__((packed)) { uint64_t key; uint32_t holders; } kv_slot;
    """
    ctypedef struct Slot "kv_slot":
        uint64_t key
        uint32_t holders


cdef class KeyTable:
    """Open addressing with linear probing, at most two thirds full. A slot without holders is free."""

    cdef Slot *slots
    cdef size_t mask, used
    cdef int shift

    def __dealloc__(self):
        free(self.slots)

    cdef inline void prefetch(self, uint64_t key) noexcept:
        if self.used:
            kv_prefetch(&self.slots[kv_home(key, self.shift)])

    cdef inline uint32_t holders_of(self, uint64_t key) noexcept:
        """0 for a key that nobody holds."""
        return self.slots[self.place_of(key)].holders if self.used else 0

    cdef inline size_t place_of(self, uint64_t key) noexcept:
        """The slot that has a key, or the free one where it belongs."""
        cdef size_t at = kv_home(key, self.shift)
        while self.slots[at].holders and self.slots[at].key != key:
            at = (at + 1) & self.mask
        return at

    cdef int reserve(self) except -1:
        """Make room for one more key."""
        cdef Slot *before = self.slots
        cdef size_t size = 0 if before == NULL else self.mask + 1, at
        if (self.used + 1) * 3 <= size * 2:
            return 0
        size = 1 << ROOM_LOG_MIN if size == 0 else size * 2
        cdef Slot *slots = <Slot *>calloc(size, sizeof(Slot))
        if slots == NULL:
            raise MemoryError()
        self.shift = 64 - ROOM_LOG_MIN if before == NULL else self.shift - 1
        self.slots, self.mask = slots, size - 1
        if before != NULL:
            for at in range(size // 2):
                if before[at].holders:
                    slots[self.place_of(before[at].key)] = before[at]
            free(before)
        return 0

    cdef void vacate(self, size_t at) noexcept:
        """Free a slot, and move up what came to lie behind it."""
        cdef size_t other = at
        while True:
            other = (other + 1) & self.mask
            if not self.slots[other].holders:
                break
            if ((other - kv_home(self.slots[other].key, self.shift)) & self.mask) >= ((other - at) & self.mask):
                self.slots[at] = self.slots[other]
                at = other
        self.slots[at].holders = 0
        self.used -= 1
