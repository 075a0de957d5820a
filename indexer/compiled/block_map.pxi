# Engine hash → block, in the order in which they came. See indexer/core/blocks.py, whose `BlocksInPython` has the same methods.
#
#     blocks    those that came, one behind the other; one that went leaves a hole until there is no room at the end
#     places    open addressing with linear probing, at most two thirds full: number of a block + 1, 0 for none. The bits that no number needs are a
#               tag of the block's hash, so that hardly any other block is looked at

cdef extern from *:
    """
    typedef struct __attribute__((packed)) { uint64_t engine_hash, key, parent; uint32_t state; } kv_block;
    /* Bits of the product that kv_home leaves alone. */
    #define kv_tag(key, number_mask) ((uint32_t)(((key) * kv_multiplier) >> 8) & ~(number_mask))
    """
    uint32_t kv_tag(uint64_t key, uint32_t number_mask) noexcept nogil
    ctypedef struct PackedBlock "kv_block":
        uint64_t engine_hash
        uint64_t key
        uint64_t parent
        uint32_t state

cdef enum:
    # Of a block's state: its copies, and flags. A hole has no state.
    COPIES_MASK = (1 << 24) - 1
    HAS_PARENT = 1 << 24
    IS_HELD = 1 << 25

cdef Py_ssize_t NO_BLOCK = -1
cdef size_t BLOCKS_ROOM_MIN = 8
cdef size_t BLOCKS_ROOM_MAX = 1 << 30


