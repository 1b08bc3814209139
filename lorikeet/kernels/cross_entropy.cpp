// Softmax cross-entropy of rows of logits: loss and hit of each row, and the gradient written over the logits.
//
// A row is walked twice in blocks that stay in the first cache: first for its maximum and sum of e^(l - maximum), kept
// up to date block by block, then for w (softmax - onehot). With l = scale * (logit + bias), softcapped if asked.
// The powers are most of the work, so the second walk takes those of the first, each block's times one factor.
#include "vectors.h"
#include <cfloat>

#define ALONE __attribute__((noinline))

static const i64 BLOCK = 1024;

struct Shape {
    i64 width;
    const float* bias;
    float scale, softcap;  // softcap 0: none
};

static inline float fast_tanh(float x) {
    float square = x * x;
    float near_zero = x * (1.0f - square * (1.0f / 3 - square * (2.0f / 15)));
    float far = 1.0f - 2.0f / (fast_exp(2.0f * x) + 1.0f);
    return square < 0.01f ? near_zero : far;
}

template <typename T>
static inline void read_block(const T* from, i64 start, i64 count, const Shape& shape, float* to) {
    const float *bias = shape.bias, scale = shape.scale, cap = shape.softcap;
    if (bias) {
#pragma omp simd
        for (i64 i = 0; i < count; i++) to[i] = (to_float(from[start + i]) + bias[start + i]) * scale;
    } else {
#pragma omp simd
        for (i64 i = 0; i < count; i++) to[i] = to_float(from[start + i]) * scale;
    }
    if (cap != 0) {
        float inverse = 1.0f / cap;
#pragma omp simd
        for (i64 i = 0; i < count; i++) to[i] = cap * fast_tanh(to[i] * inverse);
    }
}

struct Row {
    float top, total, picked;  // the maximum, the sum of e^(l - top), and the target's l
};

// The loops over a block, each a function of its own: inlined, gcc 12 leaves them scalar, eight times slower.
ALONE static float sum_of_powers(const float* l, i64 count, float top) {
    return sum_across(count, [&](i64 i, auto kind) { return exp_of(read(l + i, kind) - top); });
}

ALONE static float keep_powers(const float* l, i64 count, float top, float* powers) {
    return sum_across(count, [&](i64 i, auto kind) {
        auto power = exp_of(read(l + i, kind) - top);
        write(power, powers + i);
        return power;
    });
}

// A NaN is in the sum in any case, and +inf makes one (inf - inf)
// powers [width] and tops [blocks], where given: e^(l - the maximum so far), and that maximum for each block.
template <typename T>
static Row normalise(const T* row, const Shape& shape, i64 target, float* powers, float* tops) {
    alignas(64) float l[BLOCK];
    float top = -FLT_MAX, sum = 0, picked = 0;
    for (i64 start = 0; start < shape.width; start += BLOCK) {
        i64 count = shape.width - start < BLOCK ? shape.width - start : BLOCK;
        read_block(row, start, count, shape, l);
        if (target >= start && target < start + count) picked = l[target - start];
        float block_top = largest(l, count, top);
        if (block_top > top) {
            sum *= fast_exp(top - block_top);
            top = block_top;
        }
        if (powers) {
            tops[start / BLOCK] = top;
            sum += keep_powers(l, count, top, powers + start);
        } else {
            sum += sum_of_powers(l, count, top);
        }
    }
    return {top, sum, picked};
}

template <typename T>
static void slope(T* row, const Shape& shape, const Row& found, i64 target, float weight, const float* powers,
                  const float* tops) {
    alignas(64) float l[BLOCK];
    float top = found.top, picked = found.picked, cap = shape.softcap;
    float factor = weight * shape.scale, each = factor / found.total;
    float bend = cap == 0 ? 1.0f : 1.0f - (picked / cap) * (picked / cap);
    float at_target = (fast_exp(picked - top) * each - factor) * bend;
    for (i64 start = 0; start < shape.width; start += BLOCK) {
        i64 count = shape.width - start < BLOCK ? shape.width - start : BLOCK;
        T* to = row + start;
        if (cap == 0) {
            float times = fast_exp(tops[start / BLOCK] - top) * each;
            const float* kept = powers + start;
            across(count, [&](i64 i, auto kind) { write(read(kept + i, kind) * times, to + i); });
        } else {
            float inverse = 1.0f / cap;
            read_block(row, start, count, shape, l);
            across(count, [&](i64 i, auto kind) {
                auto value = read(l + i, kind), ratio = value * inverse;
                write(exp_of(value - top) * each * (1.0f - ratio * ratio), to + i);
            });
        }
    }
    put(at_target, row + target);
}

// A target outside of the vocabulary touches no memory: its loss is NaN
template <typename T>
static void rows_of(i64 rows, void* logits_, const Shape& shape, const i64* targets, const float* weights, bool wanted,
                    float* losses, bool* correct) {
    T* logits = (T*)logits_;
    bool keeps = wanted && shape.softcap == 0;
    i64 blocks = (shape.width + BLOCK - 1) / BLOCK;
    in_parallel([=](Team& team) {
        float* powers = keeps ? (float*)scratch(64, size_t(shape.width + blocks) * 4) : nullptr;
        float* tops = keeps ? powers + shape.width : nullptr;
        team.take(rows, 4, [&](i64 n) {
            T* row = logits + n * shape.width;
            i64 target = targets[n];
            if (target < 0 || target >= shape.width) {
                losses[n] = NAN;
                correct[n] = false;
                return;
            }
            Row found = normalise(row, shape, target, powers, tops);
            losses[n] = std::log(found.total) + (found.top - found.picked);
            correct[n] = found.picked >= found.top && found.total == found.total;
            if (wanted) slope(row, shape, found, target, weights[n], powers, tops);
        });
        std::free(powers);
    });
}

extern "C" void cross_entropy(i64 dtype, i64 rows, i64 width, void* logits, const float* bias, float scale,
                              float softcap, const i64* targets, const float* weights, i64 wanted, float* losses,
                              bool* correct) {
    Shape shape{width, bias, scale, softcap};
    DISPATCH(dtype, rows_of, rows, logits, shape, targets, weights, wanted != 0, losses, correct);
}
