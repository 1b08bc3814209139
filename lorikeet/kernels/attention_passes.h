// Attention over a packed row: key k is seen by the queries q with k <= q < until[k] and place[q] < limit[k].
//
// Texts stand in a padded row (multiples of 32 per text), cut by the caller into blocks of queries, each with the
// segments of keys that any of its queries sees. Scores are computed as keys x queries: a vector holds 16 queries, so
// the softmax needs no sums across lanes, and the backward pass uses the score tiles as they are, without transposing.
// Forward: Dao 2023 (FlashAttention-2), the running maximum raised only when it grew by more than 2^8. Backward: a task
// is a part of a text and one key head; it sums dk and dv for itself, and a last pass adds the parts in their order,
// so the result depends on no thread.
#pragma once
#include "attention_tiles.h"

constexpr float LOG2E = 1.44269504088896f;
constexpr float LATE = 8.0f;  // powers of two that a score may exceed the running maximum by

struct Call {
    i64 heads, kv_heads, width, padded, strips, blocks, parts, partial_rows, longest, block_queries, segment_keys;
    // Strides of q, k, v and dout: token, head
    i64 q_token, q_head, k_token, k_head, v_token, v_head, g_token, g_head;
    const struct Block* block;
    const struct Segment* segment;
    const struct Strip* strip;
    const struct Part* part;
    const int32_t *order, *until, *limit, *place;
};
struct Block {
    int32_t first, queries, token, real, segment, segments;
};
struct Segment {
    int32_t first, keys, masked;  // a bit for each 32 keys that not all queries see
};
struct Strip {
    int32_t token, real, part, parts;  // 32 keys, and the parts of their text
};
struct Part {
    int32_t block, blocks, first, keys;  // keys that its queries see
    int32_t row;                         // its first row among the partial sums; -1 where it is its text's only part
};

// Of a segment of keys and a pair of columns (32 queries): strips of 32 keys that begin at or before the last query.
static inline int strips_met(const Segment& s, int query) {
    const int strips = s.keys / 32, met = (query + 31 - s.first) / 32 + 1;
    return query + 31 < s.first ? 0 : (met < strips ? met : strips);
}

struct Memory {
    char* at = nullptr;
    i64 size = 0;
    char* of(i64 bytes) {
        if (bytes > size) {
            std::free(at);
            size = (bytes + (1 << 16) - 1) & -(1 << 16);
            at = (char*)scratch(64, size);
        }
        return at;
    }
    ~Memory() { std::free(at); }
};
static thread_local Memory own, sums_memory, packed_memory, partial_memory;  // kept: new pages cost more than the work in them

template <class G>
static constexpr i64 item() {
    return G::DEPTH == 32 ? 2 : 4;
}

// The 32 rows from `token` of head `head`
template <typename T>
static Rows<T> rows(const void* x, i64 token, i64 head, i64 token_stride, i64 head_stride, int real) {
    return {(const T*)x + token * token_stride + head * head_stride, token_stride, real};
}

// tiles of `count` rows: as A with the rows as rows, as A with the rows as columns, and both as B
template <class G>
static void pack_a_rows(const Rows<typename G::Source>& from, int count, i64 width, char* to) {
    for (int r = 0; r < count; r += 16)
        for (i64 e = 0; e < width; e += G::DEPTH, to += TILE) G::a_rows(from, r, e, to);
}

template <class G>
static void pack_a_columns(const Rows<typename G::Source>& from, int count, i64 width, char* to) {
    for (int r = 0; r < count; r += G::DEPTH)
        for (i64 e = 0; e < width; e += 16, to += TILE) G::a_columns(from, r, e, to);
}

template <class G>
static void pack_b_rows(const Rows<typename G::Source>& from, int count, i64 width, char* to) {
    for (int r = 0; r < count; r += G::DEPTH)
        for (i64 e = 0; e < width; e += 16, to += TILE) G::b_rows(from, r, e, to);
}

template <class G>
static void pack_b_columns(const Rows<typename G::Source>& from, int count, i64 width, char* to) {
    for (i64 e = 0; e < width; e += G::DEPTH)
        for (int r = 0; r < count; r += 16, to += TILE) G::b_columns(from, r, e, to);
}

static inline vi lanes(int first) {
    return vi{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + first;
}

// which of 16 queries see a key
struct Sight {
    const Call& c;
    vi query, place;
    Sight(const Call& call, int first) : c(call), query(lanes(first)) { std::memcpy(&place, c.place + first, 64); }
    vi sees(int key) const { return (query >= key) & (query < c.until[key]) & (place < c.limit[key]); }
};

static inline vf choose(vi mask, vf yes, vf no) {
#ifdef __AVX512F__
    return (vf)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)mask), (__m512)no, (__m512)yes);
