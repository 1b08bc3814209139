// Matrix tiles (AMX, bfloat16): the hardware multiplies 16 rows of 32 by 32 x 16, summing in float32. The second factor
// lies in pairs: row p holds elements (2p, n) and (2p + 1, n) side by side for 16 columns n, 64 bytes.
#pragma once
#include "common.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAS_AMX 1
#include <sys/syscall.h>
#include <unistd.h>

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
#else
#define HAS_AMX 0
#endif
