// Products of few rows where there are no matrix tiles: dot products of bfloat16 on whatever vectors the processor has,
// summed in float32. Each weight is read from memory once, and meets the rows of x while it lies in the level-1 cache.
#pragma once
#include "common.h"

struct Factor {
    const bf16* x;  // [rows, depth]
    i64 x_stride, depth;
    const bf16* weight;  // [width, depth]
    i64 weight_stride;
};

// How to make rows of a quantised weight dense: quantised_rows.h.
struct Stored {
    const void* rows;
    void (*row)(const void* rows, i64 n, bf16* out, void* room);
    i64 room;
};

// A thread's view of the factors, 16 outputs at a time. Of a quantised weight those 16 rows are made dense here, where
// they stay in the cache until they are multiplied; memory gives the codes only.
class Sixteen {
public:
    Sixteen(const Factor* factors, const Stored* stored) : parts{factors[0], factors[1]}, stored(stored) {
        if (!stored) return;
        parts[0].weight_stride = parts[0].depth;
        dense = (bf16*)scratch(64, size_t(16 * parts[0].depth * 2));
        if (stored->room) room = scratch(64, stored->room);
    }
    ~Sixteen() {
        if (!stored) return;
        std::free(dense);
        std::free(room);
    }
    Sixteen(const Sixteen&) = delete;

    // the factors with W's rows n..n+16 to be read, at their places
    const Factor* at(i64 n) {
        if (stored) {
            for (i64 i = 0; i < 16; i++) stored->row(stored->rows, n + i, dense + i * parts[0].depth, room);
            parts[0].weight = dense - n * parts[0].depth;
        }
        return parts;
    }

private:
    Factor parts[2];
    const Stored* stored;
    bf16* dense = nullptr;
    void* room = nullptr;
};

#ifdef __AVX512BF16__
struct Dots {
    static const i64 STEP = 32;
    typedef __m512 Sum;
    typedef __m512bh Values;
    static Sum zero() { return _mm512_setzero_ps(); }
    static Values load(const bf16* at) { return (Values)_mm512_loadu_si512(at); }
    static void add(Sum& sum, Values a, Values b) { sum = _mm512_dpbf16_ps(sum, a, b); }
    static float total(Sum sum) { return _mm512_reduce_add_ps(sum); }
};
#else
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
struct Dots {
    static const i64 STEP = LANES;
    typedef float Sum __attribute__((vector_size(4 * LANES)));
    typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
    typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
    typedef Sum Values;
    static Sum zero() { return Sum{}; }
    static Values load(const bf16* at) {
        Halves bits;
        std::memcpy(&bits, at, sizeof bits);
        Words wide = __builtin_convertvector(bits, Words) << 16;
        Sum values;
        std::memcpy(&values, &wide, sizeof values);
        return values;
    }
    static void add(Sum& sum, Values a, Values b) { sum += a * b; }
    static float total(Sum sum) {
        float all = 0;
        for (int i = 0; i < LANES; i++) all += sum[i];
        return all;
    }
};
#endif

static const i64 BLOCKS = 4;  // of 16 outputs, in a task: whole lines of y; of two hyperthreads one is often late

// body(n, factors) for every n-th 16 outputs
template <typename Body>
static inline void each_sixteen(const Factor* factors, const Stored* stored, i64 width, const Body& body) {
    Factor parts[2] = {factors[0], factors[1]};
    auto all = [=](Team* team) {
        Sixteen some(parts, stored);
        auto one = [&](i64 block) { body(block * 16, some.at(block * 16)); };
        if (team)
            team->take(width / 16, BLOCKS, one);
        else
            for (i64 block = 0; block < width / 16; block++) one(block);
    };
    if (width / 16 <= BLOCKS)  // to wake the others takes longer
        all(nullptr);
    else
        in_parallel([=](Team& team) { all(&team); });
}
static const int AHEAD = 16;  // weights' rows that are asked for before they are wanted