#else
    return mask ? yes : no;
#endif
}

static inline bool any(vi mask) {
#ifdef __AVX512F__
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#else
    bool found = false;
    for (int i = 0; i < 16; i++) found |= mask[i] != 0;
    return found;
#endif
}

// cap * tanh(score * scale / cap), from score
static inline vf capped(vf score, float scale, float cap) {
    vf x = score * (2.0f * LOG2E * scale / cap);
    return cap - 2.0f * cap / (exp2_of<6>(larger(x, all(-100.0f))) + 1.0f);
}

struct Rate {
    float scale, cap;  // cap 0: none
    float power() const { return (cap > 0 ? 1.0f : scale) * LOG2E; }
};

// One column of 16 queries: scores [keys, 16] become probabilities, B tiles; the running maximum and sum move on.
template <class G>
static bool soften(const Call& c, const Segment& s, Rate rate, int query, int column, int queries, int tiles,
                   void* scores, void* chances, vf& most, vf& sum, vf& shrink) {
    const int columns = queries / 16;
    const float power = rate.power();
    const Sight sight(c, query + column * 16);
    vf top[4] = {all(NOWHERE), all(NOWHERE), all(NOWHERE), all(NOWHERE)};
    int seen = 0;  // tiles before the diagonal's end
    for (int t = 0; t < tiles; t++) {
        const int key = s.first + t * 16;
        vf* at = row_of(scores, t * columns + column, 0);
        const bool masked = s.masked >> (t / 2) & 1;
        if (masked && key > query + column * 16 + 15) break;
        seen = t + 1;
        if (rate.cap > 0)
            for (int i = 0; i < 16; i++) at[i] = capped(at[i], rate.scale, rate.cap);
        if (masked)
            for (int i = 0; i < 16; i++) at[i] = choose(sight.sees(key + i), at[i], all(NOWHERE));
        for (int i = 0; i < 16; i++) top[i % 4] = larger(top[i % 4], at[i]);
    }
    vf found = larger(larger(top[0], top[1]), larger(top[2], top[3])) * power;
    bool raised = false;
    if (any(found > most + LATE)) {
        raised = true;
        vf next = larger(most, found);
        shrink = exp2_of<6>(most - next);
        sum *= shrink;
        most = next;
    }
    vf other = vf{};
    for (int t = 0; t < seen; t++) {
        const vf* at = row_of(scores, t * columns + column, 0);
        for (int i = 0; i < 16; i += 2) {
            vf first = exp2_of<G::DEGREE>(at[i] * power - most), second = exp2_of<G::DEGREE>(at[i + 1] * power - most);
            sum += first;
            other += second;
            G::put_b(chances, queries, t * 16 + i, column * 16, first, second);
        }
    }
    for (int t = seen; t < tiles; t++)
        for (int i = 0; i < 16; i += 2) G::put_b(chances, queries, t * 16 + i, column * 16, vf{}, vf{});
    sum += other;
    return raised;
}

template <class G>
static i64 forward_bytes(const Call& c) {
    return c.block_queries * c.width * (item<G>() + 4) + c.segment_keys * c.block_queries * (item<G>() + 4);
}

template <class G>
static void forward_block(const Call& c, Rate rate, const Block& b, i64 head, const void* q, const char* keys,
                          const char* values, void* out, float* lse, char* at) {
    using T = typename G::Source;
    const i64 width = c.width, deep = width / G::DEPTH, wide = width / 16, columns = b.queries / 16;
    char* queries = at;
    char* mixed = queries + c.block_queries * width * item<G>();
    char* scores = mixed + c.block_queries * width * 4;
    char* chances = scores + c.segment_keys * c.block_queries * 4;
    pack_b_columns<G>(rows<T>(q, b.token, head, c.q_token, c.q_head, b.real), b.queries, width, queries);
    vf most[16], sum[16], shrink;
    for (int j = 0; j < columns; j++) most[j] = all(NOWHERE), sum[j] = vf{};
    for (int n = 0; n < b.segments; n++) {
        const Segment& s = c.segment[b.segment + n];
        const i64 offset = s.first * width * item<G>();
        for (int j = 0; j < columns; j += 2) {
            const int strips = strips_met(s, b.first + j * 16);
            if (strips == 0) continue;
            char *score = scores + j * TILE, *chance = chances + j * TILE, *mix = mixed + j * TILE;
            G::multiply({score, columns, 1}, {keys + offset, deep, 1}, {queries + j * TILE, columns, 1}, strips * 2, 2,
                        deep, false);
            for (int u = j; u < j + 2; u++)
                if (soften<G>(c, s, rate, b.first, u, b.queries, strips * 2, scores, chances, most[u], sum[u], shrink) &&
                    n > 0)
                    for (int e = 0; e < wide; e++)
                        for (int i = 0; i < 16; i++) *row_of(mixed, e * columns + u, i) *= shrink;
            G::multiply({mix, columns, 1}, {values + offset, 1, wide}, {chance, columns, 1}, wide, 2,
                        strips * 32 / G::DEPTH, n > 0);
        }
    }
    for (int j = 0; j < columns; j++) {
        const int real = b.real - j * 16 < 0 ? 0 : (b.real - j * 16 > 16 ? 16 : b.real - j * 16);
        for (int e = 0; e < wide; e += 2)
            G::store_columns(mixed, e * columns + j, columns, 1.0f / sum[j],
                             (T*)out + ((b.token + j * 16) * c.heads + head) * width + e * 16, c.heads * width, real);
        for (int i = 0; i < 16; i++) lse[b.first + j * 16 + i] = i < real ? most[j][i] + std::log2(sum[j][i]) : 0.0f;
    }
}

