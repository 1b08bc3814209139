// Matmuls of the training step on matrix tiles, with a low-rank update in the same sums: y = x W + z B.
//
// Each task takes some columns, packs their weights into pairs that stay in its level-2 cache, and runs over all rows
// in blocks of 32, of which a piece of K stays in the level-1 cache. Columns are handed out one by one: of two
// hyperthreads on a busy machine one is often late.
#include "amx.h"

static const i64 COLUMNS = 192;  // of a task: 192 x 576 pairs are 221 KB; half as many where that gives few tasks
static const i64 WHOLE = 576;    // the deepest piece: 32 rows of it are 36 KB
static const i64 DEEP = 1024, DEEP_COLUMNS = 320;  // of a piece of a very deep product, and of its tasks
static const i64 ROWS = 2048;    // between two packings of the same columns

#if HAS_AMX
// weights [K, N], or [N, K] if transposed, columns n.. to panels of 32 columns: [columns / 32][K / 32] pairs of tiles
static void pack(const bf16* weight, i64 stride, i64 transposed, i64 depth, i64 n, i64 columns, char* to) {
    if (transposed)
        for (i64 c = 0; c < columns; c += 32)
            for (i64 k = 0; k < depth; k += 32, to += 2048) {
                pairs_of_transposed(weight + (n + c) * stride + k, stride, to);
                pairs_of_transposed(weight + (n + c + 16) * stride + k, stride, to + 1024);
            }
    else
        for (i64 k = 0; k < depth; k += 32, to += 2048)
            for (i64 c = 0; c < columns; c += 32)
                pairs_of_rows(weight + k * stride + n + c, stride, to + c * depth * 2);
}

// four tiles of 16 x 16 sums, 4 KB side by side
static inline void start_sums(const float* s, bool zero) {
    if (zero) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        return;
    }
    written();
    _tile_loadd(0, s, 64);
    _tile_loadd(1, s + 256, 64);
    _tile_loadd(2, s + 512, 64);
    _tile_loadd(3, s + 768, 64);
}

static inline void store_sums(float* s) {
    _tile_stored(0, s, 64);
    _tile_stored(1, s + 256, 64);
    _tile_stored(2, s + 512, 64);
    _tile_stored(3, s + 768, 64);
}

