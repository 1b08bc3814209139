// A row of a quantised weight, dense: w.row(n, out, room), where `room` has w.room() bytes that are the thread's own. A
// product is made in float and rounded once, so that every bit is the one that quant/ defines.
#pragma once
#include "look_up.h"
#include "vectors.h"
#ifdef __linux__
#include <sys/mman.h>
#endif

struct Int8Rows {
    i64 width;
    const int8_t* codes;
    const float* absmax;

    i64 room() const { return 0; }

    template <typename T>
    void row(i64 n, T* out, void*) const {
        const int8_t* from = codes + n * width;
        const float scale = absmax[n];
        auto one = [=](i64 i, auto kind) { write(read(from + i, kind) * scale * 0.007874015718698502f, out + i); };
        if (scale > LEAST * 127)
            across(width, one);
        else
            for (i64 i = 0; i < width; i++) one(i, 0.0f);
    }
};

struct FourBitRows {
    i64 width, block;
    const float* table;
    const uint8_t* codes;
    const void* absmax;                  // float; with a second scale, uint8 codes of `map`
    const float *scale, *offset, *map;  // null, or of the second quantisation

    i64 blocks() const { return (width + block - 1) / block; }
    i64 room() const { return scale ? blocks() * sizeof(float) : 0; }

    // the scales of one row. The two loops keep the compiler from joining product and sum to one rounding.
    const float* scales(i64 n, float* made) const {
        const i64 count = blocks();
        if (!scale) return (const float*)absmax + n * count;
        const uint8_t* kept = (const uint8_t*)absmax + n * count;
        const float* second = scale + n * ((count + 255) / 256);
        for (i64 b = 0; b < count; b++) {
            float product = map[kept[b]] * second[b / 256];
            std::memcpy(made + b, &product, 4);
        }
        __asm__ volatile("" ::: "memory");
        for (i64 b = 0; b < count; b++) made[b] += offset[n];
        return made;
    }

    template <typename T>
    void row(i64 n, T* out, void* room) const {
        const float* of_block = scales(n, (float*)room);
        const uint8_t* from = codes + n * ((width + 1) / 2);
        for (i64 start = 0; start < width; start += block) {
            const i64 count = width - start < block ? width - start : block;
            look_up<true>(count, from + start / 2, table, *of_block++, out + start);
        }
    }
};

template <int BITS>
static void unpack(i64 width, const uint8_t* packed, uint8_t* codes) {
    if (BITS == 3) {
        for (i64 i = 0; i < width; i += 8, packed += 3) {
            uint32_t word = packed[0] | packed[1] << 8 | packed[2] << 16;
#pragma omp simd
            for (int k = 0; k < 8; k++) codes[i + k] = word >> 3 * k & 7;
        }
    } else {
        constexpr int PER = 8 / BITS, MASK = (1 << BITS) - 1;
#pragma omp simd
        for (i64 i = 0; i < (width + PER - 1) / PER; i++)
            for (int k = 0; k < PER; k++) codes[i * PER + k] = packed[i] >> BITS * k & MASK;
    }
}

// out[n, j] = (code - zero[n, g(j)]) * scale[n, g(j)]. Scales are float16's numbers and zeros whole: a product is exact,
// and 0 or far from bfloat16's least.
template <int BITS>
struct GptqRows {
    i64 width, row_bytes, groups, group_size;
    const uint8_t *packed, *zeros;
    const float* scales;
    const int32_t* g_idx;  // null: groups in the inputs' order

    i64 room() const { return ANY_ORDER && g_idx ? whole() * sizeof(int32_t) : width + 8; }  // whole bytes are unpacked

    template <typename T>
    void row(i64 n, T* out, void* room) const {
        const uint8_t *from = packed + n * row_bytes, *zero = zeros + n * groups;
        const float* scale = scales + n * groups;
        if constexpr (ANY_ORDER)
            if (g_idx) return in_any_order(from, zero, scale, (int32_t*)room, out);
        const bool looked_up = LOOKED_UP && !g_idx && group_size * BITS % 8 == 0;  // groups begin with a byte
        const uint8_t* codes = BITS == 8 ? from : (const uint8_t*)room;
        if (BITS < 8 && !looked_up) unpack<BITS>(width, from, (uint8_t*)room);
        if (g_idx) {
#pragma omp simd
            for (i64 j = 0; j < width; j++) put((float(codes[j]) - float(zero[g_idx[j]])) * scale[g_idx[j]], out + j);
            return;
        }
        for (i64 start = 0; start < width; start += group_size, zero++, scale++) {
            const i64 count = width - start < group_size ? width - start : group_size;
            if (looked_up)
                of_few_bits(count, from + start * BITS / 8, *zero, *scale, out + start);
            else
                of_group(count, codes + start, *zero, *scale, out + start);
        }
    }

