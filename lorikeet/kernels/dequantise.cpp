// Quantised weights to dense ones and back, row by row. A product is made in float and rounded once, so that every bit
// is the one that quant/_four_bit.py and quant/int8.py define.
#include "quantised_rows.h"

template <typename T> static void four_bit(const FourBitRows& w, i64 rows, void* out) { dense<T>(w, rows, out); }
template <typename T> static void int8(const Int8Rows& w, i64 rows, void* out) { dense<T>(w, rows, out); }

extern "C" void dequantise_four_bit(i64 dtype, i64 rows, i64 width, i64 block, const float* table, const void* codes,
                                    const void* absmax, const float* scale, const float* offset, const float* map,
                                    void* out) {
    FourBitRows w{width, block, table, (const uint8_t*)codes, absmax, scale, offset, map};
    DISPATCH(dtype, four_bit, w, rows, out);
}

extern "C" void dequantise_int8(i64 dtype, i64 rows, i64 width, const int8_t* codes, const float* absmax, void* out) {
    DISPATCH(dtype, int8, Int8Rows{width, codes, absmax}, rows, out);
}

// 4-bit codes and scales from weights. `bounds` [15] are the middles between neighbours of the ascending table,
// `order` [16] the code of each; `absmax` [rows, blocks] is written even where it is not finite: the caller looks.
template <typename T>
static void quantise(i64 rows, i64 width, i64 block, const float* bounds, const uint8_t* order, const void* weight,
                     uint8_t* codes, float* absmax) {
    i64 blocks = (width + block - 1) / block, row_bytes = (width + 1) / 2;
    in_parallel([=](Team& team) {
        uint8_t* found = (uint8_t*)scratch(64, block + 1);
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
