// Queries and keys of a packed row made ready for attention: each head normalised (where the family does) and rotated.
#include "vectors.h"

static const i64 MOST = 1024;  // head width

// rotate the first 2 * half numbers of a head by the angles with these cosines and sines
template <typename From, typename T>
static inline void turn(const From* x, T* to, const T* c, const T* s, i64 half) {
    across(half, [&](i64 i, auto kind) {
        auto first = read(x + i, kind), second = read(x + half + i, kind);
        write(first * read(c + i, kind) - second * read(s + i, kind), to + i);
        write(second * read(c + half + i, kind) + first * read(s + half + i, kind), to + half + i);
    });
}

// From qkv [T, H + 2 K, E], the first H + K heads to out [T, out_heads, E], which may be qkv itself where nothing is
// normalised. scales [T, H + K]: 1 / rms of each normalised head, for the gradient.
template <typename T>
static void forward(i64 tokens, i64 heads, i64 kv_heads, i64 width, i64 rotary, const void* qkv_, const void* cos_,
                    const void* sin_, const void* q_weight, const void* k_weight, float eps, float offset, void* out_,
                    i64 out_heads, float* scales) {
    const T *qkv = (const T*)qkv_, *cosines = (const T*)cos_, *sines = (const T*)sin_;
    T* out = (T*)out_;
    i64 turned = heads + kv_heads, half = rotary / 2;
    parallel_loop(tokens, 16, [=](i64 t) {
        const T *c = cosines + t * rotary, *s = sines + t * rotary;
        alignas(64) float normed[MOST];
        for (i64 h = 0; h < turned; h++) {
            const T* from = qkv + (t * (heads + 2 * kv_heads) + h) * width;
            T* to = out + (t * out_heads + h) * width;
            const T* weight = (const T*)(h < heads ? q_weight : k_weight);
            if (weight) {
                float sum = sum_across(width, [&](i64 i, auto kind) {
                    auto value = read(from + i, kind);
                    return value * value;
                });
                float scale = 1.0f / std::sqrt(sum / float(width) + eps);
                scales[t * turned + h] = scale;
                if (offset != 0)
                    across(width, [&](i64 i, auto kind) {
                        auto value = read(from + i, kind) * scale * (offset + read(weight + i, kind));
                        write(rounded<T>(value), normed + i);
                    });
                else
                    across(width, [&](i64 i, auto kind) {
                        auto value = rounded<T>(read(from + i, kind) * scale) * read(weight + i, kind);
                        write(rounded<T>(value), normed + i);
                    });
                turn(normed, to, c, s, half);
                across(width - rotary, [&](i64 i, auto kind) { write(read(normed + rotary + i, kind), to + rotary + i); });
            } else {
                turn(from, to, c, s, half);
                if (to != from) std::memcpy(to + rotary, from + rotary, size_t(width - rotary) * sizeof(T));
            }
        }
    });
}

// dq [T, H, E], dk and dv [T, K, E] with strides of their own between tokens -> dqkv [T, H + 2 K, E].
template <typename T>
static void backward(i64 tokens, i64 heads, i64 kv_heads, i64 width, i64 rotary, const void* dq, i64 dq_stride,
                     const void* dk, i64 dk_stride, const void* dv, i64 dv_stride, const void* cos_, const void* sin_,
                     const void* qkv_, const void* q_weight, const void* k_weight, float offset, const float* scales,
                     void* dqkv_) {
    const T *qkv = (const T*)qkv_, *cosines = (const T*)cos_, *sines = (const T*)sin_;
    i64 turned = heads + kv_heads, half = rotary / 2;
    parallel_loop(tokens, 16, [=](i64 t) {
        const T *c = cosines + t * rotary, *s = sines + t * rotary;
        T* out = (T*)dqkv_ + t * (heads + 2 * kv_heads) * width;
        alignas(64) float g[MOST];
        for (i64 h = 0; h < turned; h++) {
            const T* slope = h < heads ? (const T*)dq + t * dq_stride + h * width
                                       : (const T*)dk + t * dk_stride + (h - heads) * width;
            T* to = out + h * width;
            const T* weight = (const T*)(h < heads ? q_weight : k_weight);
            across(half, [&](i64 i, auto kind) {
                auto first = read(slope + i, kind), second = read(slope + half + i, kind);
                write(first * read(c + i, kind) + second * read(s + half + i, kind), g + i);
                write(second * read(c + half + i, kind) - first * read(s + i, kind), g + half + i);
            });
            across(width - rotary, [&](i64 i, auto kind) { write(read(slope + rotary + i, kind), g + rotary + i); });
            if (weight) {
                const T* from = qkv + (t * (heads + 2 * kv_heads) + h) * width;
                float scale = scales[t * turned + h], sum = sum_across(width, [&](i64 i, auto kind) {
                    return read(g + i, kind) * (read(weight + i, kind) + offset) * read(from + i, kind);
                });
                float mean = sum * scale / float(width);
                across(width, [&](i64 i, auto kind) {
                    auto slopes = read(g + i, kind) * (read(weight + i, kind) + offset);
                    write((slopes - read(from + i, kind) * scale * mean) * scale, to + i);
                });
            } else
                across(width, [&](i64 i, auto kind) { write(read(g + i, kind), to + i); });
        }
        std::memcpy(out + turned * width, (const T*)dv + t * dv_stride, size_t(kv_heads * width) * sizeof(T));
    });
}

extern "C" void rope_forward(i64 dtype, i64 tokens, i64 heads, i64 kv_heads, i64 width, i64 rotary, const void* qkv,
                             const void* cosines, const void* sines, const void* q_weight, const void* k_weight,
                             float eps, float offset, void* out, i64 out_heads, float* scales) {
    DISPATCH(dtype, forward, tokens, heads, kv_heads, width, rotary, qkv, cosines, sines, q_weight, k_weight, eps,
             offset, out, out_heads, scales);
}

extern "C" void rope_backward(i64 dtype, i64 tokens, i64 heads, i64 kv_heads, i64 width, i64 rotary, const void* dq,
                              i64 dq_stride, const void* dk, i64 dk_stride, const void* dv, i64 dv_stride,
                              const void* cosines, const void* sines, const void* qkv, const void* q_weight,
                              const void* k_weight, float offset, const float* scales, void* dqkv) {
    DISPATCH(dtype, backward, tokens, heads, kv_heads, width, rotary, dq, dq_stride, dk, dk_stride, dv, dv_stride,
             cosines, sines, qkv, q_weight, k_weight, offset, scales, dqkv);
}