template <class G>
static void forward(const Call& c, Rate rate, const void* q, const void* k, const void* v, void* out, float* lse) {
    using T = typename G::Source;
    const i64 side = c.padded * c.width * item<G>();  // of one head's keys
    char* packed = packed_memory.of(2 * c.kv_heads * side);
    in_parallel([=](Team& team) {
        char* at = own.of(forward_bytes<G>(c));
        G::begin();
        team.each(c.kv_heads * c.strips, [&](i64 n) {
            const i64 head = n / c.strips, place = n % c.strips;
            const Strip& s = c.strip[place];
            char* to = packed + head * side + place * 32 * c.width * item<G>();
            pack_a_rows<G>(rows<T>(k, s.token, head, c.k_token, c.k_head, s.real), 32, c.width, to);
            pack_a_columns<G>(rows<T>(v, s.token, head, c.v_token, c.v_head, s.real), 32, c.width,
                              to + c.kv_heads * side);
        });
        team.wait();
        team.take(c.heads * c.blocks, 1, [&](i64 n) {
            const i64 head = n / c.blocks;
            const char* keys = packed + head / (c.heads / c.kv_heads) * side;
            forward_block<G>(c, rate, c.block[n % c.blocks], head, q, keys, keys + c.kv_heads * side, out,
                             lse + head * c.padded, at);
        });
        G::end();
    });
}

// Scores and their gradients [keys, 32 queries] become probabilities (A) and score gradients (A and B).
template <class G>
static void slope(const Call& c, const Segment& s, Rate rate, int query, int column, int queries, int tiles,
                  const float* lse, const float* delta, void* scores, void* dchances, void* chances, void* dscores_a,
                  void* dscores_b) {
    const int columns = queries / 16;
    const float power = rate.power(), inverse = rate.cap > 0 ? 1.0f / rate.cap : 0.0f;
    const Sight sight[2] = {{c, query + column * 16}, {c, query + column * 16 + 16}};
    const vf level[2] = {load16(lse), load16(lse + 16)}, drop[2] = {load16(delta), load16(delta + 16)};
    for (int t = 0; t < tiles; t++) {
        const int key = s.first + t * 16;
        const bool masked = s.masked >> (t / 2) & 1;
        const bool hidden = masked && key > query + column * 16 + 31;
        const vf *score = row_of(scores, t * columns + column, 0), *dchance = row_of(dchances, t * columns + column, 0);
        for (int i = 0; i < 16; i += 2) {
            vf p[2][2] = {}, d[2][2] = {};
            if (!hidden)
                for (int w = 0; w < 2; w++)
                    for (int u = 0; u < 2; u++) {
                        vf z = score[w * 16 + i + u];
                        if (rate.cap > 0) z = capped(z, rate.scale, rate.cap);
                        vf one = exp2_of<G::DEGREE>(z * power - level[w]);
                        if (masked) one = choose(sight[w].sees(key + i + u), one, vf{});
                        vf slope = one * (dchance[w * 16 + i + u] - drop[w]);
                        if (rate.cap > 0) slope *= 1.0f - z * inverse * (z * inverse);
                        p[u][w] = one;
                        d[u][w] = slope;
                    }
            G::put_ab(chances, nullptr, queries, t * 16 + i, column * 16, p[0], p[1]);
            G::put_ab(dscores_a, dscores_b, queries, t * 16 + i, column * 16, d[0], d[1]);
        }
    }
}

