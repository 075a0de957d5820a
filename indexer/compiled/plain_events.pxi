# Payloads whose events are all plain → these events, packed. See indexer/wire/decoder.py: whatever is odd or wrong is left to it.

cdef extern from "event_fields.h":
    enum: FIELD_TYPE
    enum: FIELD_HASHES
    enum: FIELD_PARENT
    enum: FIELD_TOKENS
    enum: FIELD_BLOCK_SIZE
    enum: FIELD_LORA_ID
    enum: FIELD_MEDIUM
    enum: FIELD_LORA_NAME
    enum: FIELD_EXTRA_KEYS
    enum: FIELD_GROUP
    enum: FIELD_KIND
    enum: FIELD_WINDOW
    enum: FIELD_LOCALITY
    enum: FIELD_SALT
    enum: FIELD_OWNERSHIP
    enum: FIELD_SESSION
    enum: FIELD_LOOKAHEAD
    int field_of(const uint8_t *name, uint32_t length, int expected) nogil
    bint is_text(const uint8_t *text, uint32_t length, const char *wanted) nogil
    uint64_t big_endian64(const uint8_t *at) nogil
    const uint8_t *read_msgpack_map(const uint8_t *first, const uint8_t *end, uint32_t *count) nogil
    const uint8_t *read_msgpack_text(const uint8_t *first, const uint8_t *end, const uint8_t **text, uint32_t *length) nogil
    const uint8_t *read_msgpack_integer(const uint8_t *first, const uint8_t *end, uint64_t *value, int *is_negative) nogil
    const uint8_t *skip_msgpack(const uint8_t *first, const uint8_t *end) nogil
    const uint8_t *read_msgpack_hash(const uint8_t *first, const uint8_t *end, uint64_t *value) nogil

cdef enum:
    NIL_BYTE = 0xC0
    FLOAT_BYTE = 0xCB
    BYTES_BYTE = 0xC4
    PUBLISHER_ID_BYTES = 16
    NO_NUMBER = 0xFFFFFFFF
    # Ranks, group numbers and windows are far below; a decoder of whole values takes what is not.
    NUMBER_MAX = 65_535
    # Limit for the extra keys of a batch, as a multiple of those of one block.
    EXTRA_KEYS_OF_A_BATCH = 128
    # So many different extra keys, of so many bytes, are folded at a stretch: a byte takes up to 150 ns.
    FOLDED_MAX = 4_096
    FOLDED_BYTES_MAX = 65_536
    # What events of one batch say of their groups.
    SAID_MAX = 16
    WORD_MAX = 32
    # Fields of each kind of event, as bits.
    STORED_NEEDS = 1 << FIELD_HASHES | 1 << FIELD_TOKENS | 1 << FIELD_BLOCK_SIZE
    REMOVED_FIELDS = 1 << FIELD_TYPE | 1 << FIELD_HASHES | 1 << FIELD_MEDIUM | 1 << FIELD_GROUP | 1 << FIELD_LOCALITY | 1 << FIELD_OWNERSHIP

cdef enum EventKind:
    UNKNOWN_EVENT
    STORED_EVENT
    REMOVED_EVENT
    CLEARED_EVENT

cdef struct PlainEvent:
    EventKind kind
    uint32_t said  # position in `saids`
    Py_ssize_t first_hash, first_token
    uint32_t count  # blocks
    uint32_t block_size
    # Positions in `adapters` and `extra_keys`, counted from 1; 0 where there are none.
    Py_ssize_t adapter, extra_keys
    uint64_t parent
    bint has_parent, announces_extra_keys, lists_extra_keys

# What an event says of its group.
cdef struct Said:
    EventKind kind
    uint32_t group, block_size, window  # NO_NUMBER where it does not say so; a window of 0 is none
    const uint8_t *word  # in the payload; NULL where there is none
    uint32_t word_length


cdef bint is_same(const Said *one, const Said *other) noexcept:
    if one.kind != other.kind or one.group != other.group or one.block_size != other.block_size or one.window != other.window:
        return False
    if (one.word == NULL) != (other.word == NULL) or one.word_length != other.word_length:
        return False
    return one.word_length == 0 or memcmp(one.word, other.word, one.word_length) == 0


