# How far each pod of a model of plain pods matches a prompt, from its tokens to the encoded pods of an answer. See scorer_api/index/plain_pods.py and
# scorer_api/api/plain_answer.py, which do the same with objects.

from libc.stdlib cimport qsort

cdef extern from *:
    """
    static int kv_by_number(const void *one, const void *other) {
        uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
        return (a > b) - (a < b);
    }
    #define kv_last_bit(word) ((uint32_t)__builtin_ctzll(word))
    """
    int by_number "kv_by_number"(const void *one, const void *other) noexcept nogil
    uint32_t last_bit "kv_last_bit"(uint64_t word) noexcept nogil

cdef enum:
    NUMBER_BYTES_MAX = 20  # of a number in JSON; in msgpack there are fewer
    # The holes of a template for what an answer says of a pod.
    HOLE_SCORE = 0
    HOLE_TOKENS = 1
    HOLE_BLOCKS = 2
    HOLE_USABLE = 3


cdef class PlainHolders:
    """The holders of the pods of one model, in the order of the pods."""

    cdef PrefixIndex index
    cdef uint32_t *numbers  # by holder: of its pod
    cdef uint32_t *holders  # by pod
    cdef uint32_t count, end

    def __cinit__(self, PrefixIndex index not None, list holders not None):
        cdef Py_ssize_t at
        self.index, self.count = index, len(holders)
        if len(set(holders)) != len(holders):
            raise ValueError("a holder is there twice")
        for holder in holders:
            if not 0 <= holder < index.sets.width * WORD_BITS:
                raise ValueError("there is no such holder")
            self.end = max(self.end, <uint32_t>holder + 1)
        self.numbers = <uint32_t *>calloc(max(1, self.end), sizeof(uint32_t))
        self.holders = <uint32_t *>calloc(max(1, self.count), sizeof(uint32_t))
        if self.numbers == NULL or self.holders == NULL:
            raise MemoryError()
        for at in range(self.count):
            self.holders[at] = holders[at]
            self.numbers[self.holders[at]] = at

    def __dealloc__(self):
        free(self.numbers)
        free(self.holders)

    def match(self, uint64_t root, bytes tokens not None, Py_ssize_t block_size, Py_ssize_t blocks, Py_ssize_t lookahead=0):
        """PlainMatches of a prompt without extra keys. `root`: what its first block key chains from. `blocks`: how many may match.

        Raises ValueError where there are not so many.
        """
        cdef Py_ssize_t length = PyBytes_Size(tokens)
        if not 0 < block_size <= BLOCK_SIZE_MAX or not 0 <= lookahead <= BLOCK_SIZE_MAX or not 0 <= blocks <= length // (block_size * TOKEN_BYTES):
            raise ValueError("there are not so many blocks in the tokens")
        cdef PlainMatches found = PlainMatches(self)
        found.walk(self, root, <const uint8_t *>PyBytes_AsString(tokens), length, block_size, blocks, lookahead)
        return found


