// Kernels on odd shapes and several threads, for the sanitizers: memory of exactly the size that the ABI asks for, and
// sums checked against a plain loop. Exit code 0 if all agree.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <thread>
#include <vector>

#include "../zoo_native.h"

namespace {

int failures = 0;
unsigned state = 1;

float number() { return (float)((state = state * 1664525u + 1013904223u) >> 8) / (float)(1 << 24) - 0.5f; }

std::vector<float> numbers(size_t n) {
    std::vector<float> v(n);
    for (float& x : v) x = number();
    return v;
}

void check(const char* what, const std::vector<float>& got, const std::vector<double>& want, double limit = 1e-4) {
    for (size_t i = 0; i < want.size(); ++i)
        if (!(fabs(got[i] - want[i]) <= limit * (1 + fabs(want[i])))) {
            printf("%s on %s: %g is not %g at %zu\n", what, zoo_get_isa(), got[i], want[i], i);
            ++failures;
            return;
        }
}

void linear(int64_t m, int64_t k, int64_t n) {
    auto a = numbers(m * k), w = numbers(n * k), bias = numbers(n), c = numbers(m * n);
    std::vector<double> want(m * n);
    for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
            double sum = bias[j];
            for (int64_t p = 0; p < k; ++p) sum += (double)a[i * k + p] * w[j * k + p];
            want[i * n + j] = sum > 0 ? sum : 0;
        }
    // each number is off by 1 / 512 of itself in bfloat16, by 1 / 510 and 1 / 254 of the largest in int8
    const double limits[] = {1e-4, 2e-2, 8e-3 * sqrt((double)k) + 1e-4};
    for (int32_t precision : {ZOO_AS_FLOAT32, ZOO_AS_BFLOAT16, ZOO_AS_INT8}) {
        zoo_packed* packed = zoo_pack_right_as(w.data(), k, n, 1, k, precision);
        zoo_linear_args args{a.data(), m, k, k, packed, bias.data(), nullptr, 0, c.data(), n, ZOO_RELU};
        if (zoo_linear(&args)) ++failures;
        check("linear", c, want, limits[precision]);
        if (precision == ZOO_AS_FLOAT32) {  // as it lies: the same numbers
            auto same = numbers(m * n);
            zoo_matmul_args unpacked{a.data(), w.data(), same.data(), {1, 1, 1}, {}, {}, m, n, k, k, 1, 1, k, bias.data(), nullptr, 0, ZOO_RELU};
            if (zoo_matmul(&unpacked) || same != c) ++failures;
        }
        zoo_packed_free(packed);
    }
    if (zoo_pack_right_as(w.data(), k, n, 1, k, 3)) ++failures;
}

void attention(int64_t heads, int64_t queries, int64_t keys, int64_t width) {
    auto q = numbers(heads * queries * width), k = numbers(heads * keys * width), v = numbers(heads * keys * width);
    auto out = numbers(heads * queries * width), added = numbers(queries * keys);
    zoo_mask mask{added.data(), {0, 0, keys, 1}, 0};
    zoo_attention_args args{q.data(), k.data(), v.data(), &mask, out.data(), 1, heads, 1, queries, keys, width, width,
                            {0, queries * width, width}, {0, keys * width, width}, {0, keys * width, width},
                            {0, queries * width, width}, 0.5f};
    if (zoo_attention(&args)) ++failures;
    std::vector<double> want(out.size());
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t t = 0; t < queries; ++t) {
            double total = 0;
            std::vector<double> row(width);
            for (int64_t s = 0; s < keys; ++s) {
                double score = 0;
                for (int64_t d = 0; d < width; ++d) score += q[(h * queries + t) * width + d] * k[(h * keys + s) * width + d];
                double p = exp(score * 0.5 + added[t * keys + s]);
                total += p;
                for (int64_t d = 0; d < width; ++d) row[d] += p * v[(h * keys + s) * width + d];
            }
            for (int64_t d = 0; d < width; ++d) want[(h * queries + t) * width + d] = row[d] / total;
        }
    check("attention", out, want);
}

