// Quantised weights to dense ones and back, row by row. A product is made in float and rounded once, so that every bit
// is the one that quant/_four_bit.py and quant/int8.py define.
//
// In 4 bits a block has 16 possible values: they are multiplied and rounded once, and a weight is one look into them.
// With AVX-512 the 16 lie in one register and a permutation looks up 32 (bfloat16) or 16 (float) weights at a time.
#include "common.h"

// width weights from 4-bit codes, the first in the high half of a byte; the table has its 16 numbers twice
static inline void look_up(i64 width, const uint8_t* codes, const bf16* table, bf16* out) {
    i64 i = 0;
#ifdef __AVX512BW__
    __m512i numbers = _mm512_loadu_si512(table);
    for (; i + 32 <= width; i += 32) {
        __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(codes + i / 2)));
        // an index is the low 5 bits of a word: the high half below, the low half above, whatever else is there
        __m512i index = _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16));
        _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(index, numbers));
    }
#endif
    for (; i + 1 < width; i += 2) {
        out[i] = table[codes[i / 2] >> 4];
        out[i + 1] = table[codes[i / 2] & 15];
    }
    if (i < width) out[i] = table[codes[i / 2] >> 4];
}

static inline void look_up(i64 width, const uint8_t* codes, const float* table, float* out) {
    i64 i = 0;
#ifdef __AVX512F__
    __m512 numbers = _mm512_loadu_ps(table);
    for (; i + 16 <= width; i += 16) {
        __m512i bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)(codes + i / 2)));
        __m512i index = _mm512_or_si512(_mm512_srli_epi64(bytes, 4), _mm512_slli_epi64(bytes, 32));
        _mm512_storeu_ps(out + i, _mm512_permutexvar_ps(index, numbers));
    }
#endif
    for (; i + 1 < width; i += 2) {
        out[i] = table[codes[i / 2] >> 4];
        out[i + 1] = table[codes[i / 2] & 15];
    }
    if (i < width) out[i] = table[codes[i / 2] >> 4];
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
#pragma omp parallel
    {
        float* made = (float*)std::malloc(blocks * sizeof(float));
#pragma omp for schedule(static)
        for (i64 row = 0; row < w.rows; row++) {
            const float* scales = scales_of(w, row, blocks, made);
            for (i64 b = 0; b < blocks; b++) {
                T table[32];
                for (int c = 0; c < 16; c++) put(w.table[c] * scales[b], table + c);
                for (int c = 0; c < 16; c++) table[16 + c] = table[c];
                i64 start = b * w.block, count = w.width - start < w.block ? w.width - start : w.block;
                look_up(count, w.codes + row * row_bytes + start / 2, table, (T*)out + row * w.width + start);
            }
        }
        std::free(made);
    }
}

extern "C" void dequantise_four_bit(i64 dtype, i64 rows, i64 width, i64 block, const float* table, const void* codes,
                                    const void* absmax, const float* scale, const float* offset, const float* map,
                                    void* out) {
    FourBit w{rows, width, block, table, (const uint8_t*)codes, absmax, scale, offset, map};
    DISPATCH(dtype, four_bit, w, out);
}

template <typename T>
static void int8(i64 rows, i64 width, const int8_t* codes, const float* absmax, void* out_) {
#pragma omp parallel for schedule(static)
    for (i64 row = 0; row < rows; row++) {
        const int8_t* from = codes + row * width;
        T* out = (T*)out_ + row * width;
        float scale = absmax[row];
#pragma omp simd
        for (i64 i = 0; i < width; i++) put(float(from[i]) * scale * 0.007874015718698502f, out + i);
    }
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
#pragma omp parallel
    {
        uint8_t* found = (uint8_t*)std::malloc(block + 1);
#pragma omp for schedule(static)
        for (i64 row = 0; row < rows; row++)
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
        std::free(found);
    }
}

extern "C" void quantise_four_bit(i64 dtype, i64 rows, i64 width, i64 block, const float* bounds, const void* order,
                                  const void* weight, void* codes, float* absmax) {
    DISPATCH(dtype, quantise, rows, width, block, bounds, (const uint8_t*)order, weight, (uint8_t*)codes, absmax);
}
