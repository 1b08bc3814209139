// Loops over rows of float or bfloat16, in float.
//
//     across(width, [&](i64 i, auto kind) {
//         auto x = read(from + i, kind);
//         write(x * scale, to + i);
//     });
//
// With AVX-512 the body is compiled for 16 numbers (vf) and for one (float), which is what remains of a row: left to
// itself, the compiler takes a dozen instructions to round a vector to bfloat16, where newer processors have one. (That
// one takes a number below LEAST for zero.) Elsewhere the body is for one number, and the compiler makes vectors of
// the loop: of vf it makes poor code there.
#pragma once
#include "common.h"

typedef int32_t vi __attribute__((vector_size(64)));
static inline vf all(float x) { return vf{} + x; }

static inline vf load16(const float* from) {
    vf out;
    std::memcpy(&out, from, 64);
    return out;
}
static inline vf load16(const bf16* from) {
#ifdef __AVX512F__
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#else
    vf out;
    for (int i = 0; i < 16; i++) out[i] = to_float(from[i]);
    return out;
#endif
}

static inline float to_float(int8_t x) { return float(x); }
static inline float to_float(uint8_t x) { return float(x); }
template <typename T> static inline vf load16_bytes(const T* from) {
#ifdef __AVX512F__
    const __m128i bytes = _mm_loadu_si128((const __m128i*)from);
    return (vf)_mm512_cvtepi32_ps(T(-1) < 0 ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
#else
    vf out;
    for (int i = 0; i < 16; i++) out[i] = float(from[i]);
    return out;
#endif
}
static inline vf load16(const int8_t* from) { return load16_bytes(from); }
static inline vf load16(const uint8_t* from) { return load16_bytes(from); }

// a number below this may become zero where it is rounded to bfloat16
static const float LEAST = 1.2e-38f;

// to the nearest, ties to even, as torch rounds; NaN stays NaN
#ifdef __AVX512F__
static inline __m256i narrowed(vf value) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh((__m512)value);
#else
    const __m512i wide = (__m512i)value, odd = _mm512_and_si512(_mm512_srli_epi32(wide, 16), _mm512_set1_epi32(1));
    __m512i nearest = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(wide, odd), _mm512_set1_epi32(0x7fff)), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(nearest, nan, _mm512_set1_epi32(0x7fc0)));
#endif
}
#endif

static inline void store16(vf value, float* to) { std::memcpy(to, &value, 64); }
static inline void store16(vf value, bf16* to) {
#ifdef __AVX512F__
    _mm256_storeu_si256((__m256i*)to, narrowed(value));
#else
    for (int i = 0; i < 16; i++) put(value[i], to + i);
#endif
}

// `kind` says how many: a vf or a float
template <typename T> static inline vf read(const T* from, vf) { return load16(from); }
template <typename T> static inline float read(const T* from, float) { return to_float(*from); }
template <typename T> static inline void write(vf value, T* to) { store16(value, to); }
template <typename T> static inline void write(float value, T* to) { put(value, to); }

// the value as it is after a trip through T: for steps that torch rounds one by one
template <typename T> static inline float rounded(float value) {
    T kept;
    put(value, &kept);
    return to_float(kept);
}

#ifdef __AVX512F__
template <typename T> static inline vf rounded(vf value) {
    return sizeof(T) == 4 ? value : (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrowed(value)), 16);
}

template <typename Body>
static inline void across(i64 width, const Body& body) {
    i64 i = 0;
    for (; i + 16 <= width; i += 16) body(i, vf{});
    for (; i < width; i++) body(i, 0.0f);
}

static inline float sum_of(vf x) { return _mm512_reduce_add_ps((__m512)x); }

// the sum of term(i, kind)
template <typename Term>
static inline float sum_across(i64 width, const Term& term) {
    vf even = vf{}, odd = vf{};
    float rest = 0;
    i64 i = 0;
    for (; i + 32 <= width; i += 32) even += term(i, vf{}), odd += term(i + 16, vf{});
    for (; i + 16 <= width; i += 16) even += term(i, vf{});
    for (; i < width; i++) rest += term(i, 0.0f);
    return sum_of(even + odd) + rest;
}
#else
template <typename Body>
static inline void across(i64 width, const Body& body) {
#pragma omp simd
    for (i64 i = 0; i < width; i++) body(i, 0.0f);
}

static inline float sum_of(vf x) {
    float sum = 0;
    for (int i = 0; i < 16; i++) sum += x[i];
    return sum;
}

template <typename Term>
static inline float sum_across(i64 width, const Term& term) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < width; i++) sum += term(i, 0.0f);
    return sum;
}
#endif

// 2^x; x may be far below the least exponent. The degree is what the result's type can show.
template <int DEGREE>
static inline vf exp2_of(vf x) {
#ifdef __AVX512F__
    vf n = (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    x = larger(x, all(-126.0f));
    vf shifted = x + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
    vf n = shifted - 12582912.0f;
#endif
    vf r = x - n, p;
    if (DEGREE == 4) {  // within 3e-6
        p = r * 9.570110979e-3f + 5.591786110e-2f;
        p = p * r + 2.402474459e-1f;
        p = p * r + 6.931218144e-1f;
        p = p * r + 9.999992615e-1f;
    } else {
        p = r * 1.534585132e-4f + 1.339993163e-3f;
        p = p * r + 9.618488799e-3f;
        p = p * r + 5.550328775e-2f;
        p = p * r + 2.402264689e-1f;
        p = p * r + 6.931472057e-1f;
        p = p * r + 1.0f;
    }
#ifdef __AVX512F__
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    vf out = (vf)((vi)p + ((vi)shifted << 23));
    return x > -126.0f ? out : vf{};
#endif
}

// e^x; below -87.3 it is 0 (and so for -inf)
static inline float exp_of(float x) { return fast_exp(x); }
static inline vf exp_of(vf x) {
    vf power = exp2_of<6>(larger(all(-87.3f), x) * 1.44269504f);
    return x < -87.3f ? vf{} : power;
}

// 1 / (1 + e^-x)
static inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }
static inline vf sigmoid(vf x) {
    vf below = larger(all(-87.0f), x);  // e^87 is still a float; this order keeps NaN
    vf sum = 1.0f + exp2_of<6>(below * -1.44269504f);
#ifdef __AVX512F__
    vf near = (vf)_mm512_rcp14_ps((__m512)sum);  // a division takes longer
    return near * (2.0f - sum * near);
#else
    return 1.0f / sum;
#endif
}