template <class G>
static i64 backward_bytes(const Call& c) {
    return c.block_queries * (c.width * (4 * item<G>() + 4) + 4) +
           c.segment_keys * c.block_queries * (3 * item<G>() + 8);
}

struct Tensors {
    const void *q, *out, *dout;
    const float* lse;
    void* grads;  // [tokens, heads + 2 kv_heads, width]
};

template <class G>
static void backward_block(const Call& c, Rate rate, const Block& b, i64 head, const Tensors& x, const char* keys,
                           i64 third, char* dkeys, char* dvalues, int first, char* at) {
    using T = typename G::Source;
    const i64 width = c.width, deep = width / G::DEPTH, wide = width / 16, columns = b.queries / 16,
              steps = b.queries / G::DEPTH, all_heads = c.heads + 2 * c.kv_heads;
    const i64 side = c.block_queries * width * item<G>(), area = c.segment_keys * c.block_queries;
    char *q_columns = at, *g_columns = at + side, *q_rows = at + 2 * side, *g_rows = at + 3 * side;
    char *dqueries = at + 4 * side, *scores = dqueries + c.block_queries * width * 4, *dchances = scores + area * 4;
    char *chances = dchances + area * 4, *dscores_a = chances + area * item<G>();
    char* dscores_b = G::SHARED ? dscores_a : dscores_a + area * item<G>();
    float* delta = (float*)(dscores_a + 2 * area * item<G>());
    const Rows<T> q = rows<T>(x.q, b.token, head, c.q_token, c.q_head, b.real);
    const Rows<T> g = rows<T>(x.dout, b.token, head, c.g_token, c.g_head, b.real);
    const Rows<T> out = rows<T>(x.out, b.token, head, c.heads * width, width, b.real);
    pack_b_columns<G>(q, b.queries, width, q_columns);
    pack_b_columns<G>(g, b.queries, width, g_columns);
    pack_b_rows<G>(q, b.queries, width, q_rows);
    pack_b_rows<G>(g, b.queries, width, g_rows);
    for (int i = 0; i < b.queries; i++) {
        vf sum = vf{};
        for (i64 e = 0; e < width; e += 16) sum += load16(g.at(i) + e) * load16(out.at(i) + e);
        float total = 0;
        for (int e = 0; e < 16; e++) total += sum[e];
        delta[i] = total;
    }
    for (int n = 0; n < b.segments; n++) {
        const Segment& s = c.segment[b.segment + n];
        const i64 offset = s.first * width * item<G>(), to = (s.first - first) * width * 4;
        for (int j = 0; j < columns; j += 2) {
            const int strips = strips_met(s, b.first + j * 16), tiles = strips * 2;
            if (strips == 0) continue;
            const i64 to_column = j * TILE;
            G::multiply({scores + to_column, columns, 1}, {keys + offset, deep, 1}, {q_columns + to_column, columns, 1},
                        tiles, 2, deep, false);
            G::multiply({dchances + to_column, columns, 1}, {keys + third + offset, deep, 1},
                        {g_columns + to_column, columns, 1}, tiles, 2, deep, false);
            slope<G>(c, s, rate, b.first, j, b.queries, tiles, x.lse + b.first + j * 16, delta + j * 16, scores,
                     dchances, chances, dscores_a, dscores_b);
            G::multiply({dqueries + to_column, columns, 1}, {keys + 2 * third + offset, 1, wide},
                        {dscores_b + to_column, columns, 1}, wide, 2, strips * 32 / G::DEPTH, n > 0);
        }
        for (int t = 0; t < s.keys / 16; t += 2) {
            const int late = s.first + t * 16 - b.first, skip = late > 0 ? late / G::DEPTH : 0;
            if (skip >= steps) break;
            const i64 sum = to + t * wide * TILE, step = (t * steps + skip) * TILE, row = skip * wide * TILE;
            G::multiply({dvalues + sum, wide, 1}, {chances + step, steps, 1}, {g_rows + row, wide, 1}, 2, wide,
                        steps - skip, true);
            G::multiply({dkeys + sum, wide, 1}, {dscores_a + step, steps, 1}, {q_rows + row, wide, 1}, 2, wide,
                        steps - skip, true);
        }
    }
    for (int j = 0; j < columns; j++) {
        const int real = b.real - j * 16 < 0 ? 0 : (b.real - j * 16 > 16 ? 16 : b.real - j * 16);
        for (int e = 0; e < wide; e += 2)
            G::store_columns(dqueries, e * columns + j, columns, all(rate.scale),
                             (T*)x.grads + ((b.token + j * 16) * all_heads + head) * width + e * 16,
                             all_heads * width, real);
    }
}

