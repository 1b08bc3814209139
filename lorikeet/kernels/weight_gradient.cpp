// The gradient of a weight on tiles or pairs: dW [N, K] = dy^T x in float32, for dy [T, N] and x [T, K], T summed in one
// order.
//
// x is packed into pairs once. A task is some rows of dW over all of T: a piece of T at a time, whose part of dy it
// turns into its level-2 cache, where the sums stay, too. So dy is read once, dW written once and x read once by each.
#include "tiles.h"

static const i64 ROWS = 96, COLUMNS = 768;  // of dW in a task: 295 KB of sums
static const i64 STEPS = 8;                 // of 32 tokens at a time: 48 KB of dy, as much of x for 96 columns

#if HAS_PAIRS
// 32 stored rows of 32 values: the pairs of the first 16 columns and of the others
static inline void load_pairs(const bf16* from, i64 stride, __m512i* first, __m512i* second) {
    static const uint16_t place[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i order = _mm512_loadu_si512(place);
    for (int i = 0; i < 16; i++) {
        const __m256i* even = (const __m256i*)(from + 2 * i * stride);
        const __m256i* odd = (const __m256i*)(from + (2 * i + 1) * stride);
        __m512i left = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(even)), _mm256_loadu_si256(odd), 1);
        __m512i right =
            _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(even + 1)), _mm256_loadu_si256(odd + 1), 1);
        first[i] = _mm512_permutexvar_epi16(order, left);
        second[i] = _mm512_permutexvar_epi16(order, right);
    }
}

// to two tiles: pairs for the second factor, or turned (16 columns, each with its 32 tokens) for the first
static inline void put_tiles(const bf16* from, i64 stride, bool turned, char* to) {
    __m512i tiles[2][16];
    load_pairs(from, stride, tiles[0], tiles[1]);
    for (int side = 0; side < 2; side++) {
        if (turned) transpose_words(tiles[side], tiles[side]);
        for (int i = 0; i < 16; i++) _mm512_store_si512(to + side * 1024 + 64 * i, tiles[side][i]);
    }
}

// the same of the last tokens, fewer than 32, above zeros
static void put_last(const bf16* from, i64 stride, i64 real, bool turned, char* to) {
    alignas(64) bf16 spare[32 * 32];
    std::memset(spare, 0, sizeof spare);
    for (i64 i = 0; i < real; i++) std::memcpy(spare + i * 32, from + i * stride, 64);
    put_tiles(spare, 32, turned, to);
}

static inline void tiles_of(const bf16* from, i64 stride, i64 rows, i64 block, i64 column, bool turned, char* to) {
    const bf16* at = from + block * 32 * stride + column;
    i64 real = rows - block * 32;
    real < 32 ? put_last(at, stride, real, turned, to) : put_tiles(at, stride, turned, to);
}

// 32 x 32 sums to rows of dW
static void write_sums(const float* sums, i64 stride, bool add, float* out) {
    for (i64 i = 0; i < 32; i++, out += stride) {
        const float* from = sums + (i >> 4) * 512 + (i & 15) * 16;
        __m512 left = _mm512_load_ps(from), right = _mm512_load_ps(from + 256);
        if (add) left = _mm512_add_ps(_mm512_loadu_ps(out), left), right = _mm512_add_ps(_mm512_loadu_ps(out + 16), right);
        _mm512_storeu_ps(out, left);
        _mm512_storeu_ps(out + 16, right);
    }
}
#endif

// dW [width, inside], written, or added to if `add`; width and inside are multiples of 32
extern "C" void weight_gradient(i64 rows, i64 width, i64 inside, const bf16* dy, i64 dy_stride, const bf16* x,
                                i64 x_stride, i64 add, float* out) {
#if HAS_PAIRS
    const i64 blocks = (rows + 31) / 32, parts = (inside + COLUMNS - 1) / COLUMNS;
    const i64 tall = (width + ROWS - 1) / ROWS;
    char* pairs = (char*)scratch(64, size_t(blocks * inside) * 64);  // [inside / 32][blocks] of two tiles
    in_parallel([=](Team& team) {
        configure_tiles();
        char* turned = (char*)scratch(64, size_t(ROWS * STEPS) * 64);  // [ROWS / 32][STEPS] of two tiles
        float* sums = (float*)scratch(64, size_t(ROWS * COLUMNS) * 4);
        team.each(blocks, [&](i64 block) {
            for (i64 c = 0; c < inside; c += 32)
                tiles_of(x, x_stride, rows, block, c, false, pairs + (c / 32 * blocks + block) * 2048);
        });
        team.wait();
        team.take(tall * parts, 1, [&](i64 task) {
            const i64 n = task / parts * ROWS, high = (width - n < ROWS ? width - n : ROWS) / 32;
            const i64 from = task % parts * COLUMNS, end = from + COLUMNS < inside ? from + COLUMNS : inside;
            for (i64 block = 0; block < blocks; block += STEPS) {
                const i64 steps = blocks - block < STEPS ? blocks - block : STEPS;
                for (i64 s = 0; s < steps; s++)
                    for (i64 r = 0; r < high; r++)
                        tiles_of(dy, dy_stride, rows, block + s, n + r * 32, true, turned + (r * STEPS + s) * 2048);
                for (i64 c = from; c < end; c += 32)
                    for (i64 r = 0; r < high; r++) {
                        float* sum = sums + ((c - from) / 32 * (ROWS / 32) + r) * 1024;
                        start_sums(sum, block == 0);
                        add_products<false>(sum, turned + r * STEPS * 2048, 64, 2048,
                                            pairs + (c / 32 * blocks + block) * 2048, steps);
                        store_sums(sum);
                    }
            }
            for (i64 r = 0; r < high; r++)
                for (i64 c = from; c < end; c += 32)
                    write_sums(sums + ((c - from) / 32 * (ROWS / 32) + r) * 1024, inside, add,
                               out + (n + r * 32) * inside + c);
        });
        std::free(turned);
        std::free(sums);
        release_tiles();
    });
    std::free(pairs);
#endif
}
