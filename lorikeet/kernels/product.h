// A matmul of the training step on tiles or pairs, with a low-rank update in the same sums: y = x W + z B with z = x A.
//
// W is cut into stages, some columns and a piece of K, that lie packed in a level-2 cache. All threads pack a stage, each
// a few columns, and then share out the rows: 32 at a time, whose piece of x stays in the level-1 cache, against all
// columns of the stage. So x is read from memory once for a few hundred columns, and y is written some KB at a time.
// What is done next is handed out by one counter, packing of the next stage included, so that nobody waits while
// anything is left: of two threads on a busy machine one is often late.
#pragma once
#include "tiles.h"
#include <sched.h>

#if HAS_PAIRS
// The deepest piece of K: of x, 32 rows stay in the level-1 cache on tiles (36 KB), and 8 without them, which take an
// eighth of the speed and more so that sums need not wait for the next piece.
static const i64 PIECE = HAS_AMX ? 576 : 2048;
static const i64 STAGE = 672 << 10;  // bytes of packed weights: level-2 caches have 1 or 2 MB, and neighbours
static const i64 PACKED = 96, ROWS = HAS_AMX ? 128 : 32;  // columns and rows of a task
static const i64 MOST_ROWS = 4096;  // of a call: sums of all of them wait for the next piece of K

// weights [K, N], or [N, K] if transposed
struct Weight {
    const bf16* at;
    i64 stride, transposed;
};

// y [rows, width] = x [rows, depth] weight + z low, with z [rows, rank] = x thin; rank 0 for none
struct Product {
    i64 rows, depth, width;
    const bf16* x;
    i64 x_stride;
    Weight weight;
    bf16* y;
    i64 rank;
    Weight thin, low;
    bf16* z;
};

// rows from..from+depth of columns n..n+columns to panels of 32 columns: [columns / 32][depth / 32] pairs of tiles
static void pack(const Weight& w, i64 from, i64 depth, i64 n, i64 columns, char* to) {
    if (w.transposed)
        for (i64 c = n; c < n + columns; c += 32)
            for (i64 k = from; k < from + depth; k += 32, to += 2048) {
                pairs_of_transposed(w.at + c * w.stride + k, w.stride, to);
                pairs_of_transposed(w.at + (c + 16) * w.stride + k, w.stride, to + 1024);
            }
    else
        for (i64 k = from; k < from + depth; k += 32, to += 2048)
            for (i64 c = 0; c < columns; c += 32) pairs_of_rows(w.at + k * w.stride + n + c, w.stride, to + c * depth * 2);
}

// 32 rows x 32 columns: add `depth` products to the sums that were started
static inline void multiply(float* sums, const bf16* x, i64 stride, i64 depth, const char* pairs) {
    add_products<true>(sums, x, stride * 2, 64, pairs, depth / 32);
}

// Tiles read 32 whole rows: x itself, or its `rows` real ones copied to `spare` [32, depth] above zeros. Rows that are
// read again and again are copied too where a multiple of 2 KB lies between them, and so they would all share a few sets
// of the level-1 cache.
static const bf16* whole_rows(const bf16* x, i64& stride, i64 rows, i64 depth, bf16* spare, bool again = false) {
    if (rows >= 32 && !(again && stride % 1024 == 0)) return x;
    for (i64 i = 0; i < rows && i < 32; i++) std::memcpy(spare + i * depth, x + i * stride, size_t(depth) * 2);
    if (rows < 32) std::memset(spare + rows * depth, 0, size_t((32 - rows) * depth) * 2);
    stride = depth;
    return spare;
}

// the first `rows` of 32 x 32 sums
static inline void write_rows(const float* sums, i64 rows, bf16* to, i64 stride, bool woven) {
    for (i64 i = 0; i < rows; i++) store_rounded(sums + (i >> 4) * 512 + (i & 15) * 16, to + i * stride, woven);
}

