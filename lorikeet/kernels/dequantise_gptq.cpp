// GPTQ's codes to the dense matrix: out[row, j] = (code - zero[row, g(j)]) * scale[row, g(j)].
#include "common.h"

using u8 = uint8_t;

// a row's codes are one stream of bits, lowest first
template <int BITS>
static void unpack(i64 width, const u8* packed, u8* codes) {
    if (BITS == 8) {
        std::memcpy(codes, packed, width);
    } else if (BITS == 3) {
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

template <typename T, int BITS>
static void rows_of(i64 rows, i64 width, i64 row_bytes, i64 groups, i64 group_size, const u8* packed, const u8* zeros,
                    const float* scales, const int32_t* g_idx, T* out) {
    in_parallel([=](Team& team) {
        u8* codes = (u8*)std::malloc(width + 8);  // whole bytes are unpacked
        float* zero = (float*)std::malloc(groups * sizeof(float));
        team.each(rows, [&](i64 row) {
            unpack<BITS>(width, packed + row * row_bytes, codes);
            const float* scale = scales + row * groups;
            T* to = out + row * width;
            for (i64 g = 0; g < groups; g++) zero[g] = zeros[row * groups + g];
            if (g_idx) {
#pragma omp simd
                for (i64 j = 0; j < width; j++) put((float(codes[j]) - zero[g_idx[j]]) * scale[g_idx[j]], to + j);
            } else {
                for (i64 g = 0; g < groups; g++) {
                    i64 start = g * group_size, stop = start + group_size < width ? start + group_size : width;
                    float z = zero[g], s = scale[g];
#pragma omp simd
                    for (i64 j = start; j < stop; j++) put((float(codes[j]) - z) * s, to + j);
                }
            }
        });
        std::free(codes);
        std::free(zero);
    });
}

template <typename T>
static void dequantise(i64 bits, i64 rows, i64 width, i64 row_bytes, i64 groups, i64 group_size, const void* packed,
                       const void* zeros, const void* scales, const void* g_idx, void* out) {
    auto serve = bits == 2 ? rows_of<T, 2> : bits == 3 ? rows_of<T, 3> : bits == 4 ? rows_of<T, 4> : rows_of<T, 8>;
    serve(rows, width, row_bytes, groups, group_size, (const u8*)packed, (const u8*)zeros, (const float*)scales,
          (const int32_t*)g_idx, (T*)out);
}

extern "C" void dequantise_gptq(i64 dtype, i64 bits, i64 rows, i64 width, i64 row_bytes, i64 groups, i64 group_size,
                                const void* packed, const void* zeros, const void* scales, const void* g_idx,
                                void* out) {
    DISPATCH(dtype, dequantise, bits, rows, width, row_bytes, groups, group_size, packed, zeros, scales, g_idx, out);
}