    template <typename T>
    static void of_group(i64 count, const uint8_t* codes, float z, float s, T* out) {
        across(count, [=](i64 i, auto kind) { write((read(codes + i, kind) - z) * s, out + i); });
    }

    template <typename T>
    static void of_few_bits(i64 count, const uint8_t* packed, float z, float s, T* out) {
        float table[16];
        for (int c = 0; c < 16; c++) table[c] = float(c) - z;
        if constexpr (BITS == 4) look_up<false>(count, packed, table, s, out);
#ifdef __AVX512F__
        else look_up_codes<BITS>(count, packed, table, s, out);
#endif
    }

#ifdef __AVX512F__
    static constexpr bool LOOKED_UP = BITS <= 4, ANY_ORDER = true;

    i64 whole() const { return (groups + 31) / 32 * 32; }

    // Where inputs are not grouped in their order, 16 weights find zero and scale of theirs among those of 32 groups in
    // registers. The two share a word: of a float16's number as float32 the low 13 bits are 0.
    template <typename T>
    void in_any_order(const uint8_t* from, const uint8_t* zero, const float* scale, int32_t* both, T* out) const {
        for (i64 g = 0; g < groups; g++) {
            std::memcpy(both + g, scale + g, 4);
            both[g] |= zero[g];
        }
        i64 j = 0;
        for (; j + 16 <= width; j += 16, from += 2 * BITS) {
            const __m512i found = of_groups(both, _mm512_loadu_si512(g_idx + j));
            const vf code = (vf)_mm512_cvtepi32_ps(sixteen_codes<BITS>(from));
            const vf z = (vf)_mm512_cvtepi32_ps(_mm512_and_si512(found, _mm512_set1_epi32(255)));
            store16((code - z) * (vf)_mm512_andnot_si512(_mm512_set1_epi32(255), found), out + j);
        }
        for (i64 k = 0; j < width; j++, k++)
            put((float(code_at<BITS>(from, k)) - float(zero[g_idx[j]])) * scale[g_idx[j]], out + j);
    }

    __m512i of_groups(const int32_t* words, __m512i group) const {
        if (groups > 256) return _mm512_i32gather_epi32(group, words, 4);
        __m512i found = _mm512_permutex2var_epi32(_mm512_loadu_si512(words), group, _mm512_loadu_si512(words + 16));
        for (i64 g = 32; g < groups; g += 32) {
            const __mmask16 here = _mm512_cmpeq_epi32_mask(_mm512_srli_epi32(group, 5), _mm512_set1_epi32(g / 32));
            const __m512i some = _mm512_loadu_si512(words + g), more = _mm512_loadu_si512(words + g + 16);
            found = _mm512_mask_mov_epi32(found, here, _mm512_permutex2var_epi32(some, group, more));
        }
        return found;
    }
#else
    static constexpr bool LOOKED_UP = BITS == 4, ANY_ORDER = false;

    i64 whole() const { return 0; }
#endif
};

// A large result is fresh memory each time (malloc maps it anew from 32 MiB on), and half of the time would go into
// making its small pages: ask for large ones.
static void in_large_pages(void* start, i64 bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 2 << 20;
    uintptr_t from = ((uintptr_t)start + page - 1) / page * page, to = ((uintptr_t)start + bytes) / page * page;
    if (bytes >= 32 << 20 && to > from) madvise((void*)from, to - from, MADV_HUGEPAGE);
#endif
}

// all rows, to out [rows, width]
template <typename T, typename Rows>
static void dense(const Rows& w, i64 rows, void* out) {
    in_large_pages(out, rows * w.width * sizeof(T));
    in_parallel([=](Team& team) {
        void* room = w.room() ? scratch(64, w.room()) : nullptr;
        team.each(rows, [&](i64 n) { w.row(n, (T*)out + n * w.width, room); });
        std::free(room);
    });
}