// How a product is cut. Bytes are those of a stage's packed weights, its low-rank part among them.
struct Plan {
    i64 columns, chunks, depth, pieces, packs, tasks, bytes, blocks;
    explicit Plan(const Product& p) {
        pieces = (p.depth + PIECE - 1) / PIECE;
        depth = ((p.depth + pieces - 1) / pieces + 31) / 32 * 32;
        i64 most = STAGE / ((depth + p.rank) * 2) / 32 * 32;
        if (most < 64) most = 64;
        chunks = (p.width + most - 1) / most;
        columns = ((p.width + chunks - 1) / chunks + 31) / 32 * 32;
        packs = (columns + PACKED - 1) / PACKED;
        tasks = (p.rows + ROWS - 1) / ROWS;
        bytes = columns * (depth + p.rank) * 2;
        blocks = (p.rows + 31) / 32;
    }
    i64 stages() const { return chunks * pieces; }
};

struct Stage {
    i64 n, columns, k, depth;  // which of W
    bool first, last;          // of the pieces of K
    bool with_z;               // z is computed with the first columns
    char *packed, *low, *thin;
    Stage(const Product& p, const Plan& plan, i64 index, char* room) {
        i64 chunk = index / plan.pieces, piece = index % plan.pieces;
        n = chunk * plan.columns, k = piece * plan.depth;
        columns = p.width - n < plan.columns ? p.width - n : plan.columns;
        depth = p.depth - k < plan.depth ? p.depth - k : plan.depth;
        first = piece == 0, last = piece == plan.pieces - 1, with_z = p.rank && chunk == 0;
        packed = room + index % 2 * (plan.bytes + p.rank * plan.depth * 2);
        low = packed + plan.columns * plan.depth * 2;
        thin = packed + plan.bytes;
    }
};

// Reads `columns` stored rows in the order in which they lie: memory then gives them twice as fast as to `pack`, which
// goes down 32 rows at once.
static void bring(const Weight& w, i64 from, i64 depth, i64 n, i64 columns) {
    for (i64 c = n; c < n + columns; c++)
        for (i64 k = from; k < from + depth; k += 32) (void)*(const volatile uint16_t*)(w.at + c * w.stride + k);
}

// a few columns of a stage, and of the low-rank weights
static void pack_some(const Product& p, const Stage& s, i64 task, i64 tasks) {
    i64 c = task * PACKED, taken = s.columns - c < PACKED ? s.columns - c : PACKED;
    if (taken > 0) {
        if (p.weight.transposed) bring(p.weight, s.k, s.depth, s.n + c, taken);
        pack(p.weight, s.k, s.depth, s.n + c, taken, s.packed + c * s.depth * 2);
        if (p.rank && s.last) pack(p.low, 0, p.rank, s.n + c, taken, s.low + c * p.rank * 2);
    }
    for (i64 r = task * 32; s.with_z && r < p.rank; r += tasks * 32)
        pack(p.thin, s.k, s.depth, r, 32, s.thin + r * s.depth * 2);
}

// Where sums wait for the next piece of K: 4 KB for 32 rows and columns. With one piece nothing waits, and one place
// serves all, so as to take no more of the level-1 cache than need be.
struct Sums {
    float *main, *thin;
    i64 main_step, thin_step;  // from one 32 x 32 block to the next
    Sums(const Plan& plan, float* room)
        : main(room), thin(room + (plan.pieces > 1 ? plan.blocks * plan.columns * 32 : 1024)),
          main_step(plan.pieces > 1 ? 1024 : 0), thin_step(main_step) {}
    static i64 bytes(const Product& p, const Plan& plan) {
        return (plan.pieces > 1 ? plan.blocks * (plan.columns + p.rank) * 32 : 2048) * 4;
    }
};

