// Attention of one new token of each text, whose keys and values lie in pages; the new ones are put there first.
//
// Reading keys and values is what takes the time, so they are read once, for all query heads that share them. A task is
// a run of SEGMENT keys of one text and key head; what the runs of a text found is put together at the end. Runs begin
// where the text says, never where its company does: so a text's numbers do not depend on who else is there.
#include "vectors.h"

static const i64 PAGE = 32, SEGMENT = 256;

struct Call {
    i64 rows, heads, kv_heads, width, pages, q_row, q_head, k_row, k_head, v_row, v_head, window;
    const int32_t* table;  // [rows, pages]
    const i64* length;     // [rows], without the new token
};

struct Rate {
    float scale, cap;
};

// where token `at` of a text lies, in tokens of one head
static inline i64 place(const Call& c, i64 row, i64 head, i64 at) {
    return (c.table[row * c.pages + at / PAGE] * c.kv_heads + head) * PAGE + at % PAGE;
}

static inline i64 first_seen(const Call& c, i64 row) {
    const i64 first = c.window ? c.length[row] + 1 - c.window : 0;
    return first < 0 ? 0 : first;
}

template <typename T>
static void keep(const T* from, i64 width, T* to, float*) {
    std::memcpy(to, from, width * sizeof(T));
}

// as KvCache rounds: the largest number becomes 127
template <typename T>
static void keep(const T* from, i64 width, int8_t* to, float* scale) {
    float most = 0;
    for (i64 e = 0; e < width; e++) most = std::fmax(most, std::fabs(to_float(from[e])));
    *scale = most / 127;
    const float by = *scale < 1e-30f ? 1e-30f : *scale;
    for (i64 e = 0; e < width; e++) to[e] = int8_t(std::nearbyint(to_float(from[e]) / by));
}

// the values' sums, weighted: G query heads by V vectors at once, in registers
template <int G, int V, typename S>
static void mix(const Call& c, i64 row, i64 head, i64 first, i64 count, const S* values, const float* weight, float* to,
                i64 stride) {
    vf sum[G][V] = {};
    for (i64 j = 0; j < count; j++) {
        const S* value = values + place(c, row, head, first + j) * c.width;
        for (int e = 0; e < V; e++) {
            const vf x = load16(value + 16 * e);
            for (int g = 0; g < G; g++) sum[g][e] += weight[g * SEGMENT + j] * x;
        }
    }
    for (int g = 0; g < G; g++)
        for (int e = 0; e < V; e++) std::memcpy(to + g * stride + 16 * e, &sum[g][e], 64);
}

template <int V, typename S>
static void mix_heads(const Call& c, i64 row, i64 head, i64 first, i64 count, const S* values, const float* weight,
                      i64 group, float* to, i64 stride) {
    for (i64 g = 0; g < group; g += 4, weight += 4 * SEGMENT, to += 4 * stride) {
        switch (group - g) {
            case 1: mix<1, V>(c, row, head, first, count, values, weight, to, stride); break;
            case 2: mix<2, V>(c, row, head, first, count, values, weight, to, stride); break;
            case 3: mix<3, V>(c, row, head, first, count, values, weight, to, stride); break;
            default: mix<4, V>(c, row, head, first, count, values, weight, to, stride);
        }
    }
}

// One run of keys: for each query head the largest score, the sum of the probabilities' numerators, and the values' sum.
template <typename T, typename S>
static void run(const Call& c, Rate rate, i64 row, i64 head, i64 first, i64 count, const T* q, const S* keys,
                const S* values, const float* key_scales, const float* value_scales, float* room, float* found) {
    const i64 group = c.heads / c.kv_heads, width = c.width, vectors = width / 16;
    float *query = room, *score = room + group * width;
    for (i64 g = 0; g < group; g++)
        for (i64 e = 0; e < width; e++)
            query[g * width + e] = to_float(q[row * c.q_row + (head * group + g) * c.q_head + e]) * rate.scale;
    for (i64 j = 0; j < count; j++) {
        const i64 at = place(c, row, head, first + j);
        const S* key = keys + at * width;
        for (i64 g = 0; g < group; g++) {
            vf sum = {};
            for (i64 e = 0; e < vectors; e++) sum += load16(key + 16 * e) * load16(query + g * width + 16 * e);
            score[g * SEGMENT + j] = sum_of(sum) * (key_scales ? key_scales[at] : 1.0f);
        }
    }
    for (i64 g = 0; g < group; g++) {
        float *s = score + g * SEGMENT, *to = found + g * (width + 2), total = 0;
        if (rate.cap > 0)
            for (i64 j = 0; j < count; j++) s[j] = rate.cap * std::tanh(s[j] / rate.cap);
        const float most = largest(s, count, -INFINITY);
#pragma omp simd reduction(+ : total)
        for (i64 j = 0; j < count; j++) total += s[j] = fast_exp(s[j] - most);
        to[0] = most;
        to[1] = total;
        if (value_scales)
            for (i64 j = 0; j < count; j++) s[j] *= value_scales[place(c, row, head, first + j)];
    }
    const i64 stride = width + 2;
    i64 e = 0;
    for (; e + 4 <= vectors; e += 4)
        mix_heads<4>(c, row, head, first, count, values + 16 * e, score, group, found + 2 + 16 * e, stride);
    for (; e < vectors; e++)
        mix_heads<1>(c, row, head, first, count, values + 16 * e, score, group, found + 2 + 16 * e, stride);
}