// Sequences one after another, [rows][heads][width], each against the same one alone; some empty, some of few queries.
void sequences(int64_t heads, int64_t width) {
    const std::vector<int64_t> offsets{0, 1, 1, 41, 44, 244, 277};
    const int64_t count = (int64_t)offsets.size() - 1, rows = offsets.back(), step = heads * width, longest = 200;
    auto q = numbers(rows * step), k = numbers(rows * step), v = numbers(rows * step), out = numbers(rows * step);
    auto alone = numbers(rows * step), added = numbers(longest * longest);
    zoo_mask mask{added.data(), {0, 0, longest, 1}, 0};
    zoo_attention_args args{q.data(), k.data(), v.data(), &mask, out.data(), count, heads, 1, rows, rows, width, width,
                            {0, width, step}, {0, width, step}, {0, width, step}, {0, width, step}, 0.5f, 0, offsets.data()};
    if (zoo_attention(&args)) ++failures;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t at = offsets[i] * step;
        zoo_attention_args one = args;
        one.offsets = nullptr, one.batch = 1, one.queries = one.keys = offsets[i + 1] - offsets[i];
        one.q += at, one.k += at, one.v += at, one.out = alone.data() + at;
        if (zoo_attention(&one)) ++failures;
    }
    check("attention of sequences", out, std::vector<double>(alone.begin(), alone.end()));
    const int64_t wrong[][3] = {{0, 200, 278}, {-1, 200, 277}, {0, 278, 277}};
    for (auto& bad : wrong) {
        args.batch = 2, args.offsets = bad;
        if (zoo_attention(&args) != ZOO_BAD_ARGUMENT) ++failures;
    }
}

void rows(int64_t n, int64_t cols) {
    auto x = numbers(n * cols), y = numbers(n * cols), out = numbers(n * cols), sum = numbers(n * cols);
    zoo_norm_args norm{x.data(), y.data(), x.data(), y.data(), sum.data(), out.data(), n, cols, cols, cols, 1e-5f, 0};
    zoo_softmax_args softmax{x.data(), out.data(), n, cols};
    zoo_unary_args unary{x.data(), out.data(), n * cols, ZOO_GELU};
    zoo_binary_args binary{x.data(), y.data(), out.data(), {1, 1, 1, 1, n, cols}, {0, 0, 0, 0, cols, 1}, {0, 0, 0, 0, 0, 1}, ZOO_ADD};
    zoo_step steps[] = {{(int (*)(const void*))zoo_norm, &norm}, {(int (*)(const void*))zoo_softmax, &softmax},
                        {(int (*)(const void*))zoo_unary, &unary}, {(int (*)(const void*))zoo_binary, &binary}};
    int64_t failed = -1;
    if (zoo_run(steps, 4, &failed)) ++failures;
    std::vector<double> want(n * cols);
    for (int64_t i = 0; i < n * cols; ++i) want[i] = x[i] + y[i % cols];
    check("binary", out, want);
}

