// act(gate) * up for gate_up [T, 2 F], gate first; act is silu (0) or the tanh form of gelu (1).
#include "vectors.h"

// for one number or 16
struct Silu {
    template <typename V> static V slope(V x, V s) { return s * (1.0f + x * (1.0f - s)); }
    template <typename V> static V inside(V x) { return x; }
};

// 0.5 x (1 + tanh(u)) = x * sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3)
struct GeluTanh {
    template <typename V> static V slope(V x, V s) {
        return s + x * s * (1.0f - s) * 1.5957691216f * (1.0f + 0.134145f * x * x);
    }
    template <typename V> static V inside(V x) { return 1.5957691216f * (x + 0.044715f * x * x * x); }
};

template <typename T, typename Act>
static void forward(i64 rows, i64 width, const void* gate_up, void* out) {
    parallel_loop(rows, 16, [=](i64 row) {
        const T *gate = (const T*)gate_up + row * 2 * width, *up = gate + width;
        T* to = (T*)out + row * width;
        across(width, [&](i64 i, auto kind) {
            auto g = read(gate + i, kind);
            write(g * sigmoid(Act::inside(g)) * read(up + i, kind), to + i);
        });
    });
}

// dgate_up [T, 2 F] from dy [T, F], and the product again where `out` is given. dgate_up may be gate_up itself.
template <typename T, typename Act>
static void backward(i64 rows, i64 width, const void* gate_up, const void* dy_, void* dgate_up, void* out_) {
    parallel_loop(rows, 16, [=](i64 row) {
        const T *gate = (const T*)gate_up + row * 2 * width, *up = gate + width, *dy = (const T*)dy_ + row * width;
        T *dgate = (T*)dgate_up + row * 2 * width, *dup = dgate + width, *out = (T*)out_ + row * width;
        if (out_)
            across(width, [&](i64 i, auto kind) {
                auto g = read(gate + i, kind), u = read(up + i, kind), d = read(dy + i, kind);
                auto s = sigmoid(Act::inside(g)), value = g * s;
                write(value * u, out + i);
                write(d * value, dup + i);
                write(d * u * Act::slope(g, s), dgate + i);
            });
        else
            across(width, [&](i64 i, auto kind) {
                auto g = read(gate + i, kind), u = read(up + i, kind), d = read(dy + i, kind);
                auto s = sigmoid(Act::inside(g));
                write(d * g * s, dup + i);
                write(d * u * Act::slope(g, s), dgate + i);
            });
    });
}

extern "C" void swiglu_forward(i64 dtype, i64 act, i64 rows, i64 width, const void* gate_up, void* out) {
    if (act == 0)
        dtype == 0 ? forward<float, Silu>(rows, width, gate_up, out) : forward<bf16, Silu>(rows, width, gate_up, out);
    else
        dtype == 0 ? forward<float, GeluTanh>(rows, width, gate_up, out)
                   : forward<bf16, GeluTanh>(rows, width, gate_up, out);
}

extern "C" void swiglu_backward(i64 dtype, i64 act, i64 rows, i64 width, const void* gate_up, const void* dy,
                                void* dgate_up, void* out) {
    if (act == 0)
        dtype == 0 ? backward<float, Silu>(rows, width, gate_up, dy, dgate_up, out)
                   : backward<bf16, Silu>(rows, width, gate_up, dy, dgate_up, out);
    else
        dtype == 0 ? backward<float, GeluTanh>(rows, width, gate_up, dy, dgate_up, out)
                   : backward<bf16, GeluTanh>(rows, width, gate_up, dy, dgate_up, out);
}
