// Quantised weights to dense ones and back, row by row. A product is made in float and rounded once, so that every bit
// is the one that quant/_four_bit.py and quant/int8.py define.
//
// In 4 bits a block has 16 possible values: they are multiplied and rounded once, and a weight is one look into them.
// With AVX-512 the 16 lie in one register and a permutation looks up 32 (bfloat16) or 16 (float) weights at a time.
#include "common.h"
#ifdef __linux__
#include <sys/mman.h>
#endif

// A large result is fresh memory each time (malloc maps it anew from 32 MiB on), and half of the time would go into
// making its small pages: ask for large ones.
static void in_large_pages(void* start, i64 bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 2 << 20;
    uintptr_t from = ((uintptr_t)start + page - 1) / page * page, to = ((uintptr_t)start + bytes) / page * page;
    if (bytes >= 32 << 20 && to > from) madvise((void*)from, to - from, MADV_HUGEPAGE);
#endif
}

// what is left of a block, without vectors
template <typename T>
static inline void look_up_rest(i64 i, i64 width, const uint8_t* codes, const float* table, float scale, T* out) {
    if (i >= width) return;
    T numbers[16];
    for (int c = 0; c < 16; c++) put(table[c] * scale, numbers + c);
    for (; i + 1 < width; i += 2) {
        out[i] = numbers[codes[i / 2] >> 4];
        out[i + 1] = numbers[codes[i / 2] & 15];
    }
    if (i < width) out[i] = numbers[codes[i / 2] >> 4];
}

// a block of `width` weights from 4-bit codes, the first in the high half of a byte
static inline void look_up(i64 width, const uint8_t* codes, const float* table, float scale, bf16* out) {
    i64 i = 0;
#ifdef __AVX512BW__
    // `put` of the 16 products, twice in one register
    __m512 product = _mm512_mul_ps(_mm512_loadu_ps(table), _mm512_set1_ps(scale));
    __m512i bits = _mm512_castps_si512(product);
    __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff))), 16);
    bits = _mm512_mask_set1_epi32(bits, _mm512_cmp_ps_mask(product, product, _CMP_UNORD_Q), 0x7fc0);
    __m512i numbers = _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(bits));
    for (; i + 32 <= width; i += 32) {
        __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(codes + i / 2)));
        // an index is the low 5 bits of a word: the high half below, the low half above, whatever else is there
        __m512i index = _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16));
        _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(index, numbers));
    }
#endif
    look_up_rest(i, width, codes, table, scale, out);
}

static inline void look_up(i64 width, const uint8_t* codes, const float* table, float scale, float* out) {
    i64 i = 0;
#ifdef __AVX512F__
    __m512 numbers = _mm512_mul_ps(_mm512_loadu_ps(table), _mm512_set1_ps(scale));
    for (; i + 16 <= width; i += 16) {
        __m512i bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)(codes + i / 2)));
        __m512i index = _mm512_or_si512(_mm512_srli_epi64(bytes, 4), _mm512_slli_epi64(bytes, 32));
        _mm512_storeu_ps(out + i, _mm512_permutexvar_ps(index, numbers));
    }
#endif
    look_up_rest(i, width, codes, table, scale, out);
}

struct FourBit {
    i64 rows, width, block;
    const float* table;
    const uint8_t* codes;
    const void* absmax;                  // float; with a second scale, uint8 codes of `map`
    const float *scale, *offset, *map;  // null, or of the second quantisation
};

// the scales of one row. The two loops keep the compiler from joining product and sum to one rounding.
static const float* scales_of(const FourBit& w, i64 row, i64 blocks, float* made) {
    if (!w.scale) return (const float*)w.absmax + row * blocks;
    const uint8_t* codes = (const uint8_t*)w.absmax + row * blocks;
    const float* scale = w.scale + row * ((blocks + 255) / 256);
    for (i64 b = 0; b < blocks; b++) {
        float product = w.map[codes[b]] * scale[b / 256];
        std::memcpy(made + b, &product, 4);
    }
    __asm__ volatile("" ::: "memory");
    float offset = w.offset[row];
    for (i64 b = 0; b < blocks; b++) made[b] += offset;
    return made;
}

