/* The fields of events in msgpack, and the small values in them. Every function takes the end of what it may read, and reads nothing behind it. */
#ifndef KV_INDEXER_EVENT_FIELDS_H
#define KV_INDEXER_EVENT_FIELDS_H

#include "token_lists.h"

/* The first twelve are the positions of a stored event in an array too. */
enum {
    FIELD_TYPE, FIELD_HASHES, FIELD_PARENT, FIELD_TOKENS, FIELD_BLOCK_SIZE, FIELD_LORA_ID, FIELD_MEDIUM, FIELD_LORA_NAME, FIELD_EXTRA_KEYS,
    FIELD_GROUP, FIELD_KIND, FIELD_WINDOW, FIELD_LOCALITY, FIELD_SALT, FIELD_OWNERSHIP, FIELD_SESSION, FIELD_LOOKAHEAD, FIELDS
};

#define NAMED(text) {text, sizeof(text) - 1}
static const struct { const char *text; uint32_t length; } field_names[FIELDS] = {
    NAMED("type"), NAMED("block_hashes"), NAMED("parent_block_hash"), NAMED("token_ids"), NAMED("block_size"), NAMED("lora_id"), NAMED("medium"),
    NAMED("lora_name"), NAMED("extra_keys"), NAMED("group_idx"), NAMED("kv_cache_spec_kind"), NAMED("kv_cache_spec_sliding_window"),
    NAMED("locality"), NAMED("cache_salt"), NAMED("ownership"), NAMED("session_id"), NAMED("lookahead_token_ids"),
};

/* The field of this name, -1 for none. `expected`: where to look first; an engine writes its fields in one order. */
static inline int field_of(const uint8_t *name, uint32_t length, int expected) {
    int i;
    for (i = 0; i < FIELDS; i++) {
        int field = (expected + i) % FIELDS;
        if (field_names[field].length == length && memcmp(field_names[field].text, name, length) == 0) return field;
    }
    return -1;
}

static inline int is_text(const uint8_t *text, uint32_t length, const char *wanted) {
    return strlen(wanted) == length && memcmp(text, wanted, length) == 0;
}

/* The header of a msgpack map. Returns the position behind it, NULL for anything else. */
static inline const uint8_t *read_msgpack_map(const uint8_t *p, const uint8_t *end, uint32_t *count) {
    if (p == end) return NULL;
    if ((*p & 0xF0) == 0x80) {
        *count = *p & 0x0F;
        return p + 1;
    }
    if (*p == 0xDE && end - p >= 3) {
        *count = big_endian16(p + 1);
        return p + 3;
    }
    return NULL;
}

/* A text of ASCII and less than 256 bytes. Returns the position behind it, NULL for anything else. */
static inline const uint8_t *read_msgpack_text(const uint8_t *p, const uint8_t *end, const uint8_t **text, uint32_t *length) {
    uint32_t i;
    if (p == end) return NULL;
    if ((*p & 0xE0) == 0xA0) {
        *length = *p & 0x1F;
        *text = p + 1;
    } else if (*p == 0xD9 && end - p >= 2) {
        *length = p[1];
        *text = p + 2;
    } else {
        return NULL;
    }
    if ((size_t)(end - *text) < *length) return NULL;
    for (i = 0; i < *length; i++) {
        if ((*text)[i] >= 0x80) return NULL;
    }
    return *text + *length;
}

/* An integer as 64 bits, a negative one in two's complement. Returns the position behind it, NULL for anything else. */
static inline const uint8_t *read_msgpack_integer(const uint8_t *p, const uint8_t *end, uint64_t *value, int *is_negative) {
    ptrdiff_t left = end - p;
    *is_negative = 0;
    if (left < 1) return NULL;
    if (*p < 0x80 || *p >= 0xE0) {
        *value = (uint64_t)(int64_t)(int8_t)*p;
        *is_negative = *p >= 0xE0;
        return p + 1;
    }
    switch (*p) {
        case 0xCC: if (left < 2) return NULL; *value = p[1]; return p + 2;
        case 0xCD: if (left < 3) return NULL; *value = big_endian16(p + 1); return p + 3;
        case 0xCE: if (left < 5) return NULL; *value = big_endian32(p + 1); return p + 5;
        case 0xCF: if (left < 9) return NULL; *value = big_endian64(p + 1); return p + 9;
        case 0xD0: if (left < 2) return NULL; *value = (uint64_t)(int64_t)(int8_t)p[1]; break;
        case 0xD1: if (left < 3) return NULL; *value = (uint64_t)(int64_t)(int16_t)big_endian16(p + 1); break;
        case 0xD2: if (left < 5) return NULL; *value = (uint64_t)(int64_t)(int32_t)big_endian32(p + 1); break;
        case 0xD3: if (left < 9) return NULL; *value = big_endian64(p + 1); break;
        default: return NULL;
    }
    *is_negative = (int64_t)*value < 0;
    return p + (*p == 0xD0 ? 2 : *p == 0xD1 ? 3 : *p == 0xD2 ? 5 : 9);
}

/* Behind one item: a value without what is in it. `values`: how many are still to come, this one with them; then how many are left, those within it with
 * them. NULL where it is cut off or has a type that there is not, and for an extension unless they are taken. Each value takes a byte at least. */
