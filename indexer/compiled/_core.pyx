# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled core: one module, of one file for each thing that it has.

    tokens.pxi         lists of tokens in JSON and msgpack → packed tokens
    msgpack_items.pxi  where items of msgpack end
    keys.pxi           packed tokens → chained block keys
    prefix_index.pxi   who holds which blocks, on key_set.pxi, key_table.pxi and holder_sets.pxi
    walk.pxi           a walk along the keys of a prompt
    plain_matches.pxi  the same for pods that are all plain, from tokens to an encoded answer
    plain_events.pxi   payloads → events
    messages.pxi       what a connection brings → messages
    block_runs.pxi     what events do to the blocks of a stream, on block_map.pxi, held_keys.pxi and key_claims.pxi, noted in key_log.pxi

Tokens and keys stay arrays of 32- and 64-bit integers here: nothing becomes a Python object but what is returned. Every function checks what it is
given before it changes anything, and every allocation; where memory runs out between two keys, both sides of a table still agree. Each name has its
twin in Python, which says what it does: for tokens these are msgspec and `pack_tokens`. `_core.pyi` has the types.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize, PyBytes_Size
# Python's allocator, so that tracemalloc counts the tables too.
from cpython.mem cimport PyMem_Calloc as calloc, PyMem_Free as free, PyMem_Malloc as malloc, PyMem_Realloc as realloc
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

import os
from array import array

cdef extern from "Python.h":
    bint PyLong_Check(object value)
    unsigned long long PyLong_AsUnsignedLongLong(object value) except? 0xFFFFFFFFFFFFFFFF
    object PyLong_FromUnsignedLongLong(unsigned long long value)
    PyObject *PyList_GetItem(list items, Py_ssize_t position) except NULL
    list PyList_New(Py_ssize_t length)

include "tokens.pxi"
include "msgpack_items.pxi"
include "keys.pxi"
include "key_set.pxi"
include "key_log.pxi"
include "key_table.pxi"
include "holder_sets.pxi"
include "prefix_index.pxi"
include "walk.pxi"
include "plain_matches.pxi"
include "plain_events.pxi"
include "messages.pxi"
include "block_map.pxi"
include "held_keys.pxi"
include "key_claims.pxi"
include "block_runs.pxi"
