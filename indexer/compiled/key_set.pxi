# The block keys that one holder has in one tier.

cdef extern from *:
    """
    /* Where a key is looked for first: the high bits of a product with a number that nobody outside of the process knows, so that keys cannot be chosen to
     * lie in one place. */
    static uint64_t kv_multiplier = 0x9E3779B97F4A7C15ULL;
    #define kv_home(key, shift) ((size_t)(((key) * kv_multiplier) >> (shift)))

    /* GCC leaves out a call of a function that does nothing but this, unless something in it is volatile. */
    static inline void kv_prefetch(const void *address) {
        __builtin_prefetch(address);
        __asm__ __volatile__("" : : "r"(address));
    }
    """
    uint64_t kv_multiplier
    size_t kv_home(uint64_t key, int shift) noexcept nogil
    void kv_prefetch(const void *address) noexcept nogil

kv_multiplier = int.from_bytes(os.urandom(8), "little") | 1

cdef enum:
    ROOM_LOG_MIN = 3
    # How many keys ahead their places in memory are asked for.
    AHEAD = 16


cdef class KeySet:
    """A set of block keys, to read: `len`, `in` and iteration. The index that it is of changes it.

    Open addressing with linear probing, 8 bytes a slot, at most three quarters full. 0 marks a free slot, so whether key 0 is in it stands apart.
    """

    cdef uint64_t *slots
    cdef size_t mask  # slots less one; none are there as long as nothing was added
    cdef int shift
    cdef size_t used  # slots that have a key
    cdef size_t sweep  # where `pop` goes on
    cdef bint has_zero

    def __dealloc__(self):
        free(self.slots)

    def __len__(self):
        return self.used + self.has_zero

    def __contains__(self, key):
        return self.has(as_key(key))

    def __iter__(self):
        return iter(self.listed())

    cdef list listed(self):
        cdef size_t at
        found = [0] if self.has_zero else []
        if self.used:
            for at in range(self.mask + 1):
                if self.slots[at]:
                    found.append(PyLong_FromUnsignedLongLong(self.slots[at]))
        return found

    cdef inline void prefetch(self, uint64_t key) noexcept:
        if self.used:
            kv_prefetch(&self.slots[kv_home(key, self.shift)])

    cdef bint has(self, uint64_t key) noexcept:
        cdef size_t at
        if key == 0:
            return self.has_zero
        if self.used == 0:
            return False
        at = kv_home(key, self.shift)
        while self.slots[at]:
            if self.slots[at] == key:
                return True
            at = (at + 1) & self.mask
        return False

    cdef int reserve(self) except -1:
        """Make room for one more key."""
        cdef uint64_t *before = self.slots
        cdef size_t size = 0 if before == NULL else self.mask + 1, at
        if (self.used + 1) * 4 <= size * 3:
            return 0
        size = 1 << ROOM_LOG_MIN if size == 0 else size * 2
        cdef uint64_t *slots = <uint64_t *>calloc(size, sizeof(uint64_t))
        if slots == NULL:
            raise MemoryError()
        self.shift = 64 - ROOM_LOG_MIN if before == NULL else self.shift - 1
        self.slots, self.mask, self.sweep = slots, size - 1, 0
        if before != NULL:
            for at in range(size // 2):
                if before[at]:
                    slots[self.place_of(before[at])] = before[at]
            free(before)
        return 0

    cdef size_t place_of(self, uint64_t key) noexcept:
        """The slot that has a key, or the free one where it belongs."""
        cdef size_t at = kv_home(key, self.shift)
        while self.slots[at] and self.slots[at] != key:
            at = (at + 1) & self.mask
        return at

    cdef void add(self, uint64_t key) noexcept:
        """A key that is not in it. Call `reserve` before."""
        if key == 0:
            self.has_zero = True
        else:
            self.slots[self.place_of(key)] = key
            self.used += 1

    cdef void discard(self, uint64_t key) noexcept:
        """A key that is in it."""
        if key == 0:
            self.has_zero = False
        else:
            self.vacate(self.place_of(key))

    cdef void vacate(self, size_t at) noexcept:
        """Free a slot, and move up what came to lie behind it."""
        cdef size_t other = at
        while True:
            other = (other + 1) & self.mask
            if not self.slots[other]:
                break
            if ((other - kv_home(self.slots[other], self.shift)) & self.mask) >= ((other - at) & self.mask):
                self.slots[at] = self.slots[other]
                at = other
        self.slots[at] = 0
        self.used -= 1

    cdef bint pop(self, uint64_t *key) noexcept:
        """Take any key out of it. Returns whether there was one."""
        if self.has_zero:
            self.has_zero = False
            key[0] = 0
            return True
        if self.used == 0:
            return False
        while not self.slots[self.sweep]:
            self.sweep = (self.sweep + 1) & self.mask
        key[0] = self.slots[self.sweep]
        self.vacate(self.sweep)
        return True

    cdef void release(self) noexcept:
        """Give the memory of an empty set back."""
        free(self.slots)
        self.slots = NULL
        self.mask = self.used = self.sweep = 0


cdef uint64_t as_key(key) except? 0:
    """Raises TypeError, or OverflowError for what is no unsigned 64-bit integer."""
    if not PyLong_Check(key):
        raise TypeError("a block key is an integer")
    return PyLong_AsUnsignedLongLong(key)
