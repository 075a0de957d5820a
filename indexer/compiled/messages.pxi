# Messages out of what a connection brings. See indexer/receiving/zmtp.py: whatever is cut off, wrong or no message is left to it.

cdef enum:
    MORE_FLAG = 1
    LONG_FLAG = 2
    SHORT_HEAD = 2
    LONG_HEAD = 9
    # A message of more frames is taken in Python, too.
    PARTS_MAX = 4
    PART_OVERHEAD = 64


def take_messages(bytes buffer not None, Py_ssize_t position, Py_ssize_t frame_bytes_max, Py_ssize_t message_bytes_max, Py_ssize_t count_max, list found not None):
    """Adds the messages that are whole, from this position on, to `found`, each a list of frames. Returns where the first one begins that is left.

    `message_bytes_max`: of the frames before the last one, each with PART_OVERHEAD more.
    """
    cdef const uint8_t *data = <const uint8_t *>PyBytes_AsString(buffer)
    cdef Py_ssize_t size = PyBytes_Size(buffer), at, part, parts, bytes_of_parts
    cdef Py_ssize_t[PARTS_MAX] first, behind
    cdef uint64_t length
    cdef uint8_t flags
    cdef list frames
    if not 0 <= position <= size or frame_bytes_max < 0:
        raise ValueError("there is no such position")
    while count_max > 0:
        at, parts, bytes_of_parts, flags = position, 0, 0, MORE_FLAG
        while flags & MORE_FLAG:
            if parts == PARTS_MAX or size - at < SHORT_HEAD:
                return position
            flags = data[at]
            if flags & ~(MORE_FLAG | LONG_FLAG):
                return position
            if flags & LONG_FLAG:
                if size - at < LONG_HEAD:
                    return position
                length = big_endian64(data + at + 1)
                at += LONG_HEAD
            else:
                length = data[at + 1]
                at += SHORT_HEAD
            if length > <uint64_t>frame_bytes_max or length > <uint64_t>(size - at):
                return position
            first[parts] = at
            at += <Py_ssize_t>length
            behind[parts] = at
            parts += 1
            if flags & MORE_FLAG:
                bytes_of_parts += <Py_ssize_t>length + PART_OVERHEAD
                if bytes_of_parts > message_bytes_max:
                    return position
        frames = PyList_New(parts)
        for part in range(parts):
            _set_item(frames, part, PyBytes_FromStringAndSize(<const char *>data + first[part], behind[part] - first[part]))
        found.append(frames)
        position = at
        count_max -= 1
    return position
