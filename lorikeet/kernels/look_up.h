// Codes of up to 4 bits to weights. A block has 16 possible values at most: they are multiplied and rounded once, and a
// weight is one look into them. With AVX-512 they lie in one register, and a permutation looks up 32 (4 bits to bfloat16)
// or 16 at a time.
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

#ifdef __AVX512F__
// `put` of the table's 16 products, one in each word
static inline __m512i products(const float* table, float scale) {
    __m512 product = _mm512_mul_ps(_mm512_loadu_ps(table), _mm512_set1_ps(scale));
    __m512i bits = _mm512_castps_si512(product);
    __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff))), 16);
    return _mm512_mask_set1_epi32(bits, _mm512_cmp_ps_mask(product, product, _CMP_UNORD_Q), 0x7fc0);
}
#endif

// `width` weights of one scale from 4-bit codes: table[code] * scale; the first lies in the high or in the low half of
// its byte
template <bool HIGH_FIRST>
static inline void look_up(i64 width, const uint8_t* codes, const float* table, float scale, bf16* out) {
    i64 i = 0;
#ifdef __AVX512BW__
    __m512i numbers = _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(products(table, scale)));  // twice in one register
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

// a row's codes are one stream of bits, lowest first; `from` has the first bit of the first
template <int BITS>
static inline int code_at(const uint8_t* from, i64 i) {
    const i64 bit = i * BITS, end = bit % 8 + BITS;
    from += bit / 8;
    return (from[0] | (end > 8 ? from[1] << 8 : 0)) >> bit % 8 & ((1 << BITS) - 1);
}

#ifdef __AVX512F__
// the first 16 of them, one in each word
template <int BITS>
static inline __m512i sixteen_codes(const uint8_t* from) {
    if (BITS == 8) return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
    uint32_t low, high;  // of the 4, 6 or 8 bytes that they are in
    std::memcpy(&low, from, 4);
    std::memcpy(&high, from + 2 * BITS - 4, 4);
    __m512i words = _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xff00, high);
    __m512i shifts = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    shifts = _mm512_mullo_epi32(shifts, _mm512_set1_epi32(BITS));
    shifts = _mm512_mask_sub_epi32(shifts, 0xff00, shifts, _mm512_set1_epi32(16 * BITS - 32));
    return _mm512_and_si512(_mm512_srlv_epi32(words, shifts), _mm512_set1_epi32((1 << BITS) - 1));
}

// `width` weights of one scale: table[code] * scale
template <int BITS>
static inline void look_up_codes(i64 width, const uint8_t* codes, const float* table, float scale, bf16* out) {
    const __m512i numbers = products(table, scale);
    i64 i = 0;
    for (; i + 16 <= width; i += 16, codes += 2 * BITS) {
        __m512i found = _mm512_permutexvar_epi32(sixteen_codes<BITS>(codes), numbers);
        _mm256_storeu_si256((__m256i*)(out + i), _mm512_cvtepi32_epi16(found));
    }
    for (i64 k = 0; i < width; i++, k++) put(table[code_at<BITS>(codes, k)] * scale, out + i);
}

template <int BITS>
static inline void look_up_codes(i64 width, const uint8_t* codes, const float* table, float scale, float* out) {
    const __m512 numbers = _mm512_mul_ps(_mm512_loadu_ps(table), _mm512_set1_ps(scale));
    i64 i = 0;
    for (; i + 16 <= width; i += 16, codes += 2 * BITS)
        _mm512_storeu_ps(out + i, _mm512_permutexvar_ps(sixteen_codes<BITS>(codes), numbers));
    for (i64 k = 0; i < width; i++, k++) put(table[code_at<BITS>(codes, k)] * scale, out + i);
}
#endif