// 32 rows x 32 columns: add `depth` products to the four sums
static inline void multiply(const bf16* x, i64 stride, i64 depth, const char* pairs) {
    written();
    for (i64 k = 0; k < depth; k += 32, pairs += 2048) {
        _tile_stream_loadd(6, pairs, 64);  // past the level-1 cache, where x stays
        _tile_stream_loadd(7, pairs + 1024, 64);
        _tile_loadd(4, x + k, stride * 2);
        _tile_loadd(5, x + 16 * stride + k, stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
    }
}

// Tiles read 32 whole rows: x itself, or its `rows` real ones copied to `spare` [32, depth] above zeros.
static const bf16* whole_rows(const bf16* x, i64& stride, i64 rows, i64 depth, bf16* spare) {
    if (rows >= 32) return x;
    std::memset(spare, 0, size_t(32 * depth) * 2);
    for (i64 i = 0; i < rows; i++) std::memcpy(spare + i * depth, x + i * stride, size_t(depth) * 2);
    stride = depth;
    return spare;
}

// the first `rows` of 32 x 32 sums
static void write_rows(const float* sums, i64 rows, bf16* to, i64 stride, bool woven) {
    for (i64 i = 0; i < rows; i++) store_rounded(sums + (i >> 4) * 512 + (i & 15) * 16, to + i * stride, woven);
}

struct Matmul {
    const bf16* x;  // [rows, depth]
    i64 x_stride, depth;
    const bf16* weight;
    i64 weight_stride, transposed;
};

// y rows t..t+rows (at most 32 of them real), the task's columns: the low-rank part goes into the sums of the last piece
static void block(const Matmul& m, const Matmul* low, i64 t, i64 rows, i64 n, i64 columns, const char* packed,
                  float* sums, bf16* spare, bf16* y, i64 y_stride) {
    i64 stride = m.x_stride, low_stride = 0, pieces = (m.depth + WHOLE - 1) / WHOLE;
    i64 piece = ((m.depth + pieces - 1) / pieces + 31) / 32 * 32;
    const bf16 *x = whole_rows(m.x + t * stride, stride, rows, m.depth, spare), *z = nullptr;
    if (low) {
        low_stride = low->x_stride;
        z = whole_rows(low->x + t * low_stride, low_stride, rows, low->depth, spare + 32 * m.depth);
    }
    const char* low_packed = packed + m.depth * columns * 2;
    for (i64 k = 0; k < m.depth; k += piece) {
        i64 depth = m.depth - k < piece ? m.depth - k : piece;
        bool last = k + depth == m.depth;
        for (i64 c = 0; c < columns; c += 32) {
            float* s = pieces == 1 ? sums : sums + c * 32;  // no more of the level-1 cache than need be
            start_sums(s, k == 0);
            multiply(x + k, stride, depth, packed + (c * m.depth + k * 32) * 2);
            if (last && low) multiply(z, low_stride, low->depth, low_packed + c * low->depth * 2);
            store_sums(s);
            if (last) write_rows(s, rows, y + t * y_stride + n + c, y_stride, !m.transposed);
        }
    }
}

static void matmul(const Matmul* parts, int count, i64 rows, i64 width, bf16* y, i64 y_stride) {
    i64 depth = 0;
    for (int i = 0; i < count; i++) depth += parts[i].depth;
    i64 each = width < 6 * COLUMNS ? COLUMNS / 2 : COLUMNS;
    i64 columns = (width + each - 1) / each, pieces = (rows + ROWS - 1) / ROWS;
    if (columns < 4 && pieces < 4) pieces = rows < 512 ? 1 : rows / 128;  // a thin result: share out its rows
    i64 share = ((rows + pieces - 1) / pieces + 31) / 32 * 32;
#pragma omp parallel
    {
        configure_tiles();
        char* packed = (char*)std::aligned_alloc(64, size_t(each * depth) * 2);
        float* sums = (float*)std::aligned_alloc(64, size_t(32 * each) * 4);
        bf16* spare = (bf16*)std::aligned_alloc(64, size_t(32 * depth) * 2);
#pragma omp for schedule(dynamic, 1)
        for (i64 task = 0; task < columns * pieces; task++) {
            i64 n = task % columns * each, taken = width - n < each ? width - n : each;
            i64 from = task / columns * share, to = from + share < rows ? from + share : rows;
            char* at = packed;
            for (int i = 0; i < count && from < to; i++) {
                pack(parts[i].weight, parts[i].weight_stride, parts[i].transposed, parts[i].depth, n, taken, at);
                at += parts[i].depth * taken * 2;
            }
            for (i64 t = from; t < to; t += 32)
                block(parts[0], count > 1 ? parts + 1 : nullptr, t, to - t < 32 ? to - t : 32, n, taken, packed, sums,
                      spare, y, y_stride);
        }
        std::free(packed);
        std::free(sums);
        std::free(spare);
        _tile_release();
    }
}

// The same for a depth of many thousands and few columns (the head's gradient): a piece of the depth at a time over all
// rows, whose sums stay in the level-2 cache, so that x is read once by each task.
static void deep_matmul(const Matmul& m, i64 rows, i64 width, bf16* y, i64 y_stride) {
    i64 blocks = (rows + 31) / 32, tasks = omp_get_max_threads();
    i64 each = ((width + tasks - 1) / tasks + 31) / 32 * 32;
    if (each > DEEP_COLUMNS) each = DEEP_COLUMNS;
#pragma omp parallel
    {
        configure_tiles();
        char* packed = (char*)std::aligned_alloc(64, size_t(each * DEEP) * 2);
        float* sums = (float*)std::aligned_alloc(64, size_t(blocks * 32 * each) * 4);
        bf16* spare = (bf16*)std::aligned_alloc(64, size_t(32 * DEEP) * 2);
#pragma omp for schedule(dynamic, 1)
        for (i64 n = 0; n < width; n += each) {
            i64 columns = width - n < each ? width - n : each;
            for (i64 from = 0; from < m.depth; from += DEEP) {
                i64 depth = m.depth - from < DEEP ? m.depth - from : DEEP;
                i64 start = m.transposed ? from : from * m.weight_stride;
                pack(m.weight + start, m.weight_stride, m.transposed, depth, n, columns, packed);
                for (i64 t = 0; t < rows; t += 32) {
                    i64 real = rows - t < 32 ? rows - t : 32, stride = m.x_stride;
                    const bf16* x = whole_rows(m.x + t * stride + from, stride, real, depth, spare);
                    for (i64 c = 0; c < columns; c += 32) {
                        float* s = sums + t * each + c * 32;
                        start_sums(s, from == 0);
                        multiply(x, stride, depth, packed + c * depth * 2);
                        store_sums(s);
                        if (from + depth == m.depth)
                            write_rows(s, real, y + t * y_stride + n + c, y_stride, !m.transposed);
                    }
                }
            }
        }
        std::free(packed);
        std::free(sums);
        std::free(spare);
        _tile_release();
    }
}

// one row of the sums of two woven tiles to 32 values in order
static inline void unwoven(const float* from, float* to) {
    __m512 first = _mm512_load_ps(from), second = _mm512_load_ps(from + 256);
    __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    _mm512_storeu_ps(to, _mm512_permutex2var_ps(first, low, second));
    _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(first, _mm512_add_epi32(low, _mm512_set1_epi32(8)), second));
}

