// Attention in float: the entry points of attention_passes.h.
#include "attention_passes.h"

using G = Plain<float>;

// whether this process may compute with it
extern "C" i64 attention_allowed() { return 1; }

extern "C" void attention_forward(const Call* c, float scale, float cap, const void* q, const void* k, const void* v,
                                  void* out, float* lse) {
    forward<G>(*c, {scale, cap}, q, k, v, out, lse);
}

extern "C" void attention_backward(const Call* c, float scale, float cap, const void* q, const void* k, const void* v,
                                   const void* out, const float* lse, const void* dout, void* grads) {
    backward<G>(*c, {scale, cap}, k, v, {q, out, dout, lse, grads});
}
