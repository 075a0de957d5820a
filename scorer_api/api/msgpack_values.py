"""Counts the values in msgpack without building them. A text of any length is one value. Pure."""

# First byte → bytes of the length that follows, for texts, bins and extensions; and bytes of a value of fixed size.
_SIZED = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}
# First byte → bytes of the count that follows, and values for each item.
_MANY = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
_EXTENSIONS = range(0xC7, 0xCA)


def has_more_values(data: bytes, values_max: int) -> bool:
    """Whether the value that begins here consists of more than so many values, itself and keys included. `data` is valid msgpack."""
    position, left, seen = 0, 1, 0
    while left and position < len(data):
        seen += 1
        left -= 1
        tag = data[position]
        position += 1
        if 0xA0 <= tag < 0xC0:
            position += tag & 0x1F
        elif 0x80 <= tag < 0xA0:
            left += tag & 0x0F if tag >= 0x90 else 2 * (tag & 0x0F)
        elif tag in _SIZED:
            width = _SIZED[tag]
            position += width + int.from_bytes(data[position : position + width], "big") + (tag in _EXTENSIONS)
        elif tag in _MANY:
            width, each = _MANY[tag]
            left += each * int.from_bytes(data[position : position + width], "big")
            position += width
        else:
            position += _FIXED.get(tag, 0)
        if seen + left > values_max:
            return True
    return False