// y = x W and, in the stage of the last piece, z B; or z = x A. Rows t..t+real of one stage.
static void block(const Product& p, const Plan& plan, const Stage& s, i64 t, i64 real, const Sums& sums, bf16* spare) {
    i64 stride = p.x_stride, z_stride = p.rank;
    if (real > 32) real = 32;
    const bf16 *x = whole_rows(p.x + t * stride + s.k, stride, real, s.depth, spare, true), *z = nullptr;
    for (i64 c = 0; s.with_z && c < p.rank; c += 32) {
        float* sum = sums.thin + (t * p.rank / 1024 + c / 32) * sums.thin_step;
        start_sums(sum, s.first);
        multiply(sum, x, stride, s.depth, s.thin + c * s.depth * 2);
        store_sums(sum);
        if (s.last) write_rows(sum, real, p.z + t * p.rank + c, p.rank, !p.thin.transposed);
    }
    if (s.last && p.rank) z = whole_rows(p.z + t * p.rank, z_stride, real, p.rank, spare + 32 * plan.depth);
    for (i64 c = 0; c < s.columns; c += 32) {
        float* sum = sums.main + (t * plan.columns / 1024 + c / 32) * sums.main_step;
        bf16* y = p.y + t * p.width + s.n + c;
        if (s.last)  // a store would wait for its line
            for (i64 i = 0; i < real; i++) __builtin_prefetch(y + i * p.width, 1);
        start_sums(sum, s.first);
        multiply(sum, x, stride, s.depth, s.packed + c * s.depth * 2);
        if (z) multiply(sum, z, z_stride, p.rank, s.low + c * p.rank * 2);
        store_sums(sum);
        if (s.last) write_rows(sum, real, y, p.width, !p.weight.transposed);
    }
}

static inline void add_one(i64* at) { __atomic_fetch_add(at, 1, __ATOMIC_ACQ_REL); }
static inline void wait_for(const i64* at, i64 count) {
    for (int i = 0; __atomic_load_n(at, __ATOMIC_ACQUIRE) < count; i++)
        if (i < 2000)
            _mm_pause();
        else
            sched_yield();
}

// Memory that the calling thread keeps from call to call: the pages of new memory would have to be made each time.
static char* kept_room(i64 bytes) {
    static thread_local char* room = nullptr;
    static thread_local i64 size = 0;
    if (size < bytes) {
        std::free(room);
        room = (char*)scratch(4096, size_t(bytes + 4095) / 4096 * 4096);
        size = bytes;
    }
    return room;
}

// at most MOST_ROWS rows
static void multiply_rows(const Product& p) {
    const Plan plan(p);
    i64 stages = plan.stages(), each = plan.packs + plan.tasks;
    i64 packed = (stages > 1 ? 2 : 1) * (plan.bytes + p.rank * plan.depth * 2);
    i64 waiting = Sums::bytes(p, plan), threads = omp_get_max_threads();
    char* room = kept_room(packed + waiting * (plan.pieces > 1 ? 1 : threads));
    // how many tasks of each stage are packed and done, and how many stages of each task of rows
    i64* ready = (i64*)std::calloc(size_t(2 * stages + plan.tasks), sizeof(i64));
    i64 *done = ready + stages, *passed = done + stages;
    in_parallel([=](Team& team) {
        configure_tiles();
        const Sums sums(plan, (float*)(room + packed + (plan.pieces > 1 ? 0 : omp_get_thread_num() * waiting)));
        bf16* spare = (bf16*)scratch(64, size_t(32 * (plan.depth + p.rank)) * 2);
        team.take(stages * each, 1, [&](i64 i) {
            i64 index = i / each, task = i % each;
            const Stage stage(p, plan, index, room);
            if (task < plan.packs) {
                if (index > 1) wait_for(done + index - 2, plan.tasks);  // they read what lies there
                pack_some(p, stage, task, plan.packs);
                add_one(ready + index);
                return;
            }
            task -= plan.packs;
            wait_for(ready + index, plan.packs);
            wait_for(passed + task, index);  // another thread may have had these rows
            for (i64 t = task * ROWS; t < (task + 1) * ROWS && t < p.rows; t += 32)
                block(p, plan, stage, t, p.rows - t, sums, spare);
            add_one(passed + task);
            add_one(done + index);
        });
        std::free(spare);
        release_tiles();
    });
    std::free(ready);
}

static void matmul(Product p) {
    for (i64 left = p.rows; left > 0; left -= MOST_ROWS) {
        p.rows = left < MOST_ROWS ? left : MOST_ROWS;
        multiply_rows(p);
        p.x += MOST_ROWS * p.x_stride, p.y += MOST_ROWS * p.width;
        if (p.rank) p.z += MOST_ROWS * p.rank;
    }
}
#endif
