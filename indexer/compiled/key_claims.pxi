# The engine hashes of each block key. See indexer/core/key_claims.py, whose `KeyClaimsInPython` has the same methods.

cdef struct Claim:
    uint64_t key
    uint64_t engine_hash


cdef class KeyClaims:
    """`ambiguous`: the keys that more than one hash claims; to read.

    claims     a key and the hash that alone claims it: open addressing with linear probing, at most two thirds full; that of key 0 stands apart
    several    key → the hashes, where there are more; a key with one left, whose claim had to go, is not among `ambiguous`
    """

    cdef readonly set ambiguous
    cdef dict several
    cdef Claim *claims
    cdef size_t mask, used
    cdef int shift
    cdef bint has_zero
    cdef uint64_t zero_hash

    def __cinit__(self):
        self.ambiguous, self.several = set(), {}

    def __dealloc__(self):
        free(self.claims)

    def claim(self, engine_hash, key):
        cdef uint64_t number = as_key(key), claimant = as_key(engine_hash)
        cdef uint64_t *claimed_by
        hashes = self.several.get(key)
        if hashes is not None:
            hashes.add(engine_hash)
            return False
        claimed_by = self.claimant(number)
        if claimed_by == NULL:
            self.reserve()
            self.add(number, claimant)
            return False
        if claimed_by[0] == claimant:
            return False
        hashes = {PyLong_FromUnsignedLongLong(claimed_by[0]), engine_hash}
        self.ambiguous.add(key)
        self.several[key] = hashes
        self.discard(number)
        return True

    def release(self, engine_hash, key):
        cdef uint64_t number = as_key(key), claimant = as_key(engine_hash)
        cdef uint64_t *claimed_by
        hashes = self.several.get(key)
        if hashes is None:
            claimed_by = self.claimant(number)
            if claimed_by != NULL and claimed_by[0] == claimant:
                self.discard(number)
            return False
        if engine_hash not in hashes or len(hashes) > 2:
            hashes.discard(engine_hash)
            return False
        self.reserve()
        (left,) = hashes - {engine_hash}
        self.add(number, as_key(left))
        del self.several[key]
        self.ambiguous.discard(key)
        return True

    cdef inline void prefetch(self, uint64_t key) noexcept:
        if self.used:
            kv_prefetch(&self.claims[kv_home(key, self.shift)])

    cdef uint64_t *claimant(self, uint64_t key) noexcept:
        """The hash that alone claims a key; NULL where none does. Whether several do is not asked."""
        cdef size_t at
        if key == 0:
            return &self.zero_hash if self.has_zero else NULL
        if not self.used:
            return NULL
        at = self.place_of(key)
        return &self.claims[at].engine_hash if self.claims[at].key else NULL

    cdef size_t place_of(self, uint64_t key) noexcept:
        cdef size_t at = kv_home(key, self.shift)
        while self.claims[at].key and self.claims[at].key != key:
            at = (at + 1) & self.mask
        return at

    cdef int reserve(self) except -1:
        """Make room for one more claim."""
        cdef Claim *before = self.claims
        cdef size_t size = 0 if before == NULL else self.mask + 1, at
        if (self.used + 1) * 3 <= size * 2:
            return 0
        size = 1 << ROOM_LOG_MIN if size == 0 else size * 2
        cdef Claim *claims = <Claim *>calloc(size, sizeof(Claim))
        if claims == NULL:
            raise MemoryError()
        self.shift = 64 - ROOM_LOG_MIN if before == NULL else self.shift - 1
        self.claims, self.mask = claims, size - 1
        if before != NULL:
            for at in range(size // 2):
                if before[at].key:
                    claims[self.place_of(before[at].key)] = before[at]
            free(before)
        return 0

    cdef void add(self, uint64_t key, uint64_t engine_hash) noexcept:
        """A key that nobody claims. Call `reserve` before."""
        cdef size_t at
        if key == 0:
            self.has_zero, self.zero_hash = True, engine_hash
            return
        at = self.place_of(key)
        self.claims[at].key, self.claims[at].engine_hash = key, engine_hash
        self.used += 1

    cdef void discard(self, uint64_t key) noexcept:
        """A key that one hash alone claims."""
        cdef size_t at, other
        if key == 0:
            self.has_zero = False
            return
        at = other = self.place_of(key)
        while True:
            other = (other + 1) & self.mask
            if not self.claims[other].key:
                break
            if ((other - kv_home(self.claims[other].key, self.shift)) & self.mask) >= ((other - at) & self.mask):
                self.claims[at] = self.claims[other]
                at = other
        self.claims[at].key = 0
        self.used -= 1
