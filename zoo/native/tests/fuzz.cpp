// Bytes as calls of the kernels, for a fuzzer: whatever sizes, strides and numbers an adapter or a graph may come with.
// Arrays are exactly as large as the ABI says, so that a sanitizer sees what is read or written beside them; results must
// be written whole, and nothing between their rows. Sizes that no array can have must be refused.
//
// tools/fuzz.py makes a libFuzzer of it. Else it has a main of its own, which runs what is in the corpus it is given, or
// in a file of one input that broke it, and as many random inputs as FUZZ_RUNS says.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "../zoo_native.h"

extern "C" void __sanitizer_set_death_callback(void (*)());

namespace {

std::vector<uint8_t> current;  // the input that main runs

void keep() {
    FILE* file = current.empty() ? nullptr : fopen("fuzz-failed", "wb");
    if (!file) return;
    fwrite(current.data(), 1, current.size(), file);
    fclose(file);
    fprintf(stderr, "the input is in fuzz-failed\n");
}

constexpr int64_t kMost = 1 << 16;  // numbers in an array
constexpr uint32_t kUnwritten = 0x7fdeadbe;

class Bytes {
  public:
    Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
    uint8_t byte() { return at_ < size_ ? data_[at_++] : 0; }
    int choice(int n) { return byte() % n; }
    bool one_in(int n) { return choice(n) == n - 1; }
    // Mostly small, at times what a block or a vector ends at, at times what no array has.
    int64_t size() {
        const int b = byte();
        if (b < 160) return b % 24;
        if (b < 250) return (b % 5 + 1) * 16 + b / 5 % 3 - 1;
        static const int64_t strange[] = {-1, INT64_MIN, INT64_MAX, -(int64_t)1 << 33, INT64_MAX / 2, (int64_t)1 << 62};
        strange_ = true;
        return strange[b - 250];
    }
    bool strange() const { return strange_; }
    uint32_t number() { return seed_ = seed_ * 1664525u + 1013904223u + byte(); }

  private:
    const uint8_t* data_;
    size_t size_, at_ = 0;
    bool strange_ = false;
    uint32_t seed_ = 1;
};

void wrong(const char* what) {
    fprintf(stderr, "%s on %s\n", what, zoo_get_isa());
    keep();
    abort();
}

int64_t more(int64_t size, int64_t by) { return size < kMost ? size + by : size; }

bool product(std::initializer_list<int64_t> sizes, int64_t* count) {
    *count = 1;
    bool any = false;
    for (int64_t size : sizes) {
        if (size < 0 || size > kMost) return false;
        any |= size == 0;
        *count *= size;
        if (*count > kMost) return any;  // an array with a side of 0 is empty however long the others are
    }
    return true;
}

// An array on the heap of exactly so many numbers.
struct Array {
    std::unique_ptr<float[]> data;
    int64_t count = 0;

