// What the kernels share: bfloat16, a vectorisable exp, and dispatch on the dtype.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include "parallel.h"

using i64 = int64_t;

// Addresses that are held for the moment when memory ends: a kernel cannot say so in its middle, so it takes its room
// from these, and PyTorch's next tensor is what is refused. They have no pages.
struct Ballast {
    static const size_t BYTES = 16 << 20;
    void* at = MAP_FAILED;
    Ballast() { take(); }
    void take() {
        if (at == MAP_FAILED) put_back(mmap(nullptr, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    }
    void drop() { put_back(MAP_FAILED); }
    // threads do both at once: what one of them takes out, no other lets go
    void put_back(void* next) {
        void* had = __atomic_exchange_n(&at, next, __ATOMIC_ACQ_REL);
        if (had != MAP_FAILED) munmap(had, BYTES);
    }
};
static Ballast ballast;

// room for what a kernel works on; `bytes` a multiple of `alignment`, or nearly
static inline void* scratch(size_t alignment, size_t bytes) {
    bytes = (bytes + alignment - 1) / alignment * alignment;
    void* at = std::aligned_alloc(alignment, bytes);
    if (at == nullptr) {
        ballast.drop();
        at = std::aligned_alloc(alignment, bytes);
    } else
        ballast.take();
    if (at == nullptr) {
        std::fprintf(stderr, "no memory is left for the %zu bytes that a kernel works on\n", bytes);
        std::abort();
    }
    return at;
}

struct bf16 {
    uint16_t bits;
};

static inline float to_float(float x) { return x; }

static inline float to_float(bf16 x) {
    uint32_t wide = uint32_t(x.bits) << 16;
    float out;
    std::memcpy(&out, &wide, 4);
    return out;
}

// to the nearest, ties to even, as torch rounds; NaN stays NaN
static inline void put(float value, float* at) { *at = value; }

static inline void put(float value, bf16* at) {
    uint32_t wide;
    std::memcpy(&wide, &value, 4);
    uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    at->bits = uint16_t((wide & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// e^x within 2 ulp of float; below -87.3 it is 0 (and so for -inf). A loop over it becomes vector code.
static inline float fast_exp(float x) {
    float clamped = x < -87.3f ? -87.3f : (x > 88.7f ? 88.7f : x);
    float n = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
    int32_t bits;
    std::memcpy(&bits, &n, 4);
    n -= 12582912.0f;
    float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t power = (bits + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    return x < -87.3f ? 0.0f : p * scale;
}

typedef float vf __attribute__((vector_size(64)));
static inline vf larger(vf a, vf b) { return a > b ? a : b; }

// The largest of `count` numbers and `top`, NaN aside. By hand: clang takes no maximum of floats for a reduction.
static inline float largest(const float* numbers, i64 count, float top) {
    vf even = vf{} + top, odd = even, next;
    i64 i = 0;
    for (; i + 32 <= count; i += 32) {
        std::memcpy(&next, numbers + i, 64);
        even = larger(next, even);
        std::memcpy(&next, numbers + i + 16, 64);
        odd = larger(next, odd);
    }
    even = larger(even, odd);
    for (int j = 0; j < 16; j++) top = even[j] > top ? even[j] : top;
    for (; i < count; i++) top = numbers[i] > top ? numbers[i] : top;
    return top;
}

#ifdef __AVX512F__
// 16 x 16 words; `out` may be `in`
static inline void transpose_words(const __m512i* in, __m512i* out) {
    __m512i r[16], t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        out[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        out[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        out[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// the pairs of a matrix whose transpose is stored: 16 stored rows of 32 values, `stride` values apart
static inline void pairs_of_transposed(const bf16* from, i64 stride, void* to) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * stride);
    transpose_words(r, r);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512((char*)to + 64 * i, r[i]);
}
#endif

// calls function<T>(...) for dtype 0 (float) and 1 (bfloat16)
#define DISPATCH(dtype, function, ...) \
    ((dtype) == 0 ? function<float>(__VA_ARGS__) : function<bf16>(__VA_ARGS__))
