// The kernels over arrays as frameworks have them: any strides, masks of truth values, sizes not yet checked.
// Legend: B batch, H heads of the queries, G heads of keys and values, T queries, S keys, D width of a head, E of a value.
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "kernels.h"

namespace zoo {
namespace {

constexpr const char* kNoMemory = "no memory left";

const char* said(int status) {
    switch (status) {
        case ZOO_OK: return nullptr;
        case ZOO_OUT_OF_MEMORY: return kNoMemory;
        default: return "the kernel refuses these sizes";
    }
}

int64_t count(const zoo_view& x) {
    int64_t n = 1;
    for (int i = 0; i < x.rank; ++i) n *= x.size[i];
    return n;
}

bool is_float(const zoo_view* x) { return x->dtype == ZOO_FLOAT32; }

// Sizes that are not negative, and whose product does not overflow.
bool sane(const zoo_view* x) {
    if (x->rank < 0 || x->rank > ZOO_MAX_RANK) return false;
    int64_t n = 1;
    for (int i = 0; i < x->rank; ++i)
        if (x->size[i] < 0 || __builtin_mul_overflow(n, x->size[i], &n)) return false;
    return n == 0 || x->data;
}

bool same_shape(const zoo_view& a, const zoo_view& b) {
    return a.rank == b.rank && !memcmp(a.size, b.size, sizeof(int64_t) * (size_t)a.rank);
}

// A view without gaps, in memory of its own where it had some.
class Contiguous {
  public:
    ~Contiguous() { release(memory_); }

    // Its last `dims` dims must be without gaps, the others at one distance from each other, which is `step`.
    const char* rows(const zoo_view& x, int dims) {
        data = (const float*)x.data;
        step = 1;
        for (int i = x.rank - 1; i >= 0; --i) {
            if (x.rank - i > dims) break;
            if (x.size[i] != 1 && x.stride[i] != step) return copy(x, dims);
            step *= x.size[i];
        }
        bool first = true;
        int64_t next = 0;
        for (int i = x.rank - 1 - dims; i >= 0; --i) {
            if (x.size[i] == 1) continue;
            if (first)
                step = x.stride[i];
            else if (x.stride[i] != next)
                return copy(x, dims);
            first = false;
            next = x.stride[i] * x.size[i];
        }
        return nullptr;
    }

    const float* data = nullptr;
    int64_t step = 0;

  private:
    const char* copy(const zoo_view& x, int dims) {
        if (x.rank > 6) return "an array of more than six dims that has gaps";
        int64_t n = count(x);
        memory_ = (float*)allocate(sizeof(float) * (size_t)(n ? n : 1));
        if (!memory_) return kNoMemory;
        zoo_binary_args args{};
        args.a = (const float*)x.data;
        args.out = memory_;
        args.op = ZOO_COPY;
        step = 1;
        for (int i = 0; i < 6; ++i) {
            int own = i - (6 - x.rank);
            args.shape[i] = own < 0 ? 1 : x.size[own];
            args.a_stride[i] = own < 0 ? 0 : x.stride[own];
            if (own >= x.rank - dims) step *= args.shape[i];
        }
        data = memory_;
        return said(zoo_binary(&args));
    }