// out [wanted, N] float32 = a^T b for a [T, 32], its first `wanted` columns, and b [T, N], T summed in one order.
//
// A task takes some columns over all of T, 128 rows at a time: rows of b lie pages apart, and what is read of a page is
// then read while the page is known.
static void thin_product(i64 rows, i64 width, i64 wanted, const bf16* a, i64 a_stride, const bf16* b, i64 b_stride,
                         float* out) {
    const i64 STEPS = 4, TASK = 192;
    i64 blocks = (rows + 31) / 32;
    bf16* turned = (bf16*)std::aligned_alloc(64, size_t(blocks) * 2048);  // a^T: per 32 of T two tiles of 16 rows
#pragma omp parallel
    {
        configure_tiles();
        alignas(64) float sums[TASK / 32 * 1024];
        alignas(64) bf16 pairs[STEPS * 1024];
        alignas(64) bf16 last[32 * 32];
#pragma omp for schedule(static)
        for (i64 i = 0; i < blocks; i++) {
            for (i64 t = 0; t < 32; t++)
                for (i64 s = 0; s < 32; s++)
                    turned[i * 1024 + s * 32 + t] = i * 32 + t < rows ? a[(i * 32 + t) * a_stride + s] : bf16{0};
        }
#pragma omp for schedule(dynamic, 1)
        for (i64 n = 0; n < width; n += TASK) {
            i64 end = n + TASK < width ? n + TASK : width;
            for (i64 i = 0; i < blocks; i += STEPS) {
                i64 steps = blocks - i < STEPS ? blocks - i : STEPS;
                for (i64 column = n; column < end; column += 32) {
                    for (i64 s = 0; s < steps; s++) {
                        const bf16* from = b + (i + s) * 32 * b_stride + column;
                        i64 stride = b_stride, real = rows - (i + s) * 32;
                        from = whole_rows(from, stride, real, 32, last);
                        pairs_of_rows(from, stride, pairs + s * 1024);
                    }
                    float* sum = sums + (column - n) * 32;
                    written();
                    start_sums(sum, i == 0);
                    for (i64 s = 0; s < steps; s++) {
                        _tile_loadd(6, pairs + s * 1024, 64);
                        _tile_loadd(7, pairs + s * 1024 + 512, 64);
                        _tile_loadd(4, turned + (i + s) * 1024, 64);
                        _tile_loadd(5, turned + (i + s) * 1024 + 512, 64);
                        _tile_dpbf16ps(0, 4, 6);
                        _tile_dpbf16ps(3, 5, 7);
                        _tile_dpbf16ps(1, 4, 7);
                        _tile_dpbf16ps(2, 5, 6);
                    }
                    store_sums(sum);
                }
            }
            for (i64 column = n; column < end; column += 32)
                for (i64 s = 0; s < wanted; s++)
                    unwoven(sums + (column - n) * 32 + (s >> 4) * 512 + (s & 15) * 16, out + s * width + column);
        }
        _tile_release();
    }
    std::free(turned);
}
#endif

// whether this processor and system have tiles: *answer = 1
extern "C" void linear_available(void* answer) {
#if HAS_AMX
    *(i64*)answer = tiles_allowed() && __builtin_cpu_supports("amx-bf16");
#else
    *(i64*)answer = 0;
#endif
}

// y [T, N] = x [T, K] W: W is [K, N], or [N, K] if transposed. K and N are multiples of 32.
extern "C" void linear_matmul(i64 rows, i64 depth, i64 width, i64 transposed, const bf16* x, i64 x_stride,
                              const bf16* weight, i64 weight_stride, bf16* y) {
#if HAS_AMX
    Matmul part = {x, x_stride, depth, weight, weight_stride, transposed};
    if (depth > 4 * DEEP)
        deep_matmul(part, rows, width, y, width);
    else
        matmul(&part, 1, rows, width, y, width);
#endif
}

