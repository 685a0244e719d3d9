// What goes row by row or number by number: normalisations, softmax, activations.
#pragma once

#include "gemm.h"

namespace zoo::ZOO_ISA {

ZOO_INLINE V read(const float* p, int64_t n) { return n >= W ? load(p) : load_some(p, n); }
ZOO_INLINE void write(float* p, V v, int64_t n) {
    if (n >= W)
        store(p, v);
    else
        store_some(p, v, n);
}

// The first n numbers of v, the others 0.
ZOO_INLINE V only(V v, int64_t n) {
    if (n < W)
        for (int64_t i = n > 0 ? n : 0; i < W; ++i) v[i] = 0;
    return v;
}

// Rows are handed out in runs of about 16,000 numbers: less is not worth waking a thread for.
struct RowJob {
    const void* args;
    int64_t rows, at_once;
    void (*row)(const void* args, int64_t row);
};
static void some_rows(void* context, int64_t task) {
    const RowJob& job = *(const RowJob*)context;
    for (int64_t r = task * job.at_once; r < least(job.rows, (task + 1) * job.at_once); ++r) job.row(job.args, r);
}
static void by_rows(const void* args, int64_t rows, int64_t cols, void (*row)(const void*, int64_t)) {
    RowJob job{args, rows, 1 + 16384 / (cols + 1), row};
    parallel(ceil_div(rows, job.at_once), some_rows, &job);
}

struct Yes {
    constexpr operator bool() const { return true; }
};
struct No {
    constexpr operator bool() const { return false; }
};

// A row's vectors, the last of which may be cut: f(position, how many numbers of it, which of four sums).
template <class F>
ZOO_INLINE void each(int64_t n, F f) {
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        for (int j = 0; j < 4; ++j) f(i + j * W, (int64_t)W, j);
    for (; i + W <= n; i += W) f(i, (int64_t)W, 0);
    if (i < n) f(i, n - i, 1);
}

ZOO_INLINE float total(const V sums[4]) { return sum((sums[0] + sums[1]) + (sums[2] + sums[3])); }

static void norm_row(const void* args, int64_t r) {
    const zoo_norm_args& a = *(const zoo_norm_args*)args;
    const int64_t n = a.cols;
    const bool rms = a.rms;
    const float *x = a.x + r * a.stride_x, *weight = a.weight, *bias = a.bias;
    float* out = a.out + r * n;
    V sums[4] = {};
    if (a.residual) {
        const float* residual = a.residual + r * a.stride_residual;
        float* both = a.sum ? a.sum + r * n : out;
        each(n, [&](int64_t i, int64_t here, int j) {
            V v = read(x + i, here) + read(residual + i, here);
            write(both + i, v, here);
            sums[j] += rms ? v * v : v;
        });
        x = both;
    } else {
        each(n, [&](int64_t i, int64_t here, int j) {
            V v = read(x + i, here);
            sums[j] += rms ? v * v : v;
        });
    }
    float mean = 0, variance = total(sums) / (float)n;
    if (!rms) {
        mean = variance;
        for (int j = 0; j < 4; ++j) sums[j] = V{};
        each(n, [&](int64_t i, int64_t here, int j) {
            V d = only(read(x + i, here) - mean, here);
            sums[j] += d * d;
        });
        variance = total(sums) / (float)n;
    }
    const float scale = 1.0f / __builtin_sqrtf(variance + a.eps);
    auto finish = [&](auto has_weight, auto has_bias) {
        each(n, [&](int64_t i, int64_t here, int) {
            V v = read(x + i, here);
            V y = (v - mean) * scale;
            if constexpr (has_weight) y *= read(weight + i, here);
            if constexpr (has_bias) y += read(bias + i, here);
            write(out + i, y, here);
        });
    };
    if (a.weight && a.bias)
        finish(Yes{}, Yes{});
    else if (a.weight)
        finish(Yes{}, No{});
    else if (a.bias)
        finish(No{}, Yes{});
    else
        finish(No{}, No{});
}

static int norm(const zoo_norm_args* args) {
    by_rows(args, args->rows, args->cols, norm_row);
    return ZOO_OK;
}

static void softmax_row(const void* args, int64_t r) {
    const zoo_softmax_args& a = *(const zoo_softmax_args*)args;
    const int64_t n = a.cols;
    const float* x = a.x + r * n;
    float* out = a.out + r * n;
    V top = splat(-__builtin_inff());
    int64_t i = 0;
    for (; i + W <= n; i += W) top = max(top, load(x + i));
    float most = maximum(top);
    for (; i < n; ++i) most = most > x[i] ? most : x[i];
    V sums{};
    for (i = 0; i < n; i += W) {
        V p = only(exp(read(x + i, n - i) - most), n - i);
        write(out + i, p, n - i);
        sums += p;
    }
    float share = 1.0f / sum(sums);
    for (i = 0; i < n; i += W) write(out + i, read(out + i, n - i) * share, n - i);
}

static int softmax(const zoo_softmax_args* args) {
    by_rows(args, args->rows, args->cols, softmax_row);
    return ZOO_OK;
}

constexpr int64_t kRun = 8192;

template <int OP>
static void unary_run(void* context, int64_t task) {
    const zoo_unary_args& a = *(const zoo_unary_args*)context;
    int64_t end = least(a.n, (task + 1) * kRun);
    for (int64_t i = task * kRun; i < end; i += W) {
        write(a.out + i, activate(read(a.x + i, end - i), OP), end - i);
    }
}

static int unary(const zoo_unary_args* args) {
    static constexpr zoo_body runs[] = {unary_run<0>, unary_run<1>, unary_run<2>, unary_run<3>, unary_run<4>,
                                        unary_run<5>, unary_run<6>, unary_run<7>, unary_run<8>, unary_run<9>};
    parallel(ceil_div(args->n, kRun), runs[args->op], (void*)args);
    return ZOO_OK;
}

template <int OP>
ZOO_INLINE V combine(V a, V b) {
    if constexpr (OP == ZOO_COPY) return a;
    if constexpr (OP == ZOO_ADD) return a + b;
    if constexpr (OP == ZOO_SUB) return a - b;
    if constexpr (OP == ZOO_MUL) return a * b;
    if constexpr (OP == ZOO_DIV) return a / b;
    return activate(a, OP - ZOO_GATED) * b;
}

// n numbers from p, `stride` apart; n may be more than W.
ZOO_INLINE V pick(const float* p, int64_t stride, int64_t n) {
    if (stride == 1) return read(p, n);
    if (stride == 0) return splat(*p);
    V v{};
    for (int64_t i = 0; i < least(n, W); ++i) v[i] = p[i * stride];
    return v;
}

template <int OP>
static void binary_row(const void* args, int64_t r) {
    const zoo_binary_args& x = *(const zoo_binary_args*)args;
    const int64_t n = x.shape[5], sa = x.a_stride[5], sb = x.b_stride[5];
    const float* a = x.a;
    const float* b = x.b;
    float* out = x.out + r * n;
    for (int d = 4; d >= 0; --d) {
        const int64_t i = r % x.shape[d];
        r /= x.shape[d];
        a += i * x.a_stride[d];
        if (OP != ZOO_COPY) b += i * x.b_stride[d];
    }
    if (sa == 1 && (sb == 1 || OP == ZOO_COPY)) {
        int64_t i = 0;
        for (; i + W <= n; i += W) store(out + i, combine<OP>(load(a + i), OP == ZOO_COPY ? V{} : load(b + i)));
        if (i < n) store_some(out + i, combine<OP>(load_some(a + i, n - i), OP == ZOO_COPY ? V{} : load_some(b + i, n - i)), n - i);
        return;
    }
    for (int64_t i = 0; i < n; i += W) {
        V right = OP == ZOO_COPY ? V{} : pick(b + i * sb, sb, n - i);
        write(out + i, combine<OP>(pick(a + i * sa, sa, n - i), right), n - i);
    }
}

constexpr int gated(int op) { return (int)ZOO_GATED + op; }

// A copy of what lies in memory the other way round, some columns at a time.
constexpr int64_t kColumns = 256;

static void transpose_columns(void* context, int64_t task) {
    const zoo_binary_args& x = *(const zoo_binary_args*)context;
    const int64_t cols = x.shape[4], rows = x.shape[5], runs = ceil_div(cols, kColumns), col = task % runs * kColumns;
    int64_t matrix = task / runs;
    const float* a = x.a + col;
    float* out = x.out + (matrix * cols + col) * rows;
    for (int d = 3; d >= 0; --d) {
        a += matrix % x.shape[d] * x.a_stride[d];
        matrix /= x.shape[d];
    }
    transpose(a, x.a_stride[5], 1, rows, least(kColumns, cols - col), out, rows);
}

static int binary(const zoo_binary_args* x) {
    int64_t rows = 1;
    for (int d = 0; d < 5; ++d) rows *= x->shape[d];
    if (rows == 0 || x->shape[5] == 0) return ZOO_OK;
    if (x->op == ZOO_COPY && x->a_stride[4] == 1 && x->a_stride[5] != 1) {
        parallel(rows / x->shape[4] * ceil_div(x->shape[4], kColumns), transpose_columns, (void*)x);
        return ZOO_OK;
    }
    void (*row)(const void*, int64_t) = nullptr;
    switch (x->op) {
        case ZOO_COPY: row = binary_row<ZOO_COPY>; break;
        case ZOO_ADD: row = binary_row<ZOO_ADD>; break;
        case ZOO_SUB: row = binary_row<ZOO_SUB>; break;
        case ZOO_MUL: row = binary_row<ZOO_MUL>; break;
        case ZOO_DIV: row = binary_row<ZOO_DIV>; break;
        case gated(ZOO_RELU): row = binary_row<gated(ZOO_RELU)>; break;
        case gated(ZOO_GELU): row = binary_row<gated(ZOO_GELU)>; break;
        case gated(ZOO_GELU_TANH): row = binary_row<gated(ZOO_GELU_TANH)>; break;
        case gated(ZOO_SILU): row = binary_row<gated(ZOO_SILU)>; break;
        case gated(ZOO_SIGMOID): row = binary_row<gated(ZOO_SIGMOID)>; break;
        default: return ZOO_BAD_ARGUMENT;
    }
    by_rows(x, rows, x->shape[5], row);
    return ZOO_OK;
}

}  // namespace zoo::ZOO_ISA
