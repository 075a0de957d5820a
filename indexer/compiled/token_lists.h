/* Lists of tokens in JSON and msgpack, read without an object for each token. A token is an integer from 0 to 2^32 - 1. Every function takes the end of
 * what it may read, and reads nothing behind it. */
#ifndef KV_INDEXER_TOKEN_LISTS_H
#define KV_INDEXER_TOKEN_LISTS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TOKEN_MAX 0xFFFFFFFFULL
#define TOKEN_DIGITS_MAX 10

static inline const uint8_t *behind_space(const uint8_t *p, const uint8_t *end) {
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r')) p++;
    return p;
}

/* A token in JSON. Returns the position behind it, NULL for anything else. */
static inline const uint8_t *read_json_token(const uint8_t *p, const uint8_t *end, uint32_t *token) {
    const uint8_t *first = p;
    uint64_t value = 0;
    if (end - p >= 8) {
        /* Eight bytes at once: how many of them are digits, and the value of those in three multiplications. */
        uint64_t word, digits, others;
        memcpy(&word, p, 8);
        digits = word ^ 0x3030303030303030ULL;
        others = ((digits + 0x7676767676767676ULL) | digits) & 0x8080808080808080ULL; /* right up to the first byte that is no digit */
        int count = others ? __builtin_ctzll(others) / 8 : 8;
        if (count == 0) return NULL;
        digits <<= 64 - 8 * count; /* zeros in front */
        digits = digits * 10 + (digits >> 8);
        value = ((digits & 0x000000FF000000FFULL) * 0x000F424000000064ULL + ((digits >> 16) & 0x000000FF000000FFULL) * 0x0000271000000001ULL) >> 32;
        p += count;
        if (count < 8) goto behind;
    }
    for (; p < end && *p >= '0' && *p <= '9'; p++) {
        if (p - first >= TOKEN_DIGITS_MAX) return NULL;
        value = value * 10 + (uint64_t)(*p - '0');
    }
behind:
    if (p == first || (p - first > 1 && *first == '0') || value > TOKEN_MAX) return NULL;
    *token = (uint32_t)value;
    return p;
}

#ifdef __SSE2__
#include <emmintrin.h>
#define PIECE 64
#define ONE_BY_ONE 8

/* Which of the next 64 bytes are digits, commas and spaces, as bits. */
static inline void look_at_piece(const uint8_t *p, uint64_t *digits, uint64_t *commas, uint64_t *spaces) {
    int i;
    *digits = *commas = *spaces = 0;
    for (i = 0; i < PIECE; i += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(p + i));
        /* A digit is at most 9 above '0', without a sign. */
        __m128i above = _mm_sub_epi8(bytes, _mm_set1_epi8('0'));
        __m128i is_digit = _mm_cmpeq_epi8(_mm_min_epu8(above, _mm_set1_epi8(9)), above);
        *digits |= (uint64_t)(uint32_t)_mm_movemask_epi8(is_digit) << i;
        *commas |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(','))) << i;
        *spaces |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(' '))) << i;
    }
}

/* Tokens from a position on, each of which ends with a comma, with or without a space behind it, as far as they have eight digits at most. The tokens of
 * 64 bytes do not wait for one another, as those do that are read one after the other. Returns the position at which to read on: of a token, of what
 * comes before one, or of what is wrong. `last`: 72 bytes before the end. */
static inline const uint8_t *read_json_pieces(const uint8_t *p, const uint8_t *last, uint32_t *tokens, ptrdiff_t *count) {
    while (p <= last) {
        uint64_t digits, commas, spaces, begins, ends;
        const uint8_t *next = p;
        ptrdiff_t found = *count;
        look_at_piece(p, &digits, &commas, &spaces);
        begins = digits & ~(digits << 1);
        ends = ~digits & (digits << 1);
        /* Behind each token there is a comma, before each comma a token, and before each space a comma; there is nothing else. */
        if ((ends & ~commas) | (commas & ~(digits << 1)) | (spaces & ~(commas << 1)) | ~(digits | commas | spaces)) return p;
        while (ends) {
            int begin = __builtin_ctzll(begins), end = __builtin_ctzll(ends), length = end - begin;
            uint64_t word;
            if (length > 8) return next;
            memcpy(&word, p + begin, 8);
            if (length > 1 && (word & 0xFF) == '0') return next;
            word = (word ^ 0x3030303030303030ULL) << (64 - 8 * length); /* zeros in front */
            word = word * 10 + (word >> 8);
            word = ((word & 0x000000FF000000FFULL) * 0x000F424000000064ULL + ((word >> 16) & 0x000000FF000000FFULL) * 0x0000271000000001ULL) >> 32;
            tokens[found++] = (uint32_t)word;
            *count = found;
            next = p + end + 1;
            begins &= begins - 1;
            ends &= ends - 1;
        }
        if (next == p) return p;
        /* A space behind the last comma belongs to what comes next. */
        p = next + (*next == ' ');
    }
    return p;
}
#endif

