// Tiles of 1 KiB for attention.cpp: how rows become operands, and the product of two arrays of tiles.
//
// Every operand is an array of tiles. A result tile is 16 x 16 float. An A tile is 16 rows x DEPTH, a B tile DEPTH x 16
// columns: DEPTH 32 in bfloat16 (whose B holds pairs of rows interleaved), 16 in float. `Pairs` and `Plain` offer
// the same functions, so that the algorithm is written once.
#pragma once
#include "tiles.h"
#include "vectors.h"
#include <climits>

constexpr i64 TILE = 1024;         // bytes
constexpr i64 WIDEST = 1024;       // of a head
constexpr float NOWHERE = -1e30f;  // the score of a hidden key

static inline vf* row_of(void* tiles, i64 tile, i64 row) { return (vf*)((char*)tiles + tile * TILE + row * 64); }

// 16 x 16 words
static inline void transpose(const vi* in, vi* out) {
#ifdef __AVX512F__
    transpose_words((const __m512i*)in, (__m512i*)out);
#else
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) out[j][i] = in[i][j];
#endif
}

// Rows of a tensor; those past the last real one read as zeros.
alignas(64) static char zeros[WIDEST * 4];

template <typename T>
struct Rows {
    const T* first;
    i64 stride;
    int real;
    const T* at(int row) const { return row < real ? first + row * stride : (const T*)zeros; }
};

// C [M, N] = or += A [M, K] B [K, N], sizes and strides in tiles; M and N even.
struct Operand {
    const void* tiles;
    i64 row, column;
    const char* at(i64 i, i64 j) const { return (const char*)tiles + (i * row + j * column) * TILE; }
};

template <typename T>
struct Plain {
    using Source = T;
    static constexpr int DEPTH = 16, DEGREE = 6;
    static void begin() {}
    static void end() {}

    // source rows are the tile's rows
    static void a_rows(const Rows<T>& from, int row, i64 column, void* tile) {
        for (int i = 0; i < 16; i++) *row_of(tile, 0, i) = load16(from.at(row + i) + column);
    }
    static void b_rows(const Rows<T>& from, int row, i64 column, void* tile) { a_rows(from, row, column, tile); }
    // source rows are the tile's columns
    static void a_columns(const Rows<T>& from, int row, i64 column, void* tile) {
        vf in[16];
        for (int i = 0; i < 16; i++) in[i] = load16(from.at(row + i) + column);
        transpose((vi*)in, (vi*)tile);
    }
    static void b_columns(const Rows<T>& from, int row, i64 column, void* tile) { a_columns(from, row, column, tile); }

    // rows (key, key + 1) of columns (query .. query + 15), as B [keys, queries]; queries counts all columns
    static void put_b(void* b, i64 queries, int key, int query, vf first, vf second) {
        i64 tile = key / 16 * (queries / 16) + query / 16;
        *row_of(b, tile, key % 16) = first;
        *row_of(b, tile, key % 16 + 1) = second;
    }
    // the same of 32 queries as A [keys, queries], and as B too where b is given (here they are the same thing)
    static void put_ab(void* a, void* b, i64 queries, int key, int query, const vf* first, const vf* second) {
        put_b(a, queries, key, query, first[0], second[0]);
        put_b(a, queries, key, query + 16, first[1], second[1]);
    }
    static constexpr bool SHARED = true;

    // the columns of two tiles one above the other, times a factor each, as rows of 32 of a tensor
    static void store_columns(void* tiles, i64 tile, i64 below, vf factor, T* to, i64 stride, int real) {
        for (int half = 0; half < 2; half++) {
            vf in[16], out[16];
            for (int i = 0; i < 16; i++) in[i] = *row_of(tiles, tile + half * below, i) * factor;
            transpose((vi*)in, (vi*)out);
            for (int i = 0; i < real; i++) store16(out[i], to + i * stride + half * 16);
        }
    }

    static void multiply(Operand c, Operand a, Operand b, int m, int n, int k, bool add) {
#ifdef __AVX512F__
        constexpr int R = 8;
#else
        constexpr int R = 2;
#endif
        for (int j = 0; j < n; j += 2)
            for (int i = 0; i < m; i++)
                for (int r = 0; r < 16; r += R) {
                    vf sum[R][2];
                    vf* at[2] = {(vf*)c.at(i, j) + r, (vf*)c.at(i, j + 1) + r};
                    for (int u = 0; u < R; u++)
                        for (int w = 0; w < 2; w++) sum[u][w] = add ? at[w][u] : vf{};
                    for (int d = 0; d < k; d++) {
                        const float* left = (const float*)a.at(i, d) + r * 16;
                        const vf *right = (const vf*)b.at(d, j), *other = (const vf*)b.at(d, j + 1);
                        for (int e = 0; e < 16; e++)
                            for (int u = 0; u < R; u++) {
                                sum[u][0] += left[u * 16 + e] * right[e];
                                sum[u][1] += left[u * 16 + e] * other[e];
                            }
                    }
                    for (int u = 0; u < R; u++)
                        for (int w = 0; w < 2; w++) at[w][u] = sum[u][w];
                }
    }
};

#if HAS_PAIRS
struct Pairs {
    using Source = bf16;
    static constexpr int DEPTH = 32, DEGREE = 4;
    static constexpr bool SHARED = false;

