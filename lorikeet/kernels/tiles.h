// Products of 32 x 32 blocks in bfloat16, summed in float32. The first factor's rows lie as they are, 32 of its columns at
// a time; the second lies in pairs: row p holds elements (2p, n) and (2p + 1, n) side by side for 16 columns n, 64 bytes.
// So matrix tiles (AMX) take them, and where a processor has none, AVX-512's dot products of pairs.
#pragma once
#include "common.h"

#ifdef __AVX512BF16__
#define HAS_PAIRS 1
#else
#define HAS_PAIRS 0
#endif
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAS_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define HAS_AMX 0
#endif

#if HAS_AMX
// the system lends the tile registers to a process that asks
static inline bool tiles_allowed() {
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return allowed;
}

struct alignas(64) TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {0};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// _tile_loadconfig tells gcc 12 nothing of the memory it reads, so that the config would never be written
static inline void configure_tiles() {
    static const TileConfig config;
    asm volatile("ldtilecfg %0" ::"m"(config));
}

// nor does it know that _tile_loadd reads memory: what was stored before this line is in memory after it
static inline void written() { asm volatile("" ::: "memory"); }

// four tiles of 16 x 16 sums, 4 KB side by side: left and right of the first 16 rows, then of the others
static inline void start_sums(const float* s, bool zero) {
    if (zero) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        return;
    }
    written();
    _tile_loadd(0, s, 64);
    _tile_loadd(1, s + 256, 64);
    _tile_loadd(2, s + 512, 64);
    _tile_loadd(3, s + 768, 64);
}

static inline void store_sums(float* s) {
    _tile_stored(0, s, 64);
    _tile_stored(1, s + 256, 64);
    _tile_stored(2, s + 512, 64);
    _tile_stored(3, s + 768, 64);
}

// Adds to the sums that were started: 32 rows of a, `row` bytes apart, times pairs of 32 columns (two tiles), for `steps`
// times 32 columns of a, `step` bytes apart. PASSING: the pairs go past the level-1 cache, where a stays.
template <bool PASSING>
static inline void add_products(float*, const void* a, i64 row, i64 step, const void* pairs, i64 steps) {
    const char *first = (const char*)a, *second = first + 16 * row, *b = (const char*)pairs;
    written();
    for (i64 s = 0; s < steps; s++, first += step, second += step, b += 2048) {
        if (PASSING) {
            _tile_stream_loadd(6, b, 64);
            _tile_stream_loadd(7, b + 1024, 64);
        } else {
            _tile_loadd(6, b, 64);
            _tile_loadd(7, b + 1024, 64);
        }
        _tile_loadd(4, first, row);
        _tile_loadd(5, second, row);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
    }
}

static inline void release_tiles() { _tile_release(); }

#elif HAS_PAIRS
static inline bool tiles_allowed() { return true; }
static inline void configure_tiles() {}
static inline void release_tiles() {}

// sums of 8 rows and 32 columns in registers
struct Sums8 {
    __m512 left[8], right[8];
    void load(const float* l, const float* r) {
        for (int u = 0; u < 8; u++) left[u] = _mm512_load_ps(l + 16 * u), right[u] = _mm512_load_ps(r + 16 * u);
    }
    void store(float* l, float* r) const {
        for (int u = 0; u < 8; u++) _mm512_store_ps(l + 16 * u, left[u]), _mm512_store_ps(r + 16 * u, right[u]);
    }
    // 32 columns of 8 rows of a, `row` bytes apart, times two tiles of pairs
    void add(const char* a, i64 row, const void* b, const void* other) {
        for (int p = 0; p < 16; p++) {
            const __m512bh l = (__m512bh)_mm512_load_si512((const char*)b + 64 * p);
            const __m512bh r = (__m512bh)_mm512_load_si512((const char*)other + 64 * p);
            for (int u = 0; u < 8; u++) {
                int both;
                std::memcpy(&both, a + u * row + 4 * p, 4);
                const __m512bh x = (__m512bh)_mm512_set1_epi32(both);
                left[u] = _mm512_dpbf16_ps(left[u], x, l), right[u] = _mm512_dpbf16_ps(right[u], x, r);
            }
        }
    }
};

// the same as on tiles, but that sums lie in memory between these calls
static inline void start_sums(float* s, bool zero) {
    if (zero) std::memset(s, 0, 4096);
}
static inline void store_sums(float*) {}

template <bool PASSING>
static inline void add_products(float* sums, const void* a, i64 row, i64 step, const void* pairs, i64 steps) {
    for (int r = 0; r < 32; r += 8) {
        float* s = sums + (r & 16) * 32 + (r & 8) * 16;
        const char *x = (const char*)a + r * row, *b = (const char*)pairs;
        Sums8 some;
        some.load(s, s + 256);
        for (i64 i = 0; i < steps; i++, x += step, b += 2048) some.add(x, row, b, b + 1024);
        some.store(s, s + 256);
    }
}
#endif

#if HAS_PAIRS
// The pairs of 32 stored rows of 32 values, in two tiles, each row's line read once: where rows lie a multiple of some
// KB apart they fall on a few sets of the cache. The first tile has columns 0-3, 8-11, 16-19 and 24-27, the second the
// others; so have the sums.
static inline void pairs_of_rows(const bf16* from, i64 stride, void* to) {
    for (int i = 0; i < 16; i++) {
        __m512i even = _mm512_loadu_si512(from + 2 * i * stride), odd = _mm512_loadu_si512(from + (2 * i + 1) * stride);
        _mm512_storeu_si512((char*)to + 64 * i, _mm512_unpacklo_epi16(even, odd));
        _mm512_storeu_si512((char*)to + 1024 + 64 * i, _mm512_unpackhi_epi16(even, odd));
    }
}

// one row of two tiles of float32 sums to 32 values; `woven` if the tiles' columns are those of pairs_of_rows
static inline void store_rounded(const float* from, bf16* to, bool woven) {
    __m512i row = (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(from + 256), _mm512_load_ps(from));
    if (woven) row = _mm512_permutexvar_epi64(_mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), row);
    _mm512_storeu_si512(to, row);
}
#endif
