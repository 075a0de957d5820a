# Sets of holders, of which each is kept once.

cdef enum:
    MEMO_SIZE = 1024
    WORD_BITS = 64
    SETS_MAX = 1 << 30


cdef struct Memo:
    uint32_t before
    uint32_t change
    uint32_t after
    uint64_t freed


cdef class HolderSets:
    """Which sets of holders there are, by number; 0 is the empty one. A set is a row of bits, `width` words long, and counts its uses: where it has none
    its number is used again.

    Blocks of one prompt nearly always have the same holders, so there are far fewer sets than blocks, and to compare two is to compare two numbers.
    """

    cdef uint64_t *words
    cdef uint32_t *uses
    cdef uint32_t *next_free  # by number of a set without uses
    cdef uint32_t *table  # numbers by content: open addressing, at most half full
    cdef uint64_t *scratch
    cdef uint32_t width, count, room, mask, live, free
    cdef uint64_t freed  # how often a number became free: what the memo says holds as long as this is the same
    cdef Memo[MEMO_SIZE] memo

    def __cinit__(self):
        self.width, self.room, self.count, self.mask = 1, 64, 1, 255
        self.words = <uint64_t *>calloc(self.room, sizeof(uint64_t))
        self.uses = <uint32_t *>calloc(self.room, sizeof(uint32_t))
        self.next_free = <uint32_t *>calloc(self.room, sizeof(uint32_t))
        self.table = <uint32_t *>calloc(self.mask + 1, sizeof(uint32_t))
        self.scratch = <uint64_t *>calloc(1, sizeof(uint64_t))
        if self.words == NULL or self.uses == NULL or self.next_free == NULL or self.table == NULL or self.scratch == NULL:
            raise MemoryError()
        self.freed = 1  # no entry of the memo is right yet

    def __dealloc__(self):
        free(self.words)
        free(self.uses)
        free(self.next_free)
        free(self.table)
        free(self.scratch)

    cdef inline uint64_t *row(self, uint32_t number) noexcept:
        return self.words + <size_t>number * self.width

    cdef bint has(self, uint32_t number, uint32_t holder) noexcept:
        return (self.row(number)[holder // WORD_BITS] >> (holder % WORD_BITS)) & 1

    cdef uint32_t home(self, const uint64_t *words) noexcept:
        cdef uint64_t mixed = 0
        cdef uint32_t at
        for at in range(self.width):
            mixed = (mixed ^ words[at]) * kv_multiplier
            mixed ^= mixed >> 32
        return <uint32_t>mixed & self.mask

    cdef int widen(self, uint32_t holders) except -1:
        """Room for so many holders in each set."""
        cdef uint32_t width = self.width, number
        cdef uint64_t *words
        cdef uint64_t *scratch
        while width * WORD_BITS < holders:
            width *= 2
        if width == self.width:
            return 0
        words = <uint64_t *>calloc(<size_t>self.room * width, sizeof(uint64_t))
        scratch = <uint64_t *>calloc(width, sizeof(uint64_t))
        if words == NULL or scratch == NULL:
            free(words)
            free(scratch)
            raise MemoryError()
        for number in range(self.count):
            memcpy(words + <size_t>number * width, self.row(number), self.width * sizeof(uint64_t))
        free(self.words)
        free(self.scratch)
        self.words, self.scratch, self.width = words, scratch, width
        self.freed += 1
        memset(self.table, 0, (self.mask + 1) * sizeof(uint32_t))
        for number in range(1, self.count):
            if self.uses[number]:
                self.table[self.place_of(self.row(number))] = number
        return 0

    cdef int reserve(self) except -1:
        """Make room for one more set."""
        cdef uint32_t room, number
        cdef uint32_t *table
        if not self.free and self.count == self.room:
            room = self.room * 2
            if room > SETS_MAX:
                raise MemoryError()
            # Each of the three stays valid where a later one fails.
            self.words = <uint64_t *>grown(self.words, <size_t>room * self.width * sizeof(uint64_t))
            self.uses = <uint32_t *>grown(self.uses, room * sizeof(uint32_t))
            self.next_free = <uint32_t *>grown(self.next_free, room * sizeof(uint32_t))
            self.room = room
        if (self.live + 1) * 2 > self.mask:
            table = <uint32_t *>calloc((<size_t>self.mask + 1) * 2, sizeof(uint32_t))
            if table == NULL:
                raise MemoryError()
            free(self.table)
            self.table, self.mask = table, (self.mask + 1) * 2 - 1
            for number in range(1, self.count):
                if self.uses[number]:
                    table[self.place_of(self.row(number))] = number
        return 0

    cdef uint32_t place_of(self, const uint64_t *words) noexcept:
        """Where in the table the set with this content is, or belongs."""
        cdef uint32_t at = self.home(words)
        while self.table[at] and memcmp(self.row(self.table[at]), words, self.width * sizeof(uint64_t)) != 0:
            at = (at + 1) & self.mask
        return at

    cdef uint32_t changed(self, uint32_t before, uint32_t holder, bint is_held) noexcept:
        """The number of the set with a holder more or less, which has one use more. Call `reserve` before."""
        cdef uint32_t change = holder * 2 + is_held
        cdef Memo *memo = &self.memo[(before * 31 + change) % MEMO_SIZE]
        if memo.before != before or memo.change != change or memo.freed != self.freed:
            memo.after = self.found(before, holder, is_held)
            memo.before, memo.change, memo.freed = before, change, self.freed
        if memo.after:
            self.uses[memo.after] += 1
        return memo.after

    cdef uint32_t found(self, uint32_t before, uint32_t holder, bint is_held) noexcept:
        """The same without the use: the caller adds it."""
        cdef uint64_t bit = <uint64_t>1 << (holder % WORD_BITS)
        cdef uint32_t at, number
        cdef bint is_empty = True
        memcpy(self.scratch, self.row(before), self.width * sizeof(uint64_t))
        if is_held:
            self.scratch[holder // WORD_BITS] |= bit
        else:
            self.scratch[holder // WORD_BITS] &= ~bit
        for at in range(self.width):
            if self.scratch[at]:
                is_empty = False
        if is_empty:
            return 0
        at = self.place_of(self.scratch)
        if self.table[at]:
            return self.table[at]
        if self.free:
            number = self.free
            self.free = self.next_free[number]
        else:
            number = self.count
            self.count += 1
        memcpy(self.row(number), self.scratch, self.width * sizeof(uint64_t))
        self.uses[number] = 0
        self.table[at] = number
        self.live += 1
        return number

    cdef void unuse(self, uint32_t number) noexcept:
        """One use less; not of the empty set."""
        cdef uint32_t at, other
        self.uses[number] -= 1
        if self.uses[number]:
            return
        at = other = self.place_of(self.row(number))
        while True:
            other = (other + 1) & self.mask
            if not self.table[other]:
                break
            if ((other - self.home(self.row(self.table[other]))) & self.mask) >= ((other - at) & self.mask):
                self.table[at] = self.table[other]
                at = other
        self.table[at] = 0
        self.next_free[number] = self.free
        self.free = number
        self.live -= 1
        self.freed += 1


cdef void *grown(void *memory, size_t size) except NULL:
    cdef void *larger = realloc(memory, size)
    if larger == NULL:
        raise MemoryError()
    return larger