cdef bint is_number(frame, uint64_t number) except -1:
    """Whether this is the frame of a batch's number. The last one there is ends a replay."""
    if type(frame) is not bytes or PyBytes_Size(frame) != 8 or number == 0xFFFFFFFFFFFFFFFF:
        return False
    return big_endian64(<const uint8_t *>PyBytes_AsString(frame)) == number


cdef class PlainEvents:
    """The events of a batch, or of several that follow each other, all of them on the gpu, to read as a sequence: each is made when it is asked for.

    `stamps`: when each of several batches was published; None of one. `said`: what the events say of their groups, each once: of stored ones what `Groups.seen` asks for, of removed ones the number of the group.
    """

    cdef readonly tuple said
    cdef readonly double published_at_s
    cdef readonly list stamps
    cdef readonly object rank
    cdef readonly bint is_simulator
    cdef readonly Py_ssize_t stored, removed, cleared  # events of each kind
    # The names of LoRA adapters, and of blocks with extra keys: position in the event → folded extra keys.
    cdef readonly list adapters, extra_keys
    cdef PlainEvent *events
    cdef uint64_t *hashes
    cdef uint32_t *tokens
    cdef Py_ssize_t count, events_room, hash_count, hashes_room, token_count, tokens_room
    cdef object make_stored, make_removed, make_cleared

    def __cinit__(self):
        self.adapters, self.extra_keys = [], []

    def __dealloc__(self):
        free(self.events)
        free(self.hashes)
        free(self.tokens)

    def __len__(self):
        return self.count

    def __eq__(self, other):
        return list(self) == list(other) if isinstance(other, (list, PlainEvents)) else NotImplemented

    def __getitem__(self, Py_ssize_t position):
        if not 0 <= position < self.count:
            raise IndexError(position)
        cdef PlainEvent *event = &self.events[position]
        if event.kind == CLEARED_EVENT:
            return self.make_cleared()
        hashes = PyList_New(event.count)
        cdef Py_ssize_t at
        for at in range(event.count):
            _set_item(hashes, at, PyLong_FromUnsignedLongLong(self.hashes[event.first_hash + at]))
        if event.kind == REMOVED_EVENT:
            return self.make_removed(hashes, self.said[event.said])
        tokens = PyBytes_FromStringAndSize(
            <const char *>&self.tokens[event.first_token], <Py_ssize_t>event.count * event.block_size * TOKEN_BYTES
        )
        parent = PyLong_FromUnsignedLongLong(event.parent) if event.has_parent else None
        adapter = self.adapters[event.adapter - 1] if event.adapter else None
        extra_keys = self.extra_keys[event.extra_keys - 1] if event.extra_keys else None
        announces, lists = bool(event.announces_extra_keys), bool(event.lists_extra_keys)
        return self.make_stored(hashes, parent, tokens, self.said[event.said], announces, lists, adapter, extra_keys)

    cdef int reserve_event(self) except -1:
        if self.count == self.events_room:
            self.events_room = max(2 * self.events_room, 4)
            self.events = <PlainEvent *>grown(self.events, self.events_room * sizeof(PlainEvent))
        return 0

    cdef int reserve_hashes(self, Py_ssize_t more) except -1:
        if self.hash_count + more > self.hashes_room:
            self.hashes_room = max(self.hash_count + more, 2 * self.hashes_room)
            self.hashes = <uint64_t *>grown(self.hashes, self.hashes_room * sizeof(uint64_t))
        return 0

    cdef int reserve_tokens(self, Py_ssize_t more) except -1:
        if self.token_count + more > self.tokens_room:
            self.tokens_room = max(self.token_count + more, 2 * self.tokens_room)
            self.tokens = <uint32_t *>grown(self.tokens, self.tokens_room * sizeof(uint32_t))
        return 0