/* A JSON list of tokens; `tokens` has room for (end - p) / 2 + 1. Returns how many there are, -1 for anything else. */
static inline ptrdiff_t read_json_tokens(const uint8_t *p, const uint8_t *end, uint32_t *tokens) {
    ptrdiff_t count = 0;
#ifdef __SSE2__
    ptrdiff_t again_at = 0;
#endif
    p = behind_space(p, end);
    if (p == end || *p++ != '[') return -1;
    p = behind_space(p, end);
    if (p < end && *p == ']') return behind_space(p + 1, end) == end ? 0 : -1;
    for (;;) {
#ifdef __SSE2__
        if (end - p >= PIECE + 8 && count >= again_at) {
            p = read_json_pieces(p, end - PIECE - 8, tokens, &count);
            again_at = count + ONE_BY_ONE; /* it was for something that the next piece may have too */
        }
#endif
        p = read_json_token(behind_space(p, end), end, &tokens[count]);
        if (p == NULL) return -1;
        count++;
        p = behind_space(p, end);
        if (p == end) return -1;
        if (*p == ']') return behind_space(p + 1, end) == end ? count : -1;
        if (*p++ != ',') return -1;
    }
}

/* The position behind a JSON text whose opening quote is before `p`; NULL where it does not end. `has_escapes`: whether a backslash is in it. */
static inline const uint8_t *behind_text(const uint8_t *p, const uint8_t *end, int *has_escapes) {
    const uint8_t *first = p;
    *has_escapes = 0;
    while (p < end) {
        const uint8_t *quote = (const uint8_t *)memchr(p, '"', (size_t)(end - p)), *before;
        if (quote == NULL) return NULL;
        for (before = quote; before > first && before[-1] == '\\'; before--) {}
        if (!*has_escapes && memchr(p, '\\', (size_t)(quote - p)) != NULL) *has_escapes = 1;
        p = quote + 1;
        if ((quote - before) % 2 == 0) return p;
    }
    return NULL;
}

/* Where the list under a key of the outermost JSON object begins, and where it ends: at the first closing bracket. Returns 1, or 0 where the key is
 * not there exactly once, has no list, or another key has escapes and may be the same. Whether all of it is JSON is for a decoder to say. */
static inline int find_json_list(const uint8_t *body, size_t length, const uint8_t *key, size_t key_length, size_t *first, size_t *behind) {
    const uint8_t *p = body, *end = body + length;
    ptrdiff_t depth = 0;
    int found = 0, has_escapes;
    while (p < end) {
        uint8_t c = *p++;
        if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            depth--;
        } else if (c == '"') {
            const uint8_t *text = p, *close, *next;
            if ((p = behind_text(text, end, &has_escapes)) == NULL) return 0;
            if (depth != 1) continue;
            next = behind_space(p, end);
            if (next == end || *next != ':') continue; /* a value */
            if (has_escapes) return 0;
            if ((size_t)(p - 1 - text) != key_length || memcmp(text, key, key_length) != 0) continue;
            next = behind_space(next + 1, end);
            if (found || next == end || *next != '[') return 0;
            if ((close = (const uint8_t *)memchr(next, ']', (size_t)(end - next))) == NULL) return 0;
            found = 1;
            *first = (size_t)(next - body);
            *behind = (size_t)(close + 1 - body);
            p = close + 1;
        }
    }
    return found;
}

static inline uint16_t big_endian16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }

static inline uint32_t big_endian32(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return __builtin_bswap32(value);
}

static inline uint64_t big_endian64(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, 8);
    return __builtin_bswap64(value);
}

/* The header of a msgpack array. Returns the position behind it, NULL for anything else. */
static inline const uint8_t *read_msgpack_array(const uint8_t *p, const uint8_t *end, uint32_t *count) {
    if (p == end) return NULL;
    if ((*p & 0xF0) == 0x90) {
        *count = *p & 0x0F;
        return p + 1;
    }
    if (*p == 0xDC && end - p >= 3) {
        *count = big_endian16(p + 1);
        return p + 3;
    }
    if (*p == 0xDD && end - p >= 5) {
        *count = big_endian32(p + 1);
        return p + 5;
    }
    return NULL;
}