static inline const uint8_t *skip_msgpack_item(const uint8_t *p, const uint8_t *end, uint64_t *values, int takes_extensions) {
    ptrdiff_t left = end - p;
    uint64_t bytes;
    if (left < 1 || *values > (uint64_t)left) return NULL;
    --*values;
    if (*p < 0x80 || *p >= 0xE0 || *p == 0xC0 || *p == 0xC2 || *p == 0xC3) return p + 1;
    if (*p < 0xA0) {
        *values += (uint64_t)(*p & 0x0F) << (*p < 0x90);
        return p + 1;
    }
    if (*p < 0xC0) {
        bytes = 1 + (*p & 0x1F);
    } else {
        switch (*p) {
            case 0xC4: case 0xD9: if (left < 2) return NULL; bytes = 2 + (uint64_t)p[1]; break;
            case 0xC5: case 0xDA: if (left < 3) return NULL; bytes = 3 + (uint64_t)big_endian16(p + 1); break;
            case 0xC6: case 0xDB: if (left < 5) return NULL; bytes = 5 + (uint64_t)big_endian32(p + 1); break;
            case 0xC7: if (!takes_extensions || left < 2) return NULL; bytes = 3 + (uint64_t)p[1]; break;
            case 0xC8: if (!takes_extensions || left < 3) return NULL; bytes = 4 + (uint64_t)big_endian16(p + 1); break;
            case 0xC9: if (!takes_extensions || left < 5) return NULL; bytes = 6 + (uint64_t)big_endian32(p + 1); break;
            case 0xCA: case 0xCE: case 0xD2: bytes = 5; break;
            case 0xCB: case 0xCF: case 0xD3: bytes = 9; break;
            case 0xCC: case 0xD0: bytes = 2; break;
            case 0xCD: case 0xD1: bytes = 3; break;
            case 0xD4: case 0xD5: case 0xD6: case 0xD7: case 0xD8:
                if (!takes_extensions) return NULL;
                bytes = 2 + ((uint64_t)1 << (*p - 0xD4));
                break;
            case 0xDC: if (left < 3) return NULL; *values += big_endian16(p + 1); bytes = 3; break;
            case 0xDD: if (left < 5) return NULL; *values += big_endian32(p + 1); bytes = 5; break;
            case 0xDE: if (left < 3) return NULL; *values += 2 * (uint64_t)big_endian16(p + 1); bytes = 3; break;
            case 0xDF: if (left < 5) return NULL; *values += 2 * (uint64_t)big_endian32(p + 1); bytes = 5; break;
            default: return NULL;
        }
    }
    return bytes > (uint64_t)left ? NULL : p + bytes;
}

/* Behind one value of any type but an extension, however nested; NULL where it is cut off or has a type that there is not. */
static inline const uint8_t *skip_msgpack(const uint8_t *p, const uint8_t *end) {
    uint64_t values = 1;
    while (values && p != NULL) p = skip_msgpack_item(p, end, &values, 0);
    return p;
}

/* Behind values of any type, however nested, as many of them as `items` says: what is in a value counts too. `values`: how many are still to come, those
 * within others with them; then how many are left. NULL where one is cut off or has a type that there is not. */
static inline const uint8_t *skip_msgpack_items(const uint8_t *p, const uint8_t *end, uint64_t *values, uint64_t items) {
    uint64_t left_values = *values;
    for (; left_values && items; items--) {
        if ((p = skip_msgpack_item(p, end, &left_values, 1)) == NULL) return NULL;
    }
    *values = left_values;
    return p;
}

/* The value under a key of a msgpack map whose keys are short texts, NULL where there is none. `p`: behind the header, or behind a value. `left`: how many
 * fields are left from there on, then how many are behind the value. */
static inline const uint8_t *find_msgpack_value(const uint8_t *p, const uint8_t *end, const uint8_t *key, size_t key_length, uint32_t *left) {
    while (*left) {
        const uint8_t *name;
        uint32_t length;
        if ((p = read_msgpack_text(p, end, &name, &length)) == NULL) return NULL;
        --*left;
        if (length == key_length && memcmp(name, key, length) == 0) return p;
        if ((p = skip_msgpack(p, end)) == NULL) return NULL;
    }
    return NULL;
}

/* Whether these are the last fields, to the end, and none of them has this key. */
static inline int is_last_of_key(const uint8_t *p, const uint8_t *end, const uint8_t *key, size_t key_length, uint32_t left) {
    while (left--) {
        const uint8_t *name;
        uint32_t length;
        if ((p = read_msgpack_text(p, end, &name, &length)) == NULL) return 0;
        if (length == key_length && memcmp(name, key, length) == 0) return 0;
        if ((p = skip_msgpack(p, end)) == NULL) return 0;
    }
    return p == end;
}

/* An engine hash: an integer, or the last eight of at least as many bytes. Returns the position behind it, NULL for anything else. */
static inline const uint8_t *read_msgpack_hash(const uint8_t *p, const uint8_t *end, uint64_t *value) {
    int is_negative;
    if (end - p >= 9 && *p == 0xCF) {
        *value = big_endian64(p + 1);
        return p + 9;
    }
    if (end - p >= 10 && *p == 0xC4) {
        uint32_t length = p[1];
        if (length < 8 || (size_t)(end - p) < 2 + (size_t)length) return NULL;
        *value = big_endian64(p + 2 + length - 8);
        return p + 2 + length;
    }
    return read_msgpack_integer(p, end, value, &is_negative);
}

#endif
