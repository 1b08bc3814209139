// AdamW whose two moments are one byte each: a code of a table of 256 values, times its block's largest magnitude.
// One pass: read the codes, move moments and parameter in float, write the codes of the nearest values.
#include "common.h"

static const i64 BLOCK = 256;

// The place of the nearest of zero, seven decades and one, for x in [0, 1]. Decade i, which ends at 10^(i-6), is cut
// into PARTS 2^i even parts whose centres are the values; PARTS is 2, or 1 where a sign takes half of the codes.
template <int PARTS>
struct Nearest {
    float after[8], scale[8], offset[8];  // of the seven decades, and of one itself

    Nearest() {
        double before = 0, end = 1e-6;
        for (int i = 0; i < 7; i++, end *= 10) {
            const double parts = PARTS << i, part = 0.9 * end / parts;
            after[i] = (before + 0.1 * end + part / 2) / 2;  // halfway between two neighbours
            scale[i] = 1 / part;
            offset[i] = -0.1 * end / part;
            before = end - part / 2;
        }
        after[7] = (before + 1) / 2;
        scale[7] = offset[7] = 0;
    }

    inline int32_t place(float x) const {
        float times = 0, plus = 0;
        int32_t first = 0, last = 0;
        for (int i = 0; i < 8; i++) {
            const bool in = x > after[i];
            times = in ? scale[i] : times;
            plus = in ? offset[i] : plus;
            first = in ? begin(i) : first;
            last = in ? (i < 7 ? begin(i + 1) - 1 : begin(7)) : last;
        }
        const int32_t found = first + (int32_t)(x * times + plus);
        return found > last ? last : found;
    }

    // the first place of decade i: zero has the place 0
    static constexpr int32_t begin(int i) { return (PARTS << i) - PARTS + 1; }

    // the value at a place: its fraction of the decade stands in the mantissa of the place, counted from PARTS
    static inline float value(int32_t place) {
        const float counted = place + (PARTS - 0.5f);
        int32_t bits;
        std::memcpy(&bits, &counted, 4);
        bits = (bits & 0x7fffff) | 0x3f800000;
        float fraction, end = 0;
        std::memcpy(&fraction, &bits, 4);
        constexpr float ends[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
        for (int i = 0; i < 7; i++) end = place >= begin(i) ? ends[i] : end;
        return place >= begin(7) ? 1.0f : end * (0.9f * fraction - 0.8f);
    }
};

// a block of zeros, or of less than floats can divide by, has magnitude 0
static inline float magnitude(float largest) { return largest < 1.17549435e-38f ? 0.0f : largest; }
static inline float inverse(float magnitude) { return magnitude == 0.0f ? 0.0f : 1.0f / magnitude; }

// 1 - (1 - fresh)^steps: the share of a moment that is gradients, and not the zero it began with
static inline double seen(float fresh, float steps) { return -std::expm1(steps * std::log1p(-(double)fresh)); }

// n float parameters and gradients; codes [n] and magnitudes [ceil(n / 256)] of either moment; `step` is this one's
// number, from 1; fresh1 and fresh2 are 1 - beta, which float holds better than it holds beta
extern "C" void adamw_8bit(i64 n, float* parameter, const float* gradient, uint8_t* mean_codes, float* mean_scale,
                           uint8_t* square_codes, float* square_scale, const float* step, float rate, float fresh1,
                           float fresh2, float epsilon, float decay) {
    static const Nearest<1> of_either_sign;
    static const Nearest<2> of_one_sign;
    const float move = rate / seen(fresh1, *step), spread = 1 / std::sqrt(seen(fresh2, *step));
    const float kept = 1.0 - (double)rate * decay, beta1 = 1.0 - (double)fresh1, beta2 = 1.0 - (double)fresh2;
    const i64 blocks = (n + BLOCK - 1) / BLOCK;
    const auto move_block = [=](i64 block) {
        const i64 from = block * BLOCK, size = n - from < BLOCK ? n - from : BLOCK;
        float mean[BLOCK], square[BLOCK], sizes[BLOCK];
        const float old_mean = mean_scale[block], old_square = square_scale[block], *g = gradient + from;
        float* p = parameter + from;
        uint8_t *mean_code = mean_codes + from, *square_code = square_codes + from;
#pragma omp simd
        for (i64 i = 0; i < size; i++) {
            const int32_t signed_place = (int32_t)mean_code[i] - 127;
            const float m = Nearest<1>::value(signed_place < 0 ? -signed_place : signed_place) * old_mean;
            mean[i] = beta1 * (signed_place < 0 ? -m : m) + fresh1 * g[i];
            square[i] = beta2 * (Nearest<2>::value(square_code[i]) * old_square) + fresh2 * g[i] * g[i];
        }
#pragma omp simd
        for (i64 i = 0; i < size; i++) {
            p[i] = p[i] * kept - move * (mean[i] / (std::sqrt(square[i]) * spread + epsilon));
            sizes[i] = std::fabs(mean[i]);
        }
        mean_scale[block] = magnitude(largest(sizes, size, 0));
        square_scale[block] = magnitude(largest(square, size, 0));
        const float of_mean = inverse(mean_scale[block]), of_square = inverse(square_scale[block]);
#pragma omp simd
        for (i64 i = 0; i < size; i++) {
            const float x = mean[i] * of_mean;
            const int32_t place = of_either_sign.place(std::fabs(x));
            mean_code[i] = x < 0 ? 127 - (place > 127 ? 127 : place) : 127 + place;  // there is a 1 and no -1
        }
#pragma omp simd
        for (i64 i = 0; i < size; i++) {
            // never to zero from above: the mean, which is kept more finely, would be divided by nothing
            const int32_t place = of_one_sign.place(square[i] * of_square);
            square_code[i] = place == 0 && square[i] > 0 ? 1 : place;
        }
    };
    if (blocks > 64)
        parallel_loop(blocks, 16, move_block);
    else
        for (i64 block = 0; block < blocks; block++) move_block(block);
}
