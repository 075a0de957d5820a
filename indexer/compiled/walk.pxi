# A walk along block keys. See scorer_api/index/mask_walk.py, whose `MaskWalk` has the same methods.

cdef tuple NO_MASKS = (0, 0, 0, 0)


cdef class Walk:
    """A walk under way. `steps`: so far. The index may change between two runs of keys, so what is kept from one to the next is who holds what, and not
    the numbers of sets."""

    cdef PrefixIndex index
    cdef readonly list steps
    cdef list found_spans  # None where nobody wants them
    cdef Py_ssize_t position
    cdef uint32_t width  # words of a set when the walk began: no holder that came later takes part
    cdef uint64_t *alive
    cdef uint64_t *before  # of the last step, tier by tier
    cdef uint64_t *now
    cdef bint has_before

    def __cinit__(self, PrefixIndex index not None, alive, list spans):
        self.index, self.found_spans, self.steps = index, spans, []
        self.width = index.sets.width
        cdef size_t size = self.width * sizeof(uint64_t)
        self.alive = <uint64_t *>malloc(size)
        self.before = <uint64_t *>malloc(size * OWN_TIERS)
        self.now = <uint64_t *>malloc(size * OWN_TIERS)
        if self.alive == NULL or self.before == NULL or self.now == NULL:
            raise MemoryError()
        cdef bytes packed = alive.to_bytes(max(size, (alive.bit_length() + 7) // 8), "little")
        memcpy(self.alive, PyBytes_AsString(packed), size)

    def __dealloc__(self):
        free(self.alive)
        free(self.before)
        free(self.now)

    def follow(self, keys):
        return self.scan(keys, True)

    def end(self):
        self.steps.append((self.position, NO_MASKS))
        return self.steps

    cdef look(self, keys):
        """Find spans only, whoever is left."""
        self.scan(keys, False)

    cdef bint scan(self, keys, bint follows) except -1:
        """Go along the next keys. Returns whether anybody is left; always so where nobody is followed."""
        cdef PrefixIndex index = self.index
        cdef Py_ssize_t count = index.keys.fill(keys), at, start = 0
        cdef const uint64_t *values = index.keys.values
        cdef Py_ssize_t former_spans = 0 if self.found_spans is None else len(self.found_spans)
        cdef uint32_t[OWN_TIERS] sets
        cdef uint32_t[OWN_TIERS] former
        for at in range(min(count, AHEAD)):
            self.prefetch(values[at])
        for at in range(count):
            if at + AHEAD < count:
                self.prefetch(values[at + AHEAD])
            sets[0] = index.gpu.holders_of(values[at])
            sets[1] = index.cpu.holders_of(values[at])
            sets[2] = index.disk.holders_of(values[at])
            sets[3] = index.other.holders_of(values[at])
            if at and memcmp(sets, former, sizeof(sets)) == 0:
                continue
            if at:
                self.add_span(start, at, former, former_spans)
            if follows and not self.step(at, sets):
                return False
            memcpy(former, sets, sizeof(sets))
            start = at
        if count:
            self.add_span(start, count, former, former_spans)
        self.position += count
        return True

    cdef inline void prefetch(self, uint64_t key) noexcept:
        self.index.gpu.prefetch(key)
        self.index.cpu.prefetch(key)
        self.index.disk.prefetch(key)
        self.index.other.prefetch(key)

    cdef bint step(self, Py_ssize_t at, const uint32_t *sets) except -1:
        """Record who is left, if that changes. Returns whether anybody is."""
        cdef int tier
        cdef uint32_t word
        cdef const uint64_t *row
        cdef uint64_t any_left = 0
        for tier in range(OWN_TIERS):
            row = self.index.sets.row(sets[tier])
            for word in range(self.width):
                self.now[tier * self.width + word] = row[word] & self.alive[word]
        if self.has_before and memcmp(self.now, self.before, self.width * OWN_TIERS * sizeof(uint64_t)) == 0:
            return True
        masks = tuple([as_mask(self.now + tier * self.width, self.width) for tier in range(OWN_TIERS)])
        self.steps.append((self.position + at, masks))
        for word in range(self.width):
            self.alive[word] = 0
            for tier in range(OWN_TIERS):
                self.alive[word] |= self.now[tier * self.width + word]
            any_left |= self.alive[word]
        memcpy(self.before, self.now, self.width * OWN_TIERS * sizeof(uint64_t))
        self.has_before = True
        return any_left != 0

    cdef int add_span(self, Py_ssize_t start, Py_ssize_t end, const uint32_t *sets, Py_ssize_t former_spans) except -1:
        """Who has these blocks in any tier of their own. Joined with the span before where that is one of the same run, of the same holders."""
        cdef HolderSets all_sets = self.index.sets
        cdef uint32_t word
        cdef int tier
        if self.found_spans is None:
            return 0
        memcpy(all_sets.scratch, all_sets.row(sets[0]), all_sets.width * sizeof(uint64_t))
        for tier in range(1, OWN_TIERS):
            for word in range(all_sets.width):
                all_sets.scratch[word] |= all_sets.row(sets[tier])[word]
        mask = as_mask(all_sets.scratch, all_sets.width)
        first = self.position + start
        last = self.found_spans[len(self.found_spans) - 1] if len(self.found_spans) > former_spans else None
        if last is not None and last[2] == mask:
            first = self.found_spans.pop()[0]
        self.found_spans.append((first, self.position + end, mask))
        return 0


cdef object as_mask(const uint64_t *words, uint32_t width):
    """A row of bits as an integer."""
    if width == 1:
        return PyLong_FromUnsignedLongLong(words[0])
    return int.from_bytes(PyBytes_FromStringAndSize(<const char *>words, width * sizeof(uint64_t)), "little")
