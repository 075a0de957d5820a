# Lists of tokens in JSON and msgpack → packed tokens.

cdef extern from "token_lists.h":
    Py_ssize_t read_json_tokens(const uint8_t *first, const uint8_t *end, uint32_t *tokens) nogil
    int find_json_list(const uint8_t *body, size_t length, const uint8_t *key, size_t key_length, size_t *first, size_t *behind) nogil
    const uint8_t *read_msgpack_array(const uint8_t *first, const uint8_t *end, uint32_t *count) nogil
    const uint8_t *read_msgpack_tokens(const uint8_t *first, const uint8_t *end, uint32_t count, uint32_t *tokens) nogil
    const uint8_t *read_msgpack_integers(
        const uint8_t *first, const uint8_t *end, uint32_t count, bint are_pairs, uint32_t *tokens, uint32_t *good
    ) nogil

cdef extern from "event_fields.h":
    const uint8_t *read_msgpack_map(const uint8_t *first, const uint8_t *end, uint32_t *count) nogil
    const uint8_t *find_msgpack_value(const uint8_t *first, const uint8_t *end, const uint8_t *key, size_t key_length, uint32_t *left) nogil
    int is_last_of_key(const uint8_t *first, const uint8_t *end, const uint8_t *key, size_t key_length, uint32_t left) nogil

cdef enum:
    TOKEN_BYTES = 4


cdef bytes _packed_json(const uint8_t *first, Py_ssize_t length):
    """None for anything but a list of tokens."""
    # A token and what is behind it take at least two bytes.
    cdef uint32_t *tokens = <uint32_t *>malloc((length // 2 + 1) * TOKEN_BYTES)
    cdef Py_ssize_t count
    if tokens == NULL:
        raise MemoryError()
    try:
        count = read_json_tokens(first, first + length, tokens)
        return None if count < 0 else PyBytes_FromStringAndSize(<char *>tokens, count * TOKEN_BYTES)
    finally:
        free(tokens)


def pack_json_tokens(encoded):
    """The tokens of a list in JSON; None for anything but a list of tokens. `encoded`: bytes, or an object with a buffer."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(encoded, &buffer, PyBUF_SIMPLE)
    try:
        return _packed_json(<const uint8_t *>buffer.buf, buffer.len)
    finally:
        PyBuffer_Release(&buffer)


def take_json_tokens(bytes body not None, bytes key not None):
    """(packed tokens, where their list begins, where it ends) of the list under a key of a JSON object; None where there is not exactly one such key,
    or anything but a list of tokens under it. Whether the body is JSON at all is not checked.
    """
    cdef const uint8_t *first = <const uint8_t *>PyBytes_AsString(body)
    cdef size_t begin = 0, end = 0
    if not find_json_list(first, PyBytes_Size(body), <const uint8_t *>PyBytes_AsString(key), PyBytes_Size(key), &begin, &end):
        return None
    tokens = _packed_json(first + begin, end - begin)
    return None if tokens is None else (tokens, begin, end)


cdef bytes _packed_msgpack(const uint8_t *first, Py_ssize_t length):
    """None for anything but an array of tokens that takes all of it."""
    cdef const uint8_t *end = first + length
    cdef uint32_t count = 0
    cdef const uint8_t *at = read_msgpack_array(first, end, &count)
    if at == NULL or count > <size_t>(end - at):
        return None
    packed = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>count * TOKEN_BYTES)
    return packed if read_msgpack_tokens(at, end, count, <uint32_t *>PyBytes_AsString(packed)) == end else None


def pack_msgpack_tokens(encoded):
    """The tokens of an array in msgpack; None for anything but an array of tokens. `encoded`: bytes, or an object with a buffer."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(encoded, &buffer, PyBUF_SIMPLE)
    try:
        return _packed_msgpack(<const uint8_t *>buffer.buf, buffer.len)
    finally:
        PyBuffer_Release(&buffer)


def pack_msgpack_integers(encoded, bint are_pairs):
    """(the tokens of an array of integers in msgpack up to the first integer that is no token, how many integers there are); None for anything but an
    array of integers. `are_pairs`: it is one of pairs of integers, of which the first ones count. `encoded`: bytes, or an object with a buffer."""
    cdef Py_buffer buffer
    cdef uint32_t count = 0, good = 0
    cdef const uint8_t *at
    cdef const uint8_t *end
    PyObject_GetBuffer(encoded, &buffer, PyBUF_SIMPLE)
    try:
        end = <const uint8_t *>buffer.buf + buffer.len
        at = read_msgpack_array(<const uint8_t *>buffer.buf, end, &count)
        if at == NULL or count > <size_t>(end - at):
            return None
        # One more: where a token goes that does not count.
        packed = PyBytes_FromStringAndSize(NULL, (<Py_ssize_t>count + 1) * TOKEN_BYTES)
        if read_msgpack_integers(at, end, count, are_pairs, <uint32_t *>PyBytes_AsString(packed), &good) != end:
            return None
        return packed[: <Py_ssize_t>good * TOKEN_BYTES], count
    finally:
        PyBuffer_Release(&buffer)


def take_msgpack_tokens(bytes body not None, bytes key not None):
    """The same as `take_json_tokens` of an array under a key of a map in msgpack, of which all but its values is checked."""
    cdef const uint8_t *first = <const uint8_t *>PyBytes_AsString(body)
    cdef const uint8_t *end = first + PyBytes_Size(body)
    cdef const uint8_t *name = <const uint8_t *>PyBytes_AsString(key)
    cdef size_t name_length = PyBytes_Size(key)
    cdef uint32_t left = 0, count = 0
    cdef const uint8_t *at = read_msgpack_map(first, end, &left)
    cdef const uint8_t *items
    if at != NULL:
        at = find_msgpack_value(at, end, name, name_length, &left)
    if at == NULL:
        return None
    items = read_msgpack_array(at, end, &count)
    if items == NULL or count > <size_t>(end - items):
        return None
    packed = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>count * TOKEN_BYTES)
    items = read_msgpack_tokens(items, end, count, <uint32_t *>PyBytes_AsString(packed))
    if items == NULL or not is_last_of_key(items, end, name, name_length, left):
        return None
    return packed, at - first, items - first
