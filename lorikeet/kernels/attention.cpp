// Attention in bfloat16: the entry points of attention_passes.h.
#include "attention_passes.h"

#if HAS_PAIRS
using G = Pairs;
#else
using G = Plain<bf16>;
#endif

// whether this process may compute with it
extern "C" i64 attention_allowed() {
#if HAS_PAIRS
    return tiles_allowed();
#else
    return 1;
#endif
}

extern "C" void attention_forward(const Call* c, float scale, float cap, const void* q, const void* k, const void* v,
                                  void* out, float* lse) {
    forward<G>(*c, {scale, cap}, q, k, v, out, lse);
}

extern "C" void attention_backward(const Call* c, float scale, float cap, const void* q, const void* k, const void* v,
                                   const void* out, const float* lse, const void* dout, void* grads) {
    backward<G>(*c, {scale, cap}, k, v, {q, out, dout, lse, grads});
}