// ROWS rows from t on against OUTPUTS outputs from n on
template <int ROWS, int OUTPUTS>
static void dots(const Factor* parts, int count, i64 t, i64 n, bf16* y, i64 y_stride) {
    Dots::Sum sums[ROWS][OUTPUTS];
    for (int r = 0; r < ROWS; r++)
        for (int o = 0; o < OUTPUTS; o++) sums[r][o] = Dots::zero();
    for (int i = 0; i < count; i++) {
        const Factor& p = parts[i];
        const bf16 *x = p.x + t * p.x_stride, *weight = p.weight + n * p.weight_stride;
        for (i64 k = 0; k < p.depth; k += Dots::STEP) {
            Dots::Values some[OUTPUTS];
            for (int o = 0; o < OUTPUTS; o++) {
                some[o] = Dots::load(weight + o * p.weight_stride + k);
                __builtin_prefetch(weight + (o + AHEAD) * p.weight_stride + k);
            }
            for (int r = 0; r < ROWS; r++) {
                Dots::Values row = Dots::load(x + r * p.x_stride + k);
                for (int o = 0; o < OUTPUTS; o++) Dots::add(sums[r][o], row, some[o]);
            }
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int o = 0; o < OUTPUTS; o++) put(Dots::total(sums[r][o]), y + r * y_stride + n + o);
}

// The rows from t on, as many of them as there are sums for in registers; returns the row behind them.
static i64 some_rows(const Factor* parts, int count, i64 t, i64 rows, i64 n, bf16* y, i64 stride) {
    y += t * stride;
    switch (rows - t) {
        case 1: dots<1, 8>(parts, count, t, n, y, stride), dots<1, 8>(parts, count, t, n + 8, y, stride); return t + 1;
        case 2:
        case 4: for (int o = 0; o < 16; o += 8) dots<2, 8>(parts, count, t, n + o, y, stride); return t + 2;
        case 3: for (int o = 0; o < 16; o += 8) dots<3, 8>(parts, count, t, n + o, y, stride); return t + 3;
        case 5: for (int o = 0; o < 16; o += 4) dots<5, 4>(parts, count, t, n + o, y, stride); return t + 5;
        default: for (int o = 0; o < 16; o += 4) dots<6, 4>(parts, count, t, n + o, y, stride); return t + 6;
    }
}

#ifdef __AVX512BF16__
// x as tiles of pairs, [depth / 32][tiles]: 16 rows each, those that are missing are zeros
static void pack(const Factor& p, i64 rows, i64 tiles, char* to) {
    alignas(64) bf16 spare[16 * 32];
    for (i64 k = 0; k < p.depth; k += 32)
        for (i64 tile = 0; tile < tiles; tile++, to += 1024) {
            const bf16* from = p.x + tile * 16 * p.x_stride + k;
            i64 real = rows - tile * 16;
            if (real >= 16) {
                pairs_of_transposed(from, p.x_stride, to);
                continue;
            }
            std::memset(spare, 0, sizeof spare);
            for (i64 i = 0; i < real; i++) std::memcpy(spare + i * 32, from + i * p.x_stride, 64);
            pairs_of_transposed(spare, 32, to);
        }
}

// one tile of sums, [16 outputs][16 rows], to `rows` rows of y
static void write(const float* sums, i64 rows, bf16* y, i64 stride) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(sums + 16 * i);
    transpose_words(r, r);
    for (i64 i = 0; i < rows && i < 16; i++)
        _mm256_storeu_si256((__m256i*)(y + i * stride), (__m256i)_mm512_cvtneps_pbh((__m512)r[i]));
}

// 16 outputs from n on by TILES x 16 rows: a lane for each row of x, which lies in pairs, and of W one pair for all of
// them. So no vector is summed up. `turned` takes the sums, [TILES][16 outputs][16 rows].
template <int TILES>
static void lanes(const Factor* parts, int count, i64 n, const char* pairs, float* turned) {
    const int SOME = 16 / TILES;  // outputs: the sums stay in registers
    for (int from = 0; from < 16; from += SOME) {
        __m512 sums[TILES][SOME];
        for (int tile = 0; tile < TILES; tile++)
            for (int o = 0; o < SOME; o++) sums[tile][o] = _mm512_setzero_ps();
        const char* at = pairs;
        for (int i = 0; i < count; i++) {
            const bf16* weight = parts[i].weight + (n + from) * parts[i].weight_stride;
            for (i64 k = 0; k < parts[i].depth; k += 32, at += TILES * 1024) {
                for (int o = 0; o < SOME; o++)
                    __builtin_prefetch(weight + (o + AHEAD) * parts[i].weight_stride + k);
                for (int pair = 0; pair < 16; pair++) {
                    __m512bh rows[TILES];
                    for (int tile = 0; tile < TILES; tile++)
                        rows[tile] = (__m512bh)_mm512_load_si512(at + tile * 1024 + pair * 64);
                    for (int o = 0; o < SOME; o++) {
                        int both;
                        std::memcpy(&both, weight + o * parts[i].weight_stride + k + 2 * pair, 4);
                        for (int tile = 0; tile < TILES; tile++)
                            sums[tile][o] = _mm512_dpbf16_ps(sums[tile][o], rows[tile], (__m512bh)_mm512_set1_epi32(both));
                    }
                }
            }
        }
        for (int tile = 0; tile < TILES; tile++)
            for (int o = 0; o < SOME; o++) _mm512_store_ps(turned + (tile * 16 + from + o) * 16, sums[tile][o]);
    }
}

template <int TILES>
static void lane_product(const Factor* parts, int count, const Stored* stored, i64 rows, i64 width, bf16* y,
                         i64 y_stride) {
    i64 depth = 0;
    for (int i = 0; i < count; i++) depth += parts[i].depth;
    char* packed = (char*)scratch(64, size_t(depth * TILES * 32));
    char* at = packed;
    for (int i = 0; i < count; at += parts[i].depth * TILES * 32, i++) pack(parts[i], rows, TILES, at);
    each_sixteen(parts, stored, width, [=](i64 n, const Factor* some) {
        alignas(64) float turned[TILES * 256];
        lanes<TILES>(some, count, n, packed, turned);
        for (int tile = 0; tile < TILES; tile++)
            write(turned + tile * 256, rows - tile * 16, y + tile * 16 * y_stride + n, y_stride);
    });
    std::free(packed);
}
#endif

static void vector_product(const Factor* factors, int count, const Stored* stored, i64 rows, i64 width, bf16* y,
                           i64 y_stride) {
    Factor parts[2] = {factors[0], factors[1]};
#ifdef __AVX512BF16__
    for (; rows > 4; rows -= 32) {
        (rows > 16 ? lane_product<2> : lane_product<1>)(parts, count, stored, rows < 32 ? rows : 32, width, y,
                                                        y_stride);
        for (int i = 0; i < count; i++) parts[i].x += 32 * parts[i].x_stride;
        y += 32 * y_stride;
    }
#endif
    if (rows <= 0) return;
    each_sixteen(parts, stored, width, [=](i64 n, const Factor* some) {
        for (i64 t = 0; t < rows;) t = some_rows(some, count, t, rows, n, y, y_stride);
    });
}