    float* of(Bytes& in, int64_t n) {
        count = n;
        data.reset(new float[(size_t)n]);
        for (int64_t i = 0; i < n; ++i) data[i] = (float)(in.number() >> 8) / (float)(1 << 23) - 1;
        return data.get();
    }
    float* unwritten(int64_t n) {
        count = n;
        data.reset(new float[(size_t)n]);
        for (int64_t i = 0; i < n; ++i) memcpy(&data[i], &kUnwritten, 4);
        return data.get();
    }
    bool written(int64_t i) const {
        uint32_t bits;
        memcpy(&bits, &data[i], 4);
        return bits != kUnwritten;
    }
    // Rows of `cols` numbers with `step` between their first ones: the numbers, and nothing else.
    void check_rows(const char* what, int64_t rows, int64_t cols, int64_t step) const {
        for (int64_t i = 0; i < count; ++i)
            if (written(i) != (cols && i % step < cols && i / step < rows)) wrong(what);
    }
    void check(const char* what) const {
        for (int64_t i = 0; i < count; ++i)
            if (!written(i)) wrong(what);
    }
};

// A call whose sizes no array has: it must say so.
void refused(const char* what, int status) {
    if (status == ZOO_OK) wrong(what);
}

int64_t rows_of(int64_t rows, int64_t cols, int64_t step) { return rows && cols ? (rows - 1) * step + cols : 0; }

void linear(Bytes& in) {
    int64_t m = in.size(), k = in.size(), n = in.size();
    const int32_t precision = in.choice(4), activation = in.choice(11);
    const int64_t lda = more(k, in.choice(3)), ldc = more(n, in.choice(3)), ldr = more(n, in.choice(2));
    const bool turned = in.one_in(2), biased = in.one_in(2), added = in.one_in(2);
    Array a, w, bias, residual, c;
    int64_t weights;
    if (!product({k, n}, &weights)) {
        if (zoo_pack_right_as(nullptr, k, n, 1, 1, precision)) wrong("packed what no array has");
        return;
    }
    zoo_packed* packed = zoo_pack_right_as(w.of(in, weights), k, n, turned ? n : 1, turned ? 1 : k, precision);
    if (!packed != (precision > ZOO_AS_INT8)) wrong("pack_right");
    if (!packed) return;
    zoo_linear_args args{nullptr, m, k, lda, packed, nullptr, nullptr, ldr, nullptr, ldc, activation};
    int64_t count;
    if (in.one_in(8)) args.k = more(k, 1);
    if (!product({m, std::max({lda, ldc, ldr})}, &count) || args.k != k || activation > ZOO_RELU6) {
        if (m < 0 || args.k != k || activation > ZOO_RELU6) refused("linear", zoo_linear(&args));
    } else {
        args.a = a.of(in, rows_of(m, k, lda));
        args.bias = biased ? bias.of(in, n) : nullptr;
        args.residual = added ? residual.of(in, rows_of(m, n, ldr)) : nullptr;
        args.c = c.unwritten(rows_of(m, n, ldc));
        if (zoo_linear(&args) != ZOO_OK) wrong("linear refused");
        c.check_rows("linear", m, n, ldc);
    }
    zoo_packed_free(packed);
}

void matmul(Bytes& in) {
    const int64_t batch[3] = {in.choice(3), 1 + in.choice(2), 1 + in.choice(2)}, m = in.size(), n = in.size(), k = in.size();
    const bool turned_a = in.one_in(2), turned_b = in.one_in(2), shared = in.one_in(2);
    zoo_matmul_args args{nullptr, nullptr, nullptr, {batch[0], batch[1], batch[2]}, {}, {}, m, n, k, turned_a ? 1 : k,
                         turned_a ? m : 1, turned_b ? 1 : n, turned_b ? k : 1};
    int64_t mk, kn, mn;
    const int64_t all = batch[0] * batch[1] * batch[2];
    if (!product({m, k, all}, &mk) || !product({k, n, all}, &kn) || !product({m, n, all}, &mn)) {
        if (m < 0 || n < 0 || k < 0) refused("matmul", zoo_matmul(&args));
        return;
    }
    Array a, b, c;
    int64_t step_a = m * k, step_b = shared ? 0 : k * n;
    for (int i = 2; i >= 0; --i) {
        args.a_batch[i] = step_a, args.b_batch[i] = step_b;
        step_a *= batch[i], step_b *= batch[i];
    }
    args.a = a.of(in, mk), args.b = b.of(in, shared ? k * n : kn), args.c = c.unwritten(mn);
    Array bias, residual;
    args.activation = in.choice(11), args.ldr = more(n, in.choice(2));
    if (in.one_in(2)) args.bias = bias.of(in, n);
    if (int64_t rows = all * m, most; in.one_in(2) && product({rows, args.ldr}, &most)) args.residual = residual.of(in, rows_of(rows, n, args.ldr));
    if (args.activation > ZOO_RELU6) return refused("matmul", zoo_matmul(&args));
    if (zoo_matmul(&args) != ZOO_OK) wrong("matmul refused");
    c.check("matmul");
}

void attention(Bytes& in) {
    const int64_t B = in.choice(4), G = 1 + in.choice(3), group = in.choice(3), T = in.size(), S = in.size();
    const int64_t D = in.size(), E = in.one_in(2) ? D : in.size(), H = G * std::max<int64_t>(group, 1);
    const int32_t precision = in.choice(3);
    const int masked = in.choice(4);
    const bool tokens_first = in.one_in(2), causal = in.one_in(3), packed = in.one_in(4);
    zoo_mask mask{nullptr, {}, causal};
    zoo_attention_args args{};
    args.batch = B, args.heads = H, args.kv_group = group, args.queries = T, args.keys = S, args.width = D, args.value_width = E;
    args.scale = 0.3f, args.precision = precision;
    args.mask = masked || causal ? &mask : nullptr;
    int64_t counts[4], scores;
    const bool sized = product({B, H, T, D}, counts) && product({B, G, S, D}, counts + 1) && product({B, G, S, E}, counts + 2) &&
                       product({B, H, T, E}, counts + 3) && product({B, H, T, S}, &scores);
    if (!sized || !group || precision > ZOO_AS_BFLOAT16) {
        if (!group || precision > ZOO_AS_BFLOAT16 || T < 0 || S < 0 || D < 0 || E < 0) refused("attention", zoo_attention(&args));
        return;
    }
    auto strides = [&](int64_t* stride, int64_t heads, int64_t tokens, int64_t width) {
        stride[0] = heads * tokens * width;
        stride[1] = tokens_first ? width : tokens * width;
        stride[2] = tokens_first ? heads * width : width;
    };
    Array q, k, v, out, added;
    std::vector<int64_t> offsets;
    args.q = q.of(in, counts[0]), args.k = k.of(in, counts[1]), args.v = v.of(in, counts[2]), args.out = out.unwritten(counts[3]);
    strides(args.q_stride, H, T, D), strides(args.k_stride, G, S, D);
    strides(args.v_stride, G, S, E), strides(args.out_stride, H, T, E);
    if (masked) {
        const int64_t size[4] = {masked & 1 ? B : 1, masked == 3 ? H : 1, masked == 2 ? 1 : T, S};
        int64_t step = 1;
        for (int i = 3; i >= 0; --i) {
            mask.stride[i] = size[i] == 1 ? 0 : step;
            step *= size[i];
        }
        float* data = added.of(in, step);
        for (int64_t i = 0; i < step; ++i)
            if (in.one_in(3)) data[i] = -INFINITY;
        mask.data = data;
    }
    if (packed && T == S && B == 1) {
        offsets = {0};
        while (offsets.size() < 5 && offsets.back() < T) offsets.push_back(std::min<int64_t>(T, offsets.back() + in.choice(20)));
        if (offsets.back() != T) offsets.push_back(T);
        if (in.one_in(8)) offsets[0] = -1;
        args.offsets = offsets.data();
        args.batch = (int64_t)offsets.size() - 1;
        mask.stride[0] = 0;
        if (offsets[0] < 0) return refused("attention of sequences", zoo_attention(&args));
    }
    if (zoo_attention(&args) != ZOO_OK) wrong("attention refused");
    out.check("attention");
}

void norm(Bytes& in) {
    const int64_t rows = in.size(), cols = in.size(), step = more(cols, in.choice(3)), other = more(cols, in.choice(3));
    const bool added = in.one_in(2), kept = in.one_in(2), weighted = in.one_in(2), biased = in.one_in(2), rms = in.one_in(2);
    zoo_norm_args args{nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, rows, cols, step, other, 1e-5f, rms};
    int64_t count;
    if (!product({rows, std::max(step, other)}, &count) || cols < 0) {
        if (rows < 0 || cols < 0) refused("norm", zoo_norm(&args));
        return;
    }
    Array x, residual, weight, bias, sum, out;
    args.x = x.of(in, rows_of(rows, cols, step)), args.out = out.unwritten(rows * cols);
    if (added) args.residual = residual.of(in, rows_of(rows, cols, other));
    if (added && kept) args.sum = sum.unwritten(rows * cols);
    if (weighted) args.weight = weight.of(in, cols);
    if (biased) args.bias = bias.of(in, cols);
    if (zoo_norm(&args) != ZOO_OK) wrong("norm refused");
    out.check("norm"), sum.check("sum of a norm");
}

void elementwise(Bytes& in) {
    const int64_t rows = in.size(), cols = in.size();
    const int32_t op = in.choice(11);
    int64_t n;
    Array x, out;
    if (!product({rows, cols}, &n)) {
        zoo_softmax_args softmax{nullptr, nullptr, rows, cols};
        if (rows < 0 || cols < 0) refused("softmax", zoo_softmax(&softmax));
        return;
    }
    zoo_softmax_args softmax{x.of(in, n), out.unwritten(n), rows, cols};
    if (zoo_softmax(&softmax) != ZOO_OK) wrong("softmax refused");
    out.check("softmax");
    zoo_unary_args unary{x.data.get(), out.unwritten(n), n, op};
    if ((zoo_unary(&unary) == ZOO_OK) != (op <= ZOO_RELU6)) wrong("unary");
    if (op <= ZOO_RELU6) out.check("unary");
}

void binary(Bytes& in) {
    zoo_binary_args args{};
    args.op = in.one_in(2) ? in.choice(6) : ZOO_GATED + in.choice(11);
    bool right = args.op <= ZOO_DIV;
    for (int op : {ZOO_RELU, ZOO_GELU, ZOO_GELU_TANH, ZOO_SILU, ZOO_SIGMOID}) right = right || args.op == ZOO_GATED + op;
    int64_t steps[2] = {1, 1}, n = 1;
    int order[6] = {0, 1, 2, 3, 4, 5};
    for (int i = 5; i > 0; --i) std::swap(order[i], order[in.choice(i + 1)]);
    for (int i = 0; i < 6; ++i) args.shape[i] = i < 2 ? 1 + in.choice(2) : in.one_in(12) ? in.size() : in.choice(5);
    for (int d = 5; d >= 0; --d) {  // in any order in memory, some of them broadcast
        const int i = order[d];
        if (!product({n, args.shape[i]}, &n)) {
            if (args.shape[i] < 0) refused("binary", zoo_binary(&args));
            return;
        }
        int64_t* strides[2] = {args.a_stride, args.b_stride};
        for (int which : {0, 1}) {
            const bool repeated = in.one_in(4);
            strides[which][i] = repeated ? 0 : steps[which];
            if (!repeated) steps[which] *= args.shape[i];
        }
    }
    Array a, b, out;
    args.a = a.of(in, steps[0]), args.out = out.unwritten(n);
    args.b = args.op == ZOO_COPY ? nullptr : b.of(in, steps[1]);
    if ((zoo_binary(&args) == ZOO_OK) != right) wrong("binary");
    if (right) out.check("binary");
}

void embedding(Bytes& in) {
    const int64_t rows = in.size(), cols = in.size(), n = in.size();
    zoo_embedding_args args{nullptr, nullptr, nullptr, rows, cols, n};
    int64_t count, made;
    if (!product({rows, cols}, &count) || !product({n, cols}, &made) || n > kMost) {
        if (rows < 0 || cols < 0 || n < 0) refused("embedding", zoo_embedding(&args));
        return;
    }
    args.row_bytes = cols * 4;
    Array table, out;
    std::vector<int64_t> index((size_t)n);
    bool within = true;
    for (auto& i : index) {
        i = in.one_in(50) ? in.size() : rows ? (int64_t)(in.number() % (uint64_t)rows) : 0;
        within &= i >= 0 && i < rows;
    }
    args.table = table.of(in, count), args.index = index.data(), args.out = out.unwritten(made);
    if (zoo_embedding(&args) != (within ? ZOO_OK : ZOO_OUT_OF_RANGE)) wrong("embedding");
    if (within) out.check("embedding");
}

int64_t fitting(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    const int64_t reach = dilation * (kernel - 1) + 1;
    return size + 2 * pad < reach ? 0 : (size + 2 * pad - reach) / stride + 1;
}

void images(Bytes& in) {
    const int what = in.choice(3);  // convolution, depthwise, pooling
    const int64_t N = in.choice(3), C = in.one_in(10) ? in.size() : in.choice(20), groups = what ? 1 : in.choice(4), M = in.choice(20);
    int64_t size[2], kernel[2], stride[2], pad[2], dilation[2], made[2];
    bool sane = true;
    for (int i : {0, 1}) {
        size[i] = in.one_in(12) ? in.size() : in.choice(14);
        kernel[i] = in.one_in(2) ? 3 : in.choice(6), stride[i] = in.choice(4), pad[i] = in.choice(3), dilation[i] = in.choice(3);
        if (in.one_in(30)) stride[i] = -1;
        if (in.one_in(30)) kernel[i] = -1;
        sane = sane && kernel[i] > 0 && stride[i] > 0 && dilation[i] > 0 && size[i] >= 0 && size[i] < 200;
        made[i] = sane ? fitting(size[i], kernel[i], stride[i], pad[i], dilation[i]) : in.choice(9);
        if (in.one_in(20)) made[i] += 3;  // windows over nothing but padding
    }
    const int32_t layout = in.choice(3), activation = in.choice(11);
    const bool biased = in.one_in(2), added = in.one_in(2), sum = in.one_in(2);
    const int64_t channels = what || C > kMost || C < 0 ? C : C * std::max<int64_t>(groups, 1), outs = what ? C : M * std::max<int64_t>(groups, 1);
    int64_t count, result, weights;
    if (!product({N, channels, size[0], size[1]}, &count) || !product({N, outs, made[0], made[1]}, &result)) {
        zoo_pool_args pool{nullptr, nullptr, N, channels, size[0], size[1], {1, 1}, {1, 1}, {}, {made[0], made[1]}, sum, 0};
        if (channels < 0 || size[0] < 0 || size[1] < 0) refused("pool", zoo_pool(&pool));
        return;
    }
    Array x, weight, bias, residual, out;
    float *from = x.of(in, count), *to = out.unwritten(result);
    if (what == 2) {
        zoo_pool_args args{from, to, N, channels, size[0], size[1], {kernel[0], kernel[1]}, {stride[0], stride[1]},
                           {pad[0], pad[1]}, {made[0], made[1]}, sum, layout != ZOO_PLANES};
        const int status = zoo_pool(&args);
        if ((kernel[0] < 1 || kernel[1] < 1 || stride[0] < 1 || stride[1] < 1)) return refused("pool", status);
        if (status != ZOO_OK) wrong("pool refused");
        return out.check("pool");
    }
    const int64_t window = std::max<int64_t>(kernel[0], 0) * std::max<int64_t>(kernel[1], 0);
    if (!product({outs, what ? 1 : C, window}, &weights)) return;
    float* taps = weight.of(in, weights);
    if (what == 1) {
        zoo_depthwise_args args{from, taps, biased ? bias.of(in, channels) : nullptr, to, N, channels, size[0], size[1],
                                {kernel[0], kernel[1]}, {stride[0], stride[1]}, {pad[0], pad[1]}, {dilation[0], dilation[1]},
                                {made[0], made[1]}, activation, layout != ZOO_PLANES};
        const int status = zoo_depthwise(&args);
        if (!sane || activation > ZOO_RELU6) return refused("depthwise", status);
        if (status != ZOO_OK) wrong("depthwise refused");
        return out.check("depthwise");
    }
    const bool winograd = layout == ZOO_WINOGRAD;
    zoo_packed* packed = zoo_pack_conv(taps, groups, M, C, window, layout);
    if (!packed != (winograd && window != 9)) wrong("pack_conv");
    if (!packed) return;
    zoo_conv_args args{from, packed, biased ? bias.of(in, outs) : nullptr, added ? residual.of(in, result) : nullptr, to, N,
                       channels, size[0], size[1], outs, groups, {kernel[0], kernel[1]}, {stride[0], stride[1]}, {pad[0], pad[1]},
                       {dilation[0], dilation[1]}, {made[0], made[1]}, activation};
    bool right = sane && groups && activation <= ZOO_RELU6;
    for (int i : {0, 1}) right = right && (!winograd || (kernel[i] == 3 && stride[i] == 1 && dilation[i] == 1));
    const int status = zoo_conv(&args);
    if ((status == ZOO_OK) != right) wrong(right ? "conv refused" : "conv");
    if (right) out.check("conv");
    zoo_packed_free(packed);
}

// A view of up to four dims, in any order in memory and with gaps; the array is as long as its last element asks for.
bool view(Bytes& in, Array* array, zoo_view* x, int rank, const int64_t* size) {
    x->dtype = in.one_in(20) ? 1 + in.choice(3) : ZOO_FLOAT32;
    x->rank = rank;
    int order[4] = {0, 1, 2, 3};
    for (int i = rank - 1; i > 0; --i) std::swap(order[i], order[in.choice(i + 1)]);
    int64_t step = 1 + in.one_in(4), last = 0;
    bool none = false;
    for (int d = rank - 1; d >= 0; --d) {
        const int i = order[d];
        x->size[i] = size[i];
        if (size[i] < 0 || size[i] > 200) return false;
        x->stride[i] = in.one_in(6) ? 0 : step;
        last += x->stride[i] * std::max<int64_t>(size[i] - 1, 0);
        none |= size[i] == 0;
        step *= std::max<int64_t>(size[i], 1) + in.one_in(4);
        if (step > kMost) return false;
    }
    x->data = array->of(in, none ? 0 : last + 1);
    return true;
}

void views(Bytes& in) {
    const int rank = 1 + in.choice(4);
    int64_t size[4];
    for (int i = 0; i < 4; ++i) size[i] = in.one_in(10) ? in.size() : in.choice(9);
    Array arrays[5], out, sum;
    zoo_view x, y, weight, bias, mask;
    int64_t n;
    if (in.one_in(2)) {
        if (!view(in, &arrays[0], &x, rank, size) || !view(in, &arrays[1], &y, rank, size)) return;
        int64_t cols = size[rank - 1];
        if (!view(in, &arrays[2], &weight, 1, &cols) || !view(in, &arrays[3], &bias, 1, &cols)) return;
        n = 1;
        for (int i = 0; i < rank; ++i) n *= size[i];
        const int32_t op = in.choice(12);
        const bool added = in.one_in(2), weighted = in.one_in(2);
        if (in.one_in(10)) y.size[in.choice(rank)] += 1;
        float* to = out.unwritten(n);
        if (!zoo_norm_views(&x, added ? &y : nullptr, weighted ? &weight : nullptr, weighted ? &bias : nullptr, 1e-5, in.one_in(2), to,
                            sum.unwritten(n)))
            out.check("norm of views");
        if (!zoo_gated_views(&x, &y, op, out.unwritten(n))) out.check("gated views");
        return;
    }
    const int64_t B = in.choice(3), G = 1 + in.choice(2), H = G * (1 + in.choice(2)), T = size[0], S = size[1], D = size[2], E = size[3];
    const int64_t sizes[4][4] = {{B, H, T, D}, {B, G, S, D}, {B, G, S, E}, {in.one_in(2) ? B : 1, 1, in.one_in(2) ? T : 1, S}};
    if (!view(in, &arrays[0], &x, 4, sizes[0]) || !view(in, &arrays[1], &y, 4, sizes[1]) || !view(in, &arrays[2], &weight, 4, sizes[2]))
        return;
    const bool truth = in.one_in(2), masked = in.one_in(2);
    if (!view(in, &arrays[3], &mask, 4, sizes[3])) return;
    std::vector<unsigned char> seen((size_t)arrays[3].count);
    for (auto& s : seen) s = in.one_in(2);
    if (truth) mask.dtype = ZOO_BOOL, mask.data = seen.data();
    if (!product({B, H, T, E}, &n)) return;
    zoo_view to{out.unwritten(n), ZOO_FLOAT32, 4, {B, H, T, E}, {H * T * E, E, H * E, 1}};
    if (!zoo_attention_views(&x, &y, &weight, masked ? &mask : nullptr, in.one_in(3), 0.3, &to)) out.check("attention of views");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const int one_thread = zoo_set_threads(1);
    if (one_thread != ZOO_OK) abort();
    Bytes in(data, size);
    static const char* const isas[] = {"avx512_bf16", "avx512", "avx2", "base"};
    zoo_set_isa(isas[in.choice(4)]);  // one that is not here leaves that of the call before
    void (*const kernels[])(Bytes&) = {linear, matmul, attention, norm, elementwise, binary, embedding, images, views};
    kernels[in.choice(9)](in);
    return 0;
}

#if !defined(ZOO_LIBFUZZER)
static std::vector<uint8_t> read(const char* path) {
    std::vector<uint8_t> all(1 << 22);
    FILE* file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(1);
    }
    all.resize(fread(all.data(), 1, all.size(), file));
    fclose(file);
    return all;
}

