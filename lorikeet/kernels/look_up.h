// 4-bit codes to weights. A block has 16 possible values: they are multiplied and rounded once, and a weight is one look
// into them. With AVX-512 the 16 lie in one register and a permutation looks up 32 (bfloat16) or 16 (float) at a time.
#pragma once
#include "common.h"

// what is left of a block, without vectors
template <bool HIGH_FIRST, typename T>
static inline void look_up_rest(i64 i, i64 width, const uint8_t* codes, const float* table, float scale, T* out) {
    if (i >= width) return;
    T numbers[16];
    for (int c = 0; c < 16; c++) put(table[c] * scale, numbers + c);
    for (; i + 1 < width; i += 2) {
        int high = codes[i / 2] >> 4, low = codes[i / 2] & 15;
        out[i] = numbers[HIGH_FIRST ? high : low];
        out[i + 1] = numbers[HIGH_FIRST ? low : high];
    }
    if (i < width) out[i] = numbers[HIGH_FIRST ? codes[i / 2] >> 4 : codes[i / 2] & 15];
}

// `width` weights of one scale from 4-bit codes: table[code] * scale; the first lies in the high or in the low half of
// its byte
template <bool HIGH_FIRST>
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
        // an index is the low 5 bits of a word, of which the fifth means nothing: the first code goes into the low word
        __m512i index = HIGH_FIRST ? _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16))
                                   : _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
        _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(index, numbers));
    }
#endif
    look_up_rest<HIGH_FIRST>(i, width, codes, table, scale, out);
}

template <bool HIGH_FIRST>
static inline void look_up(i64 width, const uint8_t* codes, const float* table, float scale, float* out) {
    i64 i = 0;
#ifdef __AVX512F__
    __m512 numbers = _mm512_mul_ps(_mm512_loadu_ps(table), _mm512_set1_ps(scale));
    for (; i + 16 <= width; i += 16) {
        __m512i bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)(codes + i / 2)));
        __m512i index = HIGH_FIRST ? _mm512_or_si512(_mm512_srli_epi64(bytes, 4), _mm512_slli_epi64(bytes, 32))
                                   : _mm512_or_si512(bytes, _mm512_slli_epi64(bytes, 28));
        _mm512_storeu_ps(out + i, _mm512_permutexvar_ps(index, numbers));
    }
#endif
    look_up_rest<HIGH_FIRST>(i, width, codes, table, scale, out);
}