// dk and dv of 32 keys: the parts' sums, in their order. Sums begin at dkeys and dvalues.
template <class G>
static void join(const Call& c, float scale, i64 head, i64 place, const Part* part, int parts, const char* dkeys,
                 const char* dvalues, void* grads) {
    using T = typename G::Source;
    const Strip& s = c.strip[place];
    const i64 wide = c.width / 16, all_heads = c.heads + 2 * c.kv_heads;
    for (int side = 0; side < 2; side++) {
        const float factor = side == 0 ? scale : 1.0f;
        T* to = (T*)grads + (s.token * all_heads + c.heads + side * c.kv_heads + head) * c.width;
        for (int r = 0; r < s.real; r++)
            for (i64 e = 0; e < wide; e++) {
                vf sum = vf{};
                for (int n = 0; n < parts; n++) {
                    const i64 row = place * 32 - part[n].first;
                    if (row < 0 || row >= part[n].keys) continue;
                    const char* from = (side == 0 ? dkeys : dvalues) + (part[n].row + row) * c.width * 4;
                    sum += *row_of((void*)from, r / 16 * wide + e, r % 16);
                }
                store16(sum * factor, to + r * all_heads * c.width + e * 16);
            }
    }
}

// One part of a text and one key head
template <class G>
static void backward_part(const Call& c, Rate rate, Part p, i64 head, const Tensors& x, const char* keys, i64 third,
                          char* dkeys, char* dvalues, char* at) {
    const bool only = p.row < 0;
    if (only) p.row = 0;
    char *mine = dkeys + p.row * c.width * 4, *other = dvalues + p.row * c.width * 4;
    std::memset(mine, 0, p.keys * c.width * 4);
    std::memset(other, 0, p.keys * c.width * 4);
    const i64 group = c.heads / c.kv_heads;
    for (i64 h = head * group; h < (head + 1) * group; h++) {
        Tensors of_head = x;
        of_head.lse += h * c.padded;
        for (int b = 0; b < p.blocks; b++)
            backward_block<G>(c, rate, c.block[p.block + b], h, of_head, keys, third, mine, other, p.first, at);
    }
    if (only)
        for (int place = p.first / 32; place < (p.first + p.keys) / 32; place++)
            join<G>(c, rate.scale, head, place, &p, 1, dkeys, dvalues, x.grads);
}

template <class G>
static void backward(const Call& c, Rate rate, const void* k, const void* v, const Tensors& x) {
    using T = typename G::Source;
    const i64 side = c.padded * c.width * item<G>(), third = c.kv_heads * side;
    const i64 half = c.kv_heads * c.partial_rows * c.width * 4, longest = c.longest * c.width * 4;
    char *packed = packed_memory.of(3 * third), *partial = partial_memory.of(2 * half);
    in_parallel([=](Team& team) {
        char *at = own.of(backward_bytes<G>(c)), *alone = sums_memory.of(2 * longest);
        G::begin();
        team.each(c.kv_heads * c.strips, [&](i64 n) {
            const i64 head = n / c.strips, place = n % c.strips;
            const Strip& s = c.strip[place];
            char* to = packed + head * side + place * 32 * c.width * item<G>();
            const Rows<T> keys = rows<T>(k, s.token, head, c.k_token, c.k_head, s.real);
            pack_a_rows<G>(keys, 32, c.width, to);
            pack_a_rows<G>(rows<T>(v, s.token, head, c.v_token, c.v_head, s.real), 32, c.width, to + third);
            pack_a_columns<G>(keys, 32, c.width, to + 2 * third);
        });
        team.wait();
        team.take(c.kv_heads * c.parts, 1, [&](i64 n) {
            const i64 head = n % c.kv_heads, shift = head * c.partial_rows * c.width * 4;
            const Part& p = c.part[c.order[n / c.kv_heads]];
            char* sums = p.row < 0 ? alone : partial + shift;
            backward_part<G>(c, rate, p, head, x, packed + head * side, third, sums, sums + (p.row < 0 ? longest : half),
                             at);
        });
        if (c.partial_rows > 0) {
            team.wait();
            team.each(c.kv_heads * c.strips, [&](i64 n) {
                const i64 head = n / c.strips, place = n % c.strips;
                const Strip& s = c.strip[place];
                const char* sums = partial + head * c.partial_rows * c.width * 4;
                if (s.parts > 1)
                    join<G>(c, rate.scale, head, place, c.part + s.part, s.parts, sums, sums + half, x.grads);
            });
        }
        G::end();
    });
}