// A member of a group: float32 factors A [rank, in] and B [size, rank], for rows start.. of the output, or the gradients
// of both.
struct Member {
    float *a, *b;
    i64 rank, start, size;
};

// What a forward pass keeps: all A below each other [S, in], all B times their scaling at their rows and columns
// [width, S], zeros elsewhere, and z = x A^T [rows, S].
struct Kept {
    bf16 *a, *b, *z;
    Kept(bf16* all, i64 inside, i64 width, i64 rank) : a(all), b(all + rank * inside), z(b + width * rank) {}
};

static void stack(i64 count, const Member* members, const float* scalings, i64 inside, i64 width, i64 rank,
                  const Kept& to) {
    std::memset(to.b, 0, size_t(width * rank) * 2);
    i64 column = 0;
    for (i64 m = 0; m < count; m++) {
        const Member& member = members[m];
        bf16* a = to.a + column * inside;
#pragma omp simd
        for (i64 i = 0; i < member.rank * inside; i++) put(member.a[i], a + i);
        for (i64 n = 0; n < member.size; n++)
            for (i64 r = 0; r < member.rank; r++)
                put(member.b[n * member.rank + r] * scalings[m], to.b + (member.start + n) * rank + column + r);
        column += member.rank;
    }
    std::memset(to.a + column * inside, 0, size_t((rank - column) * inside) * 2);
}

// dB of each member of all of them [S, width]
static void scatter(i64 count, const Member* members, const float* scalings, i64 width, const float* all) {
    i64 column = 0;
    for (i64 m = 0; m < count; m++) {
        const Member& member = members[m];
        for (i64 n = 0; n < member.size; n++)
            for (i64 r = 0; r < member.rank; r++)
                member.b[n * member.rank + r] = all[(column + r) * width + member.start + n] * scalings[m];
        column += member.rank;
    }
}

// y [T, N] = x [T, K] W^T + s z B^T with z = x A^T, of the members' A and B; `kept` is for the backward pass
extern "C" void linear_low_rank_forward(i64 rows, i64 depth, i64 width, i64 rank, i64 count, const Member* members,
                                        const float* scalings, const bf16* x, i64 x_stride, const bf16* weight,
                                        i64 weight_stride, bf16* kept, bf16* y) {
#if HAS_AMX
    Kept to(kept, depth, width, rank);
    stack(count, members, scalings, depth, width, rank, to);
    Matmul thin = {x, x_stride, depth, to.a, depth, 1};
    matmul(&thin, 1, rows, rank, to.z, rank);
    Matmul parts[2] = {{x, x_stride, depth, weight, weight_stride, 1}, {to.z, rank, rank, to.b, rank, 1}};
    matmul(parts, 2, rows, width, y, width);
#endif
}

// dz [T, S] = s dy B and, where it is wanted, dx [T, K] = dy W + dz A
extern "C" void linear_low_rank_backward(i64 rows, i64 depth, i64 width, i64 rank, bf16* kept, const bf16* dy,
                                         const bf16* weight, i64 weight_stride, bf16* dz, bf16* dx) {
#if HAS_AMX
    Kept from(kept, depth, width, rank);
    Matmul thin = {dy, width, width, from.b, rank, 0};
    matmul(&thin, 1, rows, rank, dz, rank);
    if (!dx) return;
    Matmul parts[2] = {{dy, width, width, weight, weight_stride, 0}, {dz, rank, rank, from.a, depth, 0}};
    matmul(parts, 2, rows, depth, dx, depth);
#endif
}

// dA = dz^T x of all members below each other [their ranks, K], and each member's dB = s dy^T z
extern "C" void linear_factor_gradients(i64 rows, i64 depth, i64 width, i64 rank, i64 count, const Member* members,
                                        const float* scalings, bf16* kept, const bf16* dy, const bf16* dz,
                                        const bf16* x, i64 x_stride, float* da) {
#if HAS_AMX
    Kept from(kept, depth, width, rank);
    i64 used = 0;
    for (i64 m = 0; m < count; m++) used += members[m].rank;
    float* all = (float*)std::aligned_alloc(64, size_t(rank * width) * 4);
    for (i64 s = 0; s < used; s += 32) {
        i64 wanted = used - s < 32 ? used - s : 32;
        thin_product(rows, width, wanted, from.z + s, rank, dy, width, all + s * width);
        thin_product(rows, depth, wanted, dz + s, rank, x, x_stride, da + s * depth);
    }
    scatter(count, members, scalings, width, all);
    std::free(all);
#endif
}