// The kernels over a framework's arrays: strides, masks that broadcast, a lent pool, and what does not fit.
void views(int64_t queries, int64_t keys) {
    const int64_t B = 2, H = 4, G = 2, D = 9;
    auto q = numbers(B * queries * H * D), k = numbers(B * keys * G * D), v = numbers(B * keys * G * D), out = numbers(q.size());
    auto heads = [&](std::vector<float>& x, int64_t n, int64_t h) {
        return zoo_view{x.data(), ZOO_FLOAT32, 4, {B, h, n, D}, {n * h * D, D, h * D, 1}};
    };
    zoo_view qs = heads(q, queries, H), ks = heads(k, keys, G), vs = heads(v, keys, G), to = heads(out, queries, H);
    std::vector<unsigned char> seen(B * queries * keys);
    for (auto& x : seen) x = number() < 0.2f;
    for (int64_t i = 0; i < B * queries; ++i) seen[i * keys] = 1;
    zoo_view mask{seen.data(), ZOO_BOOL, 4, {B, 1, queries, keys}, {queries * keys, queries * keys, keys, 1}};
    int64_t calls = 0;
    auto one_by_one = [](void* user, int64_t count, zoo_body body, void* context) {
        ++*(int64_t*)user;
        for (int64_t i = 0; i < count; ++i) body(context, i);
    };
    zoo_pool_of pool{one_by_one, &calls, 2};
    const zoo_pool_of* before = zoo_lend_pool(&pool);
    if (zoo_attention_views(&qs, &ks, &vs, &mask, 0, 0.5, &to)) ++failures;
    if (zoo_lend_pool(before) != &pool || !calls) ++failures;
    std::vector<double> want(out.size());
    for (int64_t b = 0; b < B; ++b)
        for (int64_t h = 0; h < H; ++h)
            for (int64_t t = 0; t < queries; ++t) {
                double total = 0, row[D] = {};
                for (int64_t s = 0; s < keys; ++s) {
                    if (!seen[(b * queries + t) * keys + s]) continue;
                    double score = 0;
                    const int64_t at = ((b * keys + s) * G + h / 2) * D;
                    for (int64_t d = 0; d < D; ++d) score += q[((b * queries + t) * H + h) * D + d] * k[at + d];
                    total += exp(score * 0.5);
                    for (int64_t d = 0; d < D; ++d) row[d] += exp(score * 0.5) * v[at + d];
                }
                for (int64_t d = 0; d < D; ++d) want[((b * queries + t) * H + h) * D + d] = row[d] / total;
            }
    check("attention of views", out, want);
    zoo_view other = mask;
    other.size[3] = keys + 1;
    if (!zoo_attention_views(&qs, &ks, &vs, &other, 0, 0.5, &to)) ++failures;
    other = ks;
    other.size[2] = -1;
    if (!zoo_attention_views(&qs, &other, &vs, nullptr, 0, 0.5, &to)) ++failures;
    other = qs;
    other.size[0] = other.size[1] = other.size[2] = (int64_t)1 << 30;
    if (!zoo_attention_views(&other, &ks, &vs, nullptr, 0, 0.5, &to)) ++failures;
    // columns of q as rows: gaps everywhere
    zoo_view x{q.data(), ZOO_FLOAT32, 3, {D, queries, H}, {1, H * D, D}};
    auto normal = numbers(D * queries * H), sum = numbers(normal.size());
    if (zoo_norm_views(&x, &x, nullptr, nullptr, 1e-5, 0, normal.data(), sum.data())) ++failures;
    std::vector<double> twice(sum.size());
    for (int64_t d = 0; d < D; ++d)
        for (int64_t i = 0; i < queries * H; ++i) twice[d * queries * H + i] = 2.0 * q[i * D + d];
    check("sum of views", sum, twice);
    if (zoo_gated_views(&x, &x, ZOO_RELU, normal.data())) ++failures;
    for (double& w : twice) w = w > 0 ? w * w / 4 : 0;
    check("gated views", normal, twice);
    if (!zoo_gated_views(&x, &qs, ZOO_RELU, normal.data()) || !zoo_norm_views(&mask, nullptr, nullptr, nullptr, 1e-5, 0, normal.data(), nullptr))
        ++failures;
}

// [channels][pixels] as [pixels][channels].
std::vector<float> last(const std::vector<float>& x, int64_t channels) {
    const int64_t pixels = (int64_t)x.size() / channels;
    std::vector<float> out(x.size());
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t p = 0; p < pixels; ++p) out[p * channels + c] = x[c * pixels + p];
    return out;
}

void conv(int64_t channels, int64_t size, int64_t out_channels, int64_t kernel, int64_t stride, int64_t pad, int64_t groups = 1) {
    const int64_t out_size = (size + 2 * pad - kernel) / stride + 1, C = channels / groups, M = out_channels / groups;
    const int64_t window = kernel * kernel, taps = C * window;
    auto x = numbers(channels * size * size), w = numbers(out_channels * taps), bias = numbers(out_channels);
    auto out = numbers(out_channels * out_size * out_size), residual = numbers(out.size());
    std::vector<double> want(out.size());
    for (int64_t o = 0; o < out_channels; ++o)
        for (int64_t oh = 0; oh < out_size; ++oh)
            for (int64_t ow = 0; ow < out_size; ++ow) {
                const int64_t at = (o * out_size + oh) * out_size + ow;
                double sum = bias[o] + residual[at];
                for (int64_t t = 0; t < taps; ++t) {
                    int64_t c = o / M * C + t / window, h = oh * stride - pad + t / kernel % kernel, v = ow * stride - pad + t % kernel;
                    if (h >= 0 && h < size && v >= 0 && v < size) sum += (double)x[(c * size + h) * size + v] * w[o * taps + t];
                }
                want[at] = sum > 0 ? sum : 0;
            }
    const auto x_last = last(x, channels), residual_last = last(residual, out_channels);
    for (int32_t layout : {ZOO_PLANES, ZOO_LAST, ZOO_WINOGRAD}) {
        const bool planes = layout == ZOO_PLANES;
        if (layout == ZOO_WINOGRAD && kernel != 3) continue;
        zoo_packed* packed = zoo_pack_conv(w.data(), groups, M, C, window, layout);
        zoo_conv_args args{planes ? x.data() : x_last.data(), packed, bias.data(), planes ? residual.data() : residual_last.data(),
                           out.data(), 1, channels, size, size, out_channels, groups,
                           {kernel, kernel}, {stride, stride}, {pad, pad}, {1, 1}, {out_size, out_size}, ZOO_RELU};
        const bool fits = layout != ZOO_WINOGRAD || stride == 1;
        if (zoo_conv(&args) != (fits ? ZOO_OK : ZOO_BAD_ARGUMENT)) ++failures;
        if (fits) check("conv", planes ? out : last(out, out_size * out_size), want);
        zoo_packed_free(packed);
    }
}