cdef class PlainDecoder:
    """Of one stream. `make_stored`, `make_removed`, `make_cleared`: make an event of what `PlainEvents` keeps. `fold`: encoded extra keys of a block, its
    adapter, and whether it is a prompt's first one → folded extra keys, None where anything is odd."""

    cdef object make_stored, make_removed, make_cleared, fold
    cdef Py_ssize_t extra_keys_bytes_max, text_length_max
    cdef size_t events_max, hashes_max, tokens_max, hashes_of_batch_max, tokens_of_batch_max, block_size_max
    # Of the batch at hand.
    cdef const uint8_t *at
    cdef const uint8_t *end
    cdef Said[SAID_MAX] saids
    cdef uint32_t said_count
    # Of the batch before.
    cdef tuple last_said
    cdef Said last
    cdef uint8_t[WORD_MAX] last_word
    # Of the event at hand.
    cdef PlainEvent event
    cdef Said said
    cdef uint32_t fields, token_count, extra_keys_count
    cdef bint is_parent_number, has_adapter_number
    cdef const uint8_t *adapter  # its name; NULL where there is none
    cdef uint32_t adapter_length, adapter_number
    cdef const uint8_t *extra_keys  # the first block's; NULL where no block has any
    # Of the batch at hand.
    cdef Py_ssize_t extra_keys_bytes, folded_bytes
    cdef uint32_t folded_count

    def __cinit__(self, limits not None, make_stored not None, make_removed not None, make_cleared not None, fold not None):
        self.fold = fold
        self.extra_keys_bytes_max, self.text_length_max = limits.extra_keys_bytes_max, limits.text_length_max
        self.make_stored, self.make_removed, self.make_cleared = make_stored, make_removed, make_cleared
        self.events_max = limits.events_per_batch_max
        self.hashes_max, self.tokens_max = limits.hashes_per_event_max, limits.tokens_per_event_max
        self.hashes_of_batch_max, self.tokens_of_batch_max = limits.hashes_per_batch_max, limits.tokens_per_batch_max
        self.block_size_max = limits.block_size_max

    def decode(self, bytes payload not None):
        """None where anything in the batch is not plain, or above a limit."""
        cdef PlainEvents found = self.begin()
        if not self.read_payload(found, payload):
            return None
        self.describe(found)
        return found

    def decode_some(self, list messages not None, uint64_t number, Py_ssize_t count_max, Py_ssize_t bytes_max):
        """Messages that continue a stream, as one batch: as many as are plain, clear nothing and name the same rank.

        `number`: of the first one. `count_max`: so many at most. `bytes_max`: of each. None where that are not even two.
        """
        cdef PlainEvents found = self.begin()
        cdef Py_ssize_t position = 0, count = 0, hash_count = 0, token_count = 0, stored = 0, removed = 0, most = min(len(messages), count_max)
        cdef bint is_simulator = False
        rank = None
        found.stamps = []
        while position < most:
            frames = messages[position]
            if not isinstance(frames, list) or len(frames) != 3 or not is_number(frames[1], number + <uint64_t>position) or type(frames[2]) is not bytes:
                break
            if len(frames[2]) > bytes_max:
                break
            if not self.read_payload(found, frames[2]) or found.cleared or (position and found.rank != rank):
                break
            rank = found.rank
            found.stamps.append(found.published_at_s)
            count, hash_count, token_count = found.count, found.hash_count, found.token_count
            stored, removed, is_simulator = found.stored, found.removed, found.is_simulator
            position += 1
        if position < 2:
            return None
        found.count, found.hash_count, found.token_count, found.rank = count, hash_count, token_count, rank
        found.stored, found.removed, found.cleared, found.is_simulator = stored, removed, 0, is_simulator
        self.describe(found)
        return found

    cdef PlainEvents begin(self):
        cdef PlainEvents found = PlainEvents.__new__(PlainEvents)
        found.make_stored, found.make_removed, found.make_cleared = self.make_stored, self.make_removed, self.make_cleared
        self.said_count = self.folded_count = 0
        self.folded_bytes = 0
        return found

    cdef int describe(self, PlainEvents found) except -1:
        """Say what the events say of their groups."""
        # An engine's batches nearly always say the same.
        if self.last_said is None or self.said_count != 1 or not is_same(&self.last, &self.saids[0]):
            self.remember(tuple([self.said_by(&self.saids[number]) for number in range(self.said_count)]))
        found.said = self.last_said
        return 0

    cdef bint read_payload(self, PlainEvents found, bytes payload) except -1:
        self.at = <const uint8_t *>PyBytes_AsString(payload)
        self.end = self.at + PyBytes_Size(payload)
        return self.read_batch(found)

    cdef void remember(self, tuple said) noexcept:
        self.last_said, self.last = said, self.saids[0]
        if self.said_count != 1 or self.last.word_length > WORD_MAX:
            self.last.kind = UNKNOWN_EVENT  # no batch says that
        elif self.last.word != NULL:
            memcpy(self.last_word, self.last.word, self.last.word_length)
            self.last.word = self.last_word

    cdef said_by(self, Said *said):
        group = None if said.group == NO_NUMBER else said.group
        if said.kind != STORED_EVENT:
            return group
        word = None if said.word == NULL else PyBytes_FromStringAndSize(<const char *>said.word, said.word_length).decode("ascii")
        return group, word, said.window or None, said.block_size, 0

    # Values. Each returns whether it was there.

    cdef bint take_nil(self) noexcept:
        if self.at == self.end or self.at[0] != NIL_BYTE:
            return False
        self.at += 1
        return True

    cdef bint take_publisher_id(self) noexcept:
        """What identifies the engine's process; nobody reads it."""
        if self.take_nil():
            return True
        if self.end - self.at < 2 + PUBLISHER_ID_BYTES or self.at[0] != BYTES_BYTE or self.at[1] != PUBLISHER_ID_BYTES:
            return False
        self.at += 2 + PUBLISHER_ID_BYTES
        return True

    cdef bint read_array(self, uint32_t *count) noexcept:
        """Of which each item takes a byte at least."""
        cdef const uint8_t *behind = read_msgpack_array(self.at, self.end, count)
        if behind == NULL or count[0] > <size_t>(self.end - behind):
            return False
        self.at = behind
        return True

    cdef bint read_text(self, const uint8_t **text, uint32_t *length) noexcept:
        cdef const uint8_t *behind = read_msgpack_text(self.at, self.end, text, length)
        if behind == NULL:
            return False
        self.at = behind
        return True

    cdef bint read_number(self, uint32_t *number) noexcept:
        """Up to NUMBER_MAX."""
        cdef uint64_t value = 0
        cdef int is_negative = 0
        cdef const uint8_t *behind = read_msgpack_integer(self.at, self.end, &value, &is_negative)
        if behind == NULL or is_negative or value > NUMBER_MAX:
            return False
        self.at, number[0] = behind, <uint32_t>value
        return True

    cdef bint read_hash(self, uint64_t *value) noexcept:
        cdef const uint8_t *behind = read_msgpack_hash(self.at, self.end, value)
        if behind == NULL:
            return False
        self.at = behind
        return True

    # A batch

    cdef bint read_batch(self, PlainEvents found) except -1:
        cdef uint32_t length = 0, count = 0, number, rank = 0
        cdef bint are_maps = False, is_map
        cdef uint64_t stamp
        cdef Py_ssize_t hashes_before = found.hash_count, tokens_before = found.token_count
        self.extra_keys_bytes = 0
        found.rank = None
        if not self.read_array(&length) or not 2 <= length <= 4:
            return False
        if self.end - self.at < 9 or self.at[0] != FLOAT_BYTE:
            return False
        stamp = big_endian64(self.at + 1)
        memcpy(&found.published_at_s, &stamp, sizeof(stamp))
        self.at += 9
        if not self.read_array(&count) or count > self.events_max:
            return False
        for number in range(count):
            is_map = self.at < self.end and (self.at[0] & 0xF0 == 0x80 or self.at[0] == 0xDE)
            if number and is_map != are_maps:
                return False
            are_maps = is_map
            found.reserve_event()
            if not (self.read_map_event(found) if is_map else self.read_array_event(found)) or not self.keep(found):
                return False
        if length >= 3 and not self.take_nil():
            if not self.read_number(&rank):
                return False
            found.rank = rank
        if length == 4 and not self.take_publisher_id():
            return False
        if found.hash_count - hashes_before > <Py_ssize_t>self.hashes_of_batch_max:
            return False
        return self.at == self.end and found.token_count - tokens_before <= <Py_ssize_t>self.tokens_of_batch_max

    cdef void begin_event(self, PlainEvents found) noexcept:
        memset(&self.event, 0, sizeof(self.event))
        memset(&self.said, 0, sizeof(self.said))
        self.event.first_hash, self.event.first_token = found.hash_count, found.token_count
        self.said.group = NO_NUMBER
        self.fields = self.token_count = self.extra_keys_count = 0
        self.is_parent_number = self.has_adapter_number = False
        self.adapter = self.extra_keys = NULL
        self.adapter_length = 0

    cdef bint read_map_event(self, PlainEvents found) except -1:
        cdef uint32_t count = 0, length = 0, number
        cdef const uint8_t *name = NULL
        cdef const uint8_t *behind = read_msgpack_map(self.at, self.end, &count)
        cdef int field = -1
        if behind == NULL:
            return False
        self.at = behind
        self.begin_event(found)
        for number in range(count):
            if not self.read_text(&name, &length):
                return False
            field = field_of(name, length, field + 1)
            if field < 0 or self.fields >> field & 1 or not self.read_field(found, field):
                return False
            self.fields |= 1 << field
        self.event.announces_extra_keys = self.fields & (1 << FIELD_EXTRA_KEYS | 1 << FIELD_GROUP) != 0
        return True

    cdef bint read_array_event(self, PlainEvents found) except -1:
        cdef uint32_t count = 0, field
        self.begin_event(found)
        if not self.read_array(&count) or not 1 <= count <= FIELD_WINDOW + 1 or not self.read_field(found, FIELD_TYPE):
            return False
        self.fields = 1 << FIELD_TYPE
        if self.event.kind == REMOVED_EVENT:
            if count > 4:
                return False
            for field in range(1, count):
                if not self.read_field(found, FIELD_HASHES if field == 1 else FIELD_MEDIUM if field == 2 else FIELD_GROUP):
                    return False
            self.fields |= 1 << FIELD_HASHES if count > 1 else 0
            return True
        for field in range(1, count):
            if not self.read_field(found, field):
                return False
            self.fields |= 1 << field
        self.event.announces_extra_keys = self.fields >> FIELD_EXTRA_KEYS & 1
        if self.is_parent_number and self.event.parent == 0:
            self.event.has_parent = False  # the llm-d simulator's encoding of "none"
            found.is_simulator = True
        return True

    cdef bint read_field(self, PlainEvents found, int field) except -1:
        cdef const uint8_t *text = NULL
        cdef uint32_t length = 0
        if field == FIELD_TYPE:
            if not self.read_text(&text, &length):
                return False
            if is_text(text, length, "BlockStored"):
                self.event.kind = self.said.kind = STORED_EVENT
            elif is_text(text, length, "BlockRemoved"):
                self.event.kind = self.said.kind = REMOVED_EVENT
            elif is_text(text, length, "AllBlocksCleared"):
                self.event.kind = CLEARED_EVENT
            return self.event.kind != UNKNOWN_EVENT
        if field == FIELD_HASHES:
            return self.read_hashes(found)
        if field == FIELD_TOKENS:
            return self.read_tokens(found)
        if field == FIELD_BLOCK_SIZE:
            return self.read_number(&self.said.block_size)
        if self.take_nil():
            return True
        if field == FIELD_PARENT:
            self.event.has_parent = True
            self.is_parent_number = self.at < self.end and self.at[0] != BYTES_BYTE
            return self.read_hash(&self.event.parent)
        if field == FIELD_MEDIUM:
            return self.read_text(&text, &length) and is_text(text, length, "GPU")
        if field == FIELD_EXTRA_KEYS:
            return self.read_extra_keys()
        if field == FIELD_LORA_NAME:
            return self.read_text(&self.adapter, &self.adapter_length)
        if field == FIELD_LORA_ID:
            self.has_adapter_number = True
            return self.read_number(&self.adapter_number)
        if field == FIELD_GROUP:
            return self.read_number(&self.said.group)
        if field == FIELD_KIND:
            return self.read_text(&self.said.word, &self.said.word_length)
        return field == FIELD_WINDOW and self.read_number(&self.said.window)

    cdef bint read_hashes(self, PlainEvents found) except -1:
        cdef uint32_t count = 0, number
        if not self.read_array(&count) or count > self.hashes_max:
            return False
        found.reserve_hashes(count)
        for number in range(count):
            if not self.read_hash(&found.hashes[found.hash_count + number]):
                return False
        found.hash_count += count
        self.event.count = count
        return True

    cdef bint read_tokens(self, PlainEvents found) except -1:
        cdef uint32_t count = 0
        cdef const uint8_t *behind
        if not self.read_array(&count) or count > self.tokens_max:
            return False
        found.reserve_tokens(count)
        behind = read_msgpack_tokens(self.at, self.end, count, &found.tokens[found.token_count])
        if behind == NULL:
            return False
        self.at = behind
        found.token_count += count
        self.token_count = count
        return True

    cdef bint read_extra_keys(self) noexcept:
        """A list with a list of extra keys for a block, or nil. They are folded when the rest of the event is known."""
        cdef uint32_t number
        cdef const uint8_t *first = self.at
        cdef const uint8_t *behind
        self.event.lists_extra_keys = True
        if not self.read_array(&self.extra_keys_count):
            return False
        first, behind = self.at, first
        for number in range(self.extra_keys_count):
            if not self.take_nil():
                self.extra_keys = first
                first = skip_msgpack(self.at, self.end)
                if first == NULL or first - self.at > self.extra_keys_bytes_max:
                    return False
                self.at, first = first, self.extra_keys
        if self.extra_keys != NULL:
            self.extra_keys_bytes += self.at - behind
        return self.extra_keys_bytes <= EXTRA_KEYS_OF_A_BATCH * self.extra_keys_bytes_max

    cdef bint fold_extra_keys(self, PlainEvents found, adapter) except -1:
        """Those of the event at hand."""
        cdef uint32_t number
        cdef const uint8_t *at = self.extra_keys
        cdef const uint8_t *behind
        cdef const uint8_t *last = NULL
        cdef Py_ssize_t length = 0
        cdef dict folded = {}
        cdef bint is_first
        extra = None
        for number in range(self.extra_keys_count):
            if at[0] == NIL_BYTE:
                at += 1
                continue
            behind = skip_msgpack(at, self.end)
            is_first = number == 0 and not self.event.has_parent
            # Blocks of one image, or of one adapter, often have the same.
            if last == NULL or behind - at != length or memcmp(last, at, length):
                length = behind - at
                self.folded_count += 1
                self.folded_bytes += length
                if self.folded_count > FOLDED_MAX or self.folded_bytes > FOLDED_BYTES_MAX:
                    return False
                extra = self.fold(PyBytes_FromStringAndSize(<const char *>at, length), adapter, bool(is_first))
                if extra is None or len(extra) > self.extra_keys_bytes_max:
                    return False
                last = at
                if is_first:
                    last = NULL
            if extra:
                folded[number] = extra
            at = behind
        if folded:
            found.extra_keys.append(folded)
            self.event.extra_keys = len(found.extra_keys)
        return True

    cdef bint add_isolation(self, PlainEvents found) except -1:
        """The adapter of the event at hand, and its extra keys."""
        adapter = None
        if self.adapter != NULL:
            adapter = PyBytes_FromStringAndSize(<const char *>self.adapter, self.adapter_length).decode("ascii")
        elif self.has_adapter_number:
            adapter = f"#{self.adapter_number}"
        if adapter is not None and len(adapter) > self.text_length_max:
            return False
        if self.extra_keys != NULL and not self.fold_extra_keys(found, adapter):
            return False
        if adapter:
            found.adapters.append(adapter)
            self.event.adapter = len(found.adapters)
        return True

    cdef bint keep(self, PlainEvents found) except -1:
        """Add the event at hand, if its fields fit each other."""
        cdef PlainEvent *event = &self.event
        if event.kind == STORED_EVENT:
            if self.fields & STORED_NEEDS != STORED_NEEDS or not event.count or not self.said.block_size:
                return False
            if self.said.block_size > self.block_size_max or <uint64_t>event.count * self.said.block_size != self.token_count:
                return False
            if self.extra_keys_count > event.count:
                return False
            event.block_size = self.said.block_size
            if (self.adapter != NULL or self.has_adapter_number or self.extra_keys != NULL) and not self.add_isolation(found):
                return False
            found.stored += 1
        elif event.kind == REMOVED_EVENT:
            if self.fields & ~<uint32_t>REMOVED_FIELDS or not self.fields >> FIELD_HASHES & 1:
                return False
            found.removed += 1
        elif event.kind == CLEARED_EVENT:
            if self.fields != 1 << FIELD_TYPE:
                return False
            found.cleared += 1
        else:
            return False
        if event.kind != CLEARED_EVENT and not self.note_said():
            return False
        found.events[found.count] = event[0]
        found.count += 1
        return True

    cdef bint note_said(self) noexcept:
        """Find what the event says of its group among what others said, or add it. Returns whether there was room."""
        cdef uint32_t number
        for number in range(self.said_count):
            if is_same(&self.saids[number], &self.said):
                self.event.said = number
                return True
        if self.said_count == SAID_MAX:
            return False
        self.saids[self.said_count] = self.said
        self.event.said = self.said_count
        self.said_count += 1
        return True