int main(int count, char** files) {
    __sanitizer_set_death_callback(keep);
    size_t inputs = 0;
    for (int i = 1; i < count; ++i) {
        const auto all = read(files[i]);
        if (!strstr(files[i], ".corpus")) {
            current = all;
            LLVMFuzzerTestOneInput(current.data(), current.size());
            continue;
        }
        for (size_t at = 0; at + 2 <= all.size(); at += 2 + current.size(), ++inputs) {
            const size_t size = std::min<size_t>(all[at] + 256 * all[at + 1], all.size() - at - 2);
            current.assign(all.begin() + (ptrdiff_t)at + 2, all.begin() + (ptrdiff_t)(at + 2 + size));
            LLVMFuzzerTestOneInput(current.data(), current.size());
        }
    }
    const char* runs = getenv("FUZZ_RUNS");
    uint64_t state = 88172645463325252ull;
    for (long run = 0; run < (runs ? atol(runs) : 0); ++run) {
        current.resize(8 + run % 200);
        for (auto& byte : current) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            byte = (uint8_t)(state >> 32);
        }
        LLVMFuzzerTestOneInput(current.data(), current.size());
    }
    printf("%zu inputs of the corpus and %s random ones done\n", inputs, runs ? runs : "no");
    return 0;
}
#endif
