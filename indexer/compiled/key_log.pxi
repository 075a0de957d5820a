# Which keys a change holds or lets go, in order.


cdef class KeyLog:
    """(key, whether it is held from then on), the later one counts. To read: as a dict it has `items`, `get` and `len`, which counts each entry."""

    cdef uint64_t *keys
    cdef uint8_t *held
    cdef Py_ssize_t count, room
    cdef readonly bint has_removed

    def __dealloc__(self):
        free(self.keys)
        free(self.held)

    def __len__(self):
        return self.count

    def items(self):
        cdef Py_ssize_t at
        return [(PyLong_FromUnsignedLongLong(self.keys[at]), bool(self.held[at])) for at in range(self.count)]

    def get(self, key):
        cdef uint64_t number = as_key(key)
        cdef Py_ssize_t at
        for at in range(self.count - 1, -1, -1):
            if self.keys[at] == number:
                return bool(self.held[at])
        return None

    cdef int reserve(self, Py_ssize_t more) except -1:
        if self.count + more > self.room:
            more = max(self.count + more, 2 * self.room)
            self.keys = <uint64_t *>grown(self.keys, more * sizeof(uint64_t))
            self.held = <uint8_t *>grown(self.held, more)
            self.room = more
        return 0

    cdef inline void add(self, uint64_t key, bint is_held) noexcept:
        """Call `reserve` before."""
        self.keys[self.count], self.held[self.count] = key, is_held
        self.count += 1
        self.has_removed |= not is_held
