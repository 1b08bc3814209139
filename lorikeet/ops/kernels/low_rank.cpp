// The thin products of a low-rank update, each in one pass over the wide matrix: z = x A^T, y += s z B^T, and their
// gradients. Everything is made of three loops over a block of rows and columns, with M [R, width] in float32:
//
//     dots:    z[t, r] += sum over c of wide[t, c] M[r, c]
//     add:     wide[t, c] += sum over r of z[t, r] M[r, c]
//     gather:  M[r, c] += sum over t of z[t, r] wide[t, c]
//
// M has a multiple of 8 rows, the last of them zeros. Sums are float32. Threads share the rows in fixed parts and the
// parts' sums are added in order: equal thread counts give equal bits.
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("prefer-vector-width=512")
#endif
#include "common.h"

typedef float V __attribute__((vector_size(64)));
typedef int32_t VI __attribute__((vector_size(64)));
typedef uint32_t VU __attribute__((vector_size(64)));
typedef uint16_t VH __attribute__((vector_size(32)));

static const i64 ROWS = 32, COLUMNS = 512, GROUP = 8, MOST = 128;  // MOST: of R
static const i64 LANES = 16;

static inline V load(const float* from) {
    V out;
    std::memcpy(&out, from, 64);
    return out;
}

static inline V load(const bf16* from) {
    VH narrow;
    std::memcpy(&narrow, from, 32);
    return (V)(__builtin_convertvector(narrow, VU) << 16);
}

static inline void store(V value, float* to) { std::memcpy(to, &value, 64); }

static inline void store(V value, bf16* to) {
    VU wide = (VU)value;
    VU rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    VU nan = (VU)((wide & 0x7fffffffu) > 0x7f800000u);
    VH narrow = __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), VH);
    std::memcpy(to, &narrow, 32);
}

static inline float sum(V value) {
    float lanes[LANES], total = 0;
    std::memcpy(lanes, &value, 64);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return total + lanes[0];
}

// a block: `rows` of the wide matrix from its first column of the block, z [rows, MOST], M from the same column
template <typename T>
struct Block {
    i64 rows, columns, ranks;  // ranks: a multiple of GROUP
    T* wide;
    i64 wide_stride;
    float* z;
    float* m;
    i64 m_stride;
};

template <typename T, int N>
static inline void dots_of(const Block<T>& b, i64 t, i64 r) {
    V sums[N][GROUP];
    float tails[N][GROUP] = {};
    for (int i = 0; i < N; i++)
        for (int j = 0; j < GROUP; j++) sums[i][j] = V{};
    i64 c = 0;
    for (; c + LANES <= b.columns; c += LANES) {
        V x[N];
        for (int i = 0; i < N; i++) x[i] = load(b.wide + (t + i) * b.wide_stride + c);
        for (int j = 0; j < GROUP; j++) {
            V m = load(b.m + (r + j) * b.m_stride + c);
            for (int i = 0; i < N; i++) sums[i][j] += x[i] * m;
        }
    }
    for (; c < b.columns; c++)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < GROUP; j++)
                tails[i][j] += to_float(b.wide[(t + i) * b.wide_stride + c]) * b.m[(r + j) * b.m_stride + c];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < GROUP; j++) b.z[(t + i) * MOST + r + j] += sum(sums[i][j]) + tails[i][j];
}

template <typename T>
static void dots(const Block<T>& b) {
    for (i64 r = 0; r < b.ranks; r += GROUP) {
        i64 t = 0;
        for (; t + 3 <= b.rows; t += 3) dots_of<T, 3>(b, t, r);
        for (; t < b.rows; t++) dots_of<T, 1>(b, t, r);
    }
}

template <typename T, int N>
static inline void add_of(const Block<T>& b, i64 t, i64 c) {
    V y[N][2];
    for (int i = 0; i < N; i++)
        for (int k = 0; k < 2; k++) y[i][k] = load(b.wide + (t + i) * b.wide_stride + c + k * LANES);
    for (i64 r = 0; r < b.ranks; r++) {
        const float* m = b.m + r * b.m_stride + c;
        V m0 = load(m), m1 = load(m + LANES);
        for (int i = 0; i < N; i++) {
            float z = b.z[(t + i) * MOST + r];
            y[i][0] += m0 * z;
            y[i][1] += m1 * z;
        }
    }
    for (int i = 0; i < N; i++)
        for (int k = 0; k < 2; k++) store(y[i][k], b.wide + (t + i) * b.wide_stride + c + k * LANES);
}

template <typename T>
static void add(const Block<T>& b) {
    i64 c = 0;
    for (; c + 2 * LANES <= b.columns; c += 2 * LANES) {
        i64 t = 0;
        for (; t + 8 <= b.rows; t += 8) add_of<T, 8>(b, t, c);
        for (; t < b.rows; t++) add_of<T, 1>(b, t, c);
    }
    for (; c < b.columns; c++)
        for (i64 t = 0; t < b.rows; t++) {
            T* at = b.wide + t * b.wide_stride + c;
            float y = to_float(*at);
            for (i64 r = 0; r < b.ranks; r++) y += b.z[t * MOST + r] * b.m[r * b.m_stride + c];
            put(y, at);
        }
}