void planes(int64_t channels, int64_t size) {
    auto x = numbers(channels * size * size), w = numbers(channels * 9);
    const int64_t half = size / 2;
    auto pooled = numbers(channels * half * half), same = numbers(x.size());
    zoo_pool_args pool{x.data(), pooled.data(), 1, channels, size, size, {2, 2}, {2, 2}, {0, 0}, {half, half}, 1, 0};
    zoo_depthwise_args depthwise{x.data(), w.data(), nullptr, same.data(), 1, channels, size, size,
                                 {3, 3}, {1, 1}, {1, 1}, {1, 1}, {size, size}, ZOO_SILU, 0};
    if (zoo_pool(&pool) || zoo_depthwise(&depthwise)) ++failures;
    const std::vector<double> sums(pooled.begin(), pooled.end()), all(same.begin(), same.end());
    const auto x_last = last(x, channels), w_last = last(w, channels);
    pool.x = depthwise.x = x_last.data(), depthwise.weight = w_last.data(), pool.last = depthwise.last = 1;
    if (zoo_pool(&pool) || zoo_depthwise(&depthwise)) ++failures;
    check("pool", last(pooled, half * half), sums);
    check("depthwise", last(same, size * size), all);
    // the same order by a copy
    auto copied = numbers(x.size());
    zoo_binary_args copy{x.data(), nullptr, copied.data(), {1, 1, 1, 1, size * size, channels}, {0, 0, 0, 0, 1, size * size}, {}, ZOO_COPY};
    if (zoo_binary(&copy)) ++failures;
    check("copy", copied, std::vector<double>(x_last.begin(), x_last.end()), 0);
}

void all() {
    for (int64_t m : {1, 5, 14, 31})
        for (int64_t n : {1, 17, 33, 64}) linear(m, 3 * m + 7, n);
    linear(3, 600, 5);
    attention(2, 3, 9, 5);
    attention(3, 40, 300, 19);
    attention(2, 2, 150, 150);
    sequences(3, 20);
    views(3, 20);
    views(37, 140);
    for (int64_t cols : {1, 15, 16, 17, 100}) rows(7, cols);
    rows(300, 200);
    conv(3, 11, 5, 3, 2, 1);
    conv(8, 9, 20, 1, 1, 0);
    conv(19, 7, 37, 3, 1, 1);
    conv(40, 6, 34, 3, 1, 2, 2);
    conv(3, 23, 33, 7, 2, 3);
    conv(300, 3, 16, 3, 1, 0);
    for (int64_t channels : {3, 16, 37}) planes(channels, 9);
}

}  // namespace

int main() {
    for (const char* isa : {"base", "avx2", "avx512", "avx512_vnni", "avx512_bf16"}) {
        if (zoo_set_isa(isa)) {
            printf("no %s here\n", isa);
            continue;
        }
        for (int64_t threads : {1, 3}) {
            zoo_set_threads(threads);
            all();
        }
        printf("%s done\n", isa);
    }
    // callers at once: one has the pool, the other runs on its own
    zoo_packed* packed;
    auto w = numbers(64 * 64), x = numbers(200 * 64);
    packed = zoo_pack_right(w.data(), 64, 64, 1, 64);
    auto work = [&] {
        std::vector<float> c(200 * 64);
        zoo_linear_args args{x.data(), 200, 64, 64, packed, nullptr, nullptr, 0, c.data(), 64, ZOO_GELU};
        for (int i = 0; i < 50; ++i)
            if (zoo_linear(&args)) abort();
    };
    std::thread other(work);
    work();
    other.join();
    zoo_packed_free(packed);
    if (failures) printf("%d failed\n", failures);
    return failures != 0;
}