template <typename T>
static void four_bit(const FourBit& w, void* out) {
    i64 blocks = (w.width + w.block - 1) / w.block, row_bytes = (w.width + 1) / 2;
    in_large_pages(out, w.rows * w.width * sizeof(T));
    in_parallel([=](Team& team) {
        float* made = (float*)std::malloc(blocks * sizeof(float));
        team.each(w.rows, [&](i64 row) {
            const float* scales = scales_of(w, row, blocks, made);
            for (i64 b = 0; b < blocks; b++) {
                i64 start = b * w.block, count = w.width - start < w.block ? w.width - start : w.block;
                const uint8_t* codes = w.codes + row * row_bytes + start / 2;
                look_up(count, codes, w.table, scales[b], (T*)out + row * w.width + start);
            }
        });
        std::free(made);
    });
}

extern "C" void dequantise_four_bit(i64 dtype, i64 rows, i64 width, i64 block, const float* table, const void* codes,
                                    const void* absmax, const float* scale, const float* offset, const float* map,
                                    void* out) {
    FourBit w{rows, width, block, table, (const uint8_t*)codes, absmax, scale, offset, map};
    DISPATCH(dtype, four_bit, w, out);
}

template <typename T>
static void int8(i64 rows, i64 width, const int8_t* codes, const float* absmax, void* out_) {
    in_large_pages(out_, rows * width * sizeof(T));
    parallel_loop(rows, 16, [=](i64 row) {
        const int8_t* from = codes + row * width;
        T* out = (T*)out_ + row * width;
        float scale = absmax[row];
#pragma omp simd
        for (i64 i = 0; i < width; i++) put(float(from[i]) * scale * 0.007874015718698502f, out + i);
    });
}

extern "C" void dequantise_int8(i64 dtype, i64 rows, i64 width, const int8_t* codes, const float* absmax, void* out) {
    DISPATCH(dtype, int8, rows, width, codes, absmax, out);
}

// 4-bit codes and scales from weights. `bounds` [15] are the middles between neighbours of the ascending table,
// `order` [16] the code of each; `absmax` [rows, blocks] is written even where it is not finite: the caller looks.
template <typename T>
static void quantise(i64 rows, i64 width, i64 block, const float* bounds, const uint8_t* order, const void* weight,
                     uint8_t* codes, float* absmax) {
    i64 blocks = (width + block - 1) / block, row_bytes = (width + 1) / 2;
    in_parallel([=](Team& team) {
        uint8_t* found = (uint8_t*)std::malloc(block + 1);
        team.each(rows, [&](i64 row) {
            for (i64 b = 0; b < blocks; b++) {
                i64 start = b * block, count = width - start < block ? width - start : block;
                const T* from = (const T*)weight + row * width + start;
                float most = 0;
                bool finite = true;
                for (i64 i = 0; i < count; i++) {
                    float size = std::fabs(to_float(from[i]));
                    finite &= size <= 3.4028234e38f;  // false for NaN
                    most = size > most ? size : most;
                }
                absmax[row * blocks + b] = finite ? most : INFINITY;
                float inverse = 1.0f / (most > 1e-38f ? most : 1e-38f);
#pragma omp simd
                for (i64 i = 0; i < count; i++) {
                    float scaled = to_float(from[i]) * inverse;
                    scaled = scaled < -1.0f ? -1.0f : (scaled > 1.0f ? 1.0f : scaled);
                    int above = 0;
                    for (int j = 0; j < 15; j++) above += bounds[j] < scaled;
                    found[i] = uint8_t(above);
                }
                uint8_t* to = codes + row * row_bytes + start / 2;
                for (i64 i = 0; i + 1 < count; i += 2) to[i / 2] = uint8_t(order[found[i]] << 4 | order[found[i + 1]]);
                if (count % 2) to[count / 2] = uint8_t(order[found[count - 1]] << 4);
            }
        });
        std::free(found);
    });
}

extern "C" void quantise_four_bit(i64 dtype, i64 rows, i64 width, i64 block, const float* bounds, const void* order,
                                  const void* weight, void* codes, float* absmax) {
    DISPATCH(dtype, quantise, rows, width, block, bounds, (const uint8_t*)order, weight, (uint8_t*)codes, absmax);
}