cdef class PlainMatches:
    """The pods by how far they match, those first that match most, and those of one length in their order."""

    cdef uint32_t *pods
    cdef uint32_t *blocks  # of each of the pods
    cdef uint64_t *alive
    cdef uint32_t count, left  # pods in all, and those that are not placed yet

    def __cinit__(self, PlainHolders holders not None):
        cdef uint32_t at
        self.count = self.left = holders.count
        self.pods = <uint32_t *>malloc(max(1, self.count) * sizeof(uint32_t))
        self.blocks = <uint32_t *>malloc(max(1, self.count) * sizeof(uint32_t))
        self.alive = <uint64_t *>calloc(holders.index.sets.width, sizeof(uint64_t))
        if self.pods == NULL or self.blocks == NULL or self.alive == NULL:
            raise MemoryError()
        for at in range(self.count):
            self.alive[holders.holders[at] // WORD_BITS] |= <uint64_t>1 << (holders.holders[at] % WORD_BITS)

    def __dealloc__(self):
        free(self.pods)
        free(self.blocks)
        free(self.alive)

    cdef void walk(
        self, PlainHolders holders, uint64_t key, const uint8_t *tokens, Py_ssize_t length, Py_ssize_t block_size, Py_ssize_t blocks, Py_ssize_t lookahead
    ) noexcept:
        """Go along the keys until nobody is left. They are computed AHEAD of the look-ups, so that their places in memory are asked for early."""
        cdef KeyTable table = holders.index.gpu
        cdef uint64_t[AHEAD] keys
        cdef Py_ssize_t at = 0, hashed = 0, width = block_size * TOKEN_BYTES, end
        cdef uint32_t number, former = 0
        while at < blocks and self.left:
            while hashed < blocks and hashed < at + AHEAD:
                end = min(length, (hashed + 1) * width + lookahead * TOKEN_BYTES)
                key = xxh3_64(tokens + hashed * width, end - hashed * width, key)
                keys[hashed % AHEAD] = key
                table.prefetch(key)
                hashed += 1
            number = table.holders_of(keys[at % AHEAD])
            if at == 0 or number != former:
                self.place(holders, holders.index.sets.row(number), holders.index.sets.width, <uint32_t>at)
                former = number
            at += 1
        if self.left:
            self.place(holders, NULL, holders.index.sets.width, <uint32_t>blocks)

    cdef void place(self, PlainHolders holders, const uint64_t *row, uint32_t width, uint32_t matched) noexcept:
        """Those who are alive and not in the row match so far; NULL is an empty one."""
        cdef uint32_t word, behind = self.left
        cdef uint64_t gone
        for word in range(width):
            gone = self.alive[word] if row == NULL else self.alive[word] & ~row[word]
            self.alive[word] ^= gone
            while gone:
                self.left -= 1
                self.pods[self.left] = holders.numbers[word * WORD_BITS + last_bit(gone)]
                self.blocks[self.left] = matched
                gone &= gone - 1
        if behind - self.left > 1:
            qsort(self.pods + self.left, behind - self.left, sizeof(uint32_t), by_number)

    @property
    def most(self):
        """The most blocks that match; 0 without pods."""
        return self.blocks[0] if self.count else 0

    @property
    def first(self):
        """The first pod."""
        if not self.count:
            raise IndexError("there are no pods")
        return self.pods[0]

    def groups(self):
        """Matched blocks, and the pods that match so far."""
        cdef list found = [], pods = []
        cdef uint32_t at
        for at in range(self.count):
            if at == 0 or self.blocks[at] != self.blocks[at - 1]:
                pods = []
                found.append((self.blocks[at], pods))
            pods.append(self.pods[at])
        return found

    def lengths(self):
        """Matched blocks of each group."""
        cdef uint32_t at
        return [self.blocks[at] for at in range(self.count) if at == 0 or self.blocks[at] != self.blocks[at - 1]]

    def encoded(
        self,
        list names not None,
        list templates not None,
        bytes kinds not None,
        bytes scores not None,
        Py_ssize_t score_at,
        uint64_t block_size,
        uint64_t usable,
        uint32_t limit,
        Py_ssize_t skipped,
        bint is_json,
    ):
        """What an answer says of the first `limit` pods, encoded one after the other.

        `names`: by pod, what comes before its template; of the first one without `skipped` bytes. `templates`: by pod, two of them: where something
        matches, and where nothing does; each is what is between its holes. `kinds`: what the holes are for. `scores`: of the groups in their order,
        encoded one after the other from `score_at` on: in msgpack nine bytes each, in JSON with a byte between them.
        """
        cdef Writer writer = Writer(is_json)
        cdef uint32_t at, pods = min(self.count, limit)
        cdef size_t begin = 0, end = 0
        cdef Py_ssize_t score_end = score_at
        cdef tuple former = None, pair
        if len(names) < self.count or len(templates) < self.count:
            raise ValueError("there are more pods than names or templates")
        for at in range(pods):
            if at == 0 or self.blocks[at] != self.blocks[at - 1]:
                score_at = score_end + (writer.is_json and at > 0)
                score_end = writer.behind_score(scores, score_at)
                former = None
            writer.add(names[self.pods[at]], skipped if at == 0 else 0)
            pair = <tuple?>templates[self.pods[at]]
            if len(pair) != 2:
                raise ValueError("a pod has two templates")
            template = <tuple?>pair[self.blocks[at] == 0]
            if template is former:
                writer.repeat(begin, end)
                continue
            begin = writer.length
            writer.fill(template, kinds, scores, score_at, score_end, self.blocks[at], block_size, usable)
            end, former = writer.length, template
        return PyBytes_FromStringAndSize(writer.content, writer.length)


cdef class Writer:
    """Bytes that are put together."""

    cdef char *content
    cdef size_t length, room
    cdef bint is_json

    def __cinit__(self, bint is_json):
        self.is_json, self.room = is_json, 4096
        self.content = <char *>malloc(self.room)
        if self.content == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.content)

    cdef int reserve(self, size_t more) except -1:
        if self.length + more > self.room:
            self.content = <char *>grown(self.content, 2 * (self.length + more))
            self.room = 2 * (self.length + more)
        return 0

    cdef int add(self, bytes piece, Py_ssize_t skipped) except -1:
        """A piece without its first bytes."""
        cdef Py_ssize_t size = PyBytes_Size(piece) - skipped
        if size > 0 and skipped >= 0:
            self.reserve(size)
            memcpy(self.content + self.length, PyBytes_AsString(piece) + skipped, size)
            self.length += size
        return 0

    cdef int repeat(self, size_t begin, size_t end) except -1:
        self.reserve(end - begin)
        memcpy(self.content + self.length, self.content + begin, end - begin)
        self.length += end - begin
        return 0

    cdef Py_ssize_t behind_score(self, bytes scores, Py_ssize_t at) except -1:
        """Where a score ends that begins there. Raises ValueError where there is none."""
        cdef const char *text = PyBytes_AsString(scores)
        cdef Py_ssize_t size = PyBytes_Size(scores), end = at
        if not 0 <= at < size:
            raise ValueError("there are fewer scores than groups")
        if self.is_json:
            while end < size and text[end] != 44 and text[end] != 93:  # , and ]
                end += 1
        else:
            end = at + 9
        if end > size or end == at:
            raise ValueError("there are fewer scores than groups")
        return end

    cdef int fill(
        self, tuple template, bytes kinds, bytes scores, Py_ssize_t score_at, Py_ssize_t score_end, uint64_t blocks, uint64_t tokens, uint64_t usable
    ) except -1:
        """A template, with its holes filled."""
        cdef Py_ssize_t at, holes = len(template) - 1
        cdef const char *kind = PyBytes_AsString(kinds)
        if not 0 <= holes <= PyBytes_Size(kinds):
            raise ValueError("a template has as many holes as there are kinds at most")
        for at in range(holes):
            self.add(template[at], 0)
            if kind[at] == HOLE_SCORE:
                self.reserve(score_end - score_at)
                memcpy(self.content + self.length, PyBytes_AsString(scores) + score_at, score_end - score_at)
                self.length += score_end - score_at
            else:
                self.number(blocks * tokens if kind[at] == HOLE_TOKENS else blocks if kind[at] == HOLE_BLOCKS else usable)
        self.add(template[holes], 0)
        return 0

    cdef int number(self, uint64_t value) except -1:
        cdef char[NUMBER_BYTES_MAX] digits
        cdef int at = NUMBER_BYTES_MAX, size
        self.reserve(NUMBER_BYTES_MAX)
        if not self.is_json:
            self.length += msgpack_number(<uint8_t *>self.content + self.length, value)
            return 0
        while True:
            at -= 1
            digits[at] = <char>(48 + value % 10)
            value //= 10
            if not value:
                break
        size = NUMBER_BYTES_MAX - at
        memcpy(self.content + self.length, &digits[at], size)
        self.length += size
        return 0


cdef size_t msgpack_number(uint8_t *to, uint64_t value) noexcept:
    """The shortest encoding, as msgspec makes it. Returns its bytes."""
    cdef int size = 8, at
    if value < 0x80:
        to[0] = <uint8_t>value
        return 1
    if value < 0x100:
        size, to[0] = 1, 0xCC
    elif value < 0x10000:
        size, to[0] = 2, 0xCD
    elif value < 0x100000000:
        size, to[0] = 4, 0xCE
    else:
        to[0] = 0xCF
    for at in range(size):
        to[1 + at] = <uint8_t>(value >> (8 * (size - 1 - at)))
    return 1 + size
