// Queries and keys of a packed row made ready for attention: each head normalised (where the family does) and rotated.
#include "common.h"

static const i64 MOST = 1024;  // head width

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
        float x[MOST];
        for (i64 h = 0; h < turned; h++) {
            const T* from = qkv + (t * (heads + 2 * kv_heads) + h) * width;
            T* to = out + (t * out_heads + h) * width;
            const T* weight = (const T*)(h < heads ? q_weight : k_weight);
#pragma omp simd
            for (i64 i = 0; i < width; i++) x[i] = to_float(from[i]);
            if (weight) {
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (i64 i = 0; i < width; i++) sum += x[i] * x[i];
                float scale = 1.0f / std::sqrt(sum / float(width) + eps);
                scales[t * turned + h] = scale;
                if (offset != 0) {
#pragma omp simd
                    for (i64 i = 0; i < width; i++) x[i] = rounded<T>(x[i] * scale * (offset + to_float(weight[i])));
                } else {
#pragma omp simd
                    for (i64 i = 0; i < width; i++)
                        x[i] = rounded<T>(rounded<T>(x[i] * scale) * to_float(weight[i]));
                }
            }
#pragma omp simd
            for (i64 i = 0; i < half; i++) {
                put(x[i] * to_float(c[i]) - x[half + i] * to_float(s[i]), to + i);
                put(x[half + i] * to_float(c[half + i]) + x[i] * to_float(s[half + i]), to + half + i);
            }
#pragma omp simd
            for (i64 i = rotary; i < width; i++) put(x[i], to + i);
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
        float g[MOST];
        for (i64 h = 0; h < turned; h++) {
            const T* slope = h < heads ? (const T*)dq + t * dq_stride + h * width
                                       : (const T*)dk + t * dk_stride + (h - heads) * width;
            T* to = out + h * width;
            const T* weight = (const T*)(h < heads ? q_weight : k_weight);
#pragma omp simd
            for (i64 i = 0; i < half; i++) {
                float first = to_float(slope[i]), second = to_float(slope[half + i]);
                g[i] = first * to_float(c[i]) + second * to_float(s[half + i]);
                g[half + i] = second * to_float(c[half + i]) - first * to_float(s[i]);
            }
#pragma omp simd
            for (i64 i = rotary; i < width; i++) g[i] = to_float(slope[i]);
            if (weight) {
                const T* from = qkv + (t * (heads + 2 * kv_heads) + h) * width;
                float scale = scales[t * turned + h], sum = 0;
#pragma omp simd reduction(+ : sum)
                for (i64 i = 0; i < width; i++) {
                    g[i] *= to_float(weight[i]) + offset;
                    sum += g[i] * to_float(from[i]);
                }
                float mean = sum * scale / float(width);
#pragma omp simd
                for (i64 i = 0; i < width; i++) g[i] = (g[i] - to_float(from[i]) * scale * mean) * scale;
            }
#pragma omp simd
            for (i64 i = 0; i < width; i++) put(g[i], to + i);
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