/* First byte → bytes of a token that is read without a look at its kind, 0 for any other; and by how much the eight bytes behind it are too many. */
static const uint8_t token_sizes[256] = {[0 ... 0x7F] = 1, [0xCC] = 2, [0xCD] = 3, [0xCE] = 5};
static const uint8_t token_shifts[256] = {[0 ... 0x7F] = 56, [0xCC] = 56, [0xCD] = 48, [0xCE] = 32};
#define TOKEN_REACH 9

/* So many tokens in msgpack. Returns the position behind them, NULL where one is anything else. */
static inline const uint8_t *read_msgpack_tokens(const uint8_t *p, const uint8_t *end, uint32_t count, uint32_t *tokens) {
    uint32_t i;
    for (i = 0; i < count; i++) {
        ptrdiff_t left = end - p;
        if (left >= TOKEN_REACH && token_sizes[*p]) {
            /* Short and long ones follow each other at random: a branch for each kind would be foretold wrongly every other time. */
            tokens[i] = (uint32_t)(big_endian64(p + (*p > 0x7F)) >> token_shifts[*p]);
            p += token_sizes[*p];
        } else if (left >= 1 && *p < 0x80) {
            tokens[i] = *p;
            p += 1;
        } else if (left >= 3 && *p == 0xCD) {
            tokens[i] = big_endian16(p + 1);
            p += 3;
        } else if (left >= 5 && *p == 0xCE) {
            tokens[i] = big_endian32(p + 1);
            p += 5;
        } else if (left >= 2 && *p == 0xCC) {
            tokens[i] = p[1];
            p += 2;
        } else if (left >= 9 && *p == 0xCF && big_endian64(p + 1) <= TOKEN_MAX) {
            tokens[i] = (uint32_t)big_endian64(p + 1);
            p += 9;
        } else {
            return NULL;
        }
    }
    return p;
}

/* An integer of any size in msgpack. Returns the position behind it, NULL for anything else; `token` is the token, `is_token` whether it is one. */
static inline const uint8_t *read_msgpack_any_integer(const uint8_t *p, const uint8_t *end, uint32_t *token, int *is_token) {
    static const uint8_t sizes[8] = {2, 3, 5, 9, 2, 3, 5, 9};
    ptrdiff_t left = end - p;
    uint64_t value;
    if (left < 1) return NULL;
    if (*p < 0x80 || *p >= 0xE0) {
        *token = *p;
        *is_token = *p < 0x80;
        return p + 1;
    }
    if (*p < 0xCC || *p > 0xD3 || left < sizes[*p - 0xCC]) return NULL;
    switch (*p) {
        case 0xCC: value = p[1]; break;
        case 0xCD: value = big_endian16(p + 1); break;
        case 0xCE: value = big_endian32(p + 1); break;
        case 0xD0: value = (uint64_t)(int64_t)(int8_t)p[1]; break;
        case 0xD1: value = (uint64_t)(int64_t)(int16_t)big_endian16(p + 1); break;
        case 0xD2: value = (uint64_t)(int64_t)(int32_t)big_endian32(p + 1); break;
        default: value = big_endian64(p + 1);
    }
    *token = (uint32_t)value;
    *is_token = value <= TOKEN_MAX;
    return p + sizes[*p - 0xCC];
}

/* So many integers, or the first of so many pairs of integers: those before the first that is no token. `good`: how many these are. Returns the position
 * behind all of them, NULL where something is neither. */
static inline const uint8_t *read_msgpack_integers(const uint8_t *p, const uint8_t *end, uint32_t count, int are_pairs, uint32_t *tokens, uint32_t *good) {
    uint32_t i, second;
    int is_token, all_good = 1;
    *good = 0;
    for (i = 0; i < count; i++) {
        if (are_pairs && (p == end || *p++ != 0x92)) return NULL;
        if ((p = read_msgpack_any_integer(p, end, &tokens[*good], &is_token)) == NULL) return NULL;
        all_good = all_good && is_token;
        *good += all_good && is_token;
        if (are_pairs && (p = read_msgpack_any_integer(p, end, &second, &is_token)) == NULL) return NULL;
    }
    return p;
}

#endif
