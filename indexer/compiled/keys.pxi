# Packed tokens → chained block keys. See indexer/core/block_keys.py.

cdef extern from "xxh3.h":
    uint64_t xxh3_64(const uint8_t *data, size_t length, uint64_t seed) nogil

cdef extern from *:
    """
    /* A larger block is longer than any tokens that there are. */
    #define KV_BLOCK_SIZE_MAX ((Py_ssize_t)1 << 40)

    /* PyList_SetItem takes over a reference. */
    static inline int kv_set_item(PyObject *items, Py_ssize_t position, PyObject *item) {
        Py_INCREF(item);
        return PyList_SetItem(items, position, item);
    }
    """
    Py_ssize_t BLOCK_SIZE_MAX "KV_BLOCK_SIZE_MAX"
    int _set_item "kv_set_item"(list items, Py_ssize_t position, object item) except -1


cdef enum:
    KEY_BYTES = 8


def hash_bytes(bytes data not None, uint64_t seed=0):
    """XXH3-64."""
    return PyLong_FromUnsignedLongLong(xxh3_64(<const uint8_t *>PyBytes_AsString(data), PyBytes_Size(data), seed))


def chain_keys(
    uint64_t parent,
    bytes tokens not None,
    Py_ssize_t block_size,
    extra_keys=None,
    Py_ssize_t start=0,
    stop=None,
    Py_ssize_t lookahead=0,
):
    """See `block_keys.chain_keys_in_python`. Raises ValueError where blocks `start` to `stop` are not all in the tokens."""
    cdef bytes packed = chain_packed(parent, tokens, block_size, extra_keys, start, stop, lookahead)
    cdef const uint64_t *found = <const uint64_t *>PyBytes_AsString(packed)
    cdef Py_ssize_t count = PyBytes_Size(packed) // KEY_BYTES, at
    keys = PyList_New(count)
    for at in range(count):
        _set_item(keys, at, PyLong_FromUnsignedLongLong(found[at]))
    return keys


def chain_packed(
    uint64_t parent,
    bytes tokens not None,
    Py_ssize_t block_size,
    extra_keys=None,
    Py_ssize_t start=0,
    stop=None,
    Py_ssize_t lookahead=0,
):
    """The same keys, KEY_BYTES each."""
    cdef Py_ssize_t length = PyBytes_Size(tokens), width, last, number, end
    cdef const uint8_t *data = <const uint8_t *>PyBytes_AsString(tokens)
    cdef uint64_t key = parent
    if not 0 < block_size <= BLOCK_SIZE_MAX or start < 0 or not 0 <= lookahead <= BLOCK_SIZE_MAX:
        raise ValueError("a block has at least one token, and blocks are counted from 0")
    width = block_size * TOKEN_BYTES
    last = length // width if stop is None else stop
    if start >= last:
        return b""
    if last > length // width:
        raise ValueError(f"there are {length // width} blocks, not {last}")
    packed = PyBytes_FromStringAndSize(NULL, (last - start) * KEY_BYTES)
    cdef uint64_t *keys = <uint64_t *>PyBytes_AsString(packed)
    for number in range(start, last):
        # The tokens behind a block are in the same buffer; the last block may have fewer than all of them.
        end = min(length, (number + 1) * width + lookahead * TOKEN_BYTES)
        more = extra_keys.get(number) if extra_keys else None
        if more:
            key = _hash_with(tokens[number * width : end], more, key)
        else:
            key = xxh3_64(data + number * width, end - number * width, key)
        keys[number - start] = key
    return packed


cdef uint64_t _hash_with(bytes block, bytes extra, uint64_t key) except? 0:
    cdef bytes whole = block + extra
    return xxh3_64(<const uint8_t *>PyBytes_AsString(whole), PyBytes_Size(whole), key)