template <typename T, typename S>
static void attend(const Call& c, Rate rate, const T* q, const T* k, const T* v, S* keys, S* values, float* key_scales,
                   float* value_scales, T* out) {
    const i64 group = c.heads / c.kv_heads, stride = c.width + 2;
    i64* start = (i64*)scratch(64, (c.rows + 1) * sizeof(i64));  // of each row's runs, among those of one head
    start[0] = 0;
    for (i64 row = 0; row < c.rows; row++)
        start[row + 1] = start[row] + (c.length[row] - first_seen(c, row)) / SEGMENT + 1;
    const i64 runs = start[c.rows];
    float* found = (float*)scratch(64, runs * c.kv_heads * group * stride * sizeof(float));
    in_parallel([=](Team& team) {
        team.each(c.rows * c.kv_heads, [&](i64 n) {
            const i64 row = n / c.kv_heads, head = n % c.kv_heads, at = place(c, row, head, c.length[row]);
            keep(k + row * c.k_row + head * c.k_head, c.width, keys + at * c.width, key_scales + at);
            keep(v + row * c.v_row + head * c.v_head, c.width, values + at * c.width, value_scales + at);
        });
        float* room = (float*)scratch(64, group * (c.width + SEGMENT) * sizeof(float));
        team.wait();
        i64 row = 0;
        team.take(runs * c.kv_heads, 1, [&](i64 n) {
            const i64 which = n / c.kv_heads, head = n % c.kv_heads;
            while (start[row + 1] <= which) row++;
            const i64 first = first_seen(c, row) + (which - start[row]) * SEGMENT, left = c.length[row] + 1 - first;
            run(c, rate, row, head, first, left < SEGMENT ? left : SEGMENT, q, keys, values, key_scales, value_scales,
                room, found + n * group * stride);
        });
        team.wait();
        team.each(c.rows * c.heads, [&](i64 n) {
            const i64 row = n / c.heads, head = n % c.heads / group, of_group = n % c.heads % group;
            const i64 step = c.kv_heads * group * stride;
            const float* mine = found + ((start[row] * c.kv_heads + head) * group + of_group) * stride;
            const i64 parts = start[row + 1] - start[row];
            float most = mine[0], total = 0, *sum = room;
            for (i64 i = 1; i < parts; i++) most = std::fmax(most, mine[i * step]);
            for (i64 e = 0; e < c.width; e++) sum[e] = 0;
            for (i64 i = 0; i < parts; i++) {
                const float weight = fast_exp(mine[i * step] - most);
                total += weight * mine[i * step + 1];
                for (i64 e = 0; e < c.width; e++) sum[e] += weight * mine[i * step + 2 + e];
            }
            for (i64 e = 0; e < c.width; e++) put(sum[e] / total, out + n * c.width + e);
        });
        std::free(room);
    });
    std::free(found);
    std::free(start);
}

struct Write {
    i64 tokens, kv_heads, width, k_token, k_head, v_token, v_head;
    const i64 *page, *within;  // [tokens]
};

template <typename T, typename S>
static void write(const Write& c, const T* k, const T* v, S* keys, S* values, float* key_scales, float* value_scales) {
    parallel_loop(c.tokens, 64, [=](i64 t) {
        for (i64 head = 0; head < c.kv_heads; head++) {
            const i64 at = (c.page[t] * c.kv_heads + head) * PAGE + c.within[t];
            keep(k + t * c.k_token + head * c.k_head, c.width, keys + at * c.width, key_scales + at);
            keep(v + t * c.v_token + head * c.v_head, c.width, values + at * c.width, value_scales + at);
        }
    });
}

// calls body(T(), S()) for numbers of `dtype` that are kept as they are, or in 8 bits
template <typename Body>
static void dispatch(i64 dtype, bool bytes, const Body& body) {
    if (dtype == 0)
        bytes ? body(float(), int8_t()) : body(float(), float());
    else
        bytes ? body(bf16(), int8_t()) : body(bf16(), bf16());
}

// k and v [tokens, K, E] to their places
extern "C" void paged_write(i64 dtype, const Write* c, const void* k, const void* v, void* keys, void* values,
                            float* key_scales, float* value_scales) {
    dispatch(dtype, key_scales != nullptr, [&](auto number, auto kept) {
        using T = decltype(number);
        using S = decltype(kept);
        write(*c, (const T*)k, (const T*)v, (S*)keys, (S*)values, key_scales, value_scales);
    });
}

// q [rows, H, E], k and v [rows, K, E] of the new tokens; keys and values [pages, K, PAGE, E] of `dtype` or, with their
// scales [pages, K, PAGE], of 8 bits; out [rows, H, E]. E is a multiple of 16.
extern "C" void paged_attention(i64 dtype, const Call* c, float scale, float cap, const void* q, const void* k,
                                const void* v, void* keys, void* values, float* key_scales, float* value_scales,
                                void* out) {
    const Rate rate = {scale, cap};
    dispatch(dtype, key_scales != nullptr, [&](auto number, auto kept) {
        using T = decltype(number);
        using S = decltype(kept);
        attend(*c, rate, (const T*)q, (const T*)k, (const T*)v, (S*)keys, (S*)values, key_scales, value_scales, (T*)out);
    });
}
