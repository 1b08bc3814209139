// RMSNorm over the last dimension: y = round(x * scale) * weight, or (offset) x * scale * (offset + weight).
#include "vectors.h"

template <typename T>
static void forward(i64 rows, i64 width, i64 stride, const void* x_, const void* weight_, float eps, float offset,
                    void* y_, float* scale) {
    const T *x = (const T*)x_, *weight = (const T*)weight_;
    T* y = (T*)y_;
    parallel_loop(rows, 16, [=](i64 row) {
        const T* from = x + row * stride;
        T* to = y + row * width;
        float sum = sum_across(width, [&](i64 i, auto kind) {
            auto value = read(from + i, kind);
            return value * value;
        });
        float s = 1.0f / std::sqrt(sum / float(width) + eps);
        scale[row] = s;
        if (offset != 0)
            across(width, [&](i64 i, auto kind) {
                write(read(from + i, kind) * s * (offset + read(weight + i, kind)), to + i);
            });
        else
            across(width, [&](i64 i, auto kind) {
                write(rounded<T>(read(from + i, kind) * s) * read(weight + i, kind), to + i);
            });
    });
}

// dx = scale * (g - n * mean(g * n)) with n = x * scale and g = dy * (weight + offset)
template <typename T>
static void backward(i64 rows, i64 width, i64 stride, const void* x_, const void* weight_, float offset,
                     const float* scale, const void* dy_, void* dx_) {
    const T *x = (const T*)x_, *weight = (const T*)weight_, *dy = (const T*)dy_;
    T* dx = (T*)dx_;
    parallel_loop(rows, 16, [=](i64 row) {
        const T *from = x + row * stride, *slope = dy + row * width;
        T* to = dx + row * width;
        float s = scale[row], sum = sum_across(width, [&](i64 i, auto kind) {
            return read(slope + i, kind) * (read(weight + i, kind) + offset) * read(from + i, kind);
        });
        float mean = sum * s / float(width);
        across(width, [&](i64 i, auto kind) {
            auto g = read(slope + i, kind) * (read(weight + i, kind) + offset);
            write((g - read(from + i, kind) * s * mean) * s, to + i);
        });
    });
}

extern "C" void norm_forward(i64 dtype, i64 rows, i64 width, i64 stride, const void* x, const void* weight, float eps,
                             float offset, void* y, float* scale) {
    DISPATCH(dtype, forward, rows, width, stride, x, weight, eps, offset, y, scale);
}

extern "C" void norm_backward(i64 dtype, i64 rows, i64 width, i64 stride, const void* x, const void* weight,
                              float offset, const float* scale, const void* dy, void* dx) {
    DISPATCH(dtype, backward, rows, width, stride, x, weight, offset, scale, dy, dx);
}