cdef class BlockMap:
    """`make`: makes of a key, a parent and copies what is returned for a block. A block that is read is a copy: put it back once it has changed."""

    cdef PackedBlock *blocks
    cdef uint32_t *places
    cdef size_t mask  # places less one; none are there as long as nothing was added
    cdef int shift
    cdef uint32_t number_mask
    cdef size_t first, count, room  # blocks up to `first` are holes
    cdef size_t live
    cdef size_t changes  # so that an iteration notices
    cdef object make

    def __cinit__(self, make not None):
        self.make = make

    def __dealloc__(self):
        free(self.blocks)
        free(self.places)

    # As a dict

    def __len__(self):
        return self.live

    def __contains__(self, engine_hash):
        return self.find(as_key(engine_hash)) >= 0

    def __iter__(self):
        cdef size_t changes = self.changes, at = self.first
        while True:
            if changes != self.changes:
                raise RuntimeError("blocks were added or removed during iteration")
            if at >= self.count:
                return
            if self.blocks[at].state:
                yield PyLong_FromUnsignedLongLong(self.blocks[at].engine_hash)
            at += 1

    def items(self):
        for engine_hash in self:
            yield engine_hash, self[engine_hash]

    def get(self, engine_hash):
        cdef Py_ssize_t number = self.find(as_key(engine_hash))
        return None if number < 0 else self.made(number)

    def key_of(self, engine_hash):
        cdef Py_ssize_t number = self.find(as_key(engine_hash))
        return None if number < 0 else PyLong_FromUnsignedLongLong(self.blocks[number].key)

    def hashes_with_copies(self):
        packed = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(self.with_copies() * sizeof(uint64_t)))
        cdef char *to = PyBytes_AsString(packed)
        cdef size_t at
        for at in range(self.first, self.count):
            if self.blocks[at].state & COPIES_MASK:
                memcpy(to, &self.blocks[at].engine_hash, sizeof(uint64_t))
                to += sizeof(uint64_t)
        return memoryview(packed).cast("Q")

    def count_with_copies(self):
        return self.with_copies()

    def __getitem__(self, engine_hash):
        cdef Py_ssize_t number = self.find(as_key(engine_hash))
        if number < 0:
            raise KeyError(engine_hash)
        return self.made(number)

    def __setitem__(self, engine_hash, block):
        cdef PackedBlock packed
        cdef Py_ssize_t number
        packed.engine_hash, packed.key, packed.parent = as_key(engine_hash), as_key(block.key), 0
        packed.state = IS_HELD | min(as_key(block.copies), <uint64_t>COPIES_MASK)
        if block.parent is not None:
            packed.parent = as_key(block.parent)
            packed.state |= HAS_PARENT
        number = self.find(packed.engine_hash)
        if number >= 0:
            self.blocks[number] = packed
        else:
            self.reserve(1)
            self.append(&packed)

    def __delitem__(self, engine_hash):
        if not self.discard(as_key(engine_hash)):
            raise KeyError(engine_hash)

    def pop(self, engine_hash, default=None):
        cdef Py_ssize_t number = self.find(as_key(engine_hash))
        if number < 0:
            return default
        block = self.made(number)
        self.discard(self.blocks[number].engine_hash)
        return block

    def clear(self):
        free(self.blocks)
        free(self.places)
        self.blocks, self.places = NULL, NULL
        self.mask = self.first = self.count = self.room = self.live = 0
        self.changes += 1

    # For the core

    cdef object made(self, size_t number):
        cdef PackedBlock *block = &self.blocks[number]
        parent = PyLong_FromUnsignedLongLong(block.parent) if block.state & HAS_PARENT else None
        return self.make(PyLong_FromUnsignedLongLong(block.key), parent, block.state & COPIES_MASK)

    cdef size_t with_copies(self) noexcept:
        cdef size_t at, found = 0
        for at in range(self.first, self.count):
            found += (self.blocks[at].state & COPIES_MASK) != 0
        return found

    cdef inline void prefetch(self, uint64_t engine_hash) noexcept:
        if self.live:
            kv_prefetch(&self.places[kv_home(engine_hash, self.shift)])

    cdef Py_ssize_t find(self, uint64_t engine_hash) noexcept:
        """The number of a block, NO_BLOCK where there is none."""
        return <Py_ssize_t>(self.places[self.place_of(engine_hash)] & self.number_mask) - 1 if self.live else NO_BLOCK

    cdef size_t place_of(self, uint64_t engine_hash) noexcept:
        """The place that has a block, or the free one where it belongs."""
        cdef size_t at = kv_home(engine_hash, self.shift)
        cdef uint32_t tag = kv_tag(engine_hash, self.number_mask)
        while self.places[at] and (
            (self.places[at] & ~self.number_mask) != tag or self.blocks[(self.places[at] & self.number_mask) - 1].engine_hash != engine_hash
        ):
            at = (at + 1) & self.mask
        return at

    cdef inline void put_place(self, uint64_t engine_hash, size_t number) noexcept:
        self.places[self.place_of(engine_hash)] = <uint32_t>(number + 1) | kv_tag(engine_hash, self.number_mask)

    cdef int reserve(self, size_t more) except -1:
        """Make room for so many more blocks."""
        cdef size_t wanted = self.live + more, room = max(wanted + wanted // 4, BLOCKS_ROOM_MIN)
        if self.count + more > self.room:
            if self.live < self.count:
                self.compact()
            if room > self.room or room * 2 < self.room:
                if room > BLOCKS_ROOM_MAX:
                    raise MemoryError()
                self.blocks = <PackedBlock *>grown(self.blocks, room * sizeof(PackedBlock))
                self.room = room
        if self.places == NULL or wanted * 3 > (self.mask + 1) * 2 or wanted * 16 < self.mask or self.room > self.number_mask:
            self.spread(wanted)
        return 0

    cdef int spread(self, size_t wanted) except -1:
        """Places for so many blocks."""
        cdef size_t size = 1 << ROOM_LOG_MIN
        cdef int shift = 64 - ROOM_LOG_MIN
        cdef uint32_t *places
        cdef size_t numbers = 1 << ROOM_LOG_MIN
        while wanted * 3 > size * 2:
            size *= 2
            shift -= 1
        while self.room >= numbers // 2:
            numbers *= 2
        places = <uint32_t *>malloc(size * sizeof(uint32_t))
        if places == NULL:
            raise MemoryError()
        free(self.places)
        self.places, self.mask, self.shift, self.number_mask = places, size - 1, shift, <uint32_t>(numbers - 1)
        self.number()
        return 0

    cdef void number(self) noexcept:
        """Find a place for each block."""
        cdef size_t at
        memset(self.places, 0, (self.mask + 1) * sizeof(uint32_t))
        for at in range(self.first, self.count):
            if at + AHEAD < self.count:
                kv_prefetch(&self.places[kv_home(self.blocks[at + AHEAD].engine_hash, self.shift)])
            if self.blocks[at].state:
                self.put_place(self.blocks[at].engine_hash, at)

    cdef void compact(self) noexcept:
        """Move the blocks up into the holes."""
        cdef size_t at, to = 0
        for at in range(self.first, self.count):
            if self.blocks[at].state:
                self.blocks[to] = self.blocks[at]
                to += 1
        self.first, self.count = 0, to
        self.number()

    cdef void append(self, const PackedBlock *block) noexcept:
        """A block that is not there. Call `reserve` before."""
        self.blocks[self.count] = block[0]
        self.put_place(block.engine_hash, self.count)
        self.count += 1
        self.live += 1
        self.changes += 1

    cdef bint discard(self, uint64_t engine_hash) noexcept:
        """Returns whether it was there."""
        cdef size_t at, other, home
        if not self.live:
            return False
        at = self.place_of(engine_hash)
        if not self.places[at]:
            return False
        self.blocks[(self.places[at] & self.number_mask) - 1].state = 0
        self.live -= 1
        self.changes += 1
        other = at
        while True:
            other = (other + 1) & self.mask
            if not self.places[other]:
                break
            home = kv_home(self.blocks[(self.places[other] & self.number_mask) - 1].engine_hash, self.shift)
            if ((other - home) & self.mask) >= ((other - at) & self.mask):
                self.places[at] = self.places[other]
                at = other
        self.places[at] = 0
        if self.live == 0:
            self.first = self.count = 0
        while self.first < self.count and not self.blocks[self.first].state:
            self.first += 1
        return True

    cdef int drop_oldest(self, size_t count, list dropped) except -1:
        """`dropped`: where to note their hashes, None for nowhere."""
        cdef uint64_t engine_hash
        for _ in range(min(count, self.live)):
            engine_hash = self.blocks[self.first].engine_hash
            if dropped is not None:
                dropped.append(PyLong_FromUnsignedLongLong(engine_hash))
            self.discard(engine_hash)
        return 0
