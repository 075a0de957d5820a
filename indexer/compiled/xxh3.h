/* XXH3-64 with a seed, after its public specification (xxHash 0.8), for inputs of any length. tests/indexer/compiled compares it with the library.
 * It needs 128-bit integers and a little-endian machine; elsewhere the build fails, and the Python with the library does the work. */
#ifndef KV_INDEXER_XXH3_H
#define KV_INDEXER_XXH3_H

#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the compiled core is for little-endian machines"
#endif

#define PRIME32_1 0x9E3779B1ULL
#define PRIME32_2 0x85EBCA77ULL
#define PRIME32_3 0xC2B2AE3DULL
#define PRIME64_1 0x9E3779B185EBCA87ULL
#define PRIME64_2 0xC2B2AE3D27D4EB4FULL
#define PRIME64_3 0x165667B19E3779F9ULL
#define PRIME64_4 0x85EBCA77C2B2AE63ULL
#define PRIME64_5 0x27D4EB2F165667C5ULL
#define PRIME_MX1 0x165667919E3779F9ULL
#define PRIME_MX2 0x9FB21C651E98DF25ULL

static const uint8_t xxh3_secret[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb,
    0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb,
    0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31,
    0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc,
    0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static inline uint64_t read64(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, 8);
    return value;
}

static inline uint32_t read32(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

static inline uint64_t rotated(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

static inline uint64_t multiplied_and_folded(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t avalanche(uint64_t h) {
    h ^= h >> 37;
    h *= PRIME_MX1;
    return h ^ h >> 32;
}

static inline uint64_t avalanche_of_xxh64(uint64_t h) {
    h ^= h >> 33;
    h *= PRIME64_2;
    h ^= h >> 29;
    h *= PRIME64_3;
    return h ^ h >> 32;
}

static inline uint64_t mix16(const uint8_t *p, const uint8_t *secret, uint64_t seed) {
    return multiplied_and_folded(read64(p) ^ (read64(secret) + seed), read64(p + 8) ^ (read64(secret + 8) - seed));
}

static uint64_t xxh3_up_to_16(const uint8_t *p, size_t n, uint64_t seed) {
    const uint8_t *s = xxh3_secret;
    if (n > 8) {
        uint64_t low = read64(p) ^ ((read64(s + 24) ^ read64(s + 32)) + seed);
        uint64_t high = read64(p + n - 8) ^ ((read64(s + 40) ^ read64(s + 48)) - seed);
        return avalanche(n + __builtin_bswap64(low) + high + multiplied_and_folded(low, high));
    }
    if (n >= 4) {
        seed ^= (uint64_t)__builtin_bswap32((uint32_t)seed) << 32;
        uint64_t h = (read32(p + n - 4) + ((uint64_t)read32(p) << 32)) ^ ((read64(s + 8) ^ read64(s + 16)) - seed);
        h ^= rotated(h, 49) ^ rotated(h, 24);
        h *= PRIME_MX2;
        h ^= (h >> 35) + n;
        h *= PRIME_MX2;
        return h ^ h >> 28;
    }
    if (n) {
        uint32_t combined = (uint32_t)p[0] << 16 | (uint32_t)p[n >> 1] << 24 | p[n - 1] | (uint32_t)n << 8;
        return avalanche_of_xxh64(combined ^ ((read32(s) ^ read32(s + 4)) + seed));
    }
    return avalanche_of_xxh64(seed ^ read64(s + 56) ^ read64(s + 64));
}

static uint64_t xxh3_17_to_240(const uint8_t *p, size_t n, uint64_t seed) {
    const uint8_t *s = xxh3_secret;
    uint64_t acc = n * PRIME64_1;
    size_t i;
    if (n <= 128) {
        if (n > 96) acc += mix16(p + 48, s + 96, seed) + mix16(p + n - 64, s + 112, seed);
        if (n > 64) acc += mix16(p + 32, s + 64, seed) + mix16(p + n - 48, s + 80, seed);
        if (n > 32) acc += mix16(p + 16, s + 32, seed) + mix16(p + n - 32, s + 48, seed);
        return avalanche(acc + mix16(p, s, seed) + mix16(p + n - 16, s + 16, seed));
    }
    for (i = 0; i < 8; i++) acc += mix16(p + 16 * i, s + 16 * i, seed);
    acc = avalanche(acc);
    for (i = 8; i < n / 16; i++) acc += mix16(p + 16 * i, s + 16 * (i - 8) + 3, seed);
    return avalanche(acc + mix16(p + n - 16, s + 119, seed));
}

static inline void accumulate_stripe(uint64_t *acc, const uint8_t *p, const uint8_t *secret) {
    int i;
    for (i = 0; i < 8; i++) {
        uint64_t value = read64(p + 8 * i), keyed = value ^ read64(secret + 8 * i);
        acc[i ^ 1] += value;
        acc[i] += (uint64_t)(uint32_t)keyed * (keyed >> 32);
    }
}

static uint64_t xxh3_above_240(const uint8_t *p, size_t n, uint64_t seed) {
    uint8_t s[192];
    uint64_t acc[8] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    uint64_t h = n * PRIME64_1;
    size_t stripes = (n - 1) / 64, i;
    int k;
    for (i = 0; i < 192; i += 16) {
        uint64_t low = read64(xxh3_secret + i) + seed, high = read64(xxh3_secret + i + 8) - seed;
        memcpy(s + i, &low, 8);
        memcpy(s + i + 8, &high, 8);
    }
    for (i = 0; i < stripes; i++) {
        accumulate_stripe(acc, p + 64 * i, s + 8 * (i % 16));
        if (i % 16 == 15) {
            for (k = 0; k < 8; k++) acc[k] = (acc[k] ^ acc[k] >> 47 ^ read64(s + 128 + 8 * k)) * PRIME32_1;
        }
    }
    accumulate_stripe(acc, p + n - 64, s + 121);
    for (k = 0; k < 4; k++) h += multiplied_and_folded(acc[2 * k] ^ read64(s + 11 + 16 * k), acc[2 * k + 1] ^ read64(s + 19 + 16 * k));
    return avalanche(h);
}

static inline uint64_t xxh3_64(const uint8_t *p, size_t n, uint64_t seed) {
    if (n <= 16) return xxh3_up_to_16(p, n, seed);
    return n <= 240 ? xxh3_17_to_240(p, n, seed) : xxh3_above_240(p, n, seed);
}

#endif