    float* memory_ = nullptr;
};

// What is to be added to the scores, as the kernel reads it fastest: nothing where it hides nothing, one row where all
// queries see the same, else numbers of neighbouring queries side by side.
template <class Number>
const char* prepare(const Number* data, const int64_t size[4], const int64_t stride[4], bool alone, zoo_mask* mask) {
    auto value = [](Number x) -> float {
        if constexpr (sizeof(Number) == 1) return x ? 0.0f : -INFINITY;
        return (float)x;
    };
    const int64_t B = size[0], H = size[1], T = size[2], S = size[3];
    bool nothing = true, causal = sizeof(Number) == 1 && T > 1 && alone, equal = true;
    for (int64_t b = 0; b < B; ++b)
        for (int64_t h = 0; h < H; ++h) {
            const Number* plane = data + b * stride[0] + h * stride[1];
            for (int64_t t = 0; t < T; ++t) {
                const Number* row = plane + t * stride[2];
                bool none = true, same = true, triangle = true;
                for (int64_t s = 0; s < S; ++s) {
                    Number x = row[s * stride[3]];
                    none &= sizeof(Number) == 1 ? (bool)x : x == 0;
                    same &= x == plane[s * stride[3]];
                    triangle &= (bool)x == (s <= t);
                }
                nothing &= none;
                equal &= same;
                causal &= triangle;
                if (!nothing && !causal && !equal) break;
            }
        }
    if (nothing) return nullptr;
    if (causal) {
        mask->causal = 1;
        return nullptr;
    }
    const int64_t rows = equal ? 1 : T;
    float* out = scratch(kMask, (size_t)(B * H * S * rows));
    if (!out) return kNoMemory;
    mask->data = out;
    for (int64_t b = 0; b < B; ++b)
        for (int64_t h = 0; h < H; ++h) {
            const Number* plane = data + b * stride[0] + h * stride[1];
            // 16 x 16 at a time: each side goes through memory in whole cache lines
            for (int64_t t0 = 0; t0 < rows; t0 += 16)
                for (int64_t s = 0; s < S; ++s)
                    for (int64_t t = t0; t < rows && t < t0 + 16; ++t)
                        out[s * rows + t] = value(plane[t * stride[2] + s * stride[3]]);
            out += S * rows;
        }
    const int64_t own[4] = {H * S * rows, S * rows, 1, rows}, sizes[4] = {B, H, rows, S};
    for (int i = 0; i < 4; ++i) mask->stride[i] = sizes[i] == 1 ? 0 : own[i];
    return nullptr;
}

const char* prepare(const zoo_view& x, const int64_t full[4], zoo_mask* mask) {
    if (x.rank > 4) return "a mask has more than four dims";
    int64_t size[4], stride[4];
    bool alone = true;
    for (int i = 0; i < 4; ++i) {
        int own = i - (4 - x.rank);
        size[i] = own < 0 || x.stride[own] == 0 ? 1 : x.size[own];
        stride[i] = own < 0 ? 0 : x.stride[own];
        if (own >= 0 && x.size[own] != 1 && x.size[own] != full[i]) return "a mask does not broadcast to [B, H, T, S]";
        if (i >= 2) alone &= size[i] == full[i];
        if (size[i] == 0) return nullptr;
    }
    return x.dtype == ZOO_BOOL ? prepare((const uint8_t*)x.data, size, stride, alone, mask)
                               : prepare((const float*)x.data, size, stride, false, mask);
}

}  // namespace
}  // namespace zoo

using namespace zoo;

