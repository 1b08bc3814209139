// The linears' passes with LoRA's low-rank updates, on tiles or pairs: y, dx, and the factors' gradients.
#include "product.h"

#if HAS_PAIRS
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
    bf16* turned = (bf16*)scratch(64, size_t(blocks) * 2048);  // a^T: per 32 of T two tiles of 16 rows
    in_parallel([=](Team& team) {
        configure_tiles();
        alignas(64) float sums[TASK / 32 * 1024];
        alignas(64) bf16 pairs[STEPS * 1024];
        alignas(64) bf16 last[32 * 32];
        team.each(blocks, [&](i64 i) {
            for (i64 t = 0; t < 32; t++)
                for (i64 s = 0; s < 32; s++)
                    turned[i * 1024 + s * 32 + t] = i * 32 + t < rows ? a[(i * 32 + t) * a_stride + s] : bf16{0};
        });
        team.wait();
        team.take((width + TASK - 1) / TASK, 1, [&](i64 task) {
            i64 n = task * TASK, end = n + TASK < width ? n + TASK : width;
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
                    start_sums(sum, i == 0);
                    add_products<false>(sum, turned + i * 1024, 64, 2048, pairs, steps);
                    store_sums(sum);
                }
            }
            for (i64 column = n; column < end; column += 32)
                for (i64 s = 0; s < wanted; s++)
                    unwoven(sums + (column - n) * 32 + (s >> 4) * 512 + (s & 15) * 16, out + s * width + column);
        });
        release_tiles();
    });
    std::free(turned);
}
#endif

// what these are computed with: *answer = 2 for matrix tiles, 1 for dot products of pairs, 0 for nothing
extern "C" void linear_available(void* answer) {
#if HAS_PAIRS
    *(i64*)answer = tiles_allowed() ? 1 + HAS_AMX : 0;  // the code is of this processor: see build.py
#else
    *(i64*)answer = 0;
#endif
}

// y [T, N] = x [T, K] W: W is [K, N], or [N, K] if transposed. K and N are multiples of 32.
extern "C" void linear_matmul(i64 rows, i64 depth, i64 width, i64 transposed, const bf16* x, i64 x_stride,
                              const bf16* weight, i64 weight_stride, bf16* y) {
#if HAS_PAIRS
    const Product p = {rows, depth, width, x, x_stride, {weight, weight_stride, transposed}, y, 0};
    matmul(p);
#endif
}

// y [T, N] = x [T, K] W^T + (x A^T) B^T, for W [N, K], A [S, K] and B [N, S]; z [T, S] is room. K, N and S are multiples
// of 32.
extern "C" void linear_updated(i64 rows, i64 depth, i64 width, i64 rank, const bf16* x, i64 x_stride,
                               const bf16* weight, i64 weight_stride, const bf16* a, const bf16* b, bf16* z, bf16* y) {
#if HAS_PAIRS
    matmul({rows, depth, width, x, x_stride, {weight, weight_stride, 1}, y, rank, {a, depth, 1}, {b, rank, 1}, z});
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
#if HAS_PAIRS
    Kept to(kept, depth, width, rank);
    stack(count, members, scalings, depth, width, rank, to);
    matmul({rows, depth, width, x, x_stride, {weight, weight_stride, 1}, y, rank, {to.a, depth, 1}, {to.b, rank, 1}, to.z});
#endif
}

// dz [T, S] = s dy B and, where it is wanted, dx [T, K] = dy W + dz A
extern "C" void linear_low_rank_backward(i64 rows, i64 depth, i64 width, i64 rank, bf16* kept, const bf16* dy,
                                         const bf16* weight, i64 weight_stride, bf16* dz, bf16* dx) {
#if HAS_PAIRS
    Kept from(kept, depth, width, rank);
    const Weight thin = {from.b, rank, 0};
    if (dx)
        matmul({rows, width, depth, dy, width, {weight, weight_stride, 0}, dx, rank, thin, {from.a, depth, 0}, dz});
    else
        matmul({rows, width, rank, dy, width, thin, dz, 0});
#endif
}

// dA = dz^T x of all members below each other [their ranks, K], and each member's dB = s dy^T z
extern "C" void linear_factor_gradients(i64 rows, i64 depth, i64 width, i64 rank, i64 count, const Member* members,
                                        const float* scalings, bf16* kept, const bf16* dy, const bf16* dz,
                                        const bf16* x, i64 x_stride, float* da) {
#if HAS_PAIRS
    Kept from(kept, depth, width, rank);
    i64 used = 0;
    for (i64 m = 0; m < count; m++) used += members[m].rank;
    float* all = (float*)scratch(64, size_t(rank * width) * 4);
    for (i64 s = 0; s < used; s += 32) {
        i64 wanted = used - s < 32 ? used - s : 32;
        thin_product(rows, width, wanted, from.z + s, rank, dy, width, all + s * width);
        thin_product(rows, depth, wanted, dz + s, rank, x, x_stride, da + s * depth);
    }
    scatter(count, members, scalings, width, all);
    std::free(all);
#endif
}
