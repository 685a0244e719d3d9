// Attention without the matrix of scores: blocks of keys with a running maximum and sum (https://arxiv.org/abs/2205.14135).
// Everything is computed transposed, [keys][NR queries], so that the softmax runs down the rows of whole vectors and its
// result is at once a panel for the product with the values.
#pragma once

#include "low.h"

namespace zoo::ZOO_ISA {

constexpr int64_t kKeyBlock = 128;
constexpr int64_t kScoreRun = 32;  // words of a score summed in one run: its error is a relative one of what comes after
#define ZOO_MINUS_INF (-__builtin_inff())

struct Attention : zoo_attention_args {
    bool masked, causal;
    int64_t mask_stride[4];
    int64_t panels, chunks;  // panels of NR queries, split into tasks of their own
    bool failed;
};

// mask[t0.., s] of NR queries, -inf beyond the last.
ZOO_INLINE void mask_row(const float* mask, int64_t stride_t, int64_t queries, V out[NV]) {
    if (stride_t == 0) {
        for (int j = 0; j < NV; ++j) out[j] = splat(*mask);
        return;
    }
    if (stride_t == 1 && queries == NR) {
        for (int j = 0; j < NV; ++j) out[j] = load(mask + j * W);
        return;
    }
    alignas(64) float row[NR] = {};
    for (int64_t j = 0; j < queries; ++j) row[j] = mask[j * stride_t];
    for (int j = 0; j < NV; ++j) out[j] = load(row + j * W);
}

// Keys of a block: whole tiles, and whole words.
template <class K>
ZOO_INLINE int64_t key_block(int64_t tile) {
    int64_t tiles = ceil_div(kKeyBlock, tile);
    return (tiles + (tiles * tile) % K::kPerWord) * tile;
}

template <class K>
static void attend_panel(const Attention& x, const float* packed_k, const float* packed_v, const float* q,
                         const float* mask, float* out, int64_t t0, int64_t keys, float* work) {
    const int64_t D = x.width, E = x.value_width, mk = tile_rows(x.keys), mv = tile_rows(E);
    const int64_t queries = least(NR, x.queries - t0);
    float* panel = work;                                    // [D][NR]
    float* scores = panel + D * NR;                         // [block][NR]
    float* total = scores + (kKeyBlock + 2 * MR) * NR;      // [E][NR]
    if constexpr (K::kPerWord == 1) {
        pack_panel(q + t0 * x.q_stride[2], 1, x.q_stride[2], queries, D, panel);
    } else {
        if (queries < NR) memset(panel, 0, sizeof(float) * words_of<K>(D) * NR);
        words_of_rows<K>(q + t0 * x.q_stride[2], x.q_stride[2], queries, D, panel, NR);
    }
    if (x.causal) keys = least(keys, t0 + queries);
    V top[NV], sums[NV];
    for (int j = 0; j < NV; ++j) top[j] = splat(ZOO_MINUS_INF), sums[j] = V{};
    // where nothing is added, scores stay as the products give them; a difference of two is so many powers of 2
    const bool plain = !mask && !x.causal && x.scale > 0;
    const V factor = splat(x.scale), unit = splat(plain ? x.scale * 1.44269504f : 1.44269504f);
    const int64_t DW = words_of<K>(D), SW = words_of<K>(x.keys), block = key_block<K>(mk);
    for (int64_t s0 = 0; s0 < keys; s0 += block) {
        int64_t here = least(block, keys - s0);
        for (int64_t s = s0; s < s0 + here; s += mk) {
            const int64_t rows = least(mk, x.keys - s);
            for (int64_t d = 0; d < DW; d += kScoreRun)
                product<K>(packed_k + s * DW + d * rows, panel + d * NR, rows, least(kScoreRun, DW - d), scores + (s - s0) * NR, d == 0);
        }
        V seen[NV];
        for (int j = 0; j < NV; ++j) seen[j] = top[j];
        for (int64_t s = 0; s < here; ++s) {
            float* row = scores + s * NR;
            V added[NV];
            if (mask) mask_row(mask + t0 * x.mask_stride[2] + (s0 + s) * x.mask_stride[3], x.mask_stride[2], queries, added);
            for (int j = 0; j < NV; ++j) {
                V score = load(row + j * W);
                if (!plain) score *= factor;
                if (mask) score += added[j];
                if (x.causal && s0 + s > t0 + j * W) {
                    for (int i = 0; i < W; ++i)
                        if (s0 + s > t0 + j * W + i) score[i] = ZOO_MINUS_INF;
                }
                if (!plain) store(row + j * W, score);
                seen[j] = max(seen[j], score);
            }
        }
        V less[NV];
        for (int j = 0; j < NV; ++j) {
            less[j] = seen[j] == ZOO_MINUS_INF ? V{} : seen[j];  // no key so far: 2^(-inf - 0) is 0, not NaN
            V shrink = exp2_below((top[j] - less[j]) * unit);
            top[j] = seen[j];
            sums[j] *= shrink;
            if (s0)
                for (int64_t e = 0; e < E; ++e) store(total + e * NR + j * W, load(total + e * NR + j * W) * shrink);
        }
        V own[NV];
        for (int j = 0; j < NV; ++j) own[j] = V{};
        for (int64_t s = 0; s < here; s += K::kPerWord) {
            for (int j = 0; j < NV; ++j) {
                const float* at = scores + s * NR + j * W;
                if constexpr (K::kPerWord == 1) {
                    V p = exp2_below((load(at) - less[j]) * unit);
                    store(scores + s * NR + j * W, p);
                    own[j] += p;
                } else {
                    V p = exp2_below_rough((load(at) - less[j]) * unit);
                    V next = s + 1 < here ? exp2_below_rough((load(at + NR) - less[j]) * unit) : V{};
                    store(scores + s / 2 * NR + j * W, K::pairs(p, next));
                    own[j] += p + next;
                }
            }
        }
        for (int j = 0; j < NV; ++j) sums[j] += own[j];
        for (int64_t e = 0; e < E; e += mv) {
            int64_t rows = least(mv, E - e);
            product<K>(packed_v + e * SW + s0 / K::kPerWord * rows, scores, rows, words_of<K>(here), total + e * NR, s0 == 0);
        }
    }
    if (keys <= 0) memset(total, 0, sizeof(float) * E * NR);
    for (int j = 0; j < NV; ++j) {
        V share = mask ? (sums[j] == 0.0f ? V{} : 1.0f / sums[j]) : 1.0f / sums[j];
        for (int64_t e = 0; e < E; ++e) store(total + e * NR + j * W, load(total + e * NR + j * W) * share);
    }
    transpose(total, NR, 1, E, queries, out + t0 * x.out_stride[2], x.out_stride[2]);
}

// Keys that the last one not masked is before of; all where the mask differs between queries.
ZOO_INLINE int64_t visible(const Attention& x, const float* mask) {
    int64_t keys = x.keys;
    if (mask && x.mask_stride[2] == 0)
        while (keys > 0 && mask[(keys - 1) * x.mask_stride[3]] == ZOO_MINUS_INF) --keys;
    return keys;
}

constexpr int kAtOnce = 8;

// out[e] = share * sum over s of scores[s] v[s][e], for as many e as there are registers for; says how many those were.
// Runs of keys have sums of their own: bounds the rounding error.
static int64_t weighted_sum(const float* v, int64_t stride, const float* scores, int64_t keys, int64_t E, float share, float* out) {
    int64_t full = least(kAtOnce, E / W);
    V total[kAtOnce] = {};
    if (full == 0) {
        for (int64_t s = 0; s < keys; ++s) total[0] += scores[s] * load_some(v + s * stride, E);
        store_some(out, keys ? total[0] * share : V{}, E);
        return E;
    }
    for (int64_t s0 = 0; s0 < keys; s0 += kKeyBlock) {
        V own[kAtOnce] = {};
        const int64_t end = least(keys, s0 + kKeyBlock);
        if (full == kAtOnce) {
            for (int64_t s = s0; s < end; ++s)
                for (int j = 0; j < kAtOnce; ++j) own[j] += scores[s] * load(v + s * stride + j * W);
        } else if (full == kAtOnce / 2) {
            for (int64_t s = s0; s < end; ++s)
                for (int j = 0; j < kAtOnce / 2; ++j) own[j] += scores[s] * load(v + s * stride + j * W);
        } else {
            for (int64_t s = s0; s < end; ++s)
                for (int j = 0; j < full; ++j) own[j] += scores[s] * load(v + s * stride + j * W);
        }
        for (int j = 0; j < kAtOnce; ++j) total[j] += own[j];
    }
    for (int j = 0; j < full; ++j) store(out + j * W, total[j] * share);
    return full * W;
}

// A query or few, as when decoding: rows of scores, no packing.
static void attend_few(const Attention& x, const float* q, const float* k, const float* v, const float* mask,
                       float* out, int64_t keys, float* scores) {
    const int64_t D = x.width, E = x.value_width;
    for (int64_t t = 0; t < x.queries; ++t) {
        const float* query = q + t * x.q_stride[2];
        int64_t here = x.causal ? least(keys, t + 1) : keys;
        float top = ZOO_MINUS_INF;
        for (int64_t s = 0; s < here; s += kAtOnce) {
            // past the last key the last one again: what it gives is not kept
            V sums[kAtOnce] = {};
            const float* key[kAtOnce];
            for (int j = 0; j < kAtOnce; ++j) key[j] = k + least(s + j, here - 1) * x.k_stride[2];
            for (int64_t d = 0; d < D; d += W) {
                int64_t n = D - d;
                V q_d = n >= W ? load(query + d) : load_some(query + d, n);
                for (int j = 0; j < kAtOnce; ++j) sums[j] += q_d * (n >= W ? load(key[j] + d) : load_some(key[j] + d, n));
            }
            for (int j = 0; j < kAtOnce && s + j < here; ++j) {
                float score = sum(sums[j]) * x.scale;
                if (mask) score += mask[t * x.mask_stride[2] + (s + j) * x.mask_stride[3]];
                scores[s + j] = score;
                if (!(score <= top)) top = score;
            }
        }
        if (top == ZOO_MINUS_INF) top = 0;
        V sums{};
        float* o = out + t * x.out_stride[2];
        for (int64_t s = 0; s < here; s += W) {
            int64_t n = here - s;
            if (n >= W) {
                V p = exp(load(scores + s) - top);
                store(scores + s, p);
                sums += p;
            } else {
                V p = exp(load_some(scores + s, n) - top);
                for (int64_t i = 0; i < W; ++i)
                    if (i >= n) p[i] = 0;
                store_some(scores + s, p, n);
                sums += p;
            }
        }
        float whole = sum(sums), share = mask && whole == 0 ? 0 : 1 / whole;
        for (int64_t e = 0; e < E;) e += weighted_sum(v + e, x.v_stride[2], scores, here, E - e, share, o + e);
    }
}

// A head's keys and values as left-hand sides, then its panels of queries.
template <class K>
static void attend_packed(const Attention& x, const float* q, const float* k, const float* v, const float* mask, float* out,
                          int64_t keys, float* work, float* packed_k, int64_t chunk) {
    const int64_t D = x.width, E = x.value_width, S = x.keys, DW = words_of<K>(D), SW = words_of<K>(S);
    const int64_t mk = tile_rows(S), mv = tile_rows(E);
    float* packed_v = packed_k + S * DW;
    for (int64_t s = 0; s < keys; s += mk) {
        if constexpr (K::kPerWord == 1)
            pack_tile(k + s * x.k_stride[2], x.k_stride[2], 1, least(mk, S - s), D, packed_k + s * D);
        else
            words_of_rows<K>(k + s * x.k_stride[2], x.k_stride[2], least(mk, S - s), D, packed_k + s * DW, least(mk, S - s));
    }
    for (int64_t e = 0; e < E; e += mv) {
        const int64_t rows = least(mv, E - e);
        float* to = packed_v + e * SW;
        for (int64_t s = 0; s < keys; s += K::kPerWord, to += rows) {
            const float* from = v + s * x.v_stride[2] + e;
            if constexpr (K::kPerWord == 1 && MR >= W) {
                for (int64_t i = 0; i < rows; ++i) to[i] = from[i];
            } else if constexpr (K::kPerWord == 1) {
                store_some(to, load_some(from, rows), rows);
            } else {
                V next = s + 1 < keys ? load_some(from + x.v_stride[2], rows) : V{};
                store_some(to, K::pairs(load_some(from, rows), next), rows);
            }
        }
    }
    for (int64_t p = x.panels * chunk / x.chunks; p < x.panels * (chunk + 1) / x.chunks; ++p) {
        attend_panel<K>(x, packed_k, packed_v, q, mask, out, p * NR, keys, work);
    }
}

static void attend(void* context, int64_t task) {
    Attention& all = *(Attention*)context;
    Attention x = all;
    int64_t chunk = task % x.chunks, h = task / x.chunks % x.heads, b = task / (x.chunks * x.heads);
    int64_t kv = h / x.kv_group;
    const float* mask = x.masked ? x.mask->data + b * x.mask_stride[0] + h * x.mask_stride[1] : nullptr;
    int64_t axis = 0, place = b;  // where this one's numbers begin: in the batch, or in the row of all sequences
    if (x.offsets) {
        axis = 2, place = x.offsets[b];
        x.queries = x.keys = x.offsets[b + 1] - place;
        x.panels = ceil_div(x.queries, NR);
        if (!x.keys) return;
    }
    const float* q = x.q + place * x.q_stride[axis] + h * x.q_stride[1];
    const float* k = x.k + place * x.k_stride[axis] + kv * x.k_stride[1];
    const float* v = x.v + place * x.v_stride[axis] + kv * x.v_stride[1];
    float* out = x.out + place * x.out_stride[axis] + h * x.out_stride[1];
    const int64_t D = x.width, E = x.value_width, S = x.keys;
    int64_t keys = visible(x, mask);
    int64_t work = (D + kKeyBlock + 2 * MR + E) * NR;
    float* memory = scratch(kAttention, (size_t)(work + S * (D + E) + S + NR));
    if (!memory) {
        __atomic_store_n(&all.failed, true, __ATOMIC_RELAXED);
        return;
    }
    if (x.queries < 5) {
        if (chunk == 0) attend_few(x, q, k, v, mask, out, keys, memory);
        return;
    }
#if defined(__AVX512BF16__)
    if (x.precision == ZOO_AS_BFLOAT16) return attend_packed<Bfloat16>(x, q, k, v, mask, out, keys, memory, memory + work, chunk);
#endif
    attend_packed<Float>(x, q, k, v, mask, out, keys, memory, memory + work, chunk);
}

static int attention(const zoo_attention_args* args) {
    if (args->batch <= 0 || args->heads <= 0 || args->queries <= 0 || args->value_width <= 0) return ZOO_OK;
    Attention x{*args};
    x.masked = args->mask && args->mask->data;
    x.causal = args->mask && args->mask->causal;
    if (x.masked) memcpy(x.mask_stride, args->mask->stride, sizeof x.mask_stride);
    int64_t heads = x.batch * x.heads, workers = threads();
    x.panels = ceil_div(x.queries, NR);
    x.chunks = 1;
    if (workers > 1 && heads < 4 * workers && x.queries >= 5) x.chunks = least(x.panels, ceil_div(4 * workers, heads));
    parallel(heads * x.chunks, attend, &x);
    return x.failed ? ZOO_OUT_OF_MEMORY : ZOO_OK;
}

}  // namespace zoo::ZOO_ISA