    static void begin() {
        tiles_allowed();
        configure_tiles();
    }
    static void end() { release_tiles(); }

    static vi words(const bf16* from) {
        vi out;
        std::memcpy(&out, from, 64);
        return out;
    }
    static vi pairs(const bf16* low, const bf16* high) {
        __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)low));
        __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)high));
        return (vi)_mm512_or_si512(a, _mm512_slli_epi32(b, 16));
    }
    static void a_rows(const Rows<bf16>& from, int row, i64 column, void* tile) {
        for (int i = 0; i < 16; i++) ((vi*)tile)[i] = words(from.at(row + i) + column);
    }
    static void b_rows(const Rows<bf16>& from, int row, i64 column, void* tile) {
        for (int i = 0; i < 16; i++)
            ((vi*)tile)[i] = pairs(from.at(row + 2 * i) + column, from.at(row + 2 * i + 1) + column);
    }
    static void a_columns(const Rows<bf16>& from, int row, i64 column, void* tile) {
        vi in[16];
        b_rows(from, row, column, in);
        transpose(in, (vi*)tile);
    }
    static void b_columns(const Rows<bf16>& from, int row, i64 column, void* tile) {
        vi in[16];
        a_rows(from, row, column, in);
        transpose(in, (vi*)tile);
    }

    static __m512i narrow(vf low, vf high) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }
    static __m512i braid(int start) {  // start, 32 + start, start + 1, ...
        __m512i low = _mm512_add_epi32(
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(start));
        return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(32)), 16));
    }
    // 0, 16, 1, 17, ...
    static __m512i neighbours() { return _mm512_sub_epi16(braid(0), _mm512_set1_epi32(16 << 16)); }
    static void put_b(void* b, i64 queries, int key, int query, vf first, vf second) {
        *row_of(b, key / 32 * (queries / 16) + query / 16, key % 32 / 2) =
            (vf)_mm512_permutexvar_epi16(neighbours(), narrow(first, second));
    }
    static void put_ab(void* a, void* b, i64 queries, int key, int query, const vf* first, const vf* second) {
        __m512i low = narrow(first[0], first[1]), high = narrow(second[0], second[1]);
        i64 tile = key / 16 * (queries / 32) + query / 32;
        *row_of(a, tile, key % 16) = (vf)low;
        *row_of(a, tile, key % 16 + 1) = (vf)high;
        if (b == nullptr) return;
        tile = key / 32 * (queries / 16) + query / 16;
        *row_of(b, tile, key % 32 / 2) = (vf)_mm512_permutex2var_epi16(low, braid(0), high);
        *row_of(b, tile + 1, key % 32 / 2) = (vf)_mm512_permutex2var_epi16(low, braid(16), high);
    }

    static void store_columns(void* tiles, i64 tile, i64 below, vf factor, bf16* to, i64 stride, int real) {
        vi in[16], out[16];
        for (int i = 0; i < 16; i++) {
            const vf* at = row_of(tiles, tile + i / 8 * below, i % 8 * 2);
            in[i] = (vi)_mm512_permutexvar_epi16(neighbours(), narrow(at[0] * factor, at[1] * factor));
        }
        transpose(in, out);
        for (int i = 0; i < real; i++) std::memcpy(to + i * stride, &out[i], 64);
    }

#if HAS_AMX
    static void multiply(Operand c, Operand a, Operand b, int m, int n, int k, bool add) {
        asm volatile("" ::: "memory");  // gcc takes tile loads to read nothing, and would store later
        for (int i = 0; i < m; i += 2)
            for (int j = 0; j < n; j += 2) {
                if (add) {
                    _tile_loadd(0, c.at(i, j), 64);
                    _tile_loadd(1, c.at(i, j + 1), 64);
                    _tile_loadd(2, c.at(i + 1, j), 64);
                    _tile_loadd(3, c.at(i + 1, j + 1), 64);
                } else {
                    _tile_zero(0);
                    _tile_zero(1);
                    _tile_zero(2);
                    _tile_zero(3);
                }
                for (int d = 0; d < k; d++) {
                    _tile_loadd(4, a.at(i, d), 64);
                    _tile_loadd(6, b.at(d, j), 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_loadd(7, b.at(d, j + 1), 64);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_loadd(5, a.at(i + 1, d), 64);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
                _tile_stored(0, (void*)c.at(i, j), 64);
                _tile_stored(1, (void*)c.at(i, j + 1), 64);
                _tile_stored(2, (void*)c.at(i + 1, j), 64);
                _tile_stored(3, (void*)c.at(i + 1, j + 1), 64);
            }
        asm volatile("" ::: "memory");
    }
#else
    static void multiply(Operand c, Operand a, Operand b, int m, int n, int k, bool add) {
        for (int j = 0; j < n; j += 2)
            for (int i = 0; i < m; i++)
                for (int r = 0; r < 16; r += 8) {
                    float *left = (float*)c.at(i, j) + r * 16, *right = (float*)c.at(i, j + 1) + r * 16;
                    Sums8 sums{};
                    if (add) sums.load(left, right);
                    for (int d = 0; d < k; d++) sums.add(a.at(i, d) + r * 64, 64, b.at(d, j), b.at(d, j + 1));
                    sums.store(left, right);
                }
    }
#endif
};

#endif
