# Where items of msgpack end, found without recursion, and in pieces.

cdef extern from "event_fields.h":
    const uint8_t *skip_msgpack_items(const uint8_t *first, const uint8_t *end, uint64_t *values, uint64_t items) nogil


def split_msgpack(encoded, Py_ssize_t at, uint64_t pending, Py_ssize_t count, Py_ssize_t values_max, list ends not None):
    """Step over items that follow each other, about `values_max` values of them, those within others counted too. Appends to `ends` where each ends.

    `at`: the position. `pending`: how many values are left of the item there, 0 where it is not begun. `count`: how many items are left. Returns the
    three as they are then; `count` is 0 once all is done. Raises ValueError where an item is cut off or has a type that there is not.
    """
    cdef Py_buffer buffer
    cdef const uint8_t *first
    cdef const uint8_t *p
    cdef const uint8_t *behind
    PyObject_GetBuffer(encoded, &buffer, PyBUF_SIMPLE)
    try:
        first = <const uint8_t *>buffer.buf
        if not 0 <= at <= buffer.len:
            raise ValueError("behind the end")
        p = first + at
        while count > 0 and values_max > 0:
            if not pending:
                pending = 1
            behind = skip_msgpack_items(p, first + buffer.len, &pending, values_max)
            if behind == NULL:
                raise ValueError("cut short, or not msgpack")
            values_max -= behind - p  # each value takes a byte at least
            p = behind
            if not pending:
                count -= 1
                ends.append(p - first)
        return p - first, pending, count
    finally:
        PyBuffer_Release(&buffer)