template <typename T>
static void gather(const Block<T>& b) {
    for (i64 r = 0; r < b.ranks; r += GROUP) {
        i64 c = 0;
        for (; c + 2 * LANES <= b.columns; c += 2 * LANES) {
            V sums[GROUP][2];
            float* m = b.m + r * b.m_stride + c;
            for (int j = 0; j < GROUP; j++)
                for (int k = 0; k < 2; k++) sums[j][k] = load(m + j * b.m_stride + k * LANES);
            for (i64 t = 0; t < b.rows; t++) {
                const T* x = b.wide + t * b.wide_stride + c;
                const float* z = b.z + t * MOST + r;
                V x0 = load(x), x1 = load(x + LANES);
                for (int j = 0; j < GROUP; j++) {
                    sums[j][0] += x0 * z[j];
                    sums[j][1] += x1 * z[j];
                }
            }
            for (int j = 0; j < GROUP; j++)
                for (int k = 0; k < 2; k++) store(sums[j][k], m + j * b.m_stride + k * LANES);
        }
        for (; c < b.columns; c++)
            for (i64 t = 0; t < b.rows; t++)
                for (int j = 0; j < GROUP; j++)
                    b.m[(r + j) * b.m_stride + c] += b.z[t * MOST + r + j] * to_float(b.wide[t * b.wide_stride + c]);
    }
}

// What a pass has to do; null where it does not
struct Pass {
    i64 rows, width, ranks;
    void* z;  // [rows, ranks], read by add and gather
    i64 z_stride;
    void* sums;  // [rows, ranks], what dots writes, times `scale`
    i64 sums_stride;
    const void* read;  // the wide matrix of dots and gather
    i64 read_stride;
    void* changed;  // the wide matrix of add
    i64 changed_stride;
    const float* factor;  // M [padded ranks, width] of dots and add
    float* gradient;      // M [padded ranks, width] of gather
    float scale;
};

template <typename T>
static void rows_from(const Pass& p, i64 from, i64 to, float* gradient) {
    i64 padded = (p.ranks + GROUP - 1) / GROUP * GROUP;
    alignas(64) float z[ROWS * MOST], found[ROWS * MOST];
    for (i64 t = from; t < to; t += ROWS) {
        i64 rows = to - t < ROWS ? to - t : ROWS;
        for (i64 i = 0; i < rows; i++)
            for (i64 r = 0; r < padded; r++) {
                found[i * MOST + r] = 0;
                z[i * MOST + r] =
                    p.z && r < p.ranks ? p.scale * to_float(((const T*)p.z)[(t + i) * p.z_stride + r]) : 0.0f;
            }
        for (i64 c = 0; c < p.width; c += COLUMNS) {
            i64 columns = p.width - c < COLUMNS ? p.width - c : COLUMNS;
            T* read = (T*)p.read + t * p.read_stride + c;
            float* factor = (float*)p.factor + c;
            if (p.sums) dots(Block<T>{rows, columns, padded, read, p.read_stride, found, factor, p.width});
            if (gradient) gather(Block<T>{rows, columns, padded, read, p.read_stride, z, gradient + c, p.width});
            if (p.changed) {
                T* changed = (T*)p.changed + t * p.changed_stride + c;
                add(Block<T>{rows, columns, padded, changed, p.changed_stride, z, factor, p.width});
            }
        }
        for (i64 i = 0; p.sums && i < rows; i++)
            for (i64 r = 0; r < p.ranks; r++)
                put(found[i * MOST + r] * p.scale, (T*)p.sums + (t + i) * p.sums_stride + r);
    }
}

template <typename T>
static void run(const Pass& p) {
    i64 size = (p.ranks + GROUP - 1) / GROUP * GROUP * p.width;
    int most = omp_get_max_threads();
    float* partial = p.gradient ? (float*)std::calloc(size_t(most) * size, 4) : nullptr;
#pragma omp parallel
    {
        i64 threads = omp_get_num_threads(), thread = omp_get_thread_num();
        i64 blocks = (p.rows + ROWS - 1) / ROWS;
        i64 from = blocks * thread / threads * ROWS, to = blocks * (thread + 1) / threads * ROWS;
        rows_from<T>(p, from, to < p.rows ? to : p.rows, partial ? partial + thread * size : nullptr);
#pragma omp barrier
        if (partial) {
#pragma omp for schedule(static)
            for (i64 i = 0; i < size; i++) {
                float total = partial[i];
                for (i64 other = 1; other < threads; other++) total += partial[other * size + i];
                p.gradient[i] = total;
            }
        }
    }
    std::free(partial);
}

// z [T, R] = scale * wide M^T; with a gradient (from `by` [T, R]) also M' = scale * by^T wide
extern "C" void low_rank_dots(i64 dtype, i64 rows, i64 width, i64 ranks, float scale, const void* wide, i64 wide_stride,
                              const float* factor, void* z, i64 z_stride, void* by, i64 by_stride, float* gradient) {
    Pass p{rows, width, ranks, by, by_stride, z, z_stride, wide, wide_stride, nullptr, 0, factor, gradient, scale};
    DISPATCH(dtype, run, p);
}

// changed += scale * z M (where there is one); with a gradient also M' = scale * z^T wide
extern "C" void low_rank_add(i64 dtype, i64 rows, i64 width, i64 ranks, float scale, void* z, i64 z_stride,
                             const float* factor, void* changed, i64 changed_stride, const void* wide, i64 wide_stride,
                             float* gradient) {
    Pass p{rows, width, ranks, z, z_stride, nullptr, 0, wide, wide_stride, changed, changed_stride, factor, gradient,
           scale};
    DISPATCH(dtype, run, p);
}