extern "C" {

const char* zoo_norm_views(const zoo_view* x, const zoo_view* residual, const zoo_view* weight, const zoo_view* bias,
                           double eps, int32_t rms, float* out, float* sum) {
    const zoo_view* parts[] = {x, residual, weight, bias};
    for (const zoo_view* part : parts)
        if (part && (!is_float(part) || !sane(part))) return "norm takes float32 arrays of up to eight dims";
    if (x->rank < 1) return "norm needs an array of at least one dim";
    const int64_t cols = x->size[x->rank - 1], n = count(*x);
    if (residual && !same_shape(*x, *residual)) return "norm needs a residual of the input's shape";
    for (const zoo_view* part : {weight, bias})
        if (part && (part->rank < 1 || part->size[part->rank - 1] != cols || count(*part) != cols)) return "norm needs a weight and a bias of one row's size";
    if (!n) return nullptr;
    Contiguous a, b, w, c;
    if (const char* error = a.rows(*x, 1)) return error;
    if (residual)
        if (const char* error = b.rows(*residual, 1)) return error;
    if (weight)
        if (const char* error = w.rows(*weight, 1)) return error;
    if (bias)
        if (const char* error = c.rows(*bias, 1)) return error;
    zoo_norm_args args{a.data, b.data, w.data, c.data, residual ? sum : nullptr, out, n / cols,
                       cols,   a.step, b.step, (float)eps, rms};
    return said(zoo_norm(&args));
}

const char* zoo_attention_views(const zoo_view* q, const zoo_view* k, const zoo_view* v, const zoo_view* mask,
                                int32_t causal, double scale, const zoo_view* out) {
    for (const zoo_view* part : {q, k, v, out}) {
        if (!is_float(part) || !sane(part) || part->rank != 4) return "attention takes float32 arrays of four dims";
    }
    const int64_t B = q->size[0], H = q->size[1], T = q->size[2], D = q->size[3], G = k->size[1], S = k->size[2],
                  E = v->size[3];
    if (k->size[3] != D || v->size[1] != G || v->size[2] != S) return "attention needs keys and values that fit the queries";
    if (k->size[0] != B || v->size[0] != B) return "attention needs one batch of queries, keys and values";
    if (G < 1 ? H > 0 : H % G != 0) return "attention needs heads of queries that are a multiple of those of keys";
    const int64_t result[4] = {B, H, T, E};
    if (memcmp(out->size, result, sizeof result)) return "attention's result has another shape";
    if (!count(*out)) return nullptr;
    if (!S) {
        memset(const_cast<void*>(out->data), 0, sizeof(float) * (size_t)count(*out));
        return nullptr;
    }
    zoo_mask added{};
    added.causal = causal;
    if (mask && !causal) {
        const int64_t full[4] = {B, H, T, S};
        if (!sane(mask)) return "attention's mask has impossible sizes";
        if (const char* error = prepare(*mask, full, &added)) return error;
    }
    zoo_attention_args args{};
    Contiguous parts[3];
    const zoo_view* views[3] = {q, k, v};
    int64_t* strides[3] = {args.q_stride, args.k_stride, args.v_stride};
    const float* data[3];
    for (int i = 0; i < 3; ++i) {
        const zoo_view& x = *views[i];
        if (x.size[3] > 1 && x.stride[3] != 1) {
            if (const char* error = parts[i].rows(x, 4)) return error;
            data[i] = parts[i].data;
            int64_t step = 1;
            for (int d = 2; d >= 0; --d) strides[i][d] = (step *= x.size[d + 1]);
        } else {
            data[i] = (const float*)x.data;
            memcpy(strides[i], x.stride, sizeof(int64_t) * 3);
        }
    }
    memcpy(args.out_stride, out->stride, sizeof(int64_t) * 3);
    args.q = data[0], args.k = data[1], args.v = data[2];
    args.out = (float*)const_cast<void*>(out->data);
    args.mask = &added;
    args.batch = B, args.heads = H, args.kv_group = H / G, args.queries = T, args.keys = S, args.width = D;
    args.value_width = E;
    args.scale = (float)scale;
    return said(zoo_attention(&args));
}

const char* zoo_gated_views(const zoo_view* x, const zoo_view* y, int32_t op, float* out) {
    for (const zoo_view* part : {x, y})
        if (!is_float(part) || !sane(part)) return "gated takes float32 arrays of up to eight dims";
    if (!same_shape(*x, *y)) return "gated needs two arrays of one shape";
    const int64_t n = count(*x);
    if (!n) return nullptr;
    Contiguous a, b;
    const int inner = x->rank ? 1 : 0;
    if (const char* error = a.rows(*x, inner)) return error;
    if (const char* error = b.rows(*y, inner)) return error;
    const int64_t cols = inner ? x->size[x->rank - 1] : 1;
    zoo_binary_args args{};
    args.a = a.data, args.b = b.data, args.out = out, args.op = ZOO_GATED + op;
    for (int i = 0; i < 6; ++i) args.shape[i] = 1;
    args.shape[4] = n / cols, args.shape[5] = cols;
    args.a_stride[4] = a.step, args.b_stride[4] = b.step;
    args.a_stride[5] = args.b_stride[5] = 1;
    return said(zoo_binary(&args));
}
}
