// Products of few rows (decoding), with a low-rank update in the same sums: y = x W^T + z B^T. W may be quantised: the
// numbers are those of its dense form, which is never whole in memory.
//
// Such a product takes as long as its weights take to be read, so they are read once, as they lie. On matrix tiles the
// lines of the next rows are already asked for meanwhile, and what is turned into pairs is x: the sums are y's transpose,
// 16 outputs by 16 rows.
#include "tiles.h"
#include "few_rows_vectors.h"
#include "quantised_rows.h"

static const i64 MOST = 64;  // rows of x at once: four tiles of sums

#if HAS_AMX
// 16 outputs: adds W's rows n..n+16 times x to the sums 0..TILES
template <int TILES>
static void multiply(const Factor& p, i64 n, bool more, const char* pairs) {
    const bf16* weight = p.weight + n * p.weight_stride;
    written();
    for (i64 k = 0; k < p.depth; k += 32, pairs += TILES * 1024) {
        if (more)
            for (int i = 16; i < 32; i++) _mm_prefetch((const char*)(weight + i * p.weight_stride + k), _MM_HINT_T0);
        _tile_loadd(4, weight + k, p.weight_stride * 2);
        _tile_loadd(6, pairs, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (TILES > 1) {
            _tile_loadd(7, pairs + 1024, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (TILES > 2) {
            _tile_loadd(6, pairs + 2048, 64);
            _tile_dpbf16ps(2, 4, 6);
        }
        if (TILES > 3) {
            _tile_loadd(7, pairs + 3072, 64);
            _tile_dpbf16ps(3, 4, 7);
        }
    }
}

template <int TILES>
static void product(const Factor* factors, int count, const Stored* stored, i64 rows, i64 width, bf16* y,
                    i64 y_stride) {
    Factor parts[2] = {factors[0], factors[1]};
    i64 depth = 0, blocks = width / 16;
    for (int i = 0; i < count; i++) depth += parts[i].depth;
    in_parallel([=](Team& team) {
        Sixteen some(parts, stored);
        configure_tiles();
        char* packed = (char*)scratch(64, size_t(depth * TILES * 32));
        char* at = packed;
        for (int i = 0; i < count; at += parts[i].depth * TILES * 32, i++) pack(parts[i], rows, TILES, at);
        alignas(64) float sums[TILES * 256];
        team.take(blocks, BLOCKS, [&](i64 b) {
            const Factor* factors = some.at(b * 16);  // before the first tile: a function that is called may use them
            _tile_zero(0);
            if (TILES > 1) _tile_zero(1);
            if (TILES > 2) _tile_zero(2);
            if (TILES > 3) _tile_zero(3);
            char* at = packed;
            for (int i = 0; i < count; at += parts[i].depth * TILES * 32, i++)
                multiply<TILES>(factors[i], b * 16, i == 0 && b + 1 < blocks && !stored, at);
            _tile_stored(0, sums, 64);
            if (TILES > 1) _tile_stored(1, sums + 256, 64);
            if (TILES > 2) _tile_stored(2, sums + 512, 64);
            if (TILES > 3) _tile_stored(3, sums + 768, 64);
            written();
            for (int tile = 0; tile < TILES; tile++)
                write(sums + tile * 256, rows - tile * 16, y + tile * 16 * y_stride + b * 16, y_stride);
        });
        std::free(packed);
        _tile_release();
    });
}
#endif

static void any_product(Factor* parts, const Stored* stored, i64 rows, i64 width, bf16* y, i64 y_stride) {
    const int count = parts[1].depth ? 2 : 1;
#if HAS_AMX
    if (tiles_allowed()) {
        for (i64 t = 0; t < rows; t += MOST) {
            i64 some = rows - t < MOST ? rows - t : MOST;
            auto call = some <= 16 ? product<1> : some <= 32 ? product<2> : some <= 48 ? product<3> : product<4>;
            call(parts, count, stored, some, width, y + t * y_stride, y_stride);
            parts[0].x += MOST * parts[0].x_stride, parts[1].x += MOST * parts[1].x_stride;
        }
        return;
    }
#endif
    vector_product(parts, count, stored, rows, width, y, y_stride);
}

template <typename Rows>
static void quantised(const Rows& weight, i64 rows, i64 width, const Factor& x, const Factor& low, bf16* y,
                      i64 y_stride) {
    Stored stored{&weight, [](const void* rows, i64 n, bf16* out, void* room) { ((const Rows*)rows)->row(n, out, room); },
                  weight.room()};
    Factor parts[2] = {x, low};
    any_product(parts, &stored, rows, width, y, y_stride);
}

// y [rows, width] = x [rows, depth] weight^T + z [rows, rank] low^T, for weight [width, depth] and low [width, rank];
// depth and rank are multiples of 32, width of 16. Behind these arguments each kind has those of its weight.
#define PRODUCT                                                                                                   \
    i64 rows, i64 depth, i64 width, const bf16 *x, i64 x_stride, i64 rank, const bf16 *z, i64 z_stride,           \
        const bf16 *low, i64 low_stride, bf16 *y, i64 y_stride
#define OF_X Factor{x, x_stride, depth, nullptr, 0}
#define OF_LOW Factor{z, z_stride, rank, low, low_stride}

extern "C" void few_rows_product(PRODUCT, const bf16* weight, i64 weight_stride) {
    Factor parts[2] = {{x, x_stride, depth, weight, weight_stride}, OF_LOW};
    any_product(parts, nullptr, rows, width, y, y_stride);
}

extern "C" void few_rows_int8(PRODUCT, const int8_t* codes, const float* absmax) {
    quantised(Int8Rows{depth, codes, absmax}, rows, width, OF_X, OF_LOW, y, y_stride);
}

extern "C" void few_rows_four_bit(PRODUCT, i64 block, const float* table, const void* codes, const void* absmax,
                                  const float* scale, const float* offset, const float* map) {
    FourBitRows weight{depth, block, table, (const uint8_t*)codes, absmax, scale, offset, map};
    quantised(weight, rows, width, OF_X, OF_LOW, y, y_stride);
}

template <int BITS>
static void gptq(i64 row_bytes, i64 groups, i64 group_size, const void* packed, const void* zeros, const float* scales,
                 const int32_t* g_idx, PRODUCT) {
    GptqRows<BITS> weight{depth, row_bytes, groups, group_size, (const uint8_t*)packed, (const uint8_t*)zeros, scales,
                          g_idx};
    quantised(weight, rows, width, OF_X, OF_LOW, y, y_stride);
}

extern "C" void few_rows_gptq(PRODUCT, i64 bits, i64 row_bytes, i64 groups, i64 group_size, const void* packed,
                              const void* zeros, const float* scales, const int32_t* g_idx) {
    auto call = bits == 2 ? gptq<2> : bits == 3 ? gptq<3> : bits == 4 ? gptq<4> : gptq<8>;
    call(row_bytes, groups, group_size, packed, zeros, scales, g_idx, rows, depth, width, x, x_stride, rank, z, z_stride,
         low, low_stride, y, y_stride);
}
