// GPTQ's codes to the dense matrix.
#include "quantised_rows.h"

template <typename T, int BITS>
static void rows_of(i64 rows, i64 width, i64 row_bytes, i64 groups, i64 group_size, const void* packed,
                    const void* zeros, const void* scales, const void* g_idx, T* out) {
    GptqRows<BITS> w{width, row_bytes, groups, group_size, (const uint8_t*)packed, (const uint8_t*)zeros,
                     (const float*)scales, (const int32_t*)g_idx};
    dense<T>(w, rows, out);
}

template <typename T>
static void dequantise(i64 bits, i64 rows, i64 width, i64 row_bytes, i64 groups, i64 group_size, const void* packed,
                       const void* zeros, const void* scales, const void* g_idx, void* out) {
    auto serve = bits == 2 ? rows_of<T, 2> : bits == 3 ? rows_of<T, 3> : bits == 4 ? rows_of<T, 4> : rows_of<T, 8>;
    serve(rows, width, row_bytes, groups, group_size, packed, zeros, scales, g_idx, (T*)out);
}

extern "C" void dequantise_gptq(i64 dtype, i64 bits, i64 rows, i64 width, i64 row_bytes, i64 groups, i64 group_size,
                                const void* packed, const void* zeros, const void* scales, const void* g_idx,
                                void* out) {
    DISPATCH(dtype, dequantise, bits, rows, width, row_bytes, groups, group_size, packed, zeros, scales, g_idx, out);
}
