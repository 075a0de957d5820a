# The block keys that one stream holds in one tier. See indexer/core/held_keys.py, whose `HeldKeysInPython` has the same methods.


cdef class HeldKeys:
    """`keys`: all that are held; to read."""

    cdef readonly KeySet keys
    cdef dict more

    def __cinit__(self):
        self.keys, self.more = KeySet(), {}

    def add(self, key):
        self.keys.reserve()
        return self.gain(as_key(key))

    def remove(self, key):
        return self.lose(as_key(key))

    def clear(self):
        self.keys = KeySet()
        self.more.clear()

    cdef bint gain(self, uint64_t key) except? True:
        """Call `keys.reserve` before. Returns whether nothing held it."""
        if not self.keys.has(key):
            self.keys.add(key)
            return True
        number = PyLong_FromUnsignedLongLong(key)
        self.more[number] = self.more.get(number, 1) + 1
        return False

    cdef bint lose(self, uint64_t key) except? True:
        """Returns whether nothing holds it any more."""
        if not self.keys.has(key):
            return False
        if self.more:
            number = PyLong_FromUnsignedLongLong(key)
            hashes = self.more.get(number)
            if hashes is not None:
                if hashes > 2:
                    self.more[number] = hashes - 1
                else:
                    del self.more[number]
                return False
        self.keys.discard(key)
        return True
